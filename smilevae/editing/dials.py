"""dials.json: the calibrated directions of a checkpoint, for photo, slider and export.

It also holds the smile meter, the typical eyes and mouth of the training images and a digest of the weights.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from smilevae import runs
from smilevae.editing.alignment import Points
from smilevae.editing.classifier import SmileMeter, meter_from
from smilevae.editing.dial import Dial, dial_from
from smilevae.errors import CheckpointError, ConfigError
from smilevae.models.vae import VAE
from smilevae.runs import checkpoint

NAME = "dials.json"


class Dials(NamedTuple):
    """Dials by direction, with the best direction, the smile meter (if any) and the typical eyes and mouth."""

    best: str
    dials: dict[str, Dial]
    meter: SmileMeter | None
    points: Points

    def turn(self, vae: VAE, mu: Tensor, intensities: Tensor, direction: str | None = None) -> Tensor:
        """Codes of faces at intensities: (B, D), (I,) -> (B, I, D); the meter, if any, measures each face.

        Raises ConfigError for a direction without a dial.
        """
        if (name := direction or self.best) not in self.dials:
            raise ConfigError(f"direction={name} is unknown; choose one of {', '.join(sorted(self.dials))}")
        device, meter = next(vae.parameters()).device, self.meter

        def smile_of(codes: Tensor) -> Tensor:
            assert meter is not None
            return torch.cat([meter(vae.decode(z.to(device)).cpu().clamp(0, 1)) for z in codes.split(128)])

        return self.dials[name].turn(mu, intensities, smile_of if meter else None)


def write(folder: Path, vae: VAE, dials: Dials) -> None:
    content = {
        "weights": checkpoint.digest(vae),
        "best": dials.best,
        "eyes": dials.points,
        "dials": {name: dial.plain() for name, dial in dials.dials.items()},
        "reader": dials.meter and dials.meter.plain(),  # the smile meter
    }
    runs.write_text(folder / NAME, json.dumps(content) + "\n")


def read(path: Path, vae: VAE) -> Dials:
    """The dials of a checkpoint. Raises CheckpointError where these weights have none."""
    content = runs.read_evaluation(path, NAME, checkpoint.digest(vae))
    try:
        dials = {str(name): dial_from(dial, vae.latent_dim) for name, dial in content["dials"].items()}
        points = np.array(content["eyes"], dtype=float)  # and the mouth, in newer files
        if content["best"] not in dials or points.shape not in ((2, 2), (3, 2)) or not (abs(points - 0.5) <= 0.5).all():
            raise ValueError
        meter = meter_from(content["reader"]) if content["reader"] else None
        return Dials(content["best"], dials, meter, tuple((x, y) for x, y in points.tolist()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        again = f"run {runs.program('evaluate')} ckpt={runs.short(path)}"
        raise CheckpointError(f"{NAME} of {path} is damaged; {again} again") from None

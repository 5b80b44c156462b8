"""dials.json: what an evaluation leaves for smilevae.apps.photo, smilevae.apps.slider and whoever is given the model.

The calibrated directions, the reader that faces are measured with as they are turned, where eyes are in the training
pictures, and a digest of the weights that all this was found for.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from smilevae import runs
from smilevae.editing import alignment
from smilevae.editing.classifier import Reader, reader_from
from smilevae.editing.directions import Dial, dial_from
from smilevae.errors import CheckpointError, ConfigError
from smilevae.models.vae import VAE
from smilevae.runs import checkpoint

NAME = "dials.json"


class Dials(NamedTuple):
    """Dials by the name of their direction, the best of them, the reader (if there is one) and typical eyes."""

    best: str
    dials: dict[str, Dial]
    reader: Reader | None
    eyes: alignment.Points

    def turn(self, vae: VAE, mu: Tensor, intensities: Tensor, direction: str | None = None) -> Tensor:
        """Codes of faces at intensities: (B, D), (I,) -> (B, I, D), every face measured by the reader if there is one.

        Raises ConfigError for a direction that there is no dial of.
        """
        if (name := direction or self.best) not in self.dials:
            raise ConfigError(f"direction={name} is unknown; choose one of {', '.join(sorted(self.dials))}")
        device, reader = next(vae.parameters()).device, self.reader

        def read(codes: Tensor) -> Tensor:
            assert reader is not None
            return torch.cat([reader(vae.decode(z.to(device)).cpu().clamp(0, 1)) for z in codes.split(128)])

        return self.dials[name].turn(mu, intensities, read if reader else None)


def write(folder: Path, vae: VAE, found: Dials) -> None:
    content = {
        "weights": checkpoint.digest(vae),
        "best": found.best,
        "eyes": found.eyes,
        "dials": {name: dial.plain() for name, dial in found.dials.items()},
        "reader": found.reader and found.reader.plain(),
    }
    runs.write_text(folder / NAME, json.dumps(content) + "\n")


def read(ckpt: Path, vae: VAE) -> Dials:
    """The dials of a checkpoint's evaluation. Raises CheckpointError where there are none, or not for these weights."""
    path = runs.evaluated(checkpoint.run_of(ckpt)) / NAME
    again = f"run python evaluate.py ckpt={runs.short(ckpt)}"
    try:
        content = json.loads(path.read_text())
        if content["weights"] != checkpoint.digest(vae):
            raise CheckpointError(f"{path} is of another checkpoint than {ckpt.name}; {again}")
        dials = {str(name): dial_from(dial, vae.latent_dim) for name, dial in content["dials"].items()}
        eyes = np.array(content["eyes"], dtype=float)
        if content["best"] not in dials or eyes.shape != (2, 2) or not ((eyes >= 0) & (eyes <= 1)).all():
            raise ValueError
        (a, b), (c, d) = eyes.tolist()
        reader = reader_from(content["reader"]) if content["reader"] else None
        return Dials(content["best"], dials, reader, ((a, b), (c, d)))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; {again} first") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{path} is damaged; {again} again") from None

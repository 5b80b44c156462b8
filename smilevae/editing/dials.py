"""dials.json: the calibrated directions of a checkpoint by attribute, for photo, slider and export.

It also holds the meters of the attributes, where training images have eyes and mouth, and a digest of the weights.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from smilevae import runs
from smilevae.editing.alignment import Points
from smilevae.editing.classifier import Meter, meter_from
from smilevae.editing.dial import Dial, ScoreOf, dial_from
from smilevae.errors import CheckpointError, ConfigError
from smilevae.models.vae import VAE
from smilevae.runs import checkpoint

NAME = "dials.json"


class Edit(NamedTuple):
    """The dials of one attribute by direction, with the best one and the meter, if any."""

    best: str
    dials: dict[str, Dial]
    meter: Meter | None

    def score_of(self, vae: VAE) -> ScoreOf | None:
        """What the meter measures on decoded codes; None without a meter."""
        device, meter = next(vae.parameters()).device, self.meter
        if meter is None:
            return None
        return lambda codes: torch.cat([meter(vae.decode(z.to(device)).cpu().clamp(0, 1)) for z in codes.split(128)])


class Dials(NamedTuple):
    """Edits by attribute, with the attribute that is meant without a name, and the typical eyes and mouth."""

    attribute: str
    edits: dict[str, Edit]
    points: Points

    def choose(self, attribute: str | None = None, direction: str | None = None) -> tuple[Edit, Dial]:
        """Raises ConfigError for an attribute or a direction without a dial."""
        if (name := attribute or self.attribute) not in self.edits:
            raise ConfigError(f"attribute={name} has no dial; choose one of {', '.join(sorted(self.edits))}")
        edit = self.edits[name]
        if (direction := direction or edit.best) not in edit.dials:
            raise ConfigError(f"direction={direction} is unknown; choose one of {', '.join(sorted(edit.dials))}")
        return edit, edit.dials[direction]

    def turn(
        self, vae: VAE, mu: Tensor, intensities: Tensor, direction: str | None = None, attribute: str | None = None
    ) -> Tensor:
        """Codes of faces at intensities: (B, D), (I,) -> (B, I, D); the meter, if any, measures each face.

        Raises ConfigError for an attribute or a direction without a dial.
        """
        edit, dial = self.choose(attribute, direction)
        return dial.turn(mu, intensities, edit.score_of(vae))

    def mix(self, vae: VAE, mu: Tensor, amounts: Mapping[str, float], direction: str | None = None) -> Tensor:
        """Codes of faces with several attributes at their intensities: (B, D) -> (B, D). Raises as `turn`.

        Best directions move one attribute without the others, so the moves add up. `direction` is of the first one.
        """
        total = mu.clone()
        for name, amount in amounts.items():
            moved = self.turn(vae, mu, torch.tensor([float(amount)]), direction, name)[:, 0] - mu if amount else 0
            total, direction = total + moved, None
        return total


def to_json(vae: VAE, dials: Dials) -> str:
    """The content of dials.json."""
    edits = {
        name: {"best": e.best, "dials": {n: d.plain() for n, d in e.dials.items()}} for name, e in dials.edits.items()
    }
    meters = {name: edit.meter.plain() for name, edit in dials.edits.items() if edit.meter}
    scales = {k: v for meter in meters.values() for k, v in meter.items() if k in ("mean", "sd")}  # equal in all
    content: dict[str, Any] = {"weights": checkpoint.digest(vae), "attribute": dials.attribute, "eyes": dials.points}
    content |= {"attributes": edits, "scales": scales}
    content["meters"] = {n: {k: v for k, v in meter.items() if k not in scales} for n, meter in meters.items()}
    return json.dumps(content) + "\n"


def read(path: Path, vae: VAE) -> Dials:
    """The dials of a checkpoint. Raises CheckpointError where these weights have none."""
    content = runs.read_evaluation(path, NAME, checkpoint.digest(vae))
    try:
        edits = {}
        for name, edit in content["attributes"].items():
            dials = {str(key): dial_from(dial, vae.latent_dim) for key, dial in edit["dials"].items()}
            meter = content["meters"].get(name)
            edits[str(name)] = Edit(str(edit["best"]), dials, meter and meter_from(content["scales"] | meter))
        points = np.array(content["eyes"], dtype=float)
        if content["attribute"] not in edits or any(edit.best not in edit.dials for edit in edits.values()):
            raise ValueError
        if points.shape != (3, 2) or not (abs(points - 0.5) <= 0.5).all():
            raise ValueError
        return Dials(content["attribute"], edits, tuple((x, y) for x, y in points.tolist()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        again = f"run {runs.command_name('evaluate')} ckpt={runs.shell_path(path)}"
        raise CheckpointError(f"{NAME} of {path} is damaged; {again} again") from None

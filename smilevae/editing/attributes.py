"""An attribute of faces: which faces have it, and the edit of codes that gives it to a face.

Shapes: N training faces, B batch, I intensities, D latent dimensions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from smilevae import runs
from smilevae.editing.alignment import Points
from smilevae.errors import ConfigError
from smilevae.models.vae import VAE
from smilevae.runs import checkpoint

NAME = "edits.safetensors"  # in an evaluation folder
PARTS = ("direction", "weights", "matrix")
NUMBERS = ("bias", "target", "gain", "low", "high")
LEAST_STEP = 0.25  # of the score, for a face that has the attribute already
LEAST_RISE = 0.3  # of the score along a face's own direction, as a share of that along `direction`


@dataclass(frozen=True)
class Attribute:
    """One attribute and its edit.

    Intensity 0 is the face itself, 1 has the attribute as an average face that has it. A face moves
    along `direction` (D,); with a `matrix` (D + 1, D) along its own direction, which is
    `direction` + (mu, 1) @ `matrix`. `weights` (D,) and `bias` estimate the score from a code; the
    step to intensity 1 raises it to `target`. `gain` is fitted so that decoded faces have the
    attribute at 1. From `low` to `high` the score follows, and edited faces look real.

    `labels` (N,) of the training faces are 1, 0 or NaN; a loaded attribute has none.
    """

    name: str
    labels: Tensor
    direction: Tensor
    matrix: Tensor | None = None
    weights: Tensor = field(default_factory=lambda: torch.empty(0))
    bias: float = 0.0
    target: float = 1.0
    gain: float = 1.0
    low: float = -3.0
    high: float = 3.0

    def edit(self, mu: Tensor, intensities: Tensor) -> Tensor:
        """Codes of faces at intensities: (B, D), (I,) -> (B, I, D)."""
        missing = (self.target - mu @ self.weights - self.bias).clamp(min=LEAST_STEP)
        own = self.direction.expand_as(mu)
        if self.matrix is not None:
            own = own + mu @ self.matrix[:-1] + self.matrix[-1]
        least = LEAST_RISE * float(self.direction @ self.weights)
        steps = self.gain * missing / (own @ self.weights).clamp(min=least)
        return mu[:, None] + (steps[:, None] * intensities)[:, :, None] * own[:, None]


class Edits(NamedTuple):
    """The attributes that a model can edit, the main one first; where faces have eyes and mouth."""

    attributes: list[Attribute]
    points: Points

    @property
    def main(self) -> Attribute:
        return self.attributes[0]

    def find(self, name: str) -> Attribute:
        """The attribute of a name. Raises ConfigError."""
        by_name = {attribute.name: attribute for attribute in self.attributes}
        if name not in by_name:
            known = ", ".join(sorted(by_name))
            raise ConfigError(f"attribute={name} cannot be edited; choose one of {known}")
        return by_name[name]

    def with_main(self, name: str | None) -> "Edits":
        """The same with another main attribute. Raises ConfigError."""
        first = self.main if name is None else self.find(name)
        rest = [attribute for attribute in self.attributes if attribute is not first]
        return self._replace(attributes=[first, *rest])

    def mix(self, mu: Tensor, amounts: Mapping[str, float]) -> Tensor:
        """Codes with several attributes at their intensities: (B, D) -> (B, D).

        An edit changes one attribute and not the others, so the edits add up. Raises ConfigError.
        """
        total = mu.clone()
        for name, amount in amounts.items():
            total += self.find(name).edit(mu, torch.tensor([float(amount)]))[:, 0] - mu
        return total


def mean_difference(mu: Tensor, labels: Tensor) -> Tensor:
    """Mean code of faces that have an attribute minus that of the others: (N, D), (N,) -> (D,).

    Larsen et al. 1512.09300, section 3.2. Raises ValueError where a class is missing.
    """
    if not ((labels == 1).any() and (labels == 0).any()):
        raise ValueError("a direction needs faces with and without the attribute")
    return mu[labels == 1].mean(0) - mu[labels == 0].mean(0)


def plain_attribute(name: str, mu: Tensor, labels: Tensor) -> Attribute:
    """The mean difference, with scores estimated from codes alone: class means are at 0 and 1."""
    direction = mean_difference(mu, labels)
    weights = direction / direction.square().sum()
    bias = -float(mu[labels == 0].mean(0) @ weights)
    return Attribute(name, labels, direction, weights=weights, bias=bias)


def to_bytes(vae: VAE, edits: Edits) -> bytes:
    """The content of edits.safetensors."""
    tensors = {
        f"{index}.{part}": getattr(attribute, part)
        for index, attribute in enumerate(edits.attributes)
        for part in PARTS
        if getattr(attribute, part) is not None
    }
    rows = [{key: getattr(one, key) for key in ("name", *NUMBERS)} for one in edits.attributes]
    content = {"weights": checkpoint.digest(vae), "points": edits.points, "attributes": rows}
    return runs.tensor_file(tensors, content)


def read(path: Path, vae: VAE) -> Edits:
    """The edits of a checkpoint. Raises CheckpointError where these weights have none."""
    content = runs.read_evaluation(path, NAME, checkpoint.digest(vae), runs.read_tensors)
    with runs.whole(path, NAME):
        tensors = content["tensors"]
        rows = enumerate(content["attributes"])
        attributes = [_attribute(row, index, tensors, vae.latent_dim) for index, row in rows]
        points = torch.tensor(content["points"], dtype=torch.float64)
        if points.shape != (3, 2) or not ((points - 0.5).abs() <= 0.5).all() or not attributes:
            raise ValueError
    return Edits(attributes, tuple((x, y) for x, y in points.tolist()))


def _attribute(row: Mapping, index: int, tensors: Mapping[str, Tensor], dims: int) -> Attribute:
    """One attribute of a file. Raises what `read` catches for a damaged one."""
    shapes = dict(zip(PARTS, [(dims,), (dims,), (dims + 1, dims)]))
    stored = [part for part in PARTS if f"{index}.{part}" in tensors]
    values: Any = {part: tensors[f"{index}.{part}"].view(shapes[part]) for part in stored}
    values |= {name: float(row[name]) for name in NUMBERS}
    if not all(torch.as_tensor(value).isfinite().all() for value in values.values()):
        raise ValueError("a number is not finite")
    attribute = Attribute(str(row["name"]), torch.empty(0), **values)
    if not attribute.direction @ attribute.weights > 0:
        raise ValueError("the score does not rise along the direction")
    return attribute

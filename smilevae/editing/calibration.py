"""Calibrates dials: intensity 1 on a direction gives an average face's attribute, as two readers see it.

Shapes: N examples, D latent dimensions, K attributes, S image side.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from smilevae.data.batches import gather, to_unit
from smilevae.data.dataset import Faces
from smilevae.editing import mesh
from smilevae.editing.classifier import AttributeClassifier, Classifier
from smilevae.editing.dial import Dial, calibrate, fit_estimate, neighbours
from smilevae.editing.dials import Edit
from smilevae.editing.geometry import GeometryReader
from smilevae.models.vae import VAE

MAX_CALIBRATED = 40  # faces that a dial's gain and range are fitted to
TRUSTED = 0.8  # accuracy from which on the geometry reader calibrates too
FACTORS = (1.0, 1.1, 1.2, 1.3, 1.4)  # times the classifier's target; more of it is a mouth pasted on
CHUNK = 64  # images decoded at a time


class Calibrator:
    """Fits dials of a VAE with an attribute classifier and, where it is, a geometry reader.

    `mu` (N, D) and `labels` (N,) are of the people whom both were trained on; `names` are the attributes that the
    classifier tells apart.
    """

    def __init__(
        self,
        vae: VAE,
        classifier: Classifier,
        geometry: GeometryReader | None,
        mu: Tensor,
        labels: Mapping[str, Tensor],
    ):
        self.vae, self.classifier, self.geometry = vae, classifier, geometry
        self.names = [name for name in labels if name in classifier.threshold]
        codes = torch.cat([mu, neighbours(mu)])
        scores, _ = self.measure(codes)
        self._estimates = {name: fit_estimate(codes, scores[name]) for name in self.names}
        self._targets = {name: float(scores[name][: len(mu)][labels[name] == 1].mean()) for name in self.names}

    def measure(self, codes: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Scores of decoded codes by attribute, and the share of their values outside [0, 1]: (N,) each."""
        scores, clipped = [], []
        for z in codes.split(CHUNK):
            x = decode(self.vae, z)
            scores.append(self.classifier(inside := x.clamp(0, 1)))
            clipped.append((x != inside).float().mean((1, 2, 3)))
        return {name: torch.cat([some[name] for some in scores]) for name in self.names}, torch.cat(clipped)

    def accuracy(self, mu: Tensor, labels: Mapping[str, Tensor]) -> dict[str, float]:
        """The share of decoded codes (N, D) that the classifier reads as their labels (N,), by attribute."""
        scores, _ = self.measure(mu)
        return {
            name: float(((scores[name] > self.classifier.threshold[name]) == (label == 1))[label >= 0].float().mean())
            for name, label in labels.items()
            if name in self.names
        }

    def effects(self, mu: Tensor, directions: Mapping[str, Tensor]) -> Tensor:
        """Mean changes of every score (columns) along the direction of every attribute (rows): (K, K)."""
        before, _ = self.measure(mu)
        after = [self.measure(mu + direction)[0] for direction in directions.values()]
        return torch.stack([torch.stack([(x[n] - before[n]).mean() for n in directions]) for x in after])

    def edit(self, name: str, directions: Mapping[str, Sequence[Tensor]], lacks: Tensor, has: Tensor, num: int) -> Edit:
        """Calibrated dials of an attribute, the first direction as the best.

        A direction comes alone, or with the matrix of a dial. `num` codes of faces that lack and have it are measured.
        """
        weights, bias = self._estimates[name]
        meter = self.classifier.meter(name) if isinstance(self.classifier, AttributeClassifier) else None
        edit, lacks, has = Edit(next(iter(directions)), {}, meter), lacks[:num], has[:num]

        def measure(codes: Tensor) -> tuple[Tensor, Tensor]:
            scores, clipped = self.measure(codes)
            return scores[name], clipped

        factors: dict[bool, float] = {}  # one for directions alone, one for those with a matrix
        for key, (direction, *matrix) in directions.items():
            direction = direction if direction @ weights > 0 else -direction
            dial = Dial(key, direction, weights, bias, self._targets[name], matrix[0] if matrix else None)
            if bool(matrix) not in factors:
                factors[bool(matrix)] = self._factor(name, dial, edit, lacks, has)
            edit.dials[key] = calibrate(replace(dial, target=factors[bool(matrix)] * dial.target), lacks, measure)
        return edit

    def _factor(self, name: str, dial: Dial, edit: Edit, lacks: Tensor, has: Tensor) -> float:
        """How many times the classifier's target geometry needs at 1, to read what it reads of faces that have it.

        1 where geometry cannot read the attribute.
        """
        if self.geometry is None or self.geometry.accuracy.get(name, 0.0) < TRUSTED:
            return 1.0
        goal, read, means = self._read(name, has), 0.0, []
        for factor in FACTORS:
            codes = replace(dial, target=factor * dial.target).turn(lacks, torch.ones(1), edit.score_of(self.vae))
            means.append(max(read, read := self._read(name, codes[:, 0])))
            if read >= goal:
                break
        return float(np.interp(goal, means, FACTORS[: len(means)]))

    def _read(self, name: str, codes: Tensor) -> float:
        assert self.geometry
        return self.geometry.read(mesh.see(decode(self.vae, codes)).points)[name].mean().item()


def images(faces: Faces, rows: np.ndarray) -> Tensor:
    return to_unit(torch.from_numpy(gather(faces.images, rows))).contiguous()


@torch.no_grad()
def decode(vae: VAE, codes: Tensor) -> Tensor:
    """Images of codes, not clamped: (N, D) -> (N, 3, S, S)."""
    device = next(vae.parameters()).device
    return torch.cat([vae.decode(z.to(device)).cpu() for z in codes.split(CHUNK)])

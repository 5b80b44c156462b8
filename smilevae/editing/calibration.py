"""Calibrates an edit: intensity 1 gives faces the attribute as an average face has it.

Shapes: N faces, D latent dimensions, K attributes, S image side.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from smilevae.editing import mesh
from smilevae.editing.attributes import Attribute
from smilevae.editing.classifier import AttributeClassifier
from smilevae.editing.geometry import GeometryReader
from smilevae.models.vae import VAE

CHUNK = 64  # images decoded at a time
REACH = 4.0  # largest intensity of a range
STEP = 0.5  # of intensity, by which a range is tried out
FOLLOWS = 0.25  # of the mean rise of the score, which each step must bring
CLIPPED = 0.02  # of the values of an image
GAINS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
FACTORS = (1.0, 1.1, 1.2, 1.3, 1.4)  # of the gain; more of it is a mouth pasted on
TRUSTED = 0.8  # accuracy from which on the geometry reader calibrates too


@dataclass(frozen=True)
class DecodedScores:
    """Scores of decoded codes, by a classifier and, where there is one, by a geometry reader."""

    vae: VAE
    classifier: AttributeClassifier
    geometry: GeometryReader | None

    def __call__(self, codes: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The scores by attribute, and the shares of values outside [0, 1]: (N,) each."""
        scores = []
        clipped = []
        for chunk in codes.split(CHUNK):
            x = decode(self.vae, chunk)
            inside = x.clamp(0, 1)
            scores.append(self.classifier(inside))
            clipped.append((x != inside).float().mean((1, 2, 3)))
        by_name = {name: torch.cat([some[name] for some in scores]) for name in scores[0]}
        return by_name, torch.cat(clipped)


def estimated(
    attributes: list[Attribute], mu: Tensor, side: np.ndarray, scores: DecodedScores
) -> list[Attribute]:
    """Attributes that estimate scores from codes, fitted to those of the faces on one side."""
    # Two codes near each one, half the codes' spread away
    own = mu[side]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2 * len(own), own.shape[1], generator=generator)
    codes = torch.cat([own, own.repeat(2, 1) + 0.5 * own.std(0) * noise])
    measured, _ = scores(codes)
    result = []
    for attribute in attributes:
        score = measured[attribute.name]
        weights, bias = fit_estimate(codes, score)
        target = float(score[: len(own)][attribute.labels[side] == 1].mean())
        result.append(replace(attribute, weights=weights, bias=bias, target=target))
    return result


def fit_estimate(codes: Tensor, scores: Tensor) -> tuple[Tensor, float]:
    """Ridge regression of scores (N,) on codes (N, D): weights (D,) and bias."""
    from sklearn.linear_model import Ridge

    model = Ridge(alpha=1.0).fit(codes.double().numpy(), scores.double().numpy())
    return torch.from_numpy(model.coef_).float(), float(model.intercept_)


def calibrated(
    attribute: Attribute, mu: Tensor, side: np.ndarray, num: int, scores: DecodedScores
) -> Attribute:
    """An attribute with gain and range, fitted to `num` faces of each class on one side.

    At intensity 1 both readers read what they read of faces that have the attribute.
    """
    name = attribute.name
    lacks, has = (mu[side][attribute.labels[side] == label][:num] for label in (0, 1))
    if not attribute.direction @ attribute.weights > 0:
        attribute = replace(attribute, direction=-attribute.direction)

    def edited(level: float) -> Tensor:
        return attribute.edit(lacks, torch.tensor([level]))[:, 0]

    def measure(level: float) -> tuple[float, float]:
        by_name, clipped = scores(edited(level))
        return float(by_name[name].double().mean()), float(clipped.double().mean())

    def landmarks(codes: Tensor) -> float:
        assert scores.geometry
        seen = mesh.see(decode(scores.vae, codes))
        return scores.geometry.read(seen.points)[name].mean().item()

    gain = reaching(attribute.target, GAINS, lambda level: measure(level)[0])
    attribute = replace(attribute, gain=gain)
    if scores.geometry and scores.geometry.accuracy.get(name, 0.0) >= TRUSTED:
        more = reaching(landmarks(has), FACTORS, lambda level: landmarks(edited(level)))
        attribute = replace(attribute, gain=gain * more)
    low, high = fitted_range(measure)
    return replace(attribute, low=low, high=high)


def reaching(goal: float, levels: Sequence[float], mean: Callable[[float], float]) -> float:
    """The level at which a mean score reaches a goal; the nearest one where it does not."""
    means: list[float] = []
    for level in levels:
        means.append(max([mean(level), *means[-1:]]))
        if means[-1] >= goal:
            break
    return float(np.interp(goal, means, levels[: len(means)]))


def fitted_range(measure: Callable[[float], tuple[float, float]]) -> tuple[float, float]:
    """Intensities up to which every step raises the mean score, and few values are clipped."""
    at = cache(measure)
    rest, clipped = at(0.0)
    promised = STEP * (at(1.0)[0] - rest)

    def rises(low: float) -> bool:
        before, clipped_before = at(low)
        after, clipped_after = at(low + STEP)
        whole = max(clipped_before, clipped_after) <= clipped + CLIPPED
        return whole and promised > 0 and after - before >= FOLLOWS * promised

    high = 0.0
    while high < REACH and rises(high):
        high += STEP
    low = 0.0
    while low > -REACH and rises(low - STEP):
        low -= STEP
    return low, high


@torch.no_grad()
def decode(vae: VAE, codes: Tensor) -> Tensor:
    """Images of codes on the CPU, not clamped: (N, D) -> (N, 3, S, S)."""
    device = next(vae.parameters()).device
    return torch.cat([vae.decode(chunk.to(device)).cpu() for chunk in codes.split(CHUNK)])

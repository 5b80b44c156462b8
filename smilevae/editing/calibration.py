"""Calibrates an edit: intensity 1 gives faces the attribute as an average face has it.

Shapes: N faces, D latent dimensions, K attributes, S image side.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

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
        """The classifier's scores by attribute, and the share of values outside [0, 1]: (N,) each."""
        scores = []
        clipped = []
        for chunk in codes.split(CHUNK):
            x = decode(self.vae, chunk)
            inside = x.clamp(0, 1)
            scores.append(self.classifier(inside))
            clipped.append((x != inside).float().mean((1, 2, 3)))
        by_name = {name: torch.cat([some[name] for some in scores]) for name in scores[0]}
        return by_name, torch.cat(clipped)

    def by_geometry(self, name: str, codes: Tensor) -> float | None:
        """The geometry reader's mean score; None where it cannot read the attribute well."""
        if self.geometry is None or self.geometry.accuracy.get(name, 0.0) < TRUSTED:
            return None
        seen = mesh.see(decode(self.vae, codes))
        return self.geometry.read(seen.points)[name].mean().item()


def estimated(attributes: list[Attribute], mu: Tensor, scores: DecodedScores) -> list[Attribute]:
    """Attributes that estimate their scores from codes, fitted to codes (N, D) and codes near them."""
    codes = torch.cat([mu, neighbours(mu)])
    measured, _ = scores(codes)
    result = []
    for attribute in attributes:
        score = measured[attribute.name]
        weights, bias = fit_estimate(codes, score)
        target = float(score[: len(mu)][attribute.labels == 1].mean())
        result.append(replace(attribute, weights=weights, bias=bias, target=target))
    return result


def neighbours(mu: Tensor) -> Tensor:
    """Two codes near each one, half the codes' spread away: (N, D) -> (2 N, D)."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2 * len(mu), mu.shape[1], generator=generator)
    return mu.repeat(2, 1) + 0.5 * mu.std(0) * noise


def fit_estimate(codes: Tensor, scores: Tensor) -> tuple[Tensor, float]:
    """Weights (D,) and bias that estimate the scores (N,) of codes (N, D): ridge regression."""
    from sklearn.linear_model import Ridge

    model = Ridge(alpha=1.0).fit(codes.double().numpy(), scores.double().numpy())
    return torch.from_numpy(model.coef_).float(), float(model.intercept_)


def effects(attributes: list[Attribute], mu: Tensor, scores: DecodedScores) -> Tensor:
    """Mean changes of every score (columns) along the direction of every attribute (rows): (K, K)."""
    names = [attribute.name for attribute in attributes]
    before, _ = scores(mu)
    rows = []
    for attribute in attributes:
        after, _ = scores(mu + attribute.direction)
        rows.append(torch.stack([(after[name] - before[name]).mean() for name in names]))
    return torch.stack(rows)


def calibrated(
    attribute: Attribute, lacks: Tensor, has: Tensor, scores: DecodedScores
) -> Attribute:
    """An attribute with gain and range, fitted to codes (N, D) of faces that lack and that have it.

    At intensity 1 the mean score is that of faces that have the attribute, by the classifier and
    by geometry.
    """
    if not attribute.direction @ attribute.weights > 0:
        attribute = replace(attribute, direction=-attribute.direction)

    def measure(codes: Tensor) -> tuple[float, float]:
        by_name, clipped = scores(codes)
        return float(by_name[attribute.name].double().mean()), float(clipped.double().mean())

    attribute = replace(attribute, gain=fitted_gain(attribute, lacks, measure))
    attribute = replace(attribute, gain=attribute.gain * _factor(attribute, lacks, has, scores))
    low, high = fitted_range(attribute, lacks, measure)
    return replace(attribute, low=low, high=high)


Measure = Callable[
    [Tensor], tuple[float, float]
]  # codes -> mean score, mean share of clipped values


def fitted_gain(attribute: Attribute, mu: Tensor, measure: Measure) -> float:
    """The gain at which intensity 1 gives the target score, between the GAINS."""
    scores: list[float] = []
    for gain in GAINS:
        codes = replace(attribute, gain=gain).edit(mu, torch.ones(1))[:, 0]
        scores.append(max([measure(codes)[0], *scores[-1:]]))
        if scores[-1] > attribute.target:
            break
    return float(np.interp(attribute.target, scores, GAINS[: len(scores)]))


def fitted_range(attribute: Attribute, mu: Tensor, measure: Measure) -> tuple[float, float]:
    """Intensities up to which every step raises the score, and few values are clipped."""

    @functools.cache
    def at(level: float) -> tuple[float, float]:
        return measure(attribute.edit(mu, torch.tensor([level]))[:, 0])

    rest, clipped = at(0.0)
    promised = STEP * (at(1.0)[0] - rest)

    def rises(low: float) -> bool:
        before, after = at(low), at(low + STEP)
        whole = max(before[1], after[1]) <= clipped + CLIPPED
        return whole and promised > 0 and after[0] - before[0] >= FOLLOWS * promised

    high = 0.0
    while high < REACH and rises(high):
        high += STEP
    low = 0.0
    while low > -REACH and rises(low - STEP):
        low -= STEP
    return low, high


def _factor(attribute: Attribute, lacks: Tensor, has: Tensor, scores: DecodedScores) -> float:
    """How much more gain geometry needs at 1 to read what it reads of faces that have it; 1 without."""
    goal = scores.by_geometry(attribute.name, has)
    if goal is None:
        return 1.0
    means: list[float] = []
    for factor in FACTORS:
        codes = attribute.edit(lacks, torch.tensor([factor]))[:, 0]
        mean = scores.by_geometry(attribute.name, codes)
        assert mean is not None
        means.append(max([mean, *means[-1:]]))
        if means[-1] >= goal:
            break
    return float(np.interp(goal, means, FACTORS[: len(means)]))


@torch.no_grad()
def decode(vae: VAE, codes: Tensor) -> Tensor:
    """Images of codes on the CPU, not clamped: (N, D) -> (N, 3, S, S)."""
    device = next(vae.parameters()).device
    return torch.cat([vae.decode(chunk.to(device)).cpu() for chunk in codes.split(CHUNK)])

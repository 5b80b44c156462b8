"""A dial: intensities on a direction of an attribute that mean the same on every face.

Shapes: N examples, B batch, D latent dimensions, I intensities.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smilevae.editing.directions import mean_difference

INTENSITIES = tuple(step / 2 for step in range(-2, 7))  # -1 to 3, at which edits are scored
WHOLE_INTENSITIES = INTENSITIES[::2]  # those that figures show
REACH = 4.0  # largest intensity of a dial's range
CLIPPED = 0.02
LEAST_RISE = 0.3  # of the score along a face's own direction, as a share of that along the mean one
GAINS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)

ScoreOf = Callable[[Tensor], Tensor]  # codes (N, D) -> scores of their decoded images (N,)
ScoreAndClipped = Callable[[Tensor], tuple[Tensor, Tensor]]  # also the share of their values outside [0, 1] (N,)


@dataclass
class Dial:
    """Intensities on a direction: 0 is the face itself, 1 has the attribute as an average face that has it.

    With a `matrix` (D + 1, D) each face has its own direction: `direction` (D,) + (mu, 1) @ `matrix`.
    `weights` (D,) and `bias` estimate the score from a code. The step to the average score, `target`, is at least
    `least`. `gain` is fitted so that intensity 1 gives it. The score rises from `low` to `high`.
    """

    name: str
    direction: Tensor
    weights: Tensor
    bias: float
    target: float
    matrix: Tensor | None = None
    gain: float = 1.0
    low: float = -3.0
    high: float = 3.0
    least: float = 0.25

    def plain(self) -> dict[str, Any]:
        """Values for JSON."""
        return {k: v.tolist() if isinstance(v, Tensor) else v for k, v in vars(self).items() if v is not None}

    def directions(self, mu: Tensor) -> Tensor:
        """Each face's own direction: (B, D) -> (B, D)."""
        if self.matrix is None:
            return self.direction.expand_as(mu)
        return self.direction + mu @ self.matrix[:-1] + self.matrix[-1]

    def turn(self, mu: Tensor, intensities: Tensor, score_of: ScoreOf | None = None) -> Tensor:
        """Codes of faces at intensities: (B, D), (I,) -> (B, I, D).

        A face's step to intensity 1 is measured with `score_of`, else estimated from its code.
        """
        now = score_of(mu) if score_of else mu @ self.weights + self.bias
        short, own = (self.target - now).clamp(min=self.least), self.directions(mu)
        steps = self.gain * short / (own @ self.weights).clamp(min=LEAST_RISE * float(self.direction @ self.weights))
        for _ in range(2 if score_of else 0):
            gained = score_of(mu + steps[:, None] * own) - now  # type: ignore[misc]
            steps = steps * (short / gained.clamp(min=1e-3)).clamp(0.5, 2)
        return mu[:, None] + (steps[:, None] * intensities)[:, :, None] * own[:, None]


def dial_from(content: Mapping[str, Any], latent_dim: int) -> Dial:
    """A dial from the values that `plain` gave. Raises ValueError for others."""
    shapes = {"direction": (latent_dim,), "weights": (latent_dim,), "matrix": (latent_dim + 1, latent_dim)}
    try:
        tensors: Any = {n: torch.tensor(content[n], dtype=torch.float32) for n in shapes if n in content}
        numbers: Any = {n: float(content[n]) for n in ("bias", "target", "gain", "low", "high", "least")}
        dial = Dial(str(content["name"]), **tensors, **numbers)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"not a dial: {error}") from None
    if any(t.shape != shapes[n] or not torch.isfinite(t).all() for n, t in tensors.items()):
        raise ValueError(f"not a dial of {latent_dim} dimensions")
    if not np.isfinite([*numbers.values()]).all() or not dial.direction @ dial.weights > 0:
        raise ValueError("not a dial: its numbers are not finite, or its score does not rise")
    return dial


def plain_dial(mu: Tensor, label: Tensor) -> Dial:
    """A dial on the mean difference that estimates scores from codes alone: 0 and 1 are the class means along it."""
    direction = mean_difference(mu, label)
    weights = direction / direction.square().sum()
    return Dial("mean_difference", direction, weights, -float(mu[label == 0].mean(0) @ weights), 1.0)


def neighbours(mu: Tensor) -> Tensor:
    """Two codes near each one, half the codes' spread away: (N, D) -> (2 N, D)."""
    noise = torch.randn(2 * len(mu), mu.shape[1], generator=torch.Generator().manual_seed(0))
    return mu.repeat(2, 1) + 0.5 * mu.std(0) * noise


def fit_estimate(codes: Tensor, scores: Tensor) -> tuple[Tensor, float]:
    """Weights (D,) and bias that estimate the scores (N,) of codes (N, D): ridge regression."""
    from sklearn.linear_model import Ridge

    model = Ridge(alpha=1.0).fit(codes.double().numpy(), scores.double().numpy())
    return torch.from_numpy(model.coef_).float(), float(model.intercept_)


def calibrate(dial: Dial, mu: Tensor, score_and_clipped: ScoreAndClipped) -> Dial:
    """A dial with gain and range fitted to measurements of new faces (N, D).

    Gain: intensity 1 gives the mean score of faces that have the attribute. Range: every 0.5 of intensity raises the
    score by a quarter or more of its mean rise, and at most CLIPPED more of the images' values leave [0, 1] than at 0.
    """
    at = _means(dial, mu, score_and_clipped)
    scores: list[float] = []
    for gain in GAINS:
        scores.append(max([at(gain)[0], *scores[-1:]]))
        if scores[-1] > dial.target:
            break
    dial = replace(dial, gain=float(np.interp(dial.target, scores, GAINS[: len(scores)])))
    at = _means(dial, mu, score_and_clipped)
    promised = 0.5 * (at(1.0)[0] - at(0.0)[0])

    def rises(low: float) -> bool:
        before, after = at(low), at(low + 0.5)
        whole = max(before[1], after[1]) <= at(0.0)[1] + CLIPPED
        return whole and promised > 0 and after[0] - before[0] >= 0.25 * promised

    low = high = 0.0
    while high < REACH and rises(high):
        high += 0.5
    while low > -REACH and rises(low - 0.5):
        low -= 0.5
    return replace(dial, low=low, high=high)


def _means(dial: Dial, mu: Tensor, score_and_clipped: ScoreAndClipped) -> Callable[[float], tuple[float, float]]:
    """The means at an intensity; each intensity is measured once, when it is first asked for."""

    @functools.cache
    def at(level: float) -> tuple[float, float]:
        scores, clipped = score_and_clipped(dial.turn(mu, torch.tensor([level]))[:, 0])
        return float(scores.double().mean()), float(clipped.double().mean())

    return at

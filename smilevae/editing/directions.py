"""The direction in latent space along which a face smiles, and a dial on it that means the same on every face.

Shapes: N examples, B batch, D latent dimensions, I intensities. Codes are mu of training faces in eval mode, never
samples; `smile` is 1, 0, or anything else where it is not known.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

CONFOUNDED = 0.1  # an attribute whose correlation with the smile exceeds this is one to be balanced
RESAMPLES = 100
REACH = 4.0  # intensities up to which a dial's range is looked for
CLIPPED = 0.02


def mean_difference(mu: Tensor, smile: Tensor) -> Tensor:
    """mean(mu of smiling) - mean(mu of non-smiling): (N, D), (N,) -> (D,). Larsen et al. 1512.09300, section 3.2.

    Raises ValueError where a class is missing.
    """
    if not ((smile == 1).any() and (smile == 0).any()):
        raise ValueError("a smile direction needs smiling and non-smiling faces")
    return mu[smile == 1].mean(0) - mu[smile == 0].mean(0)


def balanced(mu: Tensor, smile: Tensor, others: Tensor) -> Tensor:
    """What a smile adds to a code where the `others` (N, K) stay: the coefficient of `smile` in least squares of mu.

    With one other attribute of two values this weighs the differences within its groups, as balancing the samples does
    (White 1609.04468, section 3.3); it takes several and continuous ones alike.
    """
    rows = torch.column_stack([torch.ones(len(mu)), smile.float(), others.float()])
    return torch.linalg.lstsq(rows.double(), mu.double()).solution[1].float()


def lda(mu: Tensor, smile: Tensor) -> Tensor:
    """The mean difference whitened by the shrunk covariance within the classes (Fisher 1936; Ledoit & Wolf 2004)."""
    from sklearn.covariance import LedoitWolf

    within = torch.cat([mu[smile == label] - mu[smile == label].mean(0) for label in (0, 1)])
    shrunk = LedoitWolf(store_precision=False, assume_centered=True).fit(within.double().numpy())
    difference = mean_difference(mu, smile).double()[:, None]
    return torch.linalg.lstsq(torch.from_numpy(shrunk.covariance_), difference, driver="gelsd").solution[:, 0].float()


def linear(mu: Tensor, smile: Tensor) -> Tensor:
    """The normal of a logistic regression's boundary (InterFaceGAN, Shen et al. 1907.10786, section 3.1)."""
    from sklearn.linear_model import LogisticRegression

    known = (smile == 0) | (smile == 1)
    model = LogisticRegression(C=0.01, max_iter=1000).fit(mu[known].double().numpy(), smile[known].numpy())
    return torch.from_numpy(model.coef_[0]).float()


def orthogonal(direction: Tensor, others: Tensor) -> Tensor:
    """A direction (D,) without what it shares with others (K, D): conditional manipulation (1907.10786, eq. 5)."""
    basis = torch.linalg.qr(others.T.double())[0].float()
    return direction - basis @ (basis.T @ direction)


def paired(mu: Tensor, smile: Tensor, people: list[str]) -> Tensor | None:
    """The mean over people who have both of their own difference, smiling minus not; None where nobody has both."""
    person = torch.from_numpy(np.unique(people, return_inverse=True)[1])
    means, counts = [], []
    for label in (0, 1):
        rows = smile == label
        counts.append(torch.bincount(person[rows], minlength=int(person.max()) + 1))
        total = torch.zeros(len(counts[-1]), mu.shape[1]).index_add_(0, person[rows], mu[rows])
        means.append(total / counts[-1].clamp(min=1)[:, None])
    both = (counts[0] > 0) & (counts[1] > 0)
    return (means[1] - means[0])[both].mean(0) if both.any() else None


def directions(
    mu: Tensor, smile: Tensor, others: Mapping[str, Tensor] | None = None, people: list[str] | None = None
) -> dict[str, Tensor]:
    """Every direction that the labels allow, all as long as the mean difference: name -> (D,).

    `others` maps further attributes to (N,) values, NaN where not known; those that go with the smile are what
    "balanced" and "orthogonal" keep still, over the faces of which all of them are known.
    """
    known = (smile == 0) | (smile == 1)
    label = smile.float().masked_fill(~known, torch.nan)
    confounders = [values.float() for values in (others or {}).values() if abs(correlation(label, values)) > CONFOUNDED]
    kept_still: list[Tensor] = []
    for values in confounders:
        both = known & torch.isfinite(values)
        if min((smile[both] == label_).sum() for label_ in (0, 1)) > 1:  # else nothing of the smile would be left
            known, kept_still = both, [*kept_still, values]
    confounders = kept_still
    mu, smile = mu[known], smile[known]
    found = {"mean_difference": mean_difference(mu, smile)}
    if confounders:
        table = torch.stack([values[known] for values in confounders], 1)
        found["balanced"] = balanced(mu, smile, table)
        found["orthogonal"] = orthogonal(found["mean_difference"], torch.stack([slope(mu, v) for v in table.T]))
    found |= {"lda": lda(mu, smile), "linear": linear(mu, smile)}
    kept = [person for person, use in zip(people or [], known.tolist()) if use]
    if people and (within := paired(mu, smile, kept)) is not None:
        found["paired"] = within
    length = found["mean_difference"].norm()
    return {name: d * length / d.norm() for name, d in found.items() if d.norm() > 1e-4 * length}


def correlation(one: Tensor, other: Tensor) -> float:
    """Pearson's correlation over what is known of both (phi of two labels); 0 where either does not vary."""
    known = torch.isfinite(one + other)
    a, b = one[known].double(), other[known].double()
    if len(a) < 3 or a.std() == 0 or b.std() == 0:
        return 0.0
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def slope(mu: Tensor, values: Tensor) -> Tensor:
    """What a code gains per unit of an attribute, nothing else considered: (N, D), (N,) -> (D,)."""
    known = torch.isfinite(values)
    centred = values[known] - values[known].mean()
    return centred @ (mu[known] - mu[known].mean(0)) / centred.square().sum()


def cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))


def angles(
    mu: Tensor, smile: Tensor, others: Mapping[str, Tensor], people: list[str], resamples: int = RESAMPLES
) -> dict[str, float]:
    """Degrees within which 95% of the directions lie that other people of the same kind would give (bootstrap)."""
    groups: dict[str, list[int]] = {}
    for row, person in enumerate(people):
        groups.setdefault(person, []).append(row)
    whole, own = directions(mu, smile, others, people), list(groups.values())
    found: dict[str, list[float]] = {name: [] for name in whole}
    rng = np.random.default_rng(0)
    for _ in range(resamples):
        drawn = [own[g] for g in rng.integers(0, len(own), len(own))]
        rows: Any = np.concatenate(drawn)
        names = [str(number) for number, one in enumerate(drawn) for _ in one]  # drawn twice is two people
        if len(smile[rows][smile[rows] >= 0].unique()) < 2:
            continue
        some = {name: values[rows] for name, values in others.items()}
        for name, direction in directions(mu[rows], smile[rows], some, names).items():
            if name in whole:
                found[name].append(float(np.degrees(np.arccos(min(1.0, cosine(whole[name], direction))))))
    return {name: float(np.quantile(values, 0.95)) for name, values in found.items() if values}


Read = Callable[[Tensor], Tensor]  # codes (N, D) -> the smile that a judge measures on their pictures (N,)
Look = Callable[[Tensor], tuple[Tensor, Tensor]]  # -> that and the share of their pictures' values outside [0, 1] (N,)


@dataclass
class Dial:
    """Intensities on a direction: 0 is the face as it is, 1 an average smile, negative is less smile.

    `weights` (D,) and `bias` estimate the measured smile from a code, so that a face that smiles a little is moved
    less; the step to an average smile, `smiling`, is never shorter than `least`. `gain` makes up for what the decoder
    does not show. From `low` to `high` the measured smile follows.
    """

    name: str
    direction: Tensor
    weights: Tensor
    bias: float
    smiling: float
    gain: float = 1.0
    low: float = -3.0
    high: float = 3.0
    least: float = 0.25

    def plain(self) -> dict[str, Any]:
        """Its plain numbers, for JSON."""
        return {k: v.tolist() if isinstance(v, Tensor) else v for k, v in vars(self).items()}

    def steps(self, mu: Tensor, read: Read | None = None) -> Tensor:
        """How far along the direction intensity 1 is for each face: (B, D) -> (B,).

        With `read` every face is measured, as it is and where it should have an average smile, and the step corrected
        twice; without, both are estimated from the code.
        """
        now = read(mu) if read else mu @ self.weights + self.bias
        short = (self.smiling - now).clamp(min=self.least)
        steps = self.gain * short / (self.direction @ self.weights)
        for _ in range(2 if read else 0):
            gained = read(mu + steps[:, None] * self.direction) - now  # type: ignore[misc]
            steps = steps * (short / gained.clamp(min=1e-3)).clamp(0.5, 2)
        return steps

    def turn(self, mu: Tensor, intensities: Tensor, read: Read | None = None) -> Tensor:
        """Codes of faces at intensities: (B, D), (I,) -> (B, I, D)."""
        return mu[:, None] + (self.steps(mu, read)[:, None] * intensities)[:, :, None] * self.direction


def dial_from(content: Mapping[str, Any], latent_dim: int) -> Dial:
    """A dial from its plain numbers, as `plain` gave them. Raises ValueError if they are not those of a dial."""
    names = ("name", "direction", "weights", "bias", "smiling", "gain", "low", "high", "least")
    try:
        tensors = [torch.tensor(content[name], dtype=torch.float32) for name in names[1:3]]
        numbers = [float(content[name]) for name in names[3:]]
        dial = Dial(str(content["name"]), tensors[0], tensors[1], *numbers)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"not a dial: {error}") from None
    if any(t.shape != (latent_dim,) or not torch.isfinite(t).all() for t in tensors):
        raise ValueError(f"not a dial of {latent_dim} dimensions")
    if not np.isfinite(numbers).all() or not dial.direction @ dial.weights > 0:
        raise ValueError("not a dial: its numbers are not finite, or its smile does not rise")
    return dial


def plain_dial(mu: Tensor, smile: Tensor) -> Dial:
    """A dial on the mean difference that reads smiles off codes alone: 0 and 1 are the class means along it."""
    direction = mean_difference(mu, smile)
    weights = direction / direction.square().sum()
    return Dial("mean_difference", direction, weights, -float(mu[smile == 0].mean(0) @ weights), 1.0)


def reader(mu: Tensor, read: Read) -> tuple[Tensor, float]:
    """Weights (D,) and bias that tell from a code what `read` measures on its picture (ridge regression).

    Fitted to the codes (N, D) and to two neighbours of each, half the codes' spread away.
    """
    from sklearn.linear_model import Ridge

    noise = torch.randn(2 * len(mu), mu.shape[1], generator=torch.Generator().manual_seed(0))
    codes = torch.cat([mu, mu.repeat(2, 1) + 0.5 * mu.std(0) * noise])
    model = Ridge(alpha=1.0).fit(codes.double().numpy(), read(codes).double().numpy())
    return torch.from_numpy(model.coef_).float(), float(model.intercept_)


def calibrate(dial: Dial, mu: Tensor, look: Look) -> Dial:
    """A dial whose gain and range fit what `look` measures on faces (N, D) that no part of it has been fitted to.

    Gain: at intensity 1 their mean measured smile is that of smiling faces. Range: as far as half a step of intensity
    still moves the measured smile by a quarter of what the step from 0 to 1 promises, and no more than CLIPPED of the
    pictures' values leave [0, 1] beyond those that do at 0: there mouths turn black and teeth glow.
    """
    gains = torch.tensor([0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0])
    there, _ = _means(dial, mu, gains, look)
    rising = np.maximum.accumulate(there)
    dial = replace(dial, gain=float(np.interp(dial.smiling, rising, gains)))
    where = torch.arange(-REACH, REACH + 0.01, 0.5)
    measured, clipped = _means(dial, mu, where, look)
    zero = int((where == 0).nonzero()[0, 0])
    promised = 0.5 * (measured[where == 1] - measured[zero])[0]
    whole = clipped <= clipped[zero] + CLIPPED
    follows = (np.diff(measured) >= 0.25 * promised) & whole[1:] & whole[:-1] & (promised > 0)
    up = next((i for i in range(zero, len(follows)) if not follows[i]), len(follows))
    down = next((i + 1 for i in range(zero - 1, -1, -1) if not follows[i]), 0)
    return replace(dial, low=float(where[down]), high=float(where[up]))


def _means(dial: Dial, mu: Tensor, intensities: Tensor, look: Look) -> list[np.ndarray]:
    codes = dial.turn(mu, intensities)
    return [found.view(codes.shape[:2]).mean(0).double().numpy() for found in look(codes.flatten(0, 1))]

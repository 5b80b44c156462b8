"""Directions in latent space along which an attribute changes, and how certain they are.

Shapes: N examples, D latent dimensions, K other attributes. Codes are mu, never samples. `smile` stands for any
attribute: 1, 0, or another value where it is unknown.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

CONFOUNDED = 0.1  # an attribute whose correlation with the smile exceeds this is a confounder
RESAMPLES = 25
SHARED = 0.5  # on photos, the likelihood of unseen people's codes is then highest (0.4 to 0.6, three splits)
LEAST_EFFECT = 0.1  # of the largest, which a combination of directions must have


def some_of_both(rows: np.ndarray, labels: np.ndarray, num: int) -> np.ndarray:
    """The first `num` of `rows`; then the first row of a class, 0 or 1, that those lack. `labels` are of every row."""
    some = rows[:num]
    missing = [label for label in (0, 1) if not (labels[some] == label).any()]
    return np.concatenate([some, *(rows[labels[rows] == label][:1] for label in missing)])


def mean_difference(mu: Tensor, smile: Tensor) -> Tensor:
    """mean(mu of smiling) - mean(mu of non-smiling): (N, D), (N,) -> (D,). Larsen et al. 1512.09300, section 3.2.

    Raises ValueError where a class is missing.
    """
    if not ((smile == 1).any() and (smile == 0).any()):
        raise ValueError("a direction needs faces with and without the attribute")
    return mu[smile == 1].mean(0) - mu[smile == 0].mean(0)


def balanced(mu: Tensor, smile: Tensor, others: Tensor) -> Tensor:
    """The coefficient of `smile` in least squares of mu on smile and `others` (N, K).

    For one binary attribute these are the weighted differences within its groups (White 1609.04468, section 3.3).
    """
    rows = torch.column_stack([torch.ones(len(mu)), smile.float(), others.float()])
    return torch.linalg.lstsq(rows.double(), mu.double()).solution[1].float()


def lda(mu: Tensor, smile: Tensor) -> Tensor:
    """The mean difference whitened by the shrunk covariance within the classes (Fisher 1936; Ledoit & Wolf 2004)."""
    from sklearn.covariance import ledoit_wolf

    within = torch.cat([mu[smile == label] - mu[smile == label].mean(0) for label in (0, 1)]).double()
    shrunk = torch.from_numpy(ledoit_wolf(within.numpy(), assume_centered=True)[0])
    return (torch.linalg.pinv(shrunk, hermitian=True) @ mean_difference(mu, smile).double()).float()


def linear(mu: Tensor, smile: Tensor) -> Tensor:
    """The normal of a logistic regression's boundary (InterFaceGAN, Shen et al. 1907.10786, section 3.1)."""
    from sklearn.linear_model import LogisticRegression

    known = (smile == 0) | (smile == 1)
    model = LogisticRegression(C=0.01, max_iter=1000).fit(mu[known].double().numpy(), smile[known].numpy())
    return torch.from_numpy(model.coef_[0]).float()


def transport(mu: Tensor, smile: Tensor) -> Tensor:
    """Optimal transport from the Gaussian of the codes that lack the attribute to the Gaussian of those that have it.

    It moves a code z by the mean difference plus (z, 1) @ matrix; gives the matrix (D + 1, D). Closed form: Peyré and
    Cuturi 1803.00567, remark 2.31. Covariances are shrunk, and SHARED of each is that of both classes (Friedman 1989).
    """
    from scipy.linalg import sqrtm
    from sklearn.covariance import ledoit_wolf

    groups = [mu[smile == label].double().numpy() for label in (0, 1)]
    each = [ledoit_wolf(group)[0] for group in groups]
    both = np.average(each, axis=0, weights=[len(group) for group in groups])
    lacks, has = ((1 - SHARED) * own + SHARED * both for own in each)
    root = sqrtm(lacks).real
    inverse = np.linalg.inv(root)
    matrix = inverse @ sqrtm(root @ has @ root).real @ inverse - np.eye(len(root))
    return torch.from_numpy(np.vstack([matrix, -groups[0].mean(0) @ matrix])).float()


def unmixed(by_attribute: Sequence[Tensor], effects: Tensor) -> list[Tensor]:
    """Directions of K attributes, combined so that each changes the scores of the others as little as it can.

    `effects` (K, K): row j holds the mean change of every score along direction j. Combinations that do next to nothing
    are left out (the pseudo-inverse).
    """
    weights = torch.linalg.pinv(effects.double(), rtol=LEAST_EFFECT).float()
    return list(weights @ torch.stack(list(by_attribute)))


def orthogonal(direction: Tensor, others: Tensor) -> Tensor:
    """A direction (D,) without its part along others (K, D): conditional manipulation (1907.10786, eq. 5)."""
    basis = torch.linalg.qr(others.T.double())[0].float()
    return direction - basis @ (basis.T @ direction)


def paired(mu: Tensor, smile: Tensor, people: Sequence | np.ndarray) -> Tensor | None:
    """The mean of each person's own difference, smiling minus not; None where nobody has both."""
    person = torch.from_numpy(np.unique(people, return_inverse=True)[1])
    numbers = [torch.bincount(person[smile == label], minlength=int(person.max()) + 1) for label in (0, 1)]
    both = (numbers[0] > 0) & (numbers[1] > 0)
    if not both.any():
        return None
    weights = torch.zeros(len(mu))
    for label, sign in ((0, -1), (1, 1)):
        rows = both[person] & (smile == label)
        weights[rows] = sign / (numbers[label][person][rows] * both.sum())
    return weights @ mu


def directions(
    mu: Tensor,
    smile: Tensor,
    others: Mapping[str, Tensor],
    people: Sequence | np.ndarray | None = None,
    simple: bool = False,
) -> dict[str, Tensor]:
    """Every direction that the labels allow, each as long as the mean difference: name -> (D,).

    `others` holds more attributes (N,), NaN where unknown. "balanced" and "orthogonal" control for the confounders
    among them; all directions then use only faces of which every confounder is known. `simple` leaves out the last
    three.
    """
    known = (smile == 0) | (smile == 1)
    label = smile.float().masked_fill(~known, torch.nan)
    confounders: list[Tensor] = []
    for values in others.values():
        both = known & torch.isfinite(values)
        enough = min((smile[both] == side).sum() for side in (0, 1)) > 1
        if enough and abs(correlation(label, values.float())) > CONFOUNDED:
            known, confounders = both, [*confounders, values.float()]
    mu, smile = mu[known], smile[known]
    by_name = {"mean_difference": mean_difference(mu, smile)}
    if confounders:
        table = torch.stack([values[known] for values in confounders], 1)
        by_name["balanced"] = balanced(mu, smile, table)
        slopes = torch.stack([slope(mu, values) for values in table.T])
        by_name["orthogonal"] = orthogonal(by_name["mean_difference"], slopes)
    by_name |= {} if simple else {"lda": lda(mu, smile), "linear": linear(mu, smile)}
    people = None if people is None or simple else np.asarray(people)[known.numpy()]
    if people is not None and (within := paired(mu, smile, people)) is not None:
        by_name["paired"] = within
    length = by_name["mean_difference"].norm()
    return {name: d * length / d.norm() for name, d in by_name.items() if d.norm() > 1e-4 * length}


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's correlation where both are known; 0 where either is constant."""
    known = torch.isfinite(a + b)
    a, b = a[known].double(), b[known].double()
    if len(a) < 3 or a.min() == a.max() or b.min() == b.max():
        return 0.0
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def slope(mu: Tensor, values: Tensor) -> Tensor:
    """Change of the codes per unit of one attribute: (N, D), (N,) -> (D,)."""
    known = torch.isfinite(values)
    centred = values[known] - values[known].mean()
    return centred @ (mu[known] - mu[known].mean(0)) / centred.square().sum()


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def angles(
    mu: Tensor, smile: Tensor, others: Mapping[str, Tensor], people: Sequence[str], resamples: int = RESAMPLES
) -> dict[str, float]:
    """The angle in degrees within which 95% of the directions of resampled people lie (bootstrap), by direction."""
    whole, rows_of = directions(mu, smile, others, people), defaultdict(list)
    for row, person in enumerate(people):
        rows_of[person].append(row)
    groups = list(rows_of.values())
    by_name: dict[str, list[float]] = {name: [] for name in whole}
    rng = np.random.default_rng(0)
    for _ in range(resamples):
        drawn = [groups[number] for number in rng.integers(0, len(groups), len(groups))]
        rows = torch.from_numpy(np.concatenate(drawn))
        persons = np.repeat(np.arange(len(drawn)), [len(group) for group in drawn])  # drawn twice is two people
        if len(smile[rows][smile[rows] >= 0].unique()) < 2:
            continue
        resampled = {name: values[rows] for name, values in others.items()}
        for name, direction in directions(mu[rows], smile[rows], resampled, persons).items():
            if name in whole:
                by_name[name].append(float(np.degrees(np.arccos(np.clip(cosine(whole[name], direction), -1, 1)))))
    return {name: float(np.quantile(values, 0.95)) for name, values in by_name.items() if values}

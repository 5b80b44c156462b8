"""Directions in latent space. Shapes: N examples, D latent dimensions, K attributes.

Codes are mu, never samples. Labels are 1, 0, or another value where they are unknown.
"""

import numpy as np
import torch
from torch import Tensor

SHARED = 0.5  # on photos, the likelihood of unseen people's codes is then highest (0.4 to 0.6)
LEAST_EFFECT = 0.1  # of the largest, which a combination of directions must have


def transport(mu: Tensor, labels: Tensor) -> Tensor:
    """Optimal transport from the Gaussian of codes without an attribute to that of codes with it.

    It moves a code z by the mean difference plus (z, 1) @ matrix; gives the matrix (D + 1, D).
    Closed form: Peyré and Cuturi 1803.00567, remark 2.31. The covariances are shrunk (Ledoit & Wolf
    2004), and SHARED of each is that of both classes (Friedman 1989).
    """
    from scipy.linalg import sqrtm
    from sklearn.covariance import ledoit_wolf

    groups = [mu[labels == label].double().numpy() for label in (0, 1)]
    each = [ledoit_wolf(group)[0] for group in groups]
    both = np.average(each, axis=0, weights=[len(group) for group in groups])
    lacks, has = ((1 - SHARED) * own + SHARED * both for own in each)
    root = sqrtm(lacks).real
    inverse = np.linalg.inv(root)
    matrix = inverse @ sqrtm(root @ has @ root).real @ inverse - np.eye(len(root))
    shift = -groups[0].mean(0) @ matrix
    return torch.from_numpy(np.vstack([matrix, shift])).float()


def unmixed(directions: list[Tensor], effects: Tensor) -> list[Tensor]:
    """Combinations of K directions (D,): each changes the scores of the others as little as it can.

    `effects` (K, K): row j holds the mean change of every score along direction j. Combinations that
    do next to nothing are left out (the pseudo-inverse).
    """
    weights = torch.linalg.pinv(effects.double(), rtol=LEAST_EFFECT).float()
    return list(weights @ torch.stack(directions))


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's correlation where both are known; 0 where either is constant."""
    pairs = torch.stack([a, b])[:, torch.isfinite(a + b)].double()
    if pairs.shape[1] < 3 or (pairs.amin(1) == pairs.amax(1)).any():
        return 0.0
    return float(torch.corrcoef(pairs)[0, 1])


def some_of_both(rows: np.ndarray, labels: np.ndarray, num: int) -> np.ndarray:
    """The first `num` of `rows`, then the first row of a class that those lack. Labels of every row."""
    some = rows[:num]
    missing = [label for label in (0, 1) if not (labels[some] == label).any()]
    return np.concatenate([some, *(rows[labels[rows] == label][:1] for label in missing)])

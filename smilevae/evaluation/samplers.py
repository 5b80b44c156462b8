"""Codes of new faces: from the prior, or from a mixture fitted to training codes (Ghosh et al. 1903.12436).

Shapes: N codes, D dimensions.
"""

from typing import get_args

import numpy as np
import torch
from torch import Tensor

from smilevae.evaluation.options import Sampler

SHAPES = (("full", 1), ("tied", 4), ("tied", 16), ("diag", 1), ("diag", 4), ("diag", 16))  # covariance, components


def draw_codes(
    num: int,
    generator: torch.Generator,
    *,
    mu: Tensor,
    logvar: Tensor,
    sampler: Sampler = "prior",
    temperature: float = 1.0,
) -> Tensor:
    """Codes (num, D) of new faces; mu and logvar (N, D) are of training faces, `temperature` scales the spread.

    "mixture": the Gaussian mixture of mu with the best BIC, widened by the mean posterior variance. Raises ValueError.
    """
    if sampler not in get_args(Sampler):
        raise ValueError(f"sampler={sampler} is unknown; choose one of {', '.join(get_args(Sampler))}")
    noise = torch.randn(num, mu.shape[1], generator=generator)
    if sampler == "prior":
        return noise * temperature
    from sklearn.mixture import GaussianMixture

    seed = generator.initial_seed() % 2**32
    codes = mu.double().numpy()
    fits = [
        GaussianMixture(components, covariance_type=shape, random_state=seed, reg_covar=1e-4).fit(codes)
        for shape, components in SHAPES
        if components < len(codes) // 4
    ]
    best = min(fits, key=lambda fit: fit.bic(codes))
    best.random_state = np.random.RandomState(seed)  # sample() draws from it
    drawn, component = best.sample(num)
    centre = best.means_[component]
    spread = torch.from_numpy(drawn - centre).float() + noise * logvar.exp().mean(0).sqrt()
    return torch.from_numpy(centre).float() + temperature * spread


def nearest(images: Tensor, others: Tensor) -> Tensor:
    """For each of (B, 3, S, S) the position of the nearest of (N, 3, S, S) by squared error: (B,)."""
    return torch.cdist(images.flatten(1), others.flatten(1)).argmin(1)

"""Metrics from means over a set of faces. No torch here."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ACTIVE_VARIANCE = 0.01  # Burda et al. 1509.00519, section 5


def psnr(mse: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error on [0, 1] pixels."""
    return math.inf if mse == 0 else -10 * math.log10(mse)


def active_units(mu_variance: "Tensor") -> int:
    """The number of latent dimensions that are in use: Var_x(mu) of each, (D,)."""
    return int((mu_variance > ACTIVE_VARIANCE).sum())


def negative_elbo(recon: float, kl: float, num_pixels: int) -> float:
    """Negative ELBO in nats at the decoder's optimal variance (Rybkin et al. 2006.13202, eq. 8)."""
    if recon == 0:
        return -math.inf
    return num_pixels / 2 * (math.log(2 * math.pi * recon / num_pixels) + 1) + kl

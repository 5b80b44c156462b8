"""The metrics of a run, from means over a set of faces. No torch here."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ACTIVE_VARIANCE = 0.01  # Burda et al. 1509.00519, section 5: a unit is active if Var_x(mu) exceeds this


def psnr(mse: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error in [0, 1] pixel units; inf for 0."""
    return math.inf if mse == 0 else -10 * math.log10(mse)


def active_units(mu_variance: "Tensor") -> int:
    """The number of latent dimensions whose mu varies over a set of faces: Var_x(mu) of each, (D,) -> count."""
    return int((mu_variance > ACTIVE_VARIANCE).sum())


def negative_elbo(recon: float, kl: float, num_pixels: int) -> float:
    """Negative ELBO in nats with the Gaussian decoder's variance at its optimum: comparable across beta.

    `recon` and `kl` are means over a set (SSE in [0, 1] units, nats). The optimal variance is the set's mean squared
    error (Rybkin et al. 2006.13202, eq. 8).
    """
    if recon == 0:
        return -math.inf
    return num_pixels / 2 * (math.log(2 * math.pi * recon / num_pixels) + 1) + kl

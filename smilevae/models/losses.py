"""The beta-VAE loss per example. Shapes: B batch, S image side, D latent dimensions."""

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

Mse = TypeVar("Mse", float, Tensor)
ROUNDING = 1 / 255**2 / 12  # variance of a pixel of 8 bits about its real value


class Terms(NamedTuple):
    loss: Tensor  # (B,)
    recon: Tensor  # (B,)
    kl: Tensor  # (B,)


def squared_error(x_hat: Tensor, x: Tensor) -> Tensor:
    """Sum over pixels in [0, 1] of (x_hat - x)^2: (B, 3, S, S) twice -> (B,)."""
    return (x_hat - x).square().flatten(1).sum(1)


def gaussian_kl(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL to N(0, I) in nats: (B, D) twice -> (B, D). Kingma & Welling 1312.6114, appendix B."""
    return 0.5 * (mu.square() + torch.expm1(logvar) - logvar)


def beta_vae_terms(
    x_hat: Tensor, x: Tensor, mu: Tensor, logvar: Tensor, beta: float | Tensor
) -> Terms:
    """SSE + beta * KL on [0, 1] pixels (Higgins et al. 2017, eq. 4): decoder variance beta / 2."""
    recon = squared_error(x_hat, x)
    kl = gaussian_kl(mu, logvar).sum(1)
    return Terms(recon + beta * kl, recon, kl)


def optimal_beta(mse: Mse) -> Mse:
    """The beta whose decoder variance, beta / 2, is the most likely one for an error per pixel.

    Rybkin et al. 2006.13202, eq. 7. The rounding of pixels is its soft floor.
    """
    return 2 * (mse + ROUNDING)

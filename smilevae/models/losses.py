"""The beta-VAE loss per example; the caller takes the mean. Shapes: B batch, S image side, D latent dimensions."""

from typing import NamedTuple

import torch
from torch import Tensor


class Terms(NamedTuple):
    """Per-example terms of the objective, each (B,)."""

    loss: Tensor
    recon: Tensor
    kl: Tensor


def squared_error(x_hat: Tensor, x: Tensor) -> Tensor:
    """Sum over pixels of (x_hat - x)^2, in [0, 1] pixel units: (B, 3, S, S) twice -> (B,)."""
    return (x_hat - x).square().flatten(1).sum(1)


def gaussian_kl(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, exp(logvar)) || N(0, I)) of every latent dimension, in nats: (B, D) twice -> (B, D).

    Kingma & Welling 1312.6114, appendix B. `expm1` keeps it exact where logvar is near 0.
    """
    return 0.5 * (mu.square() + torch.expm1(logvar) - logvar)


def beta_vae_terms(x_hat: Tensor, x: Tensor, mu: Tensor, logvar: Tensor, beta: float) -> Terms:
    """loss = SSE + beta * KL (Higgins et al. 2017, eq. 4), each summed over its dimensions.

    This is a Gaussian VAE whose decoder has the variance beta / 2 (Rybkin et al. 2006.13202), so
    one definition serves every beta and every pixel scaling: x and x_hat are always in [0, 1] units.
    """
    recon = squared_error(x_hat, x)
    kl = gaussian_kl(mu, logvar).sum(1)
    return Terms(recon + beta * kl, recon, kl)

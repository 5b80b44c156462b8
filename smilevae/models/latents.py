"""Arithmetic on latent codes. Shapes: B batch, D latent dimensions, N steps."""

import torch
from torch import Tensor


def reparameterise(mu: Tensor, logvar: Tensor, noise: Tensor | None = None) -> Tensor:
    """A sample of N(mu, exp(logvar)): (B, D). Kingma & Welling 1312.6114, eq. 10."""
    noise = torch.randn_like(mu) if noise is None else noise
    return mu + torch.exp(0.5 * logvar) * noise


def interpolate(start: Tensor, end: Tensor, num_steps: int) -> Tensor:
    """Straight lines between codes: (B, D) twice -> (B, N, D)."""
    t = torch.linspace(0, 1, num_steps, dtype=start.dtype, device=start.device)[:, None]
    return torch.lerp(start[:, None], end[:, None], t)


def traverse(z: Tensor, dim: int, values: Tensor) -> Tensor:
    """Each code with one dimension set to each value: (B, D), (N,) -> (B, N, D)."""
    codes = z[:, None].repeat(1, len(values), 1)
    codes[:, :, dim] = values
    return codes


def shift(z: Tensor, direction: Tensor, intensities: Tensor) -> Tensor:
    """(B, D), (D,), (N,) -> (B, N, D). Larsen et al. 1512.09300, section 3.2."""
    return z[:, None] + intensities[:, None] * direction

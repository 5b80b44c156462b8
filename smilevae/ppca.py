"""Principal components, the linear bound that every model is read against. Shapes: N examples, P pixels, K axes."""

import torch
from torch import Tensor

from smilevae.linear import Spectrum


def principal_components(x: Tensor, num_components: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (P,), orthonormal basis (P, K') and variances (K',) of the examples (N, P), K' = min(K, rank).

    Through the N by N Gram matrix in float64: P may be far larger than N (Turk & Pentland 1991, section 2).
    """
    mean = x.mean(0)
    centred = x - mean
    eigenvalues, vectors = torch.linalg.eigh((centred @ centred.T).double())
    keep = torch.argsort(eigenvalues, descending=True)[: min(num_components, len(x) - 1)]
    keep = keep[eigenvalues[keep] > eigenvalues.max() * 1e-9]
    basis = centred.T @ (vectors[:, keep] / eigenvalues[keep].sqrt()).to(x.dtype)
    return mean, basis, eigenvalues[keep] / len(x)


def linear_vae_weights(x: Tensor, beta: float, latent_dim: int) -> dict[str, Tensor]:
    """The linear VAE's optimum for examples (N, P) under SSE + beta * KL: see linear.linear_vae for the source.

    mean (P,); encoder and decoder (D, P), so that mu = encoder (x - mean) and x_hat = mean + decoder^T z; logvar (D,).
    Dimensions that the optimum leaves dead are zero, their posterior the prior.
    """
    mean, basis, variances = principal_components(x, latent_dim)
    s = beta / 2
    live = variances > s
    v, axes = variances[live], basis[:, live].T
    weights = {"mean": mean, "logvar": torch.zeros(latent_dim)}
    weights |= {name: torch.zeros(latent_dim, x.shape[1]) for name in ("encoder", "decoder")}
    weights["encoder"][: len(v)] = ((v - s).sqrt() / v).to(x.dtype)[:, None] * axes
    weights["decoder"][: len(v)] = (v - s).sqrt().to(x.dtype)[:, None] * axes
    weights["logvar"][: len(v)] = (s / v).log()
    return weights


def spectrum(train: Tensor, held_out: Tensor, num_components: int) -> Spectrum:
    """The spectrum of training examples (N, P) and how held-out ones (M, P) fall on it."""
    mean, basis, variances = principal_components(train, num_components)
    apart = held_out - mean
    squares = (apart @ basis).double().square().mean(0)
    return Spectrum(
        variances.tolist(), squares.tolist(), apart.double().square().sum(1).mean().item(), held_out.shape[1]
    )

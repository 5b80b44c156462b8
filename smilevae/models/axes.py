"""Principal axes of faces; weights of the linear VAE. Shapes: N examples, P pixels, K axes."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from smilevae.models.linear import Spectrum

SPARE_AXES = 64  # beyond `num`, so that the last of those converge too
PASSES = 4


class Axes(NamedTuple):
    mean: Tensor  # (P,)
    basis: Tensor  # (P, K), orthonormal
    variances: Tensor  # (K,), descending


def principal_axes(x: Tensor, num: int, about: Tensor | None = None) -> Axes:
    """Exact axes of examples (N, P) from their Gram matrix (N, N): Turk & Pentland 1991, section 2.

    `about` (P,) replaces their mean.
    """
    mean = x.mean(0) if about is None else about
    centred = x - mean
    eigenvalues, vectors = torch.linalg.eigh((centred @ centred.T).double())
    keep = torch.argsort(eigenvalues, descending=True)[: min(num, len(x) - (about is None))]
    keep = keep[eigenvalues[keep] > eigenvalues.max() * 1e-9]
    basis = centred.T @ (vectors[:, keep] / eigenvalues[keep].sqrt()).to(x.dtype)
    return Axes(mean, basis, eigenvalues[keep] / len(x))


def mirrored_axes(x: Tensor, num: int) -> Axes:
    """Exact axes of images (N, 3, S, S) and their mirror images.

    Symmetric and antisymmetric parts do not correlate, and half of each image holds them. This
    takes a third of the time.
    """
    left = x.chunk(2, 3)[0]
    right = x.flip(3).chunk(2, 3)[0]  # its mirror image
    even = principal_axes((left + right).flatten(1) / 2, num)
    odd = principal_axes((left - right).flatten(1) / 2, num, torch.zeros(left[0].numel()))

    def whole(halves: Tensor, sign: int) -> Tensor:
        """Left halves as columns, (P/2, K), to whole images, (P, K)."""
        half = halves.T.unflatten(1, left.shape[1:])
        return torch.cat([half, sign * half.flip(3)], 3).flatten(1).T

    mean = whole(even.mean[:, None], 1)[:, 0]
    basis = torch.cat([whole(even.basis, 1), whole(odd.basis, -1)], 1) / 2**0.5
    variances = 2 * torch.cat([even.variances, odd.variances])
    keep = torch.argsort(variances, descending=True)[:num]
    return Axes(mean, basis[:, keep], variances[keep])


def streamed_axes(batches: Callable[[], Iterable[Tensor]], num: int) -> Axes:
    """Axes of batches (B, P) by subspace iteration (Halko et al. 0909.4061, algorithm 4.4)."""
    count = 0
    total = torch.zeros(())
    for x in batches():
        count += len(x)
        total = total + x.sum(0, dtype=torch.float64)
    mean = (total / count).float()
    width = min(num + SPARE_AXES, len(mean), count)
    basis = torch.randn(len(mean), width, generator=torch.Generator().manual_seed(0))
    image = basis
    for _ in range(PASSES):
        basis = torch.linalg.qr(image)[0]
        image = torch.zeros_like(basis)
        for x in batches():
            centred = x - mean
            image.addmm_(centred.T, centred @ basis)
    small = basis.T @ image  # count * covariance within the subspace
    eigenvalues, vectors = torch.linalg.eigh(small.double())
    keep = torch.argsort(eigenvalues, descending=True)[: min(num, count - 1)]
    return Axes(mean, basis @ vectors[:, keep].float(), eigenvalues[keep] / count)


def linear_vae_weights(axes: Axes, beta: float, latent_dim: int) -> dict[str, Tensor]:
    """LinearPath's weights at the optimum of linear.linear_vae; inactive dimensions are zero."""
    s = beta / 2
    num = int((axes.variances[:latent_dim] > s).sum())
    v = axes.variances[:num, None]
    rows = axes.basis[:, :num].T
    root = (v - s).sqrt()
    encoder, decoder = torch.zeros(2, latent_dim, len(axes.mean))
    encoder[:num] = (root / v).to(rows.dtype) * rows
    decoder[:num] = root.to(rows.dtype) * rows
    logvar = torch.zeros(latent_dim)
    logvar[:num] = (s / v[:, 0]).log()
    return {"mean": axes.mean, "encoder": encoder, "decoder": decoder, "logvar": logvar}


def spectrum(axes: Axes, held_out: Tensor) -> Spectrum:
    """The spectrum of training examples, with held-out ones (M, P) along their axes."""
    centred = held_out - axes.mean
    squares = (centred @ axes.basis).double().square().mean(0)
    total = centred.double().square().sum(1).mean().item()
    return Spectrum(axes.variances.tolist(), squares.tolist(), total, held_out.shape[1])

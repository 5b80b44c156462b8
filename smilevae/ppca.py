"""The linear bound that every model is read against. Shapes: N examples, P pixels, K components."""

import torch
from torch import Tensor


def principal_components(x: Tensor, num_components: int) -> tuple[Tensor, Tensor]:
    """Mean (P,) and orthonormal basis (P, K') of the examples (N, P), K' = min(K, rank).

    Through the N by N Gram matrix in float64: P may be far larger than N (Turk & Pentland 1991, section 2).
    """
    mean = x.mean(0)
    centred = x - mean
    eigenvalues, vectors = torch.linalg.eigh((centred @ centred.T).double())
    keep = torch.argsort(eigenvalues, descending=True)[: min(num_components, len(x) - 1)]
    keep = keep[eigenvalues[keep] > eigenvalues.max() * 1e-9]
    basis = centred.T @ (vectors[:, keep] / eigenvalues[keep].sqrt()).to(x.dtype)
    return mean, basis

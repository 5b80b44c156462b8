"""What linear models reach on a set of faces, from its spectrum alone: mean face, PCA, the linear VAE's optimum.

No torch: the analysis draws these as references. Pixels in [0, 1], KL in nats, PSNR in dB of mu's decoding.
"""

import math
from typing import Any, NamedTuple

import numpy as np


class Spectrum(NamedTuple):
    """Variances (K,) of training faces along their principal axes, descending; held-out mean squares along the same."""

    eigenvalues: list[float]
    held_out: list[float]
    total: float  # mean squared distance of held-out faces to the training mean, summed over pixels
    num_pixels: int


def linear_vae(spectrum: Spectrum, beta: float, latent_dim: int) -> dict[str, Any]:
    """The optimum of a linear VAE under SSE + beta * KL, as held-out means: loss, recon, kl, psnr; and active units.

    Probabilistic PCA (Tipping & Bishop 1999, eq. 7; Lucas et al. 1911.02469) with noise variance s = beta / 2: an axis
    lives where its variance v exceeds s; then Var(z|x) = s / v, and mu's decoding keeps (1 - s / v) of the face.
    """
    s = beta / 2
    v, p = (np.asarray(a[:latent_dim]) for a in (spectrum.eigenvalues, spectrum.held_out))
    v, p = v[v > s], p[v > s]
    ratio = s / v
    distortion = spectrum.total - float((p * (1 - ratio**2)).sum())
    recon = distortion + float(((v - s) * ratio).sum())
    kl = 0.5 * float(((v - s) / v**2 * p + ratio - 1 - np.log(np.maximum(ratio, 1e-300))).sum())
    return {
        "loss": recon + beta * kl,
        "recon": recon,
        "kl": kl,
        "psnr": _psnr(distortion, spectrum),
        "active_units": len(v),
    }


def forecast(spectrum: Spectrum, beta: float, latent_dim: int) -> str:
    """What to expect of a point before training it, in a sentence; with a warning where it can only collapse."""
    found = linear_vae(spectrum, beta, latent_dim)
    text = (
        f"forecast for beta={beta:g}, latent_dim={latent_dim}: a linear VAE keeps {found['active_units']} dimensions"
        f" alive and reaches loss {found['loss']:.1f}, KL {found['kl']:.1f} nats, PSNR {found['psnr']:.2f} dB"
    )
    if found["active_units"] == 0:
        return f"{text}; no axis of these faces varies by more than beta / 2: this point can only collapse"
    if found["active_units"] < latent_dim / 2:
        return f"{text}; most of the {latent_dim} dimensions will carry nothing"
    return text


def pca_psnr(spectrum: Spectrum, num_components: int) -> float:
    """Held-out PSNR of a projection on the first principal axes; 0 axes: the mean face."""
    return _psnr(spectrum.total - sum(spectrum.held_out[:num_components]), spectrum)


def _psnr(error: float, spectrum: Spectrum) -> float:
    return -10 * math.log10(max(error, 1e-12) / spectrum.num_pixels)

"""Linear references from a spectrum: mean face, PCA, linear VAE. No torch here."""

from typing import Any, NamedTuple

import numpy as np

from smilevae.config import Beta
from smilevae.models.metrics import psnr

MIN_ERROR = 1e-12  # rounding may give 0 or less


class Spectrum(NamedTuple):
    eigenvalues: list[float]  # variances (K,) of training faces, descending
    held_out: list[float]  # mean squares (K,) of held-out faces
    total: float  # mean SSE of held-out faces to the training mean
    num_pixels: int


def linear_vae(spectrum: Spectrum, beta: float, latent_dim: int) -> dict[str, Any]:
    """Held-out means at the optimum of a linear VAE under SSE + beta * KL.

    Probabilistic PCA (Tipping & Bishop 1999, eq. 7; Lucas et al. 1911.02469) with noise variance
    s = beta / 2.
    An axis is active if its variance v exceeds s: Var(z|x) = s / v, and decode(mu) keeps 1 - s / v
    of it. At beta=0 this is PCA, and kl is None: it is infinite.
    """
    s = beta / 2
    variances = np.asarray(spectrum.eigenvalues[:latent_dim])
    active = variances > s
    v = variances[active]
    p = np.asarray(spectrum.held_out[:latent_dim])[active]
    ratio = s / v
    distortion = spectrum.total - float((p * (1 - ratio**2)).sum())
    recon = distortion + float(((v - s) * ratio).sum())
    kl = None
    if beta:
        kl = 0.5 * float(((v - s) / v**2 * p + ratio - 1 - np.log(ratio)).sum())
    return {
        "loss": recon if kl is None else recon + beta * kl,
        "recon": recon,
        "kl": kl,
        "psnr": psnr(max(distortion, MIN_ERROR) / spectrum.num_pixels),
        "active_units": len(v),
    }


def settled_beta(spectrum: Spectrum, beta: Beta, latent_dim: int) -> float:
    """`beta`, or for "auto" the one whose linear VAE has a held-out error per pixel of beta / 2."""
    if beta != "auto":
        return beta
    settled = 2 * spectrum.total / spectrum.num_pixels
    for _ in range(100):
        settled = 2 * linear_vae(spectrum, settled, latent_dim)["recon"] / spectrum.num_pixels
    return settled


def forecast(spectrum: Spectrum, wanted: Beta, latent_dim: int) -> str:
    """The linear VAE's optimum in a sentence, with a warning of collapse."""
    beta = settled_beta(spectrum, wanted, latent_dim)
    optimum = linear_vae(spectrum, beta, latent_dim)
    active = optimum["active_units"]
    psnr_text = f"PSNR {optimum['psnr']:.2f} dB"
    auto = " (auto)" if wanted == "auto" else ""
    point = f"forecast for beta={beta:.4g}{auto}, latent_dim={latent_dim}"
    if beta == 0:
        pca = f"PCA with {active} components reaches {psnr_text}"
        return f"{point}: a plain autoencoder, which pays no KL; {pca}"
    text = f"{point}: a linear VAE keeps {active} dimensions active and reaches"
    text += f" loss {optimum['loss']:.1f}, KL {optimum['kl']:.1f} nats, {psnr_text}"
    if active == 0:
        return f"{text}; no axis varies by more than beta / 2: this point can only collapse"
    if active < latent_dim / 2:
        return f"{text}; most of the {latent_dim} dimensions will carry nothing"
    return text


def pca_psnr(spectrum: Spectrum, num_components: int) -> float:
    """Held-out PSNR of a projection on the first principal axes; 0 axes: the mean face."""
    error = spectrum.total - sum(spectrum.held_out[:num_components])
    return psnr(max(error, MIN_ERROR) / spectrum.num_pixels)

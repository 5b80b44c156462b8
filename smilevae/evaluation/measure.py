"""Numbers of a VAE on faces it has not seen, beside linear references.

Codes are mu unless a line says otherwise. Shapes: B batch, N examples, S image side, D latent dimensions.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from smilevae.data.batches import hash64
from smilevae.data.dataset import Faces
from smilevae.data.encode import batches_of, encode
from smilevae.models import latents
from smilevae.models.losses import beta_vae_terms, gaussian_kl, optimal_beta, squared_error
from smilevae.models.metrics import active_units, negative_elbo, psnr
from smilevae.models.vae import VAE

__all__ = ["encode", "measure"]
NUM_IMPORTANCE, MAX_IMPORTANCE = 64, 64  # codes of each face, and faces, of the importance-weighted bound


@torch.no_grad()
def measure(vae: VAE, faces: Faces, seed: int, refine: int = 0) -> dict[str, Any]:
    """Rate, distortion and bound of the val part; mean face and PCA of the same dimensions beside them.

    mse, psnr and ssim are of the image size and, as `native_*`, of images shrunk to the native size. `recon`, `kl`
    and `loss` are of sampled codes. `refine` is the number of steps that refine the codes first. `iwae` is `nelbo` less
    the mean gain of NUM_IMPORTANCE codes over one, of MAX_IMPORTANCE faces, with its 95% interval's half width.
    `faces` has the psnr and nelbo of each face; the mean of the latter is `nelbo`.
    """
    rows = faces.rows("val")
    axes = faces.axes(vae.latent_dim)
    mean, basis = axes.mean, axes.basis[:, : vae.latent_dim]
    sums: dict[str, dict[str, float]] = {name: {} for name in ("model", "mean_face", "pca")}
    per_face, errors, codes = [], [], []
    for index, x in enumerate(batches_of(vae, faces, rows)):
        generator = torch.Generator(x.device).manual_seed(hash64("evaluate", seed, index))
        mu, logvar = vae.refine(x, refine, generator) if refine else vae.encode(x)
        noise = torch.randn(mu.shape, generator=generator, device=mu.device)
        x_hat = vae.decode(latents.reparameterise(mu, logvar, noise))
        per_face.append(torch.stack(beta_vae_terms(x_hat, x, mu, logvar, vae.beta)).double().cpu())
        codes.append(torch.stack([mu, logvar]).cpu())
        flat = x.flatten(1).cpu()
        guesses = {
            "model": vae.decode(mu).cpu(),
            "mean_face": mean.expand_as(flat).view(x.shape),
            "pca": (mean + (flat - mean) @ basis @ basis.T).view(x.shape),
        }
        errors.append(squared_error(guesses["model"], x.cpu()).double())
        for name, guess in guesses.items():
            for key, value in _distortion(guess, x.cpu(), faces.native_size).items():
                sums[name][key] = sums[name].get(key, 0.0) + value
    table: dict[str, Any] = {}
    for name, total in sums.items():
        means = {key: value / len(rows) for key, value in total.items()}
        table[name] = means | {key.replace("mse", "psnr"): psnr(v) for key, v in means.items() if key.endswith("mse")}
    terms = torch.cat(per_face, dim=1)
    loss, recon, kl = terms.mean(1).tolist()
    beta, num_pixels = vae.beta, 3 * vae.image_size**2
    if isinstance(beta, Tensor):
        beta = optimal_beta(recon / num_pixels)
        loss = recon + beta * kl
    mu, logvar = torch.cat(codes, dim=1)
    some = np.random.default_rng(seed).permutation(len(rows))[:MAX_IMPORTANCE]
    x = next(batches_of(vae, faces, rows[some]))
    gains = importance_gain(vae, x, mu[some].to(x), logvar[some].to(x), 2 * recon / num_pixels, seed)
    nelbo = negative_elbo(recon, kl, num_pixels)
    own = nelbo + terms[2] - kl + num_pixels / 2 * (terms[1] / recon - 1)  # at the variance of all faces
    return table | {
        "faces": {"psnr": [psnr(v / num_pixels) for v in torch.cat(errors).tolist()], "nelbo": own.tolist()},
        "loss": loss,
        "recon": recon,
        "kl": kl,
        "beta": beta,
        "nelbo": nelbo,
        "iwae": nelbo - gains.mean().item(),
        "iwae_error": 1.96 * gains.std(correction=0).item() / len(gains) ** 0.5,
        "loss_study_units": 4 * recon + beta * kl,  # SSE on [-1, 1] pixels + beta * KL
        "active_units": active_units(mu.var(0, correction=min(1, len(mu) - 1))),
        "latent_dim": vae.latent_dim,
        "pca_dim": basis.shape[1],
        "kl_per_dim": gaussian_kl(mu, logvar).mean(0).tolist(),
    }


def importance_gain(vae: VAE, x: Tensor, mu: Tensor, logvar: Tensor, beta: float, seed: int) -> Tensor:
    """Nats by which the bound on log p(x) of NUM_IMPORTANCE codes exceeds that of one: (B, 3, S, S) -> (B,).

    Burda et al. 1509.00519, eq. 8; the decoder's variance is beta / 2.
    """
    generator, weights = torch.Generator(x.device).manual_seed(hash64("importance", seed)), []
    for _ in range(NUM_IMPORTANCE):
        noise = torch.randn(mu.shape, generator=generator, device=mu.device)
        z = latents.reparameterise(mu, logvar, noise)
        ratio = 0.5 * (noise.square() + logvar - z.square()).sum(1)  # log p(z) - log q(z | x)
        weights.append(ratio - squared_error(vae.decode(z), x) / beta)
    logs = torch.stack(weights).double()
    return torch.logsumexp(logs, 0) - math.log(NUM_IMPORTANCE) - logs.mean(0)


def _distortion(guess: Tensor, x: Tensor, native: int) -> dict[str, float]:
    """Sums over a batch of mse and ssim, at the images' size and at the native one where that is smaller."""
    sums = {}
    for prefix, side in (("", x.shape[-1]), ("native_", min(native, x.shape[-1]))):
        if side != x.shape[-1]:
            guess, x = resized(guess, side), resized(x, side)
        sums[f"{prefix}mse"] = (guess - x).square().flatten(1).mean(1).sum().item()
        sums[f"{prefix}ssim"] = ssim(guess, x).sum().item()
    return sums


def resized(x: Tensor, side: int) -> Tensor:
    return F.interpolate(x, (side, side), mode="bicubic", antialias=True, align_corners=False)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) of images (B, 3, S, S) in [0, 1]: (B,).

    As in torchmetrics, whose import takes longer.
    """
    kernel = torch.exp(-(torch.arange(-5.0, 6) ** 2) / (2 * 1.5**2))[None, None]
    padded = F.pad(torch.eye(a.shape[-1])[:, None], (5, 5), mode="reflect")
    window = F.conv1d(padded, kernel / kernel.sum())[:, 0]  # (S, S): the Gaussian as a matrix

    def local_mean(x: Tensor) -> Tensor:
        return window.T @ x @ window

    a, b = a.contiguous(), b.contiguous()
    mean_a, mean_b = local_mean(a), local_mean(b)
    var_a = (local_mean(a * a) - mean_a**2).clamp(min=0)
    var_b = (local_mean(b * b) - mean_b**2).clamp(min=0)
    covariance = local_mean(a * b) - mean_a * mean_b
    similarity = (2 * mean_a * mean_b + 0.01**2) * (2 * covariance + 0.03**2)
    similarity = similarity / ((mean_a**2 + mean_b**2 + 0.01**2) * (var_a + var_b + 0.03**2))
    return similarity.flatten(1).mean(1)

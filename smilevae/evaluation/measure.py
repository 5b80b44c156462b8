"""Numbers of a VAE on faces it has not seen, beside linear references.

Codes are mu unless a line says otherwise. Shapes: B batch, N examples, S image side, D latent dimensions.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from smilevae.data.batches import hash64
from smilevae.data.dataset import AT_ONCE, Faces, flat_faces
from smilevae.data.encode import batches_of, encode
from smilevae.models import latents
from smilevae.models.losses import beta_vae_terms, gaussian_kl, optimal_beta
from smilevae.models.metrics import active_units, negative_elbo, psnr
from smilevae.models.vae import VAE

__all__ = ["encode", "measure"]


@torch.no_grad()
def measure(vae: VAE, faces: Faces, seed: int, refine: int = 0) -> dict[str, Any]:
    """Rate, distortion and bound of the val part; mean face and PCA of the same dimensions beside them.

    mse, psnr and ssim are of the image size and, as `native_*`, of images shrunk to the native size. `recon`, `kl`
    and `loss` are of sampled codes. `refine` is the number of steps that refine the codes first.
    """
    rows = faces.rows("val")
    mean, basis = _mean_and_basis(faces, vae.latent_dim)
    sums: dict[str, dict[str, float]] = {name: {} for name in ("model", "mean_face", "pca")}
    terms, codes = torch.zeros(3, dtype=torch.float64), []
    for index, x in enumerate(batches_of(vae, faces, rows)):
        generator = torch.Generator(x.device).manual_seed(hash64("evaluate", seed, index))
        mu, logvar = vae.refine(x, refine, generator) if refine else vae.encode(x)
        noise = torch.randn(mu.shape, generator=generator, device=mu.device)
        x_hat = vae.decode(latents.reparameterise(mu, logvar, noise))
        terms += torch.stack(beta_vae_terms(x_hat, x, mu, logvar, vae.beta)).double().sum(1).cpu()
        codes.append(torch.stack([mu, logvar]).cpu())
        flat = x.flatten(1).cpu()
        guesses = {
            "model": vae.decode(mu).cpu(),
            "mean_face": mean.expand_as(flat).view(x.shape),
            "pca": (mean + (flat - mean) @ basis @ basis.T).view(x.shape),
        }
        for name, guess in guesses.items():
            for key, value in _distortion(guess, x.cpu(), faces.native_size).items():
                sums[name][key] = sums[name].get(key, 0.0) + value
    table: dict[str, Any] = {}
    for name, total in sums.items():
        means = {key: value / len(rows) for key, value in total.items()}
        table[name] = means | {key.replace("mse", "psnr"): psnr(v) for key, v in means.items() if key.endswith("mse")}
    loss, recon, kl = (terms / len(rows)).tolist()
    beta, num_pixels = vae.beta, 3 * vae.image_size**2
    if isinstance(beta, Tensor):
        beta = optimal_beta(recon / num_pixels)
        loss = recon + beta * kl
    mu, logvar = torch.cat(codes, dim=1)
    return table | {
        "loss": loss,
        "recon": recon,
        "kl": kl,
        "beta": beta,
        "nelbo": negative_elbo(recon, kl, num_pixels),
        "loss_study_units": 4 * recon + beta * kl,  # SSE on [-1, 1] pixels + beta * KL
        "active_units": active_units(mu.var(0, correction=min(1, len(mu) - 1))),
        "latent_dim": vae.latent_dim,
        "pca_dim": basis.shape[1],
        "kl_per_dim": gaussian_kl(mu, logvar).mean(0).tolist(),
    }


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


def _mean_and_basis(faces: Faces, num: int) -> tuple[Tensor, Tensor]:
    """Mean (P,) and first principal axes (P, K) of the training faces and their mirror images.

    As `faces.axes` in a third of its time: symmetric and antisymmetric parts do not correlate, half the pixels suffice.
    """
    rows, side = faces.rows("train"), faces.images.shape[1]
    if len(rows) > AT_ONCE // faces.images[0].size or side % 2:
        return faces.axes(num).mean, faces.axes(num).basis[:, :num]
    x = flat_faces(faces, rows).view(-1, 3, side, side)
    variances, axes = [], []
    for sign in (1, -1):
        half = (x + sign * x.flip(3))[..., : side // 2].flatten(1) / 2
        if sign == 1:
            mean = half.mean(0)
            half = half - mean
        gram, vectors = torch.linalg.eigh((half @ half.T).double())
        left = (half.T @ (vectors[:, -num:] / (2 * gram[-num:]).clamp(min=1e-12).sqrt()).float()).T
        left = left.view(-1, 3, side, side // 2)
        variances.append(gram[-num:])
        axes.append(torch.cat([left, sign * left.flip(3)], 3).flatten(1))
    left = mean.view(3, side, side // 2)
    gram = torch.cat(variances)
    keep = gram.argsort(descending=True)[: min(num, 2 * len(rows) - 1)]
    keep = keep[gram[keep] > gram.max() * 1e-9]
    return torch.cat([left, left.flip(2)], 2).flatten(), torch.cat(axes)[keep].T

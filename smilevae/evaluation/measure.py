"""Numbers of a VAE on faces it has not seen, beside linear references.

Codes are mu unless a line says otherwise. Shapes: B batch, N examples, S image side, D latent dimensions.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.image import structural_similarity_index_measure

from smilevae.data.batches import hash64
from smilevae.data.dataset import Faces
from smilevae.data.encode import batches_of
from smilevae.models import latents
from smilevae.models.losses import beta_vae_terms, gaussian_kl, optimal_beta, squared_error
from smilevae.models.metrics import active_units, negative_elbo, psnr
from smilevae.models.vae import VAE


@torch.no_grad()
def measure(vae: VAE, faces: Faces, seed: int) -> dict[str, Any]:
    """Rate, distortion and bound of the val part; mean face and PCA of the same dimensions beside them.

    mse, psnr and ssim are of the image size and, as `native_*`, of images shrunk to the native size.
    `recon`, `kl` and `loss` are of sampled codes. For one face `active_units` is None. `faces` has
    the psnr and nelbo of each face; the mean of the latter is `nelbo`.
    """
    rows = faces.rows("val")
    axes = faces.axes(vae.latent_dim)
    mean = axes.mean
    basis = axes.basis[:, : vae.latent_dim]
    sums: dict[str, dict[str, float]] = {name: {} for name in ("model", "mean_face", "pca")}
    per_face, errors, codes = [], [], []
    for index, x in enumerate(batches_of(vae, faces, rows)):
        # The loss of sampled codes.
        generator = torch.Generator(x.device).manual_seed(hash64("evaluate", seed, index))
        mu, logvar = vae.encode(x)
        noise = torch.randn(mu.shape, generator=generator, device=mu.device)
        x_hat = vae.decode(latents.reparameterise(mu, logvar, noise))
        terms = beta_vae_terms(x_hat, x, mu, logvar, vae.beta)
        per_face.append(torch.stack(terms).double().cpu())
        codes.append(torch.stack([mu, logvar]).cpu())

        # The distortion of mu decoded, of the mean face and of PCA.
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

    # Means over faces.
    table: dict[str, Any] = {}
    for name, total in sums.items():
        table[name] = {key: value / len(rows) for key, value in total.items()}
        for key in [key for key in total if key.endswith("mse")]:
            table[name][key.replace("mse", "psnr")] = psnr(table[name][key])
    losses, recons, kls = torch.cat(per_face, dim=1)
    loss = losses.mean().item()
    recon = recons.mean().item()
    kl = kls.mean().item()
    num_pixels = 3 * vae.image_size**2
    beta = vae.beta
    if isinstance(beta, Tensor):
        beta = optimal_beta(recon / num_pixels)
        loss = recon + beta * kl
    nelbo = negative_elbo(recon, kl, num_pixels)

    # Each face's own bound, at the decoder variance of all faces.
    own = nelbo + kls - kl + num_pixels / 2 * (recons / recon - 1)
    mu, logvar = torch.cat(codes, dim=1)
    return table | {
        "faces": {
            "psnr": [psnr(error / num_pixels) for error in torch.cat(errors).tolist()],
            "nelbo": own.tolist(),
        },
        "loss": loss,
        "recon": recon,
        "kl": kl,
        "beta": beta,
        "nelbo": nelbo,
        "loss_study_units": 4 * recon + beta * kl,  # SSE on [-1, 1] pixels + beta * KL
        "active_units": active_units(mu.var(0)) if len(mu) > 1 else None,
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
        ssim = structural_similarity_index_measure(guess, x, data_range=1.0, reduction="none")
        sums[f"{prefix}ssim"] = torch.as_tensor(ssim).sum().item()
    return sums


def resized(x: Tensor, side: int) -> Tensor:
    return F.interpolate(x, (side, side), mode="bicubic", antialias=True, align_corners=False)

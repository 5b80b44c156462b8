"""Numbers of a VAE on faces it has not seen, beside linear references.

Codes are mu unless a line says otherwise. Shapes: B batch, N examples, S image side, D latent dimensions.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from smilevae.data.batches import hash64
from smilevae.data.dataset import Faces
from smilevae.data.encode import batches_of
from smilevae.models import latents
from smilevae.models.losses import beta_vae_terms, gaussian_kl, optimal_beta
from smilevae.models.metrics import active_units, negative_elbo, psnr
from smilevae.models.vae import VAE

SMALL = 64  # side of the images that are compared with real ones
REACH = 5  # pixels on each side of the window of `ssim`


@torch.no_grad()
def measure(vae: VAE, faces: Faces, seed: int) -> dict[str, Any]:
    """Rate, distortion and bound of the val part; mean face and PCA of the same dimensions beside them.

    mse, psnr and ssim are of the image size and, as `native_*`, of images shrunk to the native size.
    `recon`, `kl` and `loss` are of sampled codes. For one face `active_units` is None. `faces` has
    the psnr and nelbo of each face; the mean of the latter is `nelbo`.
    """
    axes = faces.axes(vae.latent_dim)
    basis = axes.basis[:, : vae.latent_dim]
    native = min(faces.native_size, vae.image_size)
    likeness: dict[str, list[Tensor]] = {"model": [], "mean_face": [], "pca": []}
    losses, codes = [], []
    for index, x in enumerate(batches_of(vae, faces, faces.rows("val"))):
        # The loss of sampled codes.
        generator = torch.Generator().manual_seed(hash64("evaluate", seed, index))
        mu, logvar = vae.encode(x)
        noise = torch.randn(mu.shape, generator=generator).to(mu.device)
        x_hat = vae.decode(latents.reparameterise(mu, logvar, noise))
        terms = torch.stack(beta_vae_terms(x_hat, x, mu, logvar, vae.beta))
        losses.append(terms.double().cpu())
        codes.append(torch.stack([mu, logvar]).cpu())

        # The likeness of mu decoded, of the mean face and of PCA.
        x = x.cpu()
        centred = x.flatten(1) - axes.mean
        guesses = {
            "model": vae.decode(mu).cpu(),
            "mean_face": axes.mean.view(x[:1].shape).expand_as(x),
            "pca": (axes.mean + centred @ basis @ basis.T).view(x.shape),
        }
        for name, guess in guesses.items():
            own = _likeness(guess, x)
            at_native = own
            if native < vae.image_size:
                at_native = _likeness(resized(guess, native), resized(x, native))
            likeness[name].append(torch.cat([own, at_native]).double())

    # Means over faces.
    table: dict[str, Any] = {}
    keys = ("mse", "ssim", "native_mse", "native_ssim")
    for name, parts in likeness.items():
        table[name] = dict(zip(keys, torch.cat(parts, dim=1).mean(1).tolist()))
        table[name]["psnr"] = psnr(table[name]["mse"])
        table[name]["native_psnr"] = psnr(table[name]["native_mse"])
    terms = torch.cat(losses, dim=1)
    _, recons, kls = terms
    loss, recon, kl = terms.mean(1).tolist()
    num_pixels = vae.num_pixels
    beta = vae.beta
    if isinstance(beta, Tensor):
        beta = optimal_beta(recon / num_pixels)
        loss = recon + beta * kl
    nelbo = negative_elbo(recon, kl, num_pixels)

    # Each face's own bound, at the decoder variance of all faces.
    nelbos = nelbo + kls - kl + num_pixels / 2 * (recons / recon - 1)
    errors, *_ = torch.cat(likeness["model"], dim=1)
    mu, logvar = torch.cat(codes, dim=1)
    return table | {
        "faces": {"psnr": [psnr(error) for error in errors.tolist()], "nelbo": nelbos.tolist()},
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


def _likeness(guess: Tensor, x: Tensor) -> Tensor:
    """The mean squared error and the SSIM of each image: (B, 3, S, S) twice -> (2, B)."""
    return torch.stack([(guess - x).square().flatten(1).mean(1), ssim(guess, x)])


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity of images in [0, 1]: (B, 3, S, S) twice -> (B,). Wang et al. 2004, section 3.

    As torchmetrics has it, whose import takes seconds: a Gaussian window of sd 1.5, mirrored borders.
    The window is separable, so a matrix (S, S) blurs rows, and then columns.
    """
    offsets = torch.arange(-REACH, REACH + 1)
    window = torch.exp(-((offsets / 1.5) ** 2) / 2)
    mirrored = F.pad(torch.eye(x.shape[-1]), (REACH, REACH), mode="reflect")
    blur = F.conv1d(mirrored[:, None], (window / window.sum())[None, None])[:, 0]
    mean_x, mean_y, xx, yy, xy = blur.T @ torch.stack([x, y, x * x, y * y, x * y]) @ blur
    variances = (xx - mean_x**2).clamp(min=0) + (yy - mean_y**2).clamp(min=0)
    likeness = (2 * mean_x * mean_y + 0.01**2) * (2 * (xy - mean_x * mean_y) + 0.03**2)
    likeness /= (mean_x**2 + mean_y**2 + 0.01**2) * (variances + 0.03**2)
    return likeness.flatten(1).mean(1)


def small(x: Tensor) -> Tensor:
    """Images of SMALL pixels: (N, 3, S, S) -> (N, 3, SMALL, SMALL)."""
    return F.interpolate(x, (SMALL, SMALL), mode="area") if x.shape[-1] != SMALL else x


def resized(x: Tensor, side: int) -> Tensor:
    return F.interpolate(x, (side, side), mode="bicubic", antialias=True, align_corners=False)

"""Encoders and decoders: image to (mu, raw logvar), and latent code to image. A new network goes into NETWORKS.

Shapes after every layer: B batch, S image side, D latent dimensions, w the `widths`, L = len(w).
Kernels of 4 at stride 2 halve or double the side exactly and overlap evenly (no checkerboard).
With several GPUs Lightning's sync_batchnorm shares the statistics of BatchNorm; CPU processes keep their own.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

PATCH = 4  # pixels on the side of a patch of `model=patch`


def conv_encoder(image_size: int, latent_dim: int, widths: Sequence[int], dropout: float) -> nn.Sequential:
    """The source study's encoder: blocks of Conv2d, BatchNorm2d, ReLU, Dropout2d; ends in (B, 2D)."""
    side = image_size >> len(widths)
    return nn.Sequential(
        *(_block(nn.Conv2d, w_in, w, dropout) for w_in, w in pairwise((3, *widths))),  # (B, w[L-1], S/2^L, S/2^L)
        nn.Flatten(),
        _head(widths[-1] * side**2, 2 * latent_dim),  # (B, 2D)
    )


def conv_decoder(image_size: int, latent_dim: int, widths: Sequence[int], dropout: float) -> nn.Sequential:
    """The mirror of conv_encoder: (B, D) -> (B, 3, S, S), without a last activation, as for a Gaussian mean."""
    return nn.Sequential(
        *_from_code(latent_dim, image_size >> len(widths), widths, dropout),  # (B, w[0], S/2, S/2)
        nn.ConvTranspose2d(widths[0], 3, 4, stride=2, padding=1),  # (B, 3, S, S)
    )


def patch_encoder(image_size: int, latent_dim: int, widths: Sequence[int], dropout: float) -> nn.Sequential:
    """Space to depth, then convolutions. It has no layer of 3 channels at full resolution, which is slow on a CPU."""
    side = image_size // PATCH >> (len(widths) - 1)
    return nn.Sequential(
        nn.PixelUnshuffle(PATCH),  # (B, 48, S/4, S/4)
        nn.Conv2d(3 * PATCH**2, widths[0], 3, padding=1, bias=False),
        *_post(widths[0], dropout),  # (B, w[0], S/4, S/4)
        *(_block(nn.Conv2d, w_in, w, dropout) for w_in, w in pairwise(widths)),  # (B, w[L-1], S/2^(L+1), ...)
        nn.Flatten(),
        _head(widths[-1] * side**2, 2 * latent_dim),  # (B, 2D)
    )


def patch_decoder(image_size: int, latent_dim: int, widths: Sequence[int], dropout: float) -> nn.Sequential:
    """The mirror of patch_encoder: (B, D) -> (B, 3, S, S)."""
    return nn.Sequential(
        *_from_code(latent_dim, image_size // PATCH >> (len(widths) - 1), widths, dropout),  # (B, w[0], S/4, S/4)
        nn.Conv2d(widths[0], 3 * PATCH**2, 3, padding=1),  # (B, 48, S/4, S/4)
        nn.PixelShuffle(PATCH),  # (B, 3, S, S)
    )


NETWORKS = {"conv": (conv_encoder, conv_decoder), "patch": (patch_encoder, patch_decoder)}


def _head(in_features: int, out_features: int) -> nn.Linear:
    """The last layer of an encoder. Small initial weights put codes near the prior, so that training begins calmly."""
    head = nn.Linear(in_features, out_features)
    nn.init.normal_(head.weight, std=0.1 * in_features**-0.5)
    nn.init.zeros_(head.bias)
    return head


def _from_code(latent_dim: int, side: int, widths: Sequence[int], dropout: float) -> list[nn.Module]:
    """The first layers of a decoder: (B, D) -> (B, w[L-1], side, side) -> (B, w[0], side * 2^(L-1), ...)."""
    up = widths[::-1]
    return [
        nn.Linear(latent_dim, up[0] * side**2),
        nn.Unflatten(1, (up[0], side, side)),
        *_post(up[0], dropout),
        *(_block(nn.ConvTranspose2d, w_in, w, dropout) for w_in, w in pairwise(up)),
    ]


def _block(layer: type[nn.Conv2d | nn.ConvTranspose2d], w_in: int, w_out: int, dropout: float) -> nn.Sequential:
    """Conv2d halves the side, ConvTranspose2d doubles it. BatchNorm adds the bias."""
    return nn.Sequential(layer(w_in, w_out, 4, stride=2, padding=1, bias=False), *_post(w_out, dropout))


def _post(width: int, dropout: float) -> list[nn.Module]:
    return [nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.Dropout2d(dropout)]

"""Encoders, image to (mu, raw logvar), and decoders, latent code to image.

Shapes: B batch, C channels, S image side, D latent dimensions, w the `widths`, L = len(w).
"""

from itertools import pairwise

from torch import nn

from smilevae.models import layers
from smilevae.models.layers import Layers
from smilevae.plugins import Shape

Widths = list[int]
PATCH = 4  # side of a patch in pixels


def conv_encoder(shape: Shape, latent_dim: int, widths: Widths, dropout: float) -> Layers:
    """The source study's encoder: blocks of Conv2d, BatchNorm2d, ReLU, Dropout2d."""
    channels, size, _ = shape
    side = size >> len(widths)
    return Layers(
        *_blocks(nn.Conv2d, [channels, *widths], dropout),  # (B, w[L-1], S/2^L, S/2^L)
        *_to_code(widths[-1] * side**2, 2 * latent_dim),
    )


def conv_decoder(shape: Shape, latent_dim: int, widths: Widths, dropout: float) -> Layers:
    """The mirror of conv_encoder, without a last activation: a Gaussian mean."""
    channels, size, _ = shape
    return Layers(
        *_from_code(latent_dim, size >> len(widths), widths, dropout),  # (B, w[0], S/2, S/2)
        layers.ToColours(widths[0], channels),  # (B, C, S, S)
    )


def patch_encoder(
    shape: Shape, latent_dim: int, widths: Widths, dropout: float, shortcut: int
) -> nn.Module:
    """Space to depth: convolutions of 3 channels at full resolution are slow on a CPU."""
    channels, size, _ = shape
    side = size // PATCH >> (len(widths) - 1)
    encoder = Layers(
        layers.PixelsToPatches(PATCH),  # (B, 16 C, S/4, S/4)
        layers.FromPatches(channels, PATCH, widths[0]),
        *_post(widths[0], dropout),  # (B, w[0], S/4, S/4)
        *_blocks(nn.Conv2d, widths, dropout),  # (B, w[L-1], S/2^(L+1), S/2^(L+1))
        *_to_code(widths[-1] * side**2, 2 * latent_dim),
    )
    return layers.Shortcut(encoder, channels, shortcut, latent_dim) if shortcut else encoder


def patch_decoder(shape: Shape, latent_dim: int, widths: Widths, dropout: float) -> Layers:
    channels, size, _ = shape
    side = size // PATCH >> (len(widths) - 1)
    return Layers(
        *_from_code(latent_dim, side, widths, dropout),  # (B, w[0], S/4, S/4)
        layers.ToPatches(widths[0], channels, PATCH),  # (B, 16 C, S/4, S/4)
        layers.PatchesToPixels(PATCH),  # (B, C, S, S)
    )


def _to_code(in_features: int, out_features: int) -> list[nn.Module]:
    """Small weights put the first codes near the prior."""
    head = nn.Linear(in_features, out_features)
    if not head.weight.is_meta:  # normal_ on meta imports torch._dynamo
        nn.init.normal_(head.weight, std=0.1 * in_features**-0.5)
    nn.init.zeros_(head.bias)
    return [nn.Flatten(), head]


def _from_code(latent_dim: int, side: int, widths: Widths, dropout: float) -> list[nn.Module]:
    up = widths[::-1]
    return [
        nn.Linear(latent_dim, up[0] * side**2),
        nn.Unflatten(1, (up[0], side, side)),  # (B, w[L-1], side, side)
        *_post(up[0], dropout),
        *_blocks(nn.ConvTranspose2d, up, dropout),
    ]


def _blocks(layer: type[nn.Module], widths: Widths, dropout: float) -> list[nn.Module]:
    """Each block halves (Conv2d) or doubles (ConvTranspose2d) the side."""
    return [
        Layers(layer(wide_in, wide_out, 4, 2, 1, bias=False), *_post(wide_out, dropout))
        for wide_in, wide_out in pairwise(widths)
    ]


def _post(width: int, dropout: float) -> list[nn.Module]:
    return [nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.Dropout2d(dropout)]

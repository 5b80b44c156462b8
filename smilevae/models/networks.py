"""Encoders and decoders: image to (mu, raw logvar) and code to image.

Shapes after every layer: B batch, S image side, D latent dimensions, w the `widths`, L = len(w).
Kernels of 4 at stride 2 halve or double the side exactly and overlap evenly (no checkerboard).
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, distributed, nn

PATCH = 4  # pixels on the side of a patch of `model=patch`


class ConvEncoder(nn.Sequential):
    """The source study's encoder: blocks of Conv2d, BatchNorm2d, ReLU, Dropout2d; ends in (B, 2D)."""

    def __init__(self, image_size: int, latent_dim: int, widths: Sequence[int], dropout: float):
        side = image_size >> len(widths)
        super().__init__(
            *(_down(w_in, w, dropout) for w_in, w in zip((3, *widths), widths)),  # (B, w[L-1], S/2^L, S/2^L)
            nn.Flatten(),
            _head(widths[-1] * side**2, 2 * latent_dim),  # (B, 2D)
        )


class ConvDecoder(nn.Sequential):
    """The mirror of ConvEncoder: (B, D) -> (B, 3, S, S), linear at the output as for a Gaussian mean."""

    def __init__(self, image_size: int, latent_dim: int, widths: Sequence[int], dropout: float):
        side = image_size >> len(widths)
        up = tuple(reversed(widths))
        super().__init__(
            nn.Linear(latent_dim, up[0] * side**2),
            nn.Unflatten(1, (up[0], side, side)),  # (B, w[L-1], S/2^L, S/2^L)
            *_post(up[0], dropout),
            *(_up(w_in, w, dropout) for w_in, w in pairwise(up)),  # (B, w[0], S/2, S/2)
            nn.ConvTranspose2d(up[-1], 3, 4, stride=2, padding=1),  # (B, 3, S, S)
        )


class PatchEncoder(nn.Sequential):
    """Space to depth, then convolutions: 3-channel layers at full resolution starve a CPU; this has none."""

    def __init__(self, image_size: int, latent_dim: int, widths: Sequence[int], dropout: float):
        side = image_size // PATCH >> (len(widths) - 1)
        super().__init__(
            nn.PixelUnshuffle(PATCH),  # (B, 48, S/4, S/4)
            nn.Conv2d(3 * PATCH**2, widths[0], 3, padding=1, bias=False),
            *_post(widths[0], dropout),  # (B, w[0], S/4, S/4)
            *(_down(w_in, w, dropout) for w_in, w in pairwise(widths)),  # (B, w[L-1], S/2^(L+1), ...)
            nn.Flatten(),
            _head(widths[-1] * side**2, 2 * latent_dim),  # (B, 2D)
        )


class PatchDecoder(nn.Sequential):
    """The mirror of PatchEncoder: (B, D) -> (B, 3, S, S)."""

    def __init__(self, image_size: int, latent_dim: int, widths: Sequence[int], dropout: float):
        side = image_size // PATCH >> (len(widths) - 1)
        up = tuple(reversed(widths))
        super().__init__(
            nn.Linear(latent_dim, up[0] * side**2),
            nn.Unflatten(1, (up[0], side, side)),  # (B, w[L-1], S/2^(L+1), ...)
            *_post(up[0], dropout),
            *(_up(w_in, w, dropout) for w_in, w in pairwise(up)),  # (B, w[0], S/4, S/4)
            nn.Conv2d(up[-1], 3 * PATCH**2, 3, padding=1),  # (B, 48, S/4, S/4)
            nn.PixelShuffle(PATCH),  # (B, 3, S, S)
        )


NETWORKS: dict[str, tuple[Callable[..., nn.Module], Callable[..., nn.Module]]] = {
    "conv": (ConvEncoder, ConvDecoder),
    "patch": (PatchEncoder, PatchDecoder),
}


class BatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over the whole batch even where processes share it; nn.SyncBatchNorm does so on GPUs only."""

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and distributed.is_initialized() and distributed.get_world_size() > 1):
            return super().forward(x)
        num = x.numel() // x.shape[1] * distributed.get_world_size()
        mean = _AllReduce.apply(x.sum((0, 2, 3))) / num
        apart = x - mean[:, None, None]
        variance = _AllReduce.apply(apart.square().sum((0, 2, 3))) / num
        with torch.no_grad():
            for kept, now in ((self.running_mean, mean), (self.running_var, variance * num / (num - 1))):
                kept.lerp_(now, self.momentum)  # type: ignore[union-attr, arg-type]
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        scale = self.weight * (variance + self.eps).rsqrt()
        return apart * scale[:, None, None] + self.bias[:, None, None]


class _AllReduce(torch.autograd.Function):
    """The sum over all processes; so is its gradient."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        x = x.clone()
        distributed.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        grad = grad.clone()
        distributed.all_reduce(grad)
        return grad


def _head(in_features: int, out_features: int) -> nn.Linear:
    """The last layer of an encoder, small at first: codes begin near the prior, and the KL calm."""
    head = nn.Linear(in_features, out_features)
    nn.init.normal_(head.weight, std=0.1 * in_features**-0.5)
    nn.init.zeros_(head.bias)
    return head


def _down(w_in: int, w_out: int, dropout: float) -> nn.Sequential:
    conv = nn.Conv2d(w_in, w_out, 4, stride=2, padding=1, bias=False)  # BatchNorm brings the bias
    return nn.Sequential(conv, *_post(w_out, dropout))


def _up(w_in: int, w_out: int, dropout: float) -> nn.Sequential:
    conv = nn.ConvTranspose2d(w_in, w_out, 4, stride=2, padding=1, bias=False)
    return nn.Sequential(conv, *_post(w_out, dropout))


def _post(width: int, dropout: float) -> list[nn.Module]:
    return [BatchNorm2d(width), nn.ReLU(inplace=True), nn.Dropout2d(dropout)]

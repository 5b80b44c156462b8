"""Layers with PyTorch's results and parameters, and fewer passes over memory. C channels."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class Layers(nn.Sequential):
    """A Sequential that trains BatchNorm2d, ReLU and Dropout2d as one function on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        compiled = torch.compiler.is_compiling()  # a compiler does it itself
        plain = compiled or torch.is_autocast_enabled("cpu") or x.device.type != "cpu"
        layers = iter(list(self))
        for layer in layers:
            if type(layer) is nn.BatchNorm2d and layer.training and not plain:
                _relu = next(layers)
                dropout = next(layers)
                x = _NormReluDrop.apply(x, layer.weight, layer.bias, layer, dropout.p)
            else:
                x = layer(x)
        return x


class _NormReluDrop(torch.autograd.Function):
    """Dropout works in place. Its scale s is in the weights: relu(s x) = s relu(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: Any, rate: float) -> Any:
        ctx.norm = norm
        ctx.scale = 1 / (1 - rate)
        norm.num_batches_tracked.add_(1)
        weight = weight * ctx.scale
        bias = bias * ctx.scale
        moving = (norm.running_mean, norm.running_var, True, norm.momentum, norm.eps)
        y, mean, rstd = torch.native_batch_norm(x, weight, bias, *moving)
        y.relu_()
        if rate:
            y.mul_(x.new_empty(*x.shape[:2], 1, 1).bernoulli_(1 - rate))
        ctx.save_for_backward(x, weight, mean, rstd, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, mean, rstd, y = ctx.saved_tensors
        grad = torch.ops.aten.threshold_backward(grad, y, 0)  # 0 where a channel was dropped, too
        moving = (ctx.norm.running_mean, ctx.norm.running_var)
        rest = (*moving, mean, rstd, True, ctx.norm.eps, [True] * 3)
        of_x, of_w, of_b = torch.ops.aten.native_batch_norm_backward(grad, x, weight, *rest)
        return of_x, of_w * ctx.scale, of_b * ctx.scale, None, None


class Shortcut(nn.Module):
    """An encoder, whose mu gets a linear map of the image, shrunk to `side` pixels."""

    def __init__(self, encoder: nn.Module, channels: int, side: int, latent_dim: int):
        super().__init__()
        self.side = side
        self.linear = nn.Linear(channels * side**2, latent_dim, bias=False)
        nn.init.zeros_(self.linear.weight)
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, S, S) to mu and the raw logvar (B, 2 D)."""
        mu, raw = self.encoder(x).chunk(2, dim=1)
        small = F.adaptive_avg_pool2d(x, self.side) - 0.5
        return torch.cat([mu + self.linear(small.flatten(1)), raw], dim=1)


class ToColours(nn.ConvTranspose2d):
    """ConvTranspose2d to 3 channels as a convolution to 12 and a pixel shuffle: faster on a CPU.

    Or to 1 channel and 4.
    """

    def __init__(self, in_channels: int, channels: int):
        super().__init__(in_channels, channels, 4, stride=2, padding=1)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        assert self.bias is not None
        taps = self.weight.unflatten(3, (2, 2)).unflatten(2, (2, 2)).flip(2, 4)
        kernel = taps.permute(1, 3, 5, 0, 2, 4).flatten(0, 2)  # (12, C, 2, 2)
        kernel = kernel.contiguous(memory_format=torch.channels_last)
        y = F.conv2d(x, kernel, self.bias.repeat_interleave(4), padding=1)
        return F.pixel_shuffle(y, 2)[:, :, 1:-1, 1:-1]


class PixelsToPatches(nn.PixelUnshuffle):
    """PixelUnshuffle, with values in the order row, column, colour: copies of whole rows."""

    def forward(self, x: Tensor) -> Tensor:
        p = self.downscale_factor
        rows = x.permute(0, 2, 3, 1).unflatten(2, (-1, p)).flatten(3).unflatten(1, (-1, p))
        return rows.transpose(2, 3).flatten(3).permute(0, 3, 1, 2)


class PatchesToPixels(nn.PixelShuffle):
    """The inverse of PixelsToPatches."""

    def forward(self, x: Tensor) -> Tensor:
        p = self.upscale_factor
        rows = x.permute(0, 2, 3, 1).unflatten(3, (p, -1)).transpose(2, 3).flatten(1, 2)
        return rows.unflatten(3, (p, -1)).flatten(2, 3).permute(0, 3, 1, 2)


class FromPatches(nn.Conv2d):
    """A convolution of PixelsToPatches' values. Its weights have PixelUnshuffle's order."""

    def __init__(self, channels: int, patch: int, width: int):
        super().__init__(channels * patch**2, width, 3, padding=1, bias=False)
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.unflatten(1, (self.channels, -1)).transpose(1, 2).flatten(1, 2)
        return F.conv2d(x, weight, self.bias, padding=self.padding)


class ToPatches(nn.Conv2d):
    """A convolution to PatchesToPixels' values; its weights have PixelShuffle's order."""

    def __init__(self, width: int, channels: int, patch: int):
        super().__init__(width, channels * patch**2, 3, padding=1)
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        parts = [part.unflatten(0, (self.channels, -1)) for part in self.parameters()]
        weight, bias = (part.transpose(0, 1).flatten(0, 1) for part in parts)
        return F.conv2d(x, weight, bias, padding=self.padding)

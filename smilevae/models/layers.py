"""Layers with PyTorch's results and parameters, and fewer passes over memory. C channels."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class Layers(nn.Sequential):
    """A Sequential that trains BatchNorm2d, ReLU and Dropout2d as one function on a CPU. A compiler does it itself."""

    def forward(self, x: Tensor) -> Tensor:
        layers = list(self)
        while layers:
            layer = layers.pop(0)
            plain = torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu") or x.device.type != "cpu"
            if type(layer) is nn.BatchNorm2d and layer.training and not plain:
                rate, layers = layers[1].p, layers[2:]
                x = _NormReluDrop.apply(x, layer.weight, layer.bias, layer, rate)
            else:
                x = layer(x)
        return x


class _NormReluDrop(torch.autograd.Function):
    """Dropout's mask works in place. Its scale is in the weights: relu(s x) = s relu(x) for s > 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: Any, rate: float) -> Tensor:
        ctx.norm, ctx.scale = norm, 1 / (1 - rate)
        norm.num_batches_tracked.add_(1)
        scaled, moving = (weight * ctx.scale, bias * ctx.scale), (norm.running_mean, norm.running_var)
        y, mean, rstd = torch.native_batch_norm(x, *scaled, *moving, True, norm.momentum, norm.eps)
        y.relu_()
        if rate:
            y.mul_(x.new_empty(*x.shape[:2], 1, 1).bernoulli_(1 - rate))
        ctx.save_for_backward(x, scaled[0], mean, rstd, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, mean, rstd, y = ctx.saved_tensors
        grad = torch.ops.aten.threshold_backward(grad, y, 0)  # 0 where a channel was dropped, too
        moving, eps = (ctx.norm.running_mean, ctx.norm.running_var), ctx.norm.eps
        grads = torch.ops.aten.native_batch_norm_backward(grad, x, weight, *moving, mean, rstd, True, eps, [True] * 3)
        return grads[0], grads[1] * ctx.scale, grads[2] * ctx.scale, None, None


class ToColours(nn.ConvTranspose2d):
    """ConvTranspose2d to few channels as a 2x2 convolution to 4 times as many and a pixel shuffle: faster on a CPU."""

    def __init__(self, in_channels: int):
        super().__init__(in_channels, 3, 4, stride=2, padding=1)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        assert self.bias is not None
        taps = self.weight.unflatten(3, (2, 2)).unflatten(2, (2, 2)).flip(2, 4)  # (C, 3, 2, 2, 2, 2)
        kernel = taps.permute(1, 3, 5, 0, 2, 4).flatten(0, 2).contiguous(memory_format=torch.channels_last)
        y = F.conv2d(x, kernel, self.bias.repeat_interleave(4), padding=1)
        return F.pixel_shuffle(y, 2)[:, :, 1:-1, 1:-1]


class PixelsToPatches(nn.PixelUnshuffle):
    """PixelUnshuffle, with a patch's values in the order row, column, colour: copies of whole rows."""

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
    """A convolution of PixelsToPatches' values; its weights have PixelUnshuffle's order: colour, row, column."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.unflatten(1, (3, -1)).transpose(1, 2).flatten(1, 2)
        return F.conv2d(x, weight, self.bias, padding=self.padding)


class ToPatches(nn.Conv2d):
    """A convolution to PatchesToPixels' values; its weights have PixelShuffle's order."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = (part.unflatten(0, (3, -1)).transpose(0, 1).flatten(0, 1) for part in self.parameters())
        return F.conv2d(x, weight, bias, padding=self.padding)

"""Random changes of training faces. Shapes: B batch, S image side."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def augment(
    x: Tensor, uniform: Tensor, *, shift: float, rotate: float, zoom: float, light: float
) -> Tensor:
    """Faces (B, 3, S, S) in [0, 1], changed by `uniform` (B, 9) in [-1, 1] times each limit.

    `shift` in pixels, `rotate` in degrees, e^`zoom` in size, e^`light` in brightness.
    """
    if shift or rotate or zoom:
        down, across = uniform[:, 0:2].T * 2 * shift / x.shape[-1]
        angle = uniform[:, 2] * math.radians(rotate)
        size = uniform[:, 3] * zoom
        aspect = uniform[:, 4] * zoom / 2
        wide = (-size - aspect).exp()
        high = (-size + aspect).exp()
        row_x = [angle.cos() * wide, angle.sin() * wide, -across]
        row_y = [-angle.sin() * high, angle.cos() * high, -down]
        matrices = torch.stack(row_x + row_y, 1).view(-1, 2, 3)
        grid = F.affine_grid(matrices, list(x.shape), align_corners=False)
        x = F.grid_sample(x, grid, "bicubic", "border", align_corners=False).clamp(0, 1)
    if light:
        by = uniform[:, 5:6] + uniform[:, 6:] / 3
        x = (x * (light * by).exp()[:, :, None, None]).clamp(0, 1)
    return x

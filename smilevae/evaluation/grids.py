"""Image grids as tensors in [0, 1], ready to be saved. Shapes: R rows, C columns, S image side."""

import torch
from torch import Tensor
from torch.nn import functional as F

GAP = 2  # pixels of white between images


def tile(images: Tensor) -> Tensor:
    """Lay (R, C, K, S, S), K channels, out as one image (3, H, W), values clamped to [0, 1].

    The same bits as torchvision's make_grid, whose import takes seconds.
    """
    cells = F.pad(images.detach().cpu().clamp(0, 1), (0, GAP, 0, GAP), value=1.0)
    colours = cells.expand(-1, -1, 3, -1, -1)
    rows = colours.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    return F.pad(rows, (GAP, 0, GAP, 0), value=1.0)


def pairs(x: Tensor, x_hat: Tensor, num_columns: int = 8) -> Tensor:
    """Originals above their reconstructions, (B, 3, S, S) twice -> (3, H, W); B is cut to whole rows."""
    num_columns = min(num_columns, len(x))
    num = len(x) // num_columns * num_columns
    both = torch.stack([x[:num].cpu(), x_hat[:num].detach().cpu()])  # (2, B, 3, S, S)
    return tile(both.unflatten(1, (-1, num_columns)).transpose(0, 1).flatten(0, 1))


def square(images: Tensor) -> Tensor:
    """The first k^2 of (B, 3, S, S) as a k by k grid."""
    side = int(len(images) ** 0.5)
    return tile(images[: side**2].unflatten(0, (side, side)))

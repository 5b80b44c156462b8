"""A network whose features tell faces apart, for images in which no landmarks are seen.

Shapes: N faces, B batch, S image side.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smilevae.data.augment import augment
from smilevae.data.cache import cached
from smilevae.data.dataset import Faces, derived_key

SIDE = 64  # pixels of the images that it sees
WIDTH = 128  # features
EPOCHS = 20


class FaceNetwork(nn.Module):
    """Faces (B, 3, S, S) in [0, 1] -> features (B, WIDTH) of length 1."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.PixelUnshuffle(4)]
        for a, b in pairwise((48, 48, 96, WIDTH)):
            stride = 2 if a != b else 1
            layers += [nn.Conv2d(a, b, 3, stride, 1), nn.BatchNorm2d(b), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.layers(small(x)).mean((2, 3)), dim=1)


def small(x: Tensor) -> Tensor:
    """Images of SIDE pixels."""
    return F.interpolate(x, (SIDE, SIDE), mode="area") if x.shape[-1] != SIDE else x


def exemplar_network(faces: Faces, rows: np.ndarray) -> FaceNetwork:
    """A network that tells each of these faces from all others, however moved, mirrored and lit.

    Exemplar CNN, Dosovitskiy et al. 1406.6909. It is trained once for a data set, in some 12 seconds.
    """
    network = FaceNetwork()
    shapes = {name: part.shape for name, part in network.state_dict().items()}
    sizes = [shape.numel() for shape in shapes.values()]

    def build(weights: np.ndarray) -> dict[str, Any]:
        _train(network, small(faces.batch(rows)))
        flat = torch.cat([part.float().flatten() for part in network.state_dict().values()])
        weights[:] = flat.numpy().view(np.uint8)
        return {}

    key = derived_key(faces, "network", rows)
    weights, _ = cached(key, (4 * sum(sizes),), build, faces.cache)
    parts = torch.from_numpy(np.array(weights).view(np.float32)).split(sizes)
    state = {name: part.view(shapes[name]) for name, part in zip(shapes, parts)}
    network.load_state_dict(state)
    return network.eval()


@torch.enable_grad()
def _train(network: FaceNetwork, x: Tensor) -> None:
    """Train a network on faces (N, 3, S, S); the random state of torch stays."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for layer in network.layers:
            if isinstance(layer, nn.Conv2d | nn.BatchNorm2d):
                layer.reset_parameters()
        names = nn.Parameter(torch.randn(len(x), WIDTH) * 0.1)
        batch = min(64, len(x))
        steps = EPOCHS * (len(x) // batch)
        optimizer = torch.optim.AdamW([*network.parameters(), names], lr=3e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        for _ in range(steps):
            rows = torch.randint(len(x), (batch,))
            amounts = torch.rand(batch, 9) * 2 - 1
            moved = augment(x[rows], amounts, shift=4, rotate=8, zoom=0.1, light=0.3)
            moved = torch.where(torch.rand(batch, 1, 1, 1) < 0.5, moved.flip(3), moved)
            logits = 16 * network(moved) @ F.normalize(names, dim=1).T
            loss = F.cross_entropy(logits, rows)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

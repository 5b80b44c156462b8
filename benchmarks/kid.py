"""python benchmarks/kid.py RUN [RUN ...]: do new faces look like faces, to a network that knows these?

KID (Binkowski et al. 1801.01401) by torchmetrics, with features of a small face network instead of Inception, which
would have to be downloaded and has seen objects: it is trained here, on the training faces alone, to tell every face
from every other however moved, mirrored and lit (exemplar CNN, Dosovitskiy et al. 1406.6909): "KID (face features)".
Compared with the training faces: another half of them (the floor), held-out people, reconstructions, and samples of the
prior and of the mixture at several temperatures. Mean and standard deviation over 100 subsets of 200, times 1,000.
"""

import sys
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.image.kid import KernelInceptionDistance

from smilevae import runs
from smilevae.data import batches, load_faces
from smilevae.data.augment import augment
from smilevae.data.encode import encode
from smilevae.evaluation.samplers import draw_codes
from smilevae.runs import checkpoint

SIDE, WIDTH, EPOCHS = 64, 128, 40


class FaceNetwork(nn.Module):
    """uint8 faces (B, 3, S, S) -> unit features (B, WIDTH)."""

    num_features = WIDTH

    def __init__(self) -> None:
        super().__init__()
        widths = (48, 48, 96, WIDTH)
        blocks = [
            (nn.Conv2d(a, b, 3, 2 if a != b else 1, 1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in pairwise(widths)
        ]
        self.layers = nn.Sequential(nn.PixelUnshuffle(4), *(layer for block in blocks for layer in block))

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images.float() / 255) * WIDTH**0.5  # KID's kernel divides by their number

    def features(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, (SIDE, SIDE), mode="area") if x.shape[-1] != SIDE else x
        return F.normalize(self.layers(x).mean((2, 3)), dim=1)


def train(faces: Tensor) -> FaceNetwork:
    """Learn to name each of the faces (N, 3, S, S) under changes that leave a face the same."""
    torch.manual_seed(0)
    network, classes, generator = (
        FaceNetwork(),
        nn.Parameter(torch.randn(len(faces), WIDTH) * 0.1),
        torch.Generator().manual_seed(0),
    )
    steps = EPOCHS * (len(faces) // 64)
    optimizer = torch.optim.AdamW([*network.parameters(), classes], lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(faces), (64,), generator=generator)
        x = augment(faces[rows], torch.rand(64, 9, generator=generator) * 2 - 1, shift=4, rotate=8, zoom=0.1, light=0.3)
        mirrored = torch.rand(64, generator=generator) < 0.5
        x[mirrored] = x[mirrored].flip(3)
        logits = 16 * network.features(x) @ F.normalize(classes, dim=1).T
        loss = F.cross_entropy(logits, rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    print(
        f"face network: {len(faces)} faces to tell apart, last loss {loss.item():.2f} (chance {np.log(len(faces)):.2f})"
    )
    return network.eval()


def kid(network: FaceNetwork, real: Tensor, other: Tensor) -> str:
    torch.manual_seed(0)
    metric = KernelInceptionDistance(feature=network, subsets=100, subset_size=min(200, len(other)))
    for images, is_real in ((real, True), (other, False)):
        for chunk in images.split(256):
            metric.update((chunk.clamp(0, 1) * 255).round().byte(), real=is_real)
    mean, sd = metric.compute()
    return f"{1000 * mean:7.2f} +- {1000 * sd:.2f}"


@torch.no_grad()
def compare(run: str) -> None:
    vae, settings, *_ = checkpoint.load(runs.find(run))
    faces = load_faces(settings.data, settings.image_size)

    def pictures(part: str) -> Tensor:
        x = batches.to_unit(torch.from_numpy(faces.images[faces.rows(part)]))
        return F.interpolate(x, (SIDE, SIDE), mode="area") if x.shape[-1] != SIDE else x

    real = pictures("train")
    with torch.enable_grad():
        network = train(real)
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(0))
    print(f"{run}, {len(real)} training faces, {len(faces.rows('val'))} held out; KID (face features) x 1000")
    print(f"  {'other half of the training faces':42} {kid(network, real[order[::2]], real[order[1::2]])}")
    print(f"  {'held-out people':42} {kid(network, real, pictures('val'))}")
    mu, logvar = encode(vae, faces, faces.rows("train"))
    held_out = encode(vae, faces, faces.rows("val"))[0]
    print(f"  {'reconstructions of held-out people':42} {kid(network, real, decode(vae, held_out))}")
    for sampler in ("prior", "mixture"):
        for temperature in (1.0, 0.8, 0.6):
            noise = torch.Generator().manual_seed(0)
            codes = draw_codes(2000, noise, mu=mu, logvar=logvar, sampler=sampler, temperature=temperature)
            name = f"sampler={sampler} temperature={temperature:g}"
            print(f"  {name:42} {kid(network, real, decode(vae, codes))}")


def decode(vae: nn.Module, codes: Tensor) -> Tensor:
    return torch.cat([F.interpolate(vae.decode(z), (SIDE, SIDE), mode="area") for z in codes.split(128)])


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*will save all extracted features.*")
    for run in sys.argv[1:]:
        compare(str(Path(run)))

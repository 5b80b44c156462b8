"""The codes of faces. Shapes: B batch, N faces, S image side, D latent dimensions."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from smilevae.data.batches import in_order
from smilevae.data.dataset import Faces
from smilevae.models.vae import VAE

BATCH = 128


def batches_of(vae: VAE, faces: Faces, rows: np.ndarray) -> Iterator[Tensor]:
    """Faces in the given order as batches (B, 3, S, S) in [0, 1] on the network's device."""
    device = next(vae.parameters()).device
    for chunk, _ in in_order(rows, BATCH):
        yield faces.batch(chunk, device)


@torch.no_grad()
def encode(
    vae: VAE, faces: Faces, rows: np.ndarray, mirrored: bool = False
) -> tuple[Tensor, Tensor]:
    """mu and logvar of faces, or of their mirror images, in eval mode, on the CPU: (N, D) twice."""
    was_training = vae.training
    vae.eval()
    batches = batches_of(vae, faces, rows)
    codes = [vae.encode(x.flip(3) if mirrored else x) for x in batches]
    vae.train(was_training)
    mu, logvar = (torch.cat(parts).cpu() for parts in zip(*codes))
    return mu, logvar

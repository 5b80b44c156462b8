"""Batches of faces, and `hash64` for random streams. Shapes: B batch, S image side."""

import hashlib
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from smilevae.errors import DataError


def gather(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Copies of some rows: (B, S, S, 3). Memory-mapped pages would count as resident memory."""
    if not isinstance(images, np.memmap):
        return images[rows]
    batch = np.empty((len(rows), *images.shape[1:]), images.dtype)
    path = str(images.filename)
    with open(path, "rb", buffering=0) as file:
        for row, image in zip(rows.tolist(), batch):
            file.seek(images.offset + row * images.strides[0])
            if file.readinto(image) != image.nbytes:
                remedy = "remove it, and it is built again"
                raise DataError(f"the image cache {path} was cut short; {remedy}")
    return batch


def to_unit(images: Tensor) -> Tensor:
    """uint8 (B, S, S, 3) -> float (B, 3, S, S) in [0, 1], channels_last."""
    return images.permute(0, 3, 1, 2).float().div_(255)


def hash64(*parts: object) -> int:
    """A 64-bit hash of the parts' text, the same on every machine."""
    text = "\0".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


class FaceBatches(Dataset):
    """An index is a batch: ((B,) rows, (B,) flips) -> uint8 (B, S, S, 3), smile (B,).

    Arrays on the host, or tensors on a device, indices too: a batch there waits for nothing.
    """

    def __init__(self, images: np.ndarray | Tensor, smile: Any):
        self.images = images
        self.smile = smile

    def __getitem__(self, index: tuple[Any, Any]) -> tuple[Tensor, Tensor]:
        rows, flips = index
        if isinstance(self.images, Tensor):
            batch = self.images[rows]
            return torch.where(flips[:, None, None, None], batch.flip(2), batch), self.smile[rows]
        images = gather(self.images, rows)
        images[flips] = images[flips, :, ::-1]
        smile = self.smile[rows].astype(np.int64)
        return torch.from_numpy(images), torch.from_numpy(smile)


@dataclass(eq=False)
class EpochBatches(Sampler):
    """Shuffled, flipped indices of FaceBatches from (seed, epoch) alone. Batches are full."""

    rows: np.ndarray
    batch_size: int
    seed: int
    _: KW_ONLY
    flip: bool
    epoch: int = 0
    skip: int = 0  # batches of the first epoch, after a resume within it
    rank: int = 0
    world: int = 1  # processes that share each batch
    device: torch.device | None = None  # an epoch's indices go there at once

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        rng = np.random.default_rng(hash64("shuffle", self.seed, self.epoch))
        order: Any = rng.permutation(self.rows)
        flips: Any = (rng.random(len(order)) < 0.5) & self.flip
        if self.device:
            order = torch.from_numpy(order).to(self.device)
            flips = torch.from_numpy(flips).to(self.device)
        size = min(self.batch_size, len(order))
        first = self.skip
        self.skip = 0
        for batch in range(first, len(self)):
            share = slice(batch * size + self.rank, (batch + 1) * size, self.world)
            yield order[share], flips[share]

    def __len__(self) -> int:
        return len(self.rows) // min(self.batch_size, len(self.rows))


def in_order(rows: np.ndarray, batch_size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Every row once, unflipped, as indices of FaceBatches."""
    chunks = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return [(chunk, np.zeros(len(chunk), dtype=bool)) for chunk in chunks]

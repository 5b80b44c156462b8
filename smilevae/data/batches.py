"""Batches of decoded faces: which rows in which order, gathered with one index, as tensors. Named random streams.

Shapes: B batch, S image side.
"""

import hashlib
from collections.abc import Iterator
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from smilevae.errors import DataError


def gather(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Copies of some rows of the cache: (B, S, S, 3). Read from the file: pages of a map would stay and count."""
    if not isinstance(images, np.memmap):
        return images[rows]
    found = np.empty((len(rows), *images.shape[1:]), images.dtype)
    with open(cast("str", images.filename), "rb", buffering=0) as file:
        for row, place in zip(rows.tolist(), found):
            file.seek(images.offset + row * images.strides[0])
            if file.readinto(place) != place.nbytes:
                raise DataError(f"the image cache {images.filename} was cut short; remove it, and it is built again")
    return found


def to_unit(images: Tensor) -> Tensor:
    """uint8 (B, S, S, 3) -> float (B, 3, S, S) in [0, 1], channels_last in memory without a copy."""
    return images.permute(0, 3, 1, 2).float().div_(255)


def hash64(*parts: object) -> int:
    """A 64-bit hash of the parts' text: independent random streams by name, the same on every machine."""
    text = "\0".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


class FaceBatches(Dataset):
    """Whole batches of faces with one index: ((B,) rows, (B,) flips) -> uint8 (B, S, S, 3), smile (B,)."""

    def __init__(self, images: np.ndarray, smile: np.ndarray):
        self.images, self.smile = images, smile

    def __getitem__(self, index: tuple[np.ndarray, np.ndarray]) -> tuple[Tensor, Tensor]:
        rows, flips = index
        images = gather(self.images, rows)
        images[flips] = images[flips, :, ::-1]
        return torch.from_numpy(images), torch.from_numpy(self.smile[rows].astype(np.int64))

    def __len__(self) -> int:
        return len(self.smile)


class EpochBatches(Sampler):
    """Shuffled, flipped batches that depend on (seed, epoch) alone, so that a resumed epoch repeats the original.

    Yields (rows, flips) for FaceBatches. A last batch that is not full is left out: three images would set
    BatchNorm's statistics. `skip` drops the first batches of the first epoch (a resume within it); `rank` and
    `world` share each batch out between processes.
    """

    def __init__(
        self,
        rows: np.ndarray,
        batch_size: int,
        seed: int,
        *,
        flip: bool,
        epoch: int = 0,
        skip: int = 0,
        rank: int = 0,
        world: int = 1,
    ):
        self.rows, self.batch_size, self.seed, self.flip = rows, min(batch_size, len(rows)), seed, flip
        self.epoch, self.skip, self.rank, self.world = epoch, skip, rank, world

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        rng = np.random.default_rng(hash64("shuffle", self.seed, self.epoch))
        order = rng.permutation(self.rows)
        flips = (rng.random(len(order)) < 0.5) & self.flip
        first, self.skip = self.skip, 0
        for batch in range(first, len(self)):
            mine = slice(batch * self.batch_size + self.rank, (batch + 1) * self.batch_size, self.world)
            yield order[mine], flips[mine]

    def __len__(self) -> int:
        return len(self.rows) // self.batch_size


def in_order(rows: np.ndarray, batch_size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Every row once, unflipped, as indices of FaceBatches: a sampler for validation and evaluation."""
    chunks = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return [(chunk, np.zeros(len(chunk), dtype=bool)) for chunk in chunks]

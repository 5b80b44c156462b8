"""Lightning's view of the faces: batches that a resume repeats, conversion on the device."""

from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from smilevae.config import Settings
from smilevae.data.batches import EpochBatches, FaceBatches, gather, in_order, to_unit
from smilevae.data.dataset import Faces
from smilevae.errors import ConfigError

VAL_BATCH = 128  # fixed: validation noise is equal in every run of a sweep
MOST = 0.25  # of a GPU's free memory may hold the faces; an epoch's indices go there at once


class FaceDataModule(pl.LightningDataModule):
    """(x, smile): x float (B, 3, S, S) in [0, 1], smile int (B,) in {0, 1}, -1 without a label."""

    def __init__(self, faces: Faces, settings: Settings):
        super().__init__()
        self.faces = faces
        self.settings = settings
        self.batches = FaceBatches(faces.images, faces.smile)
        self.device: torch.device | None = None  # of the faces, if not the host

    def setup(self, stage: str) -> None:
        device = self.trainer.strategy.root_device
        if self.fits(device):
            self.device = device
            images = gather(self.faces.images, np.arange(len(self.faces.images)))
            smile = self.faces.smile.astype(np.int64)
            self.faces.resident = self._on_device(images)
            self.batches = FaceBatches(self.faces.resident, self._on_device(smile))

    def fits(self, device: torch.device) -> bool:
        """Whether the faces are kept in a GPU's memory."""
        if device.type != "cuda":
            return False
        return self.faces.images.nbytes <= MOST * torch.cuda.mem_get_info(device)[0]

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        rows = self.faces.rows("train")
        batch_size = self.settings.batch_size
        if min(batch_size, len(rows)) % trainer.world_size:
            text = f"cannot be shared by {trainer.world_size} processes; make it a multiple"
            raise ConfigError(f"batch_size={batch_size} {text}")
        # Where a resume begins; Lightning calls set_epoch too late for its first epoch.
        epoch = 0
        skip = 0
        if trainer.ckpt_path is not None:
            epoch = trainer.fit_loop.epoch_progress.current.processed
            if trainer.fit_loop.restarting:
                skip = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        batches = EpochBatches(
            *(rows, batch_size, self.settings.seed),
            flip=self.settings.augment,
            epoch=epoch,
            skip=skip,
            rank=trainer.global_rank,
            world=trainer.world_size,
            device=self.device,
        )
        if getattr(trainer.lightning_module, "whole_step", None):
            return DataLoader(Indices(), None, sampler=batches)
        return self._loader(batches)

    def val_dataloader(self) -> DataLoader:
        mine = slice(self.trainer.global_rank, None, self.trainer.world_size)
        shares: list[Any] = []
        for rows, flips in in_order(self.faces.rows("val"), VAL_BATCH):
            if len(rows[mine]):
                shares.append((self._on_device(rows[mine]), self._on_device(flips[mine])))
        return self._loader(shares)

    def on_after_batch_transfer(
        self, batch: tuple[Tensor, Tensor], dataloader_idx: int
    ) -> tuple[Tensor, Tensor]:
        images, smile = batch
        return (to_unit(images), smile) if images.ndim == 4 else batch

    def _on_device(self, part: np.ndarray) -> Any:
        """A tensor where the faces are on a device, else the array itself."""
        return torch.from_numpy(part).to(self.device) if self.device else part

    def _loader(self, batches: Any) -> DataLoader:
        workers = 0 if self.device else self.settings.num_workers
        pin = torch.cuda.is_available() and not self.device
        return DataLoader(self.batches, None, sampler=batches, num_workers=workers, pin_memory=pin)


class Indices(Dataset):
    """The indices themselves: a captured step gathers its faces."""

    def __getitem__(self, index: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return index

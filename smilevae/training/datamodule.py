"""Lightning's view of the faces: batches that a resume repeats, conversion on the device."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from smilevae.config import Settings
from smilevae.data.batches import EpochBatches, FaceBatches, in_order, to_unit
from smilevae.data.dataset import Faces
from smilevae.errors import ConfigError

VAL_BATCH = 128  # fixed: validation noise is equal in every run of a sweep


class FaceDataModule(pl.LightningDataModule):
    """(x, smile): x float (B, 3, S, S) in [0, 1], smile int (B,) in {0, 1}, -1 without a label."""

    def __init__(self, faces: Faces, settings: Settings):
        super().__init__()
        self.faces, self.settings = faces, settings

    def train_dataloader(self) -> DataLoader:
        world, batch_size, rows = self.trainer.world_size, self.settings.batch_size, self.faces.rows("train")
        if min(batch_size, len(rows)) % world:
            raise ConfigError(f"batch_size={batch_size} cannot be shared by {world} processes; make it a multiple")
        fit, epoch, skip = self.trainer.fit_loop, 0, 0
        if self.trainer.ckpt_path is not None:  # the iterator exists before set_epoch
            epoch = fit.epoch_progress.current.processed
            skip = fit.epoch_loop.batch_progress.current.ready if fit.restarting else 0
        batches = EpochBatches(
            rows,
            batch_size,
            self.settings.seed,
            flip=self.settings.augment,
            epoch=epoch,
            skip=skip,
            rank=self.trainer.global_rank,
            world=world,
        )
        return self._loader(batches)

    def val_dataloader(self) -> DataLoader:
        mine = slice(self.trainer.global_rank, None, self.trainer.world_size)
        batches = in_order(self.faces.rows("val"), VAL_BATCH)
        return self._loader([(rows[mine], flips[mine]) for rows, flips in batches if len(rows[mine])])

    def _loader(self, batches: Any) -> DataLoader:
        return DataLoader(
            FaceBatches(self.faces.images, self.faces.smile),
            sampler=batches,
            batch_size=None,
            num_workers=self.settings.num_workers,
            pin_memory=torch.cuda.is_available(),
        )

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        images, smile = batch
        return to_unit(images), smile

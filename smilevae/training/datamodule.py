"""Lightning's view of the faces: batches that a resume repeats, conversion on the device."""

from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

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
        self.faces, self.settings = faces, settings
        self.batches = FaceBatches(faces.images, faces.smile)
        self.device: torch.device | None = None  # of the batches' faces, if not the host

    def setup(self, stage: str) -> None:
        if self.fits(device := self.trainer.strategy.root_device):
            self.device, images = device, gather(self.faces.images, np.arange(len(self.faces.images)))
            values = (torch.from_numpy(part).to(device) for part in (images, self.faces.smile.astype(np.int64)))
            self.batches = FaceBatches(*values)

    def fits(self, device: torch.device) -> bool:
        return device.type == "cuda" and self.faces.images.nbytes <= MOST * torch.cuda.mem_get_info(device)[0]

    def train_dataloader(self) -> DataLoader:
        world, batch_size, rows = self.trainer.world_size, self.settings.batch_size, self.faces.rows("train")
        if min(batch_size, len(rows)) % world:
            raise ConfigError(f"batch_size={batch_size} cannot be shared by {world} processes; make it a multiple")
        fit, epoch, skip = self.trainer.fit_loop, 0, 0
        if self.trainer.ckpt_path is not None:  # the iterator exists before set_epoch
            epoch = fit.epoch_progress.current.processed
            skip = fit.epoch_loop.batch_progress.current.ready if fit.restarting else 0
        share: Any = {"rank": self.trainer.global_rank, "world": world, "device": self.device}
        order: Any = {"flip": self.settings.augment, "epoch": epoch, "skip": skip}
        return self._loader(EpochBatches(rows, batch_size, self.settings.seed, **order, **share))

    def val_dataloader(self) -> DataLoader:
        mine = slice(self.trainer.global_rank, None, self.trainer.world_size)
        batches = in_order(self.faces.rows("val"), VAL_BATCH)
        shares: list[Any] = [(rows[mine], flips[mine]) for rows, flips in batches if len(rows[mine])]
        if self.device:
            shares = [[torch.from_numpy(part).to(self.device) for part in share] for share in shares]
        return self._loader(shares)

    def _loader(self, batches: Any) -> DataLoader:
        on_host: Any = {"num_workers": self.settings.num_workers, "pin_memory": torch.cuda.is_available()}
        return DataLoader(self.batches, None, sampler=batches, **({} if self.device else on_host))

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        images, smile = batch
        return to_unit(images), smile

"""Writes metrics.jsonl and the checkpoints at every epoch's end; stops at a signal or the time limit."""

import logging
import math
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins import CheckpointIO

from smilevae import runs
from smilevae.config import Settings
from smilevae.errors import DataError, Interrupted
from smilevae.runs import Run, Stop, checkpoint

log = logging.getLogger(__name__)
NUM_BEST = 2


class PlainCheckpointIO(CheckpointIO):
    """Lightning's checkpoints through our one writer and one reader."""

    def save_checkpoint(self, checkpoint_: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        checkpoint.write(checkpoint_, Path(path))

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return checkpoint.read(path)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class Record(pl.callbacks.Checkpoint):
    """The record of a training: the list of epochs, from which the best checkpoints follow.

    Raises Interrupted after a checkpoint if `stop` holds a signal or `max_time` (DD:HH:MM:SS) is over. Lightning's
    timer counts a part of an epoch as whole.
    """

    def __init__(self, run: Run, stop: Stop, max_time: str | None = None):
        self.run, self.stop, self.max_time = run, stop, max_time
        self.epochs: list[dict[str, Any]] = []
        self._start = self.images_per_second = 0.0
        self._end = math.inf

    def best(self) -> list[dict[str, Any]]:
        """The epochs of the best checkpoints, best first."""
        return sorted(self.epochs, key=lambda line: (line["val/loss"], line["epoch"]))[:NUM_BEST]

    def result(self, settings: Settings, fingerprint: str) -> dict[str, Any]:
        """The training's part of result.json. Raises DataError without an epoch."""
        if not self.epochs:
            raise DataError("no training step was made; add pictures")
        best = self.best()
        return {
            "identity": settings.identity(fingerprint),
            "data_fingerprint": fingerprint,
            "settings": settings.flat(),
            "checkpoints": [f"checkpoints/{runs.best_name(line['epoch'])}" for line in best],
            "best": best[0],
            "final": self.epochs[-1],
        }

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs = [dict(line) for line in state["epochs"]]

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._start, self._seen = time.perf_counter(), 0
        if self.max_time:
            days, hours, minutes, seconds = map(int, self.max_time.split(":"))
            self._end = self._start + ((days * 24 + hours) * 60 + minutes) * 60 + seconds
        self.stop.install(deferred=True)  # after Lightning's own handlers
        if not self.epochs and "val/loss" in pl_module.epoch.metrics:  # a warm start
            log.info(f"epoch 0, the linear optimum: val loss {pl_module.epoch.metrics['val/loss']:.1f}")
            self._close_epoch(trainer, pl_module, 0)
        elif trainer.is_global_zero and self.epochs and "train" not in pl_module.epoch.sums:
            self.name_best()  # a kill may have come before it

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stop.deferred = False

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._interrupt()
        self._start, self._seen = time.perf_counter(), 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._seen += len(batch[0]) * trainer.world_size
        self.images_per_second = self._seen / (time.perf_counter() - self._start)
        if batch_idx + 1 < trainer.num_training_batches and (self.stop.signum or time.perf_counter() > self._end):
            self._save(trainer)
            self._interrupt()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._close_epoch(trainer, pl_module, trainer.current_epoch + 1)

    def _interrupt(self) -> None:
        if self.stop.signum:
            raise Interrupted(self.stop.signum)
        if time.perf_counter() > self._end:
            raise Interrupted(text="trainer.max_time is over")

    def _close_epoch(self, trainer: pl.Trainer, pl_module: Any, epoch: int) -> None:
        speed = round(self.images_per_second, 1)
        self.epochs.append({"epoch": epoch, **pl_module.epoch.metrics, "images_per_second": speed})
        if trainer.is_global_zero:
            self.run.write_metrics(self.epochs)
        self._save(trainer)
        if trainer.is_global_zero:
            self.name_best()

    def _save(self, trainer: pl.Trainer) -> None:
        last = self.run.checkpoints / "last.ckpt"
        if trainer.is_global_zero and last.exists():
            runs.link(last, last.with_name("previous.ckpt"))
        trainer.save_checkpoint(last, weights_only=False)  # with the optimizer, for a resume

    def name_best(self) -> None:
        """Link last.ckpt under its epoch's name if that is among the best; remove the others."""
        epoch, keep = self.epochs[-1]["epoch"], {line["epoch"] for line in self.best()}
        folder = self.run.checkpoints
        name = folder / runs.best_name(epoch)
        if epoch in keep and not name.exists():
            runs.link(folder / "last.ckpt", name)
        for path in folder.glob("epoch-*.ckpt"):
            if runs.epoch_of(path) not in keep:
                path.unlink(missing_ok=True)

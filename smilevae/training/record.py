"""Keeps metrics.jsonl, and writes the checkpoints."""

import logging
import math
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import CheckpointIO
from pytorch_lightning.callbacks import Checkpoint

from smilevae import runs
from smilevae.config import Settings
from smilevae.errors import DataError
from smilevae.runs import Run, checkpoint
from smilevae.training.until import Until

log = logging.getLogger(__name__)
NUM_BEST = 2


class PlainCheckpointIO(CheckpointIO):
    """Lightning's checkpoints through our one writer and one reader."""

    def save_checkpoint(
        self, content: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        checkpoint.write(content, Path(path))

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return checkpoint.read(path)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class Record(pl.Callback):
    """Keeps the list of epochs in metrics.jsonl. It is the first callback; later ones read it."""

    def __init__(self, run: Run):
        self.run = run
        self.epochs: list[dict[str, Any]] = []  # the lines of metrics.jsonl
        self.images_per_second = 0.0

    def best(self) -> list[dict[str, Any]]:
        """The epochs of the best checkpoints, best first."""
        return _best(self.epochs)

    def result(self, settings: Settings, fingerprint: str) -> dict[str, Any]:
        """The training's part of result.json. Raises DataError without an epoch."""
        if not self.epochs:
            raise DataError("no training step was made; add images")
        best = self.best()
        return {
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

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        self._start_epoch()  # after a resume within an epoch Lightning leaves its start out
        if not self.epochs and "val/loss" in module.epoch.metrics:  # validated before it trains
            loss = module.epoch.metrics["val/loss"]
            log.info(f"epoch 0, before training: val loss {loss:.1f}")
            self._close_epoch(module, 0)

    def on_train_epoch_start(self, trainer: pl.Trainer, module: Any) -> None:
        self._start_epoch()

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._seen += len(batch[0]) * trainer.world_size
        self.images_per_second = self._seen / (time.perf_counter() - self._start)

    def on_validation_start(self, trainer: pl.Trainer, module: Any) -> None:
        if module.device.type == "cuda" and not trainer.sanity_checking:
            torch.cuda.synchronize(module.device)  # steps are queued faster than they run
            self.images_per_second = self._seen / (time.perf_counter() - self._start)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        self._close_epoch(module, trainer.current_epoch + 1)
        line = {**self.epochs[-1], "step": self.num_epochs}  # the x axis of loggers
        del line["epoch"]  # Lightning adds it
        module.log_dict({k: float(v) for k, v in line.items()}, sync_dist=trainer.world_size > 1)

    @property
    def num_epochs(self) -> int:
        """The number of the last epoch."""
        return self.epochs[-1]["epoch"]

    def _start_epoch(self) -> None:
        self._start = time.perf_counter()
        self._seen = 0

    def _close_epoch(self, module: Any, epoch: int) -> None:
        speed = round(self.images_per_second, 1)
        self.epochs.append({"epoch": epoch, **module.epoch.metrics, "images_per_second": speed})
        self.run.write_metrics(self.epochs)


class Checkpoints(Checkpoint):
    """Writes the checkpoints.

    The best two are written when they happen, without the optimizer. last.ckpt, from which a
    resume continues, is written after the first epoch, then `every` seconds, at the end, and
    before `until` stops the training. A best checkpoint is removed only when last.ckpt knows a
    better one: a resume after a kill finds the best of its epoch.

    Lightning calls it last, so last.ckpt holds the state of every other callback at that epoch.
    """

    def __init__(self, record: Record, until: Until, every: float):
        self.record = record
        self.run = record.run
        self.until = until
        self.every = every or math.inf
        self.at_each_epoch = not every
        self.due = math.inf  # in time.perf_counter()
        self._num_saved = 0  # epochs in last.ckpt

    @property
    def best_model_path(self) -> str:
        """The best checkpoint, as of Lightning's ModelCheckpoint."""
        return str(self.run.checkpoints / runs.best_name(self.record.best()[0]["epoch"]))

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        if trainer.strategy.root_device.type == "cuda":
            self.run.meter.use_gpus(len(trainer.device_ids))
        self.until.begin()
        self.due = time.perf_counter() + self.every
        if trainer.ckpt_path:
            self._num_saved = len(self.record.epochs)
        self.remove_others()  # of a process that was killed after its last.ckpt
        if len(self.record.epochs) > self._num_saved:  # validated before it trains
            self._close_epoch(trainer, module, 0)

    def on_train_epoch_start(self, trainer: pl.Trainer, module: Any) -> None:
        if self._num_saved and self._num_saved == len(self.record.epochs):
            self.until.check_epoch(self.record.num_epochs, trainer.max_epochs)

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Write last.ckpt within an epoch; processes that train together do so at its end only.
        overdue = trainer.world_size == 1 and time.perf_counter() > self.due
        is_last = batch_idx + 1 == trainer.num_training_batches
        if (overdue or self.until.due()) and not is_last:
            module.check_finite()
            self._save(trainer)
            self.until.check()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        self._close_epoch(trainer, module, trainer.current_epoch + 1)

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        self.until.end()

    def on_exception(self, trainer: pl.Trainer, module: Any, exception: BaseException) -> None:
        self.run.write_cost()

    def _close_epoch(self, trainer: pl.Trainer, module: Any, epoch: int) -> None:
        """Write the checkpoints that are due after an epoch."""
        epochs = self.record.epochs
        if epochs[-1] in self.record.best():
            self._save_best(trainer, module, epoch)
        at_end = trainer.should_stop or epoch in (trainer.max_epochs, self.until.epoch)
        overdue = self.at_each_epoch or time.perf_counter() > self.due
        due = len(epochs) == 1 or at_end or overdue or self.until.due()
        if trainer.strategy.broadcast(due):  # one process decides
            self._save(trainer)

    def _save_best(self, trainer: pl.Trainer, module: Any, epoch: int) -> None:
        content = {
            "hyper_parameters": module.settings.plain(),
            "fingerprint": module.fingerprint,
            "epoch": trainer.current_epoch,
            "state_dict": trainer.strategy.lightning_module_state_dict(),
            "callbacks": {self.record.state_key: self.record.state_dict()},
        }
        if self.run.is_main_process:
            checkpoint.write(content, self.run.checkpoints / runs.best_name(epoch))
        self.remove_others()

    def _save(self, trainer: pl.Trainer) -> None:
        """Write last.ckpt, with the optimizer."""
        trainer.save_checkpoint(self.run.checkpoints / "last.ckpt", weights_only=False)
        self._num_saved = len(self.record.epochs)
        self.remove_others()
        self.run.write_cost()
        self.due = time.perf_counter() + self.every

    def remove_others(self) -> None:
        """Remove the checkpoints that are among the best neither now nor in last.ckpt."""
        saved = self.record.epochs[: self._num_saved]
        names = {runs.best_name(line["epoch"]) for line in [*self.record.best(), *_best(saved)]}
        if self.run.is_main_process:
            for path in self.run.checkpoints.glob("epoch-*.ckpt"):
                if path.name not in names:
                    path.unlink(missing_ok=True)


def _best(epochs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(epochs, key=lambda line: (runs.rank_of(line), line["epoch"]))[:NUM_BEST]

"""Writes metrics.jsonl every epoch and the checkpoints when they are due; stops at a signal or the time limit."""

import contextlib
import copy
import logging
import math
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins import CheckpointIO

from smilevae import runs
from smilevae.config import Settings
from smilevae.errors import DataError, Interrupted, Paused
from smilevae.runs import Run, Stop, checkpoint

log = logging.getLogger(__name__)
NUM_BEST = 2
TO_GO_ON = ("optimizer_states", "lr_schedulers", "loops", "MixedPrecision")  # a best checkpoint leaves them out


class PlainCheckpointIO(CheckpointIO):
    """Lightning's checkpoints through our one writer and one reader. The best ones are `kept` in memory, as copies."""

    def __init__(self) -> None:
        self.kept: dict[Path, dict[str, Any]] = {}

    def save_checkpoint(self, checkpoint_: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if runs.epoch_of(Path(path)) < 0:
            checkpoint.write(checkpoint_, Path(path))
        else:
            content = {k: v for k, v in checkpoint_.items() if k not in TO_GO_ON}
            weights = content["state_dict"].items()
            content["state_dict"] = {k: v for k, v in weights if not k.startswith("discriminator.")}
            self.kept[Path(path)] = copy.deepcopy(content)

    def write_kept(self) -> None:
        for path, content in self.kept.items():
            checkpoint.write(content, path)
        self.kept.clear()

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return checkpoint.read(path)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class Record(pl.callbacks.Checkpoint):
    """The record of a training: the list of epochs, from which the best checkpoints follow.

    Checkpoints are written after the first epoch, then `every` seconds, at a signal and at the end. The best ones are
    written before last.ckpt and removed after it: a resume finds those of its epoch.

    Raises Interrupted after a checkpoint if `stop` holds a signal or `max_time` (DD:HH:MM:SS) is over, Paused after
    the epoch `until`. Lightning's timer counts a part of an epoch as whole.
    """

    def __init__(self, run: Run, stop: Stop, every: float, max_time: str | None = None, until: int | None = None):
        self.run, self.stop, self.every, self.max_time, self.until = run, stop, every, max_time, until
        self.epochs: list[dict[str, Any]] = []
        self._end = self.checkpoint_due = math.inf  # in time.perf_counter()
        self._start = self.images_per_second = 0.0
        self._saved, self.io = True, PlainCheckpointIO()

    def best(self) -> list[dict[str, Any]]:
        """The epochs of the best checkpoints, best first."""
        return sorted(self.epochs, key=lambda line: (runs.rank_of(line), line["epoch"]))[:NUM_BEST]

    def result(self, settings: Settings, fingerprint: str) -> dict[str, Any]:
        """The training's part of result.json. Raises DataError without an epoch."""
        if not self.epochs:
            raise DataError("no training step was made; add pictures")
        best = self.best()
        return {
            "identity": settings.identity(fingerprint, runs.code()),
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
        if trainer.strategy.root_device.type == "cuda":
            self.run.meter.use_gpus(len(trainer.device_ids))
        if self.max_time:
            days, hours, minutes, seconds = map(int, self.max_time.split(":"))
            self._end = self._start + ((days * 24 + hours) * 60 + minutes) * 60 + seconds
        self.stop.install(deferred=True)  # after Lightning's own handlers
        if not self.epochs and "val/loss" in pl_module.epoch.metrics:  # a warm start, or a sharper decoder's first
            log.info(f"epoch 0, before training: val loss {pl_module.epoch.metrics['val/loss']:.1f}")
            self._close_epoch(trainer, pl_module, 0)
        self.remove_others()  # a kill may have come before it
        self.checkpoint_due = self._start + (self.every or math.inf)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stop.deferred = False

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        with contextlib.suppress(OSError):  # the first error is told
            self.io.write_kept()
        self.run.write_cost()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self._saved:
            self._interrupt()
            if self.until and self.epochs and self.epochs[-1]["epoch"] >= self.until:
                raise Paused(text=f"after epoch {self.epochs[-1]['epoch']} of {trainer.max_epochs}")
        self._start, self._seen = time.perf_counter(), 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._seen += len(batch[0]) * trainer.world_size
        self.images_per_second = self._seen / (time.perf_counter() - self._start)
        by = self.checkpoint_due if trainer.world_size == 1 else math.inf  # a step does not wait for other processes
        if batch_idx + 1 < trainer.num_training_batches and self._due(by):
            pl_module.check_finite()
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
        self._saved = False
        if trainer.is_global_zero:
            self.run.write_metrics(self.epochs)
        if self.epochs[-1] in self.best():
            trainer.save_checkpoint(self.run.checkpoints / runs.best_name(epoch), weights_only=False)
        self.io.kept = {path: kept for path, kept in self.io.kept.items() if path.name in self._best_names()}
        at_end = epoch in (trainer.max_epochs, self.until)
        due = not self.every or len(self.epochs) == 1 or at_end or self._due(self.checkpoint_due)
        if trainer.strategy.broadcast(due):  # one process decides
            self._save(trainer)

    def _due(self, by: float) -> bool:
        return bool(self.stop.signum) or time.perf_counter() > min(self._end, by)

    def _save(self, trainer: pl.Trainer) -> None:
        last = self.run.checkpoints / "last.ckpt"
        self.io.write_kept()
        if trainer.is_global_zero and last.exists():
            runs.link(last, last.with_name("previous.ckpt"))
        trainer.save_checkpoint(last, weights_only=False)  # with the optimizer, for a resume
        self.remove_others()
        self.run.write_cost()
        self._saved, self.checkpoint_due = True, time.perf_counter() + (self.every or math.inf)

    def _best_names(self) -> set[str]:
        return {runs.best_name(line["epoch"]) for line in self.best()}

    def remove_others(self) -> None:
        """Remove checkpoints that are not among the best any more, and those of a killed process after last.ckpt."""
        if self.run.is_main_process:
            for path in self.run.checkpoints.glob("epoch-*.ckpt"):
                if path.name not in self._best_names():
                    path.unlink(missing_ok=True)

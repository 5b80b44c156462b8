"""A line for each epoch; on a terminal a progress bar, too."""

import logging
import math
import sys
import time
from typing import Any

import pytorch_lightning as pl

from smilevae import runs
from smilevae.training.record import Record

log = logging.getLogger(__name__)


class Progress(pl.Callback):
    """Prints the epochs of a record."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self._bar: Any = None

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        self._start = time.perf_counter()
        self._start_epoch = trainer.current_epoch
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

            columns = ("epoch", MofNCompleteColumn(), BarColumn(24), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True))
            done = trainer.current_epoch
            self._task = self._bar.add_task("", total=trainer.max_epochs, completed=done)
            self._bar.start()

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar:
            done = trainer.current_epoch + (batch_idx + 1) / trainer.num_training_batches
            self._bar.update(self._task, completed=round(done, 2))

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        done = trainer.current_epoch + 1
        seconds = (time.perf_counter() - self._start) / (done - self._start_epoch)
        left = seconds * (trainer.max_epochs - done)
        line = epoch_line(self.record.epochs, trainer.max_epochs, left)
        if self._bar:
            self._bar.console.print(line, highlight=False)
        else:
            log.info(line)

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        if self._bar:
            self._bar.stop()

    def on_exception(self, trainer: pl.Trainer, module: Any, exception: BaseException) -> None:
        self.on_train_end(trainer, module)


def epoch_line(epochs: list[dict[str, Any]], num_epochs: int, seconds_left: float) -> str:
    """The last epoch, beside the best one before it."""
    *before, line = epochs
    loss = line["val/loss"]
    text = f"epoch {line['epoch']}/{num_epochs}  val loss {_number(loss)}"
    if before:
        best = min(before, key=runs.rank_of)
        if loss < best["val/loss"]:
            text += f" (best, was {_number(best['val/loss'])})"
        else:
            text += f" (best {_number(best['val/loss'])} in epoch {best['epoch']})"
    text += f"  PSNR {line['val/psnr']:.1f} dB  KL {line['val/kl']:,.1f} nats"
    if seconds_left:
        text += f"  {_duration(seconds_left)} left"
    return text


def _number(value: float) -> str:
    return f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"


def _duration(seconds: float) -> str:
    """Seconds in a unit that gives one or two digits, rounded up."""
    if seconds < 100:
        return f"{math.ceil(seconds)} s"
    if seconds < 6000:
        return f"{math.ceil(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"

"""A progress bar of epochs on a terminal, log lines elsewhere."""

import logging
import sys
import time
from typing import Any

import pytorch_lightning as pl

from smilevae.training.record import Record

log = logging.getLogger(__name__)
SOME = ("beta", "val/distance")  # metrics that some trainings have


class Progress(pl.Callback):
    def __init__(self, record: Record) -> None:
        self.record = record
        self._bar: Any = None
        self._updated = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = TextColumn("epoch"), MofNCompleteColumn(), BarColumn(24), TimeRemainingColumn()
        self._bar = Progress(*columns, TextColumn("{task.description}"), console=Console(stderr=True))
        self._task = self._bar.add_task("", total=trainer.max_epochs, completed=trainer.current_epoch)
        self._bar.start()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._bar and time.monotonic() - self._updated > 0.5:  # reading the sums waits for the device
            self._updated = time.monotonic()
            done = trainer.current_epoch + (batch_idx + 1) / trainer.num_training_batches
            num, *sums = pl_module.epoch.sums["train"].tolist()
            loss, recon, kl, _ = (total / num for total in sums)
            text = f"loss {loss:.1f}  recon {recon:.1f}  kl {kl:.1f}  {self.record.images_per_second:.0f} images/s"
            self._bar.update(self._task, completed=round(done, 2), description=text)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        metrics = pl_module.epoch.metrics
        line = (
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  val loss {metrics['val/loss']:.1f}"
            f"  recon {metrics['val/recon']:.1f}  kl {metrics['val/kl']:.1f}  psnr {metrics['val/psnr']:.2f} dB"
            f"  active {metrics['val/active_units']}"
            + "".join(f"  {name.rpartition('/')[2]} {metrics[name]:.4g}" for name in SOME if name in metrics)
            + f"  {self.record.images_per_second:.0f} images/s"
        )
        if self._bar:
            self._bar.update(self._task, completed=trainer.current_epoch + 1)
            self._bar.console.print(line, highlight=False)
        else:
            log.info(line)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self._bar:
            self._bar.stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        self.on_train_end(trainer, pl_module)

"""Other trackers beside TensorBoard: Lightning's loggers for Weights & Biases and MLflow."""

import logging
import os
import secrets
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from smilevae.config import Settings
from smilevae.training.record import Record

log = logging.getLogger(__name__)
RUN_ID = "tracker.txt"  # the tracker's name of a run, in the run folder


class Tracker(pl.callbacks.Checkpoint):
    """Sends the settings, every epoch's metrics and at the end the best epoch's to one tracker.

    A Checkpoint to Lightning, so that it runs after Record. A resumed run continues in the same run of the tracker. An
    error of the tracker is logged once and ends the tracking, not the training.
    """

    def __init__(self, record: Record, settings: Settings):
        self.record, self.settings = record, settings
        self.logger: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._try(self._begin)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        line = dict(self.record.epochs[-1])
        self._try(lambda: self.logger.log_metrics(line, step=line.pop("epoch")))

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        best = self.record.best()[0]
        summary = {f"best/{name}": value for name, value in best.items()}
        self._try(lambda: self.logger.log_metrics(summary, step=trainer.current_epoch))
        self._try(lambda: self.logger.finalize("success"))

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        self._try(lambda: self.logger.finalize("failed"))

    def _begin(self) -> None:
        self.logger = open_logger(self.settings.logger, self.record.run.dir)
        if len(self.record.epochs) < 2:  # MLflow refuses other values later, such as more epochs
            self.logger.log_hyperparams(self.settings.result_settings())

    def _try(self, send: Callable[[], Any]) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of folders that exist, of older names
                if self.logger or send == self._begin:
                    send()
        except Exception as error:  # a full disk, a server that is gone
            log.warning(f"logger={self.settings.logger} stopped: {type(error).__name__}: {str(error)[:200]}")
            self.logger = None


def open_logger(name: str, run: Path) -> Any:
    """Lightning's logger of a run folder. Runs of a sweep share a project or experiment."""
    from pytorch_lightning import loggers

    run = run.resolve()
    group = run.parent.name if (run.parent / "sweep.json").exists() else "smilevae"
    known = (run / RUN_ID).read_text().strip() if (run / RUN_ID).exists() else None
    if name == "wandb":
        known = known or secrets.token_hex(8)
        (run / RUN_ID).write_text(f"{known}\n")
        return loggers.WandbLogger(
            name=run.name, id=known, project="smilevae", group=group, save_dir=run, resume="allow"
        )
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run.parent}/mlflow.db"
    logger = loggers.MLFlowLogger(group, run.name, tracking_uri=uri, run_id=known)
    (run / RUN_ID).write_text(f"{logger.run_id}\n")
    return logger

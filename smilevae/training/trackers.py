"""Trackers beside TensorBoard: Lightning's loggers for Weights & Biases and MLflow."""

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
RUN_ID = "tracker.txt"  # in the run folder: the tracker's name of the run


class Tracker(pl.Callback):
    """Sends the settings, every epoch's metrics and at the end the best epoch's to one tracker.

    A resumed run continues in its run of the tracker. An error of the tracker is logged once and
    ends the tracking, not the training.
    """

    def __init__(self, record: Record, settings: Settings):
        self.record = record
        self.settings = settings
        self.logger: Any = None
        self._failed = False

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        self._try(self._open)

    def _open(self) -> None:
        self.logger = open_logger(self.settings.logger, self.record.run.dir)
        if len(self.record.epochs) < 2:  # MLflow refuses other values later, such as more epochs
            self.logger.log_hyperparams(self.settings.result_settings())

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        line = dict(self.record.epochs[-1])
        self._try(lambda: self.logger.log_metrics(line, line.pop("epoch")))

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        best = self.record.best()[0]
        summary = {f"best/{name}": value for name, value in best.items()}
        self._try(lambda: self.logger.log_metrics(summary, trainer.current_epoch))
        self._try(lambda: self.logger.finalize("success"))

    def on_exception(self, trainer: pl.Trainer, module: Any, exception: BaseException) -> None:
        if self.logger:
            self._try(lambda: self.logger.finalize("failed"))

    def _try(self, send: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            with warnings.catch_warnings(action="ignore"):  # of folders that exist
                send()
        except Exception as error:  # a full disk, a server that is gone
            kind = type(error).__name__
            log.warning(f"logger={self.settings.logger} stopped: {kind}: {str(error)[:200]}")
            self._failed = True


def open_logger(name: str, run: Path) -> Any:
    """Lightning's logger of a run folder. Runs of a sweep share a project or experiment."""
    from pytorch_lightning import loggers

    run = run.resolve()
    group = run.parent.name if (run.parent / "sweep.json").exists() else "smilevae"
    file = run / RUN_ID
    known = file.read_text().strip() if file.exists() else None
    if name == "wandb":
        known = known or secrets.token_hex(8)
        logger: Any = loggers.WandbLogger(
            name=run.name, id=known, project="smilevae", group=group, save_dir=run, resume="allow"
        )
    else:
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run.parent}/mlflow.db"
        logger = loggers.MLFlowLogger(group, run.name, tracking_uri=uri, run_id=known)
        known = logger.run_id
    file.write_text(f"{known}\n")
    return logger

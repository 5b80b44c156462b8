"""Other trackers beside TensorBoard: Lightning's loggers for CSV files, Weights & Biases and MLflow, and Trackio."""

import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from smilevae.config import Settings
from smilevae.training.record import Record

log = logging.getLogger(__name__)
RUN_ID = "tracker.txt"  # MLflow's name of a run, in the run folder


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
    if name == "csv":
        return loggers.CSVLogger(run.parent, run.name, version="", prefix="", flush_logs_every_n_steps=1)
    if name == "wandb":
        return loggers.WandbLogger(
            name=run.name, id=f"{run.parent.name}-{run.name}"[-64:], project="smilevae", group=group, save_dir=run,
            resume="allow",
        )  # fmt: skip
    if name == "mlflow":
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run.parent}/mlflow.db"
        known = (run / RUN_ID).read_text().strip() if (run / RUN_ID).exists() else None
        logger = loggers.MLFlowLogger(group, run.name, tracking_uri=uri, run_id=known)
        (run / RUN_ID).write_text(f"{logger.run_id}\n")
        return logger
    return _Trackio(run, group)


class _Trackio:
    """Trackio, which has no logger in Lightning."""

    def __init__(self, run: Path, group: str):
        import trackio

        self.trackio = trackio
        self.run = trackio.init(project=group, name=run.name, resume="allow")

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        self.run.config.update(params)

    def log_metrics(self, metrics: dict[str, Any], step: int) -> None:
        self.trackio.log(metrics, step=step)

    def finalize(self, status: str) -> None:
        self.trackio.finish()

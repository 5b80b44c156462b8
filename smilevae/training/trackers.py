"""Lightning's loggers beside TensorBoard: any class by `_target_`, and ours of two services."""

import importlib.util
import inspect
import logging
import os
import secrets
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning import loggers
from pytorch_lightning.loggers.logger import Logger

from smilevae.errors import ConfigError
from smilevae.plugins import targets

log = logging.getLogger(__name__)
RUN_ID = "tracker.txt"  # in the run folder: the tracker's name of the run


def open_logger(name: str, node: Mapping[str, Any], run: Path) -> "Guarded":
    """The logger of a `_target_`; `save_dir` and `run` are the run folder. Raises ConfigError."""
    parameters = inspect.signature(targets.callee(node)).parameters
    places = {key: str(run.resolve()) for key in ("save_dir", "run") if key in parameters}
    guarded = Guarded(name)
    guarded.attempt(lambda: guarded.open(targets.call({**places, **node})))
    return guarded


def _needs(package: str) -> None:
    """Raise ConfigError if the package of a logger is not installed."""
    if importlib.util.find_spec(package) is None:
        install = f'install it with pip install -e ".[{package}]"'
        raise ConfigError(f"logger={package} needs a package; {install}")


def wandb(run: str, project: str = "smilevae", **options: Any) -> Logger:
    """Weights & Biases: a resumed run continues; the runs of a sweep are a group."""
    _needs("wandb")
    file = Path(run) / RUN_ID
    known = file.read_text().strip() if file.exists() else secrets.token_hex(8)
    file.write_text(f"{known}\n")
    own = {"name": Path(run).name, "id": known, "group": _sweep(run), "resume": "allow"}
    return loggers.WandbLogger(project=project, save_dir=run, **{**own, **options})


def mlflow(run: str, **options: Any) -> Logger:
    """MLflow, in mlflow.db beside the run folders or at MLFLOW_TRACKING_URI."""
    _needs("mlflow")
    file = Path(run) / RUN_ID
    known = file.read_text().strip() if file.exists() else None
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(run).parent}/mlflow.db"
    own = {"experiment_name": _sweep(run), "run_name": Path(run).name, "tracking_uri": uri}
    logger = loggers.MLFlowLogger(run_id=known, **{**own, **options})
    file.write_text(f"{logger.run_id}\n")
    return logger


def _sweep(run: str) -> str:
    folder = Path(run).parent
    return folder.name if (folder / "sweep.json").exists() else "smilevae"


class Guarded(Logger):
    """Passes metrics on. An error of the logger is logged once and ends it, not the training."""

    def __init__(self, label: str):
        super().__init__()
        self.label = label
        self.logger: Any = None
        self._failed = False

    def open(self, logger: Any) -> None:
        """Pass metrics to this logger. Raises ConfigError if it is none of Lightning's."""
        if not isinstance(logger, Logger):
            raise ConfigError(f"logger.{self.label} is not a logger of pytorch_lightning")
        self.logger = logger

    @property
    def name(self) -> str | None:
        return getattr(self.logger, "name", None)

    @property
    def version(self) -> int | str | None:
        return getattr(self.logger, "version", None)

    @property
    def experiment(self) -> Any:
        return getattr(self.logger, "experiment", None)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.attempt(lambda: self.logger.log_hyperparams(params))

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.attempt(lambda: self.logger.log_metrics(metrics, step))

    def save(self) -> None:
        self.attempt(lambda: self.logger.save())

    def finalize(self, status: str) -> None:
        self.attempt(lambda: self.logger.finalize(status))

    def attempt(self, send: Callable[[], object]) -> None:
        """Call the logger; an error ends it. Raises ConfigError."""
        if self._failed:
            return
        try:
            with warnings.catch_warnings(action="ignore"):  # of folders that exist
                send()
        except ConfigError:
            raise
        except Exception as error:  # a full disk, a server that is gone
            kind = type(error).__name__
            log.warning(f"logger={self.label} stopped: {kind}: {str(error)[:200]}")
            self._failed = True

"""A Hydra callback: every knob is checked, and the run folder made, before Hydra makes it its way."""

import os
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from smilevae import ConfigError, console, runs


class CheckBeforeStart(Callback):
    """Ends with the sentences and exit code 2 on a bad knob; Hydra swallows exceptions here, but not SystemExit."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        with console.one_sentence():
            runs.settings_of(config, config.hydra.overrides.task)
            where = str(config.hydra.run.dir)
            try:
                if not where:
                    raise OSError(0, "it is empty")
                Path(where).mkdir(parents=True, exist_ok=True)
                if not os.access(where, os.W_OK):
                    raise OSError(0, "it may not be written")
            except OSError as error:
                raise ConfigError(f"hydra.run.dir={where} cannot be a run folder: {error.strerror}") from None

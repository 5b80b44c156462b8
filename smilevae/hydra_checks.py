"""A Hydra callback: every knob is checked before Hydra makes a folder."""

from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from smilevae import console, runs


class CheckBeforeStart(Callback):
    """Ends with the sentences and exit code 2 on a bad knob; Hydra swallows exceptions here, but not SystemExit."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        with console.one_sentence():
            runs.settings_of(config, config.hydra.overrides.task)

"""The settings of an existing run, and what a resume may change of them."""

from pathlib import Path
from typing import Any

import yaml

from smilevae.config import HARDWARE, RESUMABLE, Settings, checked
from smilevae.errors import ConfigError
from smilevae.runs.commands import hydra_argument
from smilevae.runs.folder import SHARP
from smilevae.runs.reading import epochs_done

ALLOWED = {*RESUMABLE, *(f"trainer.{name}" for name in HARDWARE)}


def read_settings(path: str | Path) -> Settings:
    """The settings in a run folder's config.yaml. Raises ConfigError."""
    try:
        content = yaml.safe_load((Path(path) / "config.yaml").read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"{path} is not a run folder (no config.yaml); pass the one that train.py printed"
        ) from None
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}/config.yaml cannot be read ({type(error).__name__}); restore it"
        ) from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}/config.yaml holds no settings; restore it")
    return checked(content)


def settings_for_resume(resume: str, wanted: Settings, named: set[str]) -> Settings:
    """A run's settings, changed by those among `wanted` that the user `named`.

    A change of the result is refused. Raises ConfigError, by name with both values.
    """
    run = Path(resume)
    if (run / "sweep.json").exists():
        folder = hydra_argument("hydra.sweep.dir", run)
        raise ConfigError(
            f"resume={resume} is a sweep, and resume names a run; go on with the line that it"
            f" printed: its command and {folder}"
        )
    if run.name == SHARP and (run.parent / "config.yaml").exists():
        first = hydra_argument("resume", run.parent)
        raise ConfigError(f"resume={resume} is the second phase of a run; pass {first}")
    if "experiment" in named:
        raise ConfigError(
            f"an experiment does not apply to resume={resume}, which has its own settings; leave"
            " it out"
        )
    settings = read_settings(run)
    _check_epochs(run, settings, wanted, named)
    return _changed(run, settings, wanted, named)


def _check_epochs(run: Path, settings: Settings, wanted: Settings, named: set[str]) -> None:
    """Raise ConfigError if nothing is left to train, or other epochs would change the result."""
    done = epochs_done(run)
    target = wanted.epochs if "epochs" in named else settings.epochs
    if target != settings.epochs and settings.schedule == "cosine":
        raise ConfigError(
            f"{run} has schedule=cosine, which ends at epochs={settings.epochs}; start a new run"
        )
    sharp_exists = (run / SHARP / "config.yaml").exists()
    sharp_epochs = wanted.sharpen.epochs if "sharpen.epochs" in named else 0
    if sharp_exists and (target > done or sharp_epochs not in (0, settings.sharpen.epochs)):
        raise ConfigError(
            f"{run / SHARP} was trained from these epochs; remove it first, or start a new run"
        )
    completed = target == done and (run / "result.json").exists()
    if target < done or (completed and (sharp_exists or not sharp_epochs)):
        raise ConfigError(
            f"{run} has trained {done} epochs already; to train on, add a larger epochs=N"
        )


def _changed(run: Path, settings: Settings, wanted: Settings, named: set[str]) -> Settings:
    """The settings with the named values. Raises ConfigError if one changes the result."""
    before = _with_trainer(settings)
    problems = []
    values = {}
    for name, now in sorted(_with_trainer(wanted).items()):
        asked = name in named or name.partition(".")[0] in named
        if asked and now != before.get(name):
            values[name] = now
            if name not in ALLOWED:
                problems.append(
                    f"{name}={now} would change the result of {run}, which has"
                    f" {name}={before.get(name)}; start a new run"
                )
    if problems:
        raise ConfigError("\n".join(problems))
    return settings.with_values(values)


def _with_trainer(settings: Settings) -> dict[str, Any]:
    """All settings by their flat names."""
    trainer = settings.trainer.model_dump().items()
    return settings.flat() | {f"trainer.{name}": value for name, value in trainer}

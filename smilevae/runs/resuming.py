"""The settings of an existing run, and what a resume may change of them."""

from pathlib import Path

import yaml

from smilevae.config import HARDWARE, RESUMABLE, Settings, checked, flatten
from smilevae.errors import ConfigError
from smilevae.runs.commands import hydra_argument
from smilevae.runs.reading import epochs_done

ALLOWED = {*RESUMABLE, *(f"trainer.{name}" for name in HARDWARE)}


def read_settings(path: str | Path) -> Settings:
    """The settings in a run folder's config.yaml. Raises ConfigError."""
    try:
        content = dict(yaml.safe_load((Path(path) / "config.yaml").read_text()))
    except (FileNotFoundError, NotADirectoryError):
        text = "is not a run folder (no config.yaml); pass the one that train.py printed"
        raise ConfigError(f"{path} {text}") from None
    except (OSError, yaml.YAMLError, ValueError, TypeError) as error:
        text = f"cannot be read ({type(error).__name__}); restore it"
        raise ConfigError(f"{path}/config.yaml {text}") from None
    return checked(content)


def settings_for_resume(resume: str, wanted: Settings, named: set[str]) -> Settings:
    """A run's settings, changed by those among `wanted` that the user `named`.

    A change of the result is refused. Raises ConfigError, by name with both values.
    """
    run = Path(resume)
    if (run / "sweep.json").exists():
        remedy = "go on with the line that it printed: its command and"
        line = f"{remedy} {hydra_argument('hydra.sweep.dir', run)}"
        raise ConfigError(f"resume={resume} is a sweep, and resume names a run; {line}")
    if recipes := sorted(named & {"experiment", "debug"}):
        text = f"{recipes[0]} does not apply to resume={resume}, which has its own settings"
        raise ConfigError(f"{text}; leave it out")
    settings = read_settings(run)
    _check_epochs(run, settings, wanted, named)
    return _changed(run, settings, wanted, named)


def _check_epochs(run: Path, settings: Settings, wanted: Settings, named: set[str]) -> None:
    """Raise ConfigError if nothing is left to train, or other epochs would change the result."""
    done = epochs_done(run)
    target = wanted.epochs if "epochs" in named else settings.epochs
    if target != settings.epochs and settings.fixed_length:
        cause = "schedule=cosine"
        if settings.objective.scheduled:
            cause = f"objective={settings.objective.name}"
        text = f"has {cause}, which ends at epochs={settings.epochs}; start a new run"
        raise ConfigError(f"{run} {text}")
    completed = target == done and (run / "result.json").exists()
    if target < done or completed:
        text = f"has trained {done} epochs already; to train on, add a larger epochs=N"
        raise ConfigError(f"{run} {text}")


def _changed(run: Path, settings: Settings, wanted: Settings, named: set[str]) -> Settings:
    """The settings with the named values. Raises ConfigError if one changes the result."""
    before = flatten(settings.plain())
    problems = []
    values = {}
    for name, now in sorted(flatten(wanted.plain()).items()):
        asked = name in named or name.partition(".")[0] in named
        if asked and now != before.get(name):
            values[name] = now
            if name not in ALLOWED:
                has = f"which has {name}={before.get(name)}"
                text = f"{name}={now} would change the result of {run}, {has}; start a new run"
                problems.append(text)
    if problems:
        raise ConfigError("\n".join(problems))
    return settings.with_values(values)

"""The settings of an existing run, and what a resume may change of them."""

from pathlib import Path

import yaml

from smilevae.config import HARDWARE, RESUMABLE, Settings, checked
from smilevae.errors import ConfigError
from smilevae.runs.commands import hydra_argument
from smilevae.runs.folder import SHARP
from smilevae.runs.reading import epochs_done


def read_settings(path: str | Path) -> Settings:
    """The settings in a run folder's config.yaml. Raises ConfigError."""
    try:
        content = yaml.safe_load((Path(path) / "config.yaml").read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{path} is not a run folder (no config.yaml); pass the one that train.py printed") from None
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}/config.yaml cannot be read ({type(error).__name__}); restore it") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}/config.yaml holds no settings; restore it")
    return checked(content)


def settings_for_resume(resume: str, wanted: Settings, named: set[str]) -> Settings:
    """A run's own settings, with `epochs` and those the user `named` that do not change its result.

    Raises ConfigError, by name with both values, for any other change.
    """
    run = Path(resume)
    if (run / "sweep.json").exists():
        again = f"go on with the line that it printed: its command and {hydra_argument('hydra.sweep.dir', run)}"
        raise ConfigError(f"resume={resume} is a sweep, and resume names a run; {again}")
    if run.name == SHARP and (run.parent / "config.yaml").exists():
        raise ConfigError(f"resume={resume} is the second phase of a run; pass {hydra_argument('resume', run.parent)}")
    if "experiment" in named:
        raise ConfigError(f"an experiment does not apply to resume={resume}, which has its own settings; leave it out")
    settings = read_settings(resume)
    target = wanted.epochs if "epochs" in named else settings.epochs
    done, complete = epochs_done(run), (run / "result.json").exists()
    if target != settings.epochs and settings.schedule == "cosine":
        raise ConfigError(f"{resume} has schedule=cosine, which ends at epochs={settings.epochs}; start a new run")
    sharper, sharp = wanted.sharpen.epochs if "sharpen.epochs" in named else 0, (run / SHARP / "config.yaml").exists()
    if sharp and (target > done or sharper not in (0, settings.sharpen.epochs)):
        raise ConfigError(f"{run / SHARP} was trained from these epochs; remove it first, or start a new run")
    if target < done or (complete and target == done and (sharp or not sharper)):
        raise ConfigError(f"{resume} has trained {done} epochs already; to train on, add a larger epochs=N")
    old, new = settings.flat(), wanted.flat()
    asked = {name for name in new if name in named or name.partition(".")[0] in named}
    allowed = asked & set(RESUMABLE)
    change = f"would change the result of {resume}, which has"
    problems = [
        f"{name}={new[name]} {change} {name}={old[name]}; start a new run"
        for name in sorted(asked - allowed)
        if new[name] != old[name]
    ]
    values = {name: new[name] for name in allowed}
    before = settings.trainer.model_dump()
    for name, value in wanted.trainer.model_dump().items():
        if named & {"trainer", f"trainer.{name}"} and value != before.get(name):
            values[f"trainer.{name}"] = value
            if name not in HARDWARE:
                problems.append(f"trainer.{name}={value} {change} {before.get(name)}; start a new run")
    if problems:
        raise ConfigError("\n".join(problems))
    return settings.with_values(values)

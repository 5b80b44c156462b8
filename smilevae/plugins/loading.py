"""Finds plug-ins: ours, those of installed packages, and the file that `plugin=` names."""

import functools
import importlib
import importlib.util
import os
import sys
import traceback
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from smilevae.errors import ConfigError
from smilevae.plugins.kinds import CHOICES, Measure, Network, Objective, Plugin, fields
from smilevae.plugins.source import Source

GROUP = "smilevae.plugins"  # of entry points
REQUESTED = "SMILEVAE_PLUGIN"  # the file of `plugin=`, for the processes that a command starts
OURS = (
    *("smilevae.models.architectures", "smilevae.models.objectives"),
    *("smilevae.data.sources", "smilevae.evaluation.measures"),
)


def ours(group: str, name: str) -> Any:
    """One of our plug-ins with the defaults of its knobs."""
    for module in OURS:
        importlib.import_module(module)
    return CHOICES[group][name]()


def choices(group: str) -> dict[str, type[Plugin]]:
    """The plug-ins of a group by name: ours, and those of installed packages and loaded files."""
    _load_installed()
    if REQUESTED in os.environ:
        load_file(os.environ[REQUESTED])
    return CHOICES[group]


def knobs() -> dict[str, FieldInfo]:
    """The knobs of all plug-ins by their flat names."""
    known: dict[str, FieldInfo] = {}
    for group in CHOICES:
        for choice in choices(group).values():
            known |= fields(choice, f"{group}.")
    return known


def owners(name: str) -> list[str]:
    """The choices, such as data=synthetic, that have a knob."""
    group, _, leaf = name.partition(".")
    return [f"{group}={n}" for n, c in CHOICES.get(group, {}).items() if leaf in c.model_fields]


def measure(name: str) -> Measure:
    """A measure by its name. Raises ConfigError."""
    known: dict[str, Any] = choices("measures")
    if name not in known:
        raise ConfigError(
            f"measures={name} is not loaded; name the file that defines it with plugin=FILE.py, or"
            f" choose one of {', '.join(sorted(known))}"
        )
    return known[name]()


def chosen(group: str, given: Any) -> type[Plugin]:
    """The plug-in that the plain content of a group names. Raises ConfigError."""
    kind = {kind.group: kind for kind in (Network, Objective, Source)}[group]
    name = given.get(kind.key) if isinstance(given, dict) else None
    known = choices(group)
    if name in known:
        return known[name]
    raise ConfigError(
        f"{group}.{kind.key}={name} is not loaded; name the file that defines it with"
        f" plugin=FILE.py, install its package, or choose one of {', '.join(sorted(known))}"
    )


@functools.cache
def _load_installed() -> None:
    for entry in entry_points(group=GROUP):
        entry.load()


@functools.cache
def load_file(path: str) -> None:
    """Import a plug-in file that the user named. Raises ConfigError."""
    file = Path(path).expanduser().absolute()
    spec = importlib.util.spec_from_file_location(f"plugin_{file.stem}", file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise ConfigError(f"plugin={path} is not a Python file; name one .py file for all plug-ins")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except ConfigError:
        raise
    except Exception as error:
        lines = [
            line
            for frame, line in traceback.walk_tb(error.__traceback__)
            if frame.f_code.co_filename == str(file)
        ]
        line = getattr(error, "lineno", None) or (lines[-1] if lines else 1)
        raise ConfigError(
            f"plugin={path}, line {line}: {type(error).__name__}: {error}; repair the file"
        ) from None
    os.environ[REQUESTED] = str(file)


def files() -> list[Path]:
    """The files that define plug-ins of others."""
    modules = {kind.__module__ for group in CHOICES for kind in choices(group).values()}
    others = [sys.modules[name] for name in modules if not name.startswith("smilevae.")]
    return sorted(Path(module.__file__) for module in others if module.__file__)

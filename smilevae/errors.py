"""The errors that a user can cause, with exit codes. A sentence says what, where, what to do."""

import difflib
import reprlib
import signal
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

BOUNDS = {"ge": "from", "le": "to", "min_length": "from", "max_length": "to"}


class UserError(Exception):
    """A mistake with a remedy. It is printed without a traceback."""

    exit_code = 1


class ConfigError(UserError):
    """A setting is unknown, of the wrong type or outside its range."""

    exit_code = 2


class DataError(UserError):
    """The images are missing, unreadable or too few."""

    exit_code = 3


class CheckpointError(UserError):
    """A model file is missing, damaged or not one of ours."""

    exit_code = 4


class NotEvaluated(CheckpointError):
    """A checkpoint has no evaluation, or only one of other weights."""


class Diverged(UserError):
    """The loss is not finite. The checkpoints are from before."""


class Interrupted(BaseException):
    """A signal or a time limit ends the process. A library could swallow an Exception."""

    def __init__(self, signum: int = signal.SIGTERM, text: str | None = None):
        super().__init__(text or f"stopped by signal {int(signum)}")
        self.exit_code = 128 + signum


class Paused(Interrupted):
    """The last epoch of a rung of a sweep."""


def sentences(
    error: ValidationError, known: Mapping[str, FieldInfo], not_known: str, prefix: str = ""
) -> list[str]:
    """One sentence for each setting that pydantic refused; `not_known` as in `unknown`.

    `prefix` is the group of the refused settings, with a dot.
    """
    texts: dict[str, str] = {}
    for problem in error.errors(include_url=False):
        # The location of a refused list or union goes on after the name of the setting.
        parts = [str(part) for part in problem["loc"][:2]]
        value = problem["input"]
        if not parts:  # raised by a check of all settings together
            return str(problem["ctx"]["error"]).splitlines()
        name = prefix + (parts[0] if prefix + parts[0] in known else ".".join(parts))
        if name not in known:
            texts[name] = unknown(name, known, not_known)
        elif value is None or value == "":
            texts[name] = f"{name} is empty; give it a value"
        elif problem["type"] == "value_error":
            texts[name] = f"{name}={shown(value)} {problem['ctx']['error']}"
        else:
            values = allowed(known[name].annotation, known[name].metadata)
            texts[name] = f"{name}={shown(value)} must be {values}"
    return list(texts.values())


def unknown(name: str, known: Mapping[str, Any], not_known: str) -> str:
    """`not_known` is what the name is not, and where to look: "a knob; see --help"."""
    kind, _, remedy = not_known.partition("; ")
    if near := difflib.get_close_matches(name, known, n=1, cutoff=0.75):
        remedy = f"did you mean {near[0]}?"
    return f"{shown(name)} is not {kind}; {remedy}"


def allowed(kind: Any, limits: Sequence[Any] = ()) -> str:
    """The values of a type within limits, in words: "a number from 0 to 1000000 or auto"."""
    if get_origin(kind) is Annotated:
        kind, *limits = get_args(kind)
    bounds = {key: getattr(limit, key) for limit in limits for key in BOUNDS if hasattr(limit, key)}
    parts = [part for part in get_args(kind) if part is not NoneType]
    if kind is bool:
        return "true or false"
    if kind is int or float in (kind, *parts):
        words = ["a whole number" if kind is int else "a number"]
        words += [f"{BOUNDS[key]} {bounds[key]}" for key in ("ge", "le") if key in bounds]
        return " ".join(words)
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(allowed(part, limits) for part in parts)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, parts))}" if len(parts) > 1 else str(parts[0])
    if get_origin(kind) is list:
        num = f"{bounds['min_length']} to {bounds['max_length']} values" if bounds else "a list"
        return f"{num}, each {allowed(parts[0])}"
    return "a text"


def shown(value: Any) -> str:
    """A value, cut to 100 characters."""
    return (value if isinstance(value, str) else reprlib.repr(value))[:100]

"""The errors that a user can cause, each with an exit code. A sentence says what, where, what to do."""

import difflib
import reprlib
import signal
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo


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
    """A signal or a time limit ends the process. Not an Exception, which a library could swallow."""

    def __init__(self, signum: int = signal.SIGTERM, text: str | None = None):
        super().__init__(text or f"stopped by signal {int(signum)}")
        self.exit_code = 128 + signum


class Paused(Interrupted):
    """The last epoch of a rung of a sweep."""


def sentences(error: ValidationError, known: Mapping[str, FieldInfo], not_known: str) -> list[str]:
    """One sentence for every setting that pydantic refused."""
    texts: dict[str, str] = {}
    for problem in error.errors(include_url=False):
        parts = [str(part) for part in problem["loc"]][:2]
        name = parts[0] if parts and parts[0] in known else ".".join(parts)
        if problem["type"] == "together":
            return problem["ctx"]["text"].splitlines()
        if name not in known:
            kind, _, hint = not_known.partition("; ")
            near = difflib.get_close_matches(name, known, n=1)
            texts[name] = f"{shown(name)} is not {kind}; {f'did you mean {near[0]}?' if near else hint}"
        else:
            texts[name] = _sentence(name, known[name], problem["input"], problem)
    return list(texts.values())


def limits(field: FieldInfo) -> dict[str, float]:
    within = [m for kind in get_args(field.annotation) for m in get_args(kind)[1:]]  # of one kind among several
    return {kind: getattr(m, kind) for m in [*field.metadata, *within] for kind in ("ge", "le") if hasattr(m, kind)}


def allows_auto(field: FieldInfo) -> bool:
    return "auto" in str(field.annotation)


def _sentence(name: str, field: FieldInfo, value: Any, problem: Mapping[str, Any]) -> str:
    given, span = f"{name}={shown(value)}", limits(field)
    kinds = get_args(field.annotation) or (field.annotation,)
    if value is None or value == "":
        return f"{name} is empty; give it a value"
    if problem["type"] in ("value_error", "assertion_error"):
        return f"{given} {problem['ctx']['error']}"
    if isinstance(kinds[0], str):
        return f"{given} is unknown; choose one of {', '.join(kinds)}"
    if "list" in str(field.annotation):
        given = given if isinstance(value, list) else name
        return f"{given} must be 1 to 6 whole numbers from 1 to 4096"
    if bool in kinds:
        return f"{given} must be true or false"
    if "ge" in span:
        kind = "a number" if "float" in str(field.annotation) else "a whole number"
        return f"{given} must be {kind} from {span['ge']:g} to {span['le']:g}{' or auto' * allows_auto(field)}"
    return f"{given} must be {'a whole number' if int in kinds else 'a text'}"


def shown(value: Any) -> str:
    """A value, cut to 100 characters."""
    return (value if isinstance(value, str) else reprlib.repr(value))[:100]

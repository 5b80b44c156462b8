"""Callbacks, loggers and optimizers by `_target_`: which names may be imported."""

import functools
import os
import pkgutil
from collections.abc import Mapping
from typing import Any

from smilevae.errors import ConfigError

TRUSTED = "SMILEVAE_TARGETS"  # names that the command line gives, for the same processes
KNOWN = (  # packages whose names a run folder may hold
    *("pytorch_lightning.callbacks", "pytorch_lightning.loggers", "torch.optim"),
    "smilevae.training.trackers",
)


def targets(node: Any) -> set[str]:
    """The names of the functions and classes that a tree of `_target_`s calls."""
    if isinstance(node, Mapping):
        inner = set().union(*map(targets, node.values()))
        return inner | {str(node["_target_"])} if "_target_" in node else inner
    return set().union(*map(targets, node)) if isinstance(node, list) else set()


def trust(node: Any) -> None:
    """Let this process and those that it starts call what a tree of `_target_`s names."""
    os.environ[TRUSTED] = "\n".join(sorted({*_trusted(), *targets(node)}))


def _trusted() -> list[str]:
    return os.environ.get(TRUSTED, "").split()


def callee(node: Mapping[str, Any]) -> Any:
    """The function or class that a `_target_` names. Raises ConfigError.

    A run folder may hold such names: only those of KNOWN, and those that the command line gives, are
    imported.
    """
    name = str(node.get("_target_", ""))
    package, _, last = name.rpartition(".")
    if name not in _trusted() and (package not in KNOWN or not last.isidentifier()):
        remedy = "name it on the command line with _target_"
        raise ConfigError(
            f"{name or 'a callback, logger or optimizer'} is not imported, because no command names it; {remedy}"
        )
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{name} cannot be imported: {error}") from None


def call(node: Any) -> Any:
    """Call the class of a `_target_` with the arguments beside it, as Hydra does.

    An argument may hold a `_target_`, too. Raises ConfigError.
    """
    if isinstance(node, list):
        return [call(value) for value in node]
    if not isinstance(node, Mapping):
        return node
    own = ("_target_", "_partial_")
    values = {key: call(value) for key, value in node.items() if key not in own}
    if "_target_" not in node:
        return values
    function = callee(node)
    if node.get("_partial_"):
        return functools.partial(function, **values)
    try:
        return function(**values)
    except (ImportError, TypeError, ValueError) as error:
        raise ConfigError(f"{node['_target_']}: {str(error).splitlines()[0]}") from None

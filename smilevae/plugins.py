"""The open points: networks and objectives, ours and those of others.

A plug-in is a class whose fields are its knobs. To define it is to register it: its name on the
command line is the class's name in snake case. docs/extend.md shows how to write one.
"""

import functools
import importlib
import importlib.util
import os
import pkgutil
import re
import sys
import traceback
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from smilevae.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

Number = int | float
GROUP = "smilevae.plugins"  # of entry points
TRUSTED = "SMILEVAE_TARGETS"  # names that the command line gives, for the same processes
LIGHTNING = (  # packages whose names a run folder may hold
    *("pytorch_lightning.callbacks", "pytorch_lightning.loggers"),
    "smilevae.training.trackers",
)
REQUESTED = "SMILEVAE_PLUGIN"  # the file of `plugin=`, for the processes that a command starts
OURS = ("smilevae.models.architectures", "smilevae.models.objectives")


class Section(BaseModel):
    """A group of settings. It is frozen and has no other fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def knob(
    default: Any, text: str, low: Number | None = None, high: Number | None = None, role: str = ""
) -> Any:
    """A field with its default, documentation and inclusive range.

    Roles, separated by spaces. `study`: the study's own knobs. `repeat`: runs that differ only in
    these are repetitions. `path` of the data and `machine`: the result stays the same. `last_bits`:
    only its last bits change. `resumable`: a resume may change it. `drawn`: of synthetic faces.
    """
    return Field(default, description=text, ge=low, le=high, json_schema_extra={"role": role})


def fields(model: type[BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    """Every setting by its flat name."""
    flat: dict[str, FieldInfo] = {}
    for name, field in model.model_fields.items():
        inner = isinstance(field.default, Section)
        flat |= fields(type(field.default), f"{name}.") if inner else {prefix + name: field}
    return flat


class Plugin(Section):
    """One choice of a group of settings."""

    group: ClassVar[str]  # of the settings
    key: ClassVar[str]  # the setting that holds the name of the choice
    choice: ClassVar[str] = ""  # the name

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        if Plugin in cls.__bases__:
            CHOICES[cls.group] = {}
            return
        cls.choice = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()
        other = CHOICES[cls.group].get(cls.choice)
        if other and other.__module__ != cls.__module__:
            raise ConfigError(
                f"{cls.group}={cls.choice} is defined twice, in {other.__module__} and in"
                f" {cls.__module__}; rename one of the classes"
            )
        CHOICES[cls.group][cls.choice] = cls

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        """Fill in the name of the choice."""
        return given | {cls.key: cls.choice} if isinstance(given, dict) else given


CHOICES: dict[str, dict[str, type[Plugin]]] = {}  # group -> name -> class


class Network(Plugin):
    """An encoder and a decoder. B batch, S image side, D latent dimensions."""

    group: ClassVar[str] = "model"
    key: ClassVar[str] = "network"
    network: str = knob("conv", "the network; model=NAME chooses it with its knobs")

    def encoder(self, image_size: int, latent_dim: int) -> "nn.Module":
        """(B, 3, S, S) -> (B, 2 D): mu, then the raw log of the variance."""
        raise ConfigError(f"model={self.choice} has no encoder; define the method")

    def decoder(self, image_size: int, latent_dim: int) -> "nn.Module":
        """(B, D) -> (B, 3, S, S): the mean, without a last activation."""
        raise ConfigError(f"model={self.choice} has no decoder; define the method")

    def size_multiple(self) -> int:
        """image_size must be a multiple of this."""
        return 1


class Batch(NamedTuple):
    """What an objective sees of a batch. B examples, S image side, D latent dimensions."""

    x: "Tensor"  # (B, 3, S, S) in [0, 1]
    x_hat: "Tensor"  # (B, 3, S, S), not clamped
    mu: "Tensor"  # (B, D), as are logvar and z
    logvar: "Tensor"
    z: "Tensor"
    recon: "Tensor"  # (B,) squared error, summed over pixels
    kl: "Tensor"  # (B, D) KL to N(0, 1) in nats
    beta: "float | Tensor"  # twice the decoder's variance
    progress: float  # the share of the training's steps that are done; nan unless `scheduled`
    num_faces: int  # training faces


class Objective(Plugin):
    """What a training step minimises.

    Epochs and runs are ranked by recon + beta * KL, whatever the objective: a penalty does not
    compare across its own knobs. Random numbers of torch are seeded before each step.
    """

    group: ClassVar[str] = "objective"
    key: ClassVar[str] = "name"
    scheduled: ClassVar[bool] = False  # whether `loss` uses the batch's progress
    uses_batch: ClassVar[bool] = False  # whether an example's loss depends on the others
    name: str = knob("beta_vae", "the objective; objective=NAME chooses it with its knobs")

    def loss(self, batch: Batch) -> "Tensor":
        """The loss of each example: (B,). The step takes the mean."""
        raise ConfigError(f"objective={self.choice} has no loss; define the method")


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


def chosen(group: str, given: Any) -> type[Plugin]:
    """The plug-in that the plain content of a group names. Raises ConfigError."""
    kind = {kind.group: kind for kind in (Network, Objective)}[group]
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
        raise ConfigError(f"plugin={path} is not a Python file; name the .py file of your plug-in")
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

    A run folder may hold such names: only Lightning's, and those that the command line gives, are
    imported.
    """
    name = str(node.get("_target_", ""))
    package, _, last = name.rpartition(".")
    if name not in _trusted() and (package not in LIGHTNING or not last.isidentifier()):
        remedy = "name it on the command line with _target_"
        raise ConfigError(
            f"{name or 'a callback or logger'} is not imported, because no command names it; {remedy}"
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
    values = {key: call(value) for key, value in node.items() if key != "_target_"}
    if "_target_" not in node:
        return values
    function = callee(node)
    try:
        return function(**values)
    except (ImportError, TypeError, ValueError) as error:
        raise ConfigError(f"{node['_target_']}: {str(error).splitlines()[0]}") from None


def files() -> list[Path]:
    """The files that define plug-ins of others."""
    modules = {kind.__module__ for group in CHOICES for kind in choices(group).values()}
    others = [sys.modules[name] for name in modules if not name.startswith("smilevae.")]
    return sorted(Path(module.__file__) for module in others if module.__file__)

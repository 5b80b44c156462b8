"""The settings: one typed tree, nested as on the command line.

`python -m smilevae.config` prints its JSON Schema. docs/knobs.md has it as a table.
"""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from pydantic import (
    BeforeValidator,
    ConfigDict,
    SerializeAsAny,
    ValidationError,
    model_validator,
)

from smilevae.errors import ConfigError, sentences, shown
from smilevae.plugins import (
    Network,
    Number,
    Objective,
    Plugin,
    Section,
    Source,
    fields,
    knob,
    loading,
)
from smilevae.plugins.kinds import MAX_SEED
from smilevae.plugins.source import Place

MANY = 1_000_000
MIN_SIDE = 28
MAX_SIDE = 256
RESERVED = (  # arguments of Trainer that a run gives itself
    *("callbacks", "logger", "max_epochs", "default_root_dir", "plugins", "enable_checkpointing"),
    *("num_sanity_val_steps", "use_distributed_sampler", "barebones", "fast_dev_run"),
)
USABLE: dict[str, list[Any]] = {  # of Trainer: these leave a val/loss of every epoch
    "check_val_every_n_epoch": [1],
    "val_check_interval": [1.0, None],
    "max_steps": [-1, None],
}
HARDWARE = ("accelerator", "devices", "num_nodes", "strategy", "max_time")  # of Trainer
NOT_KNOWN = "a knob; see --help"


def _split(names: Any) -> Any:
    """The names in a text such as a,b or [a,b]."""
    return re.findall(r"[^\s,\[\]]+", names) if isinstance(names, str) else names


Names = Annotated[list[str], BeforeValidator(_split)]
Beta = Annotated[Number, Ge(0), Le(MANY)] | Literal["auto"]
Schedule = Literal["plateau", "cosine"]
Targets = dict[str, dict[str, Any]]  # name -> a tree of _target_
ADAM = {"_target_": "torch.optim.Adam", "_partial_": True}
# The groups whose choices are plug-ins.
OPEN: dict[str, type[Plugin]] = {"data": Source, "model": Network, "objective": Objective}
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


class Plateau(Section):
    factor: Number = knob(0.5, "lr is multiplied by this on a plateau of val/loss", 0.01, 0.99)
    patience: int = knob(8, "epochs without a better val/loss that make a plateau", 0, MANY)


class Jitter(Section):
    shift: Number = knob(0, "training faces move by at most so many pixels", 0, 32)
    rotate: Number = knob(0, "training faces turn by at most so many degrees", 0, 45)
    zoom: Number = knob(0, "training faces change size by at most this share", 0, 0.5)
    light: Number = knob(0, "training faces change brightness and colour by at most this", 0, 1)


class Trainer(Section):
    """Any argument of Lightning's Trainer, which checks most of them itself."""

    model_config = ConfigDict(extra="allow", strict=False)
    accelerator: str = knob("auto", "cpu, gpu or auto")
    devices: int | str | list[int] = knob(1, "how many processes train together")
    precision: Precision = knob("32-true", "bf16-mixed where the hardware is faster at it")
    gradient_clip_val: Number | None = knob(500.0, "limits the gradient's norm in the first epochs")

    def problems(self) -> list[str]:
        """What Lightning allows and a run cannot use, a sentence each."""
        given = self.model_dump()
        text = "leaves no val/loss of every epoch, which ranks checkpoints; leave it out"
        remedy = "smilevae sets it; use epochs, callbacks, logger or hydra.run.dir"
        problems = [f"trainer.{name}: {remedy}" for name in RESERVED if name in given]
        for name, usable in USABLE.items():
            if given.get(name, usable[0]) not in usable:
                problems.append(f"trainer.{name}={given[name]} {text}")
        if given.get("overfit_batches"):
            problems.append("trainer.overfit_batches ignores these batches; use debug=overfit")
        if given.get("limit_val_batches") == 0:
            problems.append(f"trainer.limit_val_batches=0 {text}")
        max_time = given.get("max_time") or "00:00:00:00"
        if not re.fullmatch(r"\d+(:\d\d){3}", str(max_time)):
            problems.append(f"trainer.max_time={shown(max_time)} must be DD:HH:MM:SS")
        return problems


class Settings(Section):
    """Everything that a run is trained with. `Settings()` is the source study's configuration."""

    beta: Beta = knob(1, "weight of the KL in the loss; auto: learnt", role="study")
    latent_dim: int = knob(120, "dimensions of the latent code", 1, 4096, "study")
    batch_size: int = knob(32, "faces a step", 2, 65536, "study")
    epochs: int = knob(150, "passes over the training faces", 1, MANY, "study resumable")
    lr: Number = knob(0.0005, "learning rate", 1e-8, 1, "study")
    normalize: bool = knob(False, "the input of the network is (x - 0.5) / 0.5", role="study")
    image_size: int = knob(128, "side of the images in pixels", MIN_SIDE, MAX_SIDE, "study")
    channels: Literal[1, 3] = knob(3, "3 colours, or 1: grey")
    seed: int = knob(0, "weights, shuffling, noise and split", 0, MAX_SEED, "study repeat")
    augment: bool = knob(True, "mirror half of the training faces")
    warm_start: Literal["none", "ppca"] = knob("none", "ppca: start at the linear VAE's optimum")
    schedule: Schedule = knob("plateau", "cosine: lr rises for a tenth, then falls to 1%")
    plateau: Plateau = Plateau()
    optimizer: dict[str, Any] = knob(ADAM, "the optimizer, by _target_; lr is its learning rate")
    ema: Number = knob(0, "0.995: validate and keep the moving average of the weights", 0, 0.99999)
    jitter: Jitter = Jitter()
    threads: int | None = knob(None, "CPU threads; changes the last bits", 1, 1024, "last_bits")
    compile: bool = knob(False, "torch.compile of the training step; changes the last bits")
    graph: bool | Literal["auto"] = knob("auto", "a step as one CUDA graph", role="last_bits")
    keep_memory: bool = knob(True, "keep freed memory: faster; glibc only", role="machine")
    checkpoint_every: Number = knob(60, "seconds between checkpoints", 0, MANY, "machine")
    num_workers: int = knob(0, "processes that gather batches; rarely pay", 0, 256, "machine")
    log_images_every: int = knob(10, "epochs between TensorBoard's figures", 1, MANY, "machine")
    logger: Targets = knob({}, "loggers beside TensorBoard, by _target_", role="machine")
    callbacks: Targets = knob({}, "callbacks of Lightning, by _target_")
    evaluate: bool = knob(False, "evaluate the best checkpoint at the end", role="machine")
    measures: Names = knob([], "measures of the best checkpoint at the end", role="machine")
    resume: Place = knob(None, "a run folder to continue", role="machine")
    data: SerializeAsAny[Source] = loading.ours("data", "synthetic")
    model: SerializeAsAny[Network] = loading.ours("model", "conv")
    objective: SerializeAsAny[Objective] = loading.ours("objective", "beta_vae")
    plugin: Place = knob(None, "a .py file with plug-ins of yours", role="machine")
    trainer: Trainer = Trainer()

    def __reduce__(self) -> Any:
        """Pickles as plain values: a job's process loads plug-ins before it has their classes."""
        return checked, (self.plain(),)

    @property
    def fixed_length(self) -> bool:
        """Whether the first epochs depend on the number of epochs."""
        return self.schedule == "cosine" or self.objective.scheduled

    def plain(self) -> dict[str, Any]:
        """Nested plain values, for config.yaml and checkpoints."""
        return self.model_dump()

    def flat(self) -> dict[str, Any]:
        """{"group.name": value} without the trainer's."""
        return flatten(self.model_dump(exclude={"trainer"}))

    def result_settings(self) -> dict[str, Any]:
        """The flat settings that change a run's result beyond its last bits, with the trainer's."""
        result = {n: v for n, v in flatten(self.plain()).items() if n not in NOT_RESULT}
        whole = {n: int(v) for n, v in result.items() if isinstance(v, float) and v.is_integer()}
        return result | whole

    def with_values(self, flat: Mapping[str, Any]) -> "Settings":
        """These settings with other values by their flat names. Raises ConfigError."""
        nested = self.plain()
        for group, kind in OPEN.items():
            choice = flat.get(f"{group}.{kind.key}", nested[group][kind.key])
            if choice != nested[group][kind.key]:  # another choice has other knobs
                nested[group] = loading.chosen(group, {kind.key: choice})().model_dump()
        for name, value in flat.items():
            group, _, leaf = name.rpartition(".")
            (nested[group] if group else nested)[leaf] = value
        return checked(nested)

    @model_validator(mode="after")
    def _fit_together(self) -> "Settings":
        problems = [*self.trainer.problems(), *self.data.problems()]
        if self.warm_start == "ppca" and self.beta == 0:
            problems.append("warm_start=ppca has no optimum at beta=0; give beta a value above 0")
        multiple = self.model.size_multiple()
        if self.image_size % multiple:
            sizes = [size for size in range(MIN_SIDE, MAX_SIDE + 1) if size % multiple == 0]
            nearest = sorted(sizes, key=lambda size: abs(size - self.image_size))[:2]
            near = " and ".join(map(str, sorted(nearest))) or f"none up to {MAX_SIDE}"
            text = f"does not fit this network; the nearest are {near}"
            problems.append(f"image_size={self.image_size} {text}")
        if problems:
            raise ValueError("\n".join(problems))
        return self


def with_role(role: str) -> tuple[str, ...]:
    """The settings that have a role; see `knob`."""
    return tuple(n for n, field in FIELDS.items() if role in str(field.json_schema_extra))


FIELDS = fields(Settings)
STUDY = with_role("study")
REPEATS = with_role("repeat")
PLACES = tuple(name.removeprefix("data.") for name in with_role("path"))
SAME_RESULT = (*with_role("path"), *with_role("machine"))
NOT_RESULT = (*SAME_RESULT, *with_role("last_bits"), *(f"trainer.{name}" for name in HARDWARE))
RESUMABLE = (*SAME_RESULT, *with_role("resumable"))


def checked(content: Any) -> Settings:
    """Settings from the plain content of a command line, run folder or checkpoint.

    The content names every setting: a default would hide that a value is lost. Raises ConfigError,
    also for a plug-in that is not loaded.
    """
    if not isinstance(content, Mapping):
        raise ConfigError("these are no settings; restore them")
    values = dict(content)
    given = flatten(content)
    named = [group for group, kind in OPEN.items() if f"{group}.{kind.key}" in given]
    choices = {group: loading.chosen(group, values[group]) for group in named}
    known = {name: f for name, f in FIELDS.items() if name.partition(".")[0] not in choices}
    for group, choice in choices.items():
        known |= fields(choice, f"{group}.")
    missing = [name for name in known if name not in {*given, *content}]
    sets = {group: f"; {group}={choice.choice} sets it" for group, choice in choices.items()}
    problems = [f"{name} is missing" + sets.get(name.partition(".")[0], "") for name in missing]
    for group, choice in choices.items():
        try:
            values[group] = choice.model_validate(values[group])
        except ValidationError as error:
            not_known = NOT_KNOWN.replace("knob", f"knob of {group}={choice.choice}")
            problems = sentences(error, known, not_known, f"{group}.") + problems
            del values[group]
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        problems = sentences(error, known, NOT_KNOWN) + problems
    if problems:
        raise ConfigError("\n".join(problems))
    return settings


def flatten(nested: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings by their flat names."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping) and name not in ("logger", "callbacks"):
            flat |= {f"{name}.{leaf}": content for leaf, content in value.items()}
        else:
            flat[name] = value
    return flat


if __name__ == "__main__":
    print(json.dumps(Settings.model_json_schema(), indent=1))

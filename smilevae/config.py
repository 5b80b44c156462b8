"""The settings: one typed tree, nested as on the command line.

`python -m smilevae.config` prints the table of docs/knobs.md, `python -m smilevae.config schema` the JSON Schema.
"""

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from annotated_types import Ge, Le
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from smilevae.errors import ConfigError, allows_auto, limits, sentences, shown

Number = int | float
Beta = Annotated[Number, Ge(0), Le(1e6)] | Literal["auto"]
Text = Annotated[str, Field(min_length=1)]
MAX_SEED, MANY, MAX_WIDTHS = 2**32 - 1, 1_000_000, 6
PLACES = ("root", "positive", "negative", "unlabelled", "attributes")  # paths of data
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "32", "bf16", "16")  # the last three are older names
# Settings of synthetic faces; other sources lack them
DRAWN = tuple(f"data.{name}" for name in ("draw_seed", "num_smiling", "num_not_smiling", "num_test", "confound"))
HARDWARE = ("accelerator", "devices", "num_nodes", "strategy", "max_time")  # a resume may change these


def knob(default: Any, text: str, low: Number | None = None, high: Number | None = None, **more: Any) -> Any:
    """A field with its default, documentation and inclusive range.

    A resume may change a setting with `same_result=True`.
    """
    return Field(default, description=text, ge=low, le=high, json_schema_extra=more)


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class Plateau(Section):
    factor: Number = knob(0.5, "lr is multiplied by this on a plateau of val/loss", 0.01, 0.99)
    patience: int = knob(8, "epochs without a better val/loss that make a plateau", 0, MANY)


class Jitter(Section):
    shift: Number = knob(0, "training faces move by at most so many pixels", 0, 32)
    rotate: Number = knob(0, "training faces turn by at most so many degrees", 0, 45)
    zoom: Number = knob(0, "training faces change size by at most this share", 0, 0.5)
    light: Number = knob(0, "training faces change brightness and colour by at most this share", 0, 1)


class Sharpen(Section):
    epochs: int = knob(0, "epochs that then train the decoder alone against a discriminator", 0, MANY)
    weight: Number = knob(0.5, "gradient of the discriminator in that of the error", 0, 100)


class Model(Section):
    network: Literal["conv", "patch"] = knob("conv", "the source study's network, or a faster one for CPUs")
    widths: list[Annotated[int, Field(ge=1, le=4096)]] = Field(
        [32, 64, 128, 256], description="channels of the blocks", min_length=1, max_length=MAX_WIDTHS
    )
    dropout: Number = knob(0.1, "share of channels that Dropout2d sets to zero", 0, 0.95)


class Data(Section):
    source: Literal["synthetic", "folder", "smiling_or_not", "celeba"] = knob("synthetic", "where faces come from")
    root: Text | None = knob(None, "the folder of your images", same_result=True)
    positive: Text | None = knob(None, "a folder of images with an attribute, in place of data.root", same_result=True)
    negative: Text | None = knob(None, "a folder of images without it", same_result=True)
    person_pattern: Text = knob(r"^(.+)_\d+\.\w+$", "group 1 of a file name is the person")
    val_fraction: Number = knob(0.2, "share of the people who are held out", 0.01, 0.9)
    test_fraction: Number = knob(0, "share of the people whom only evaluations see", 0, 0.9)
    split_seed: int = knob(0, "which people are held out; follows seed", 0, MAX_SEED)
    max_skipped: Number = knob(0.01, "stop if more of the files than this cannot be read", 0, 1)
    unlabelled: Text | None = knob(None, "a folder of more faces to train on", same_result=True)
    attributes: Text | None = knob(None, "a CSV table of known attributes: file, gender, ...", same_result=True)
    cache: bool = knob(True, "decode once, into the user's cache folder", same_result=True)
    draw_seed: int = knob(0, "which synthetic faces are drawn", 0, MAX_SEED)
    num_smiling: int = knob(600, "how many synthetic faces smile", 1, 10 * MANY)
    num_not_smiling: int = knob(603, "how many synthetic faces do not smile", 1, 10 * MANY)
    num_test: int = knob(300, "how many more synthetic faces make the test part", 0, 10 * MANY)
    confound: Number = knob(0.0, "correlation of smile and hair length among synthetic faces", -0.99, 0.99)

    @property
    def place(self) -> str:
        """The folder of the faces, or the name of their source, for an error sentence."""
        return self.root or self.positive or self.source


class Trainer(Section):
    """Any argument of Lightning's Trainer, which checks them itself."""

    model_config = ConfigDict(extra="allow", strict=False)
    accelerator: Any = knob("auto", "cpu, gpu or auto")
    devices: Any = knob(1, "how many processes train together")
    precision: Any = knob("32-true", "bf16-mixed where the hardware is faster at it")
    gradient_clip_val: Any = knob(500.0, "clips the norm of the gradient; tames the first epochs")

    def problems(self) -> list[str]:
        """What Lightning allows and a run cannot use."""
        more = self.model_extra or {}
        wrong = {
            "check_val_every_n_epoch": more.get("check_val_every_n_epoch", 1) != 1,
            "val_check_interval": more.get("val_check_interval") not in (1.0, None),
            "limit_val_batches": not more.get("limit_val_batches", 1),
            "max_steps": more.get("max_steps", -1) not in (-1, None),  # it can end within an epoch
        }
        text = "leaves no val/loss of every epoch, which ranks checkpoints; leave it out"
        problems = [f"trainer.{name}={more[name]} {text}" for name in wrong if wrong[name]]
        if str(self.precision) not in PRECISIONS:
            known = ", ".join(PRECISIONS[:3])
            problems.append(f"trainer.precision={shown(self.precision)} is unknown here; choose one of {known}")
        if not re.fullmatch(r"\d+(:\d\d){3}", str(more.get("max_time") or "0:00:00:00")):
            problems.append(f"trainer.max_time={shown(more['max_time'])} must be DD:HH:MM:SS")
        return problems


class Settings(Section):
    """Everything that a run is trained with. `Settings()` is the source study's configuration."""

    beta: Beta = knob(1, "weight of the KL: loss = SSE + beta * KL on [0, 1] pixels; auto: twice the error per pixel")
    latent_dim: int = knob(120, "dimensions of the latent code", 1, 4096)
    batch_size: int = knob(32, "faces a step", 2, 65536)
    epochs: int = knob(150, "passes over the training faces", 1, MANY)
    lr: Number = knob(0.0005, "learning rate of Adam", 1e-8, 1)
    normalize: bool = knob(False, "the network sees (x - 0.5) / 0.5; the loss never does")
    image_size: int = knob(128, "side of the images in pixels", 64, 256)
    seed: int = knob(0, "weights, shuffling, noise and split", 0, MAX_SEED)
    augment: bool = knob(True, "mirror half of the training faces")
    warm_start: Literal["none", "ppca"] = knob("none", "ppca: begin at the optimum of the linear VAE")
    schedule: Literal["plateau", "cosine"] = knob("plateau", "cosine: lr rises for a tenth, then falls to 1%")
    plateau: Plateau = Plateau()
    weight_decay: Number = knob(0, "above 0: AdamW", 0, 1)
    ema: Number = knob(0, "0.995: validate and keep the moving average of the weights", 0, 0.99999)
    jitter: Jitter = Jitter()
    sharpen: Sharpen = Sharpen()
    threads: int | None = knob(None, "CPU threads; their number changes the last bits", 1, 1024)
    compile: bool = knob(False, "torch.compile of the training step; changes the last bits")
    keep_memory: bool = knob(True, "freed memory stays in the process; glibc only, and faster", same_result=True)
    checkpoint_every: Number = knob(60, "seconds between checkpoints", 0, MANY, same_result=True)
    num_workers: int = knob(0, "processes that gather batches; they rarely pay", 0, 256, same_result=True)
    log_images_every: int = knob(10, "epochs between pictures in TensorBoard", 1, MANY, same_result=True)
    logger: Literal["tensorboard", "wandb", "mlflow"] = knob(
        "tensorboard", "a tracker beside TensorBoard", same_result=True
    )
    evaluate: bool = knob(False, "evaluate the best checkpoint at the end", same_result=True)
    resume: Text | None = knob(None, "a run folder to continue", same_result=True)
    data: Data = Data()
    model: Model = Model()
    trainer: Trainer = Trainer()

    def plain(self) -> dict[str, Any]:
        """Nested plain values, for config.yaml and checkpoints."""
        return self.model_dump()

    def flat(self) -> dict[str, Any]:
        """{"group.name": value} without the trainer's."""
        return flatten(self.model_dump(exclude={"trainer"}))

    def result_settings(self) -> dict[str, Any]:
        """The flat settings that change a run's result beyond its last bits, with the trainer's."""
        flat = {k: v for k, v in self.flat().items() if k not in SAME_RESULT and k != "threads"}
        flat |= {f"trainer.{k}": v for k, v in self.trainer.model_dump().items() if k not in HARDWARE}
        return {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in flat.items()}

    def identity(self, fingerprint: str, code: str = "") -> str:
        """A hash of all that changes a run's result: settings, data and program."""
        flat = {k: v for k, v in self.flat().items() if k not in SAME_RESULT}
        text = json.dumps([flat, self.trainer.model_dump(), fingerprint, code], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def with_values(self, flat: Mapping[str, Any]) -> "Settings":
        """These settings with other values by their flat names. Raises ConfigError."""
        nested = self.plain()
        for name, value in flat.items():
            group, _, leaf = name.rpartition(".")
            (nested[group] if group else nested)[leaf] = value
        return checked(nested)

    @model_validator(mode="after")
    def _fit_together(self) -> "Settings":
        problems = self.trainer.problems()
        if self.warm_start == "ppca" and self.beta == 0:
            problems.append("warm_start=ppca has no optimum at beta=0; give beta a value above 0")
        if self.sharpen.epochs and self.trainer.devices != 1:
            problems.append("sharpen.epochs trains in one process; pass trainer.devices=1")
        try:
            groups = re.compile(self.data.person_pattern).groups
        except re.error:
            groups = 0
        if not groups:
            given = shown(self.data.person_pattern)
            problems.append(f"data.person_pattern={given} must be a regular expression with a group in brackets")
        if self.data.val_fraction + self.data.test_fraction > 0.95:
            problems.append("data.val_fraction and data.test_fraction leave too few people; lower one")
        for name in ("root", "positive", "negative", "unlabelled"):
            if self.data.source == "synthetic" and getattr(self.data, name):
                problems.append(f"data.{name} does not apply to drawn faces; add data=folder")
        if bool(self.data.positive) != bool(self.data.negative):
            problems.append("data.positive and data.negative go together; name both folders")
        if self.data.positive and (self.data.root or self.data.source in ("smiling_or_not", "celeba")):
            problems.append("data.positive and data.negative replace data.root; pass data=folder without data.root")
        multiple, size = size_multiple(self.model.network, len(self.model.widths)), self.image_size
        if size % multiple:
            sizes = [n for n in range(64, 257) if n % multiple == 0]
            near = sorted(sorted(sizes, key=lambda n: abs(n - size))[:2])
            nearest = " and ".join(map(str, near)) or "none: fewer widths"
            problems.append(f"image_size={size} does not fit this network; the nearest are {nearest}")
        if problems:
            raise PydanticCustomError("together", "{text}", {"text": "\n".join(problems)})
        return self


def fields(model: type[BaseModel] = Settings, prefix: str = "") -> dict[str, FieldInfo]:
    """Every setting by its flat name, without the trainer's."""
    flat: dict[str, FieldInfo] = {}
    for name, field in model.model_fields.items():
        if isinstance(field.default, Section):
            flat |= fields(type(field.default), f"{name}.") if name != "trainer" else {}
        else:
            flat[prefix + name] = field
    return flat


FIELDS = fields()
EXTRA: dict[str, Any] = {name: field.json_schema_extra or {} for name, field in FIELDS.items()}
SAME_RESULT = [name for name, extra in EXTRA.items() if "same_result" in extra]
RESUMABLE = (*SAME_RESULT, "epochs", "sharpen.epochs", "sharpen.weight")  # a resume may change these


def checked(content: Any) -> Settings:
    """Settings from the plain content of a command line, run folder or checkpoint, which names every one.

    Raises ConfigError, one sentence a problem.
    """
    if not isinstance(content, Mapping):
        raise ConfigError("these are no settings; restore them")
    flat = flatten(content)
    problems = [f"{name} is missing" for name in FIELDS if name not in flat and name not in DRAWN]
    if not isinstance(content.get("trainer"), Mapping):
        problems.append("trainer is missing")
    try:
        settings = Settings.model_validate(dict(content))
    except ValidationError as error:
        problems = sentences(error, FIELDS, "a knob; see --help") + problems
    if problems:
        raise ConfigError("\n".join(problems))
    return settings


def flatten(nested: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings by their flat names."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        flat |= {f"{name}.{leaf}": v for leaf, v in value.items()} if isinstance(value, Mapping) else {name: value}
    return flat


def size_multiple(network: str, num_blocks: int) -> int:
    """image_size is a multiple of this: conv halves it in each block, patch by 4 and in all blocks but one."""
    return 2**num_blocks if network == "conv" else 4 * 2 ** (num_blocks - 1)


def table() -> str:
    """The settings as a Markdown table."""
    lines = ["| knob | default | range | |", "|---|---|---|---|"]
    for name, field in FIELDS.items():
        kinds, span = get_args(field.annotation), limits(field)
        choices = ", ".join(kinds) if kinds and isinstance(kinds[0], str) else ""
        reach = f"{span['ge']:,} to {span['le']:,}{', auto' * allows_auto(field)}" if "ge" in span else choices
        default = field.default if isinstance(field.default, str) else json.dumps(field.default)
        default = f"`{default}`" if default != "null" else ""
        lines.append(f"| `{name}` | {default} | {reach} | {field.description} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(json.dumps(Settings.model_json_schema(), indent=1) if sys.argv[1:] == ["schema"] else table())

"""The kinds of plug-ins."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from smilevae.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

Number = int | float
Shape = tuple[int, int, int]  # channels, side, side
MAX_SEED = 2**32 - 1


class Section(BaseModel):
    """A group of settings. It is frozen and has no other fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def knob(
    default: Any, text: str, low: Number | None = None, high: Number | None = None, role: str = ""
) -> Any:
    """A field with its default, documentation and inclusive range.

    Roles, separated by spaces. `study`: the study's own knobs. `repeat`: runs that differ only in
    these are repetitions. `path` of the data and `machine`: the result stays the same. `last_bits`:
    only its last bits change. `resumable`: a resume may change it.
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
    """An encoder and a decoder. B batch, C channels, S image side, D latent dimensions."""

    group: ClassVar[str] = "model"
    key: ClassVar[str] = "network"
    network: str = knob("conv", "the network; model=NAME chooses it with its knobs")

    def encoder(self, shape: Shape, latent_dim: int) -> "nn.Module":
        """(B, C, S, S) -> (B, 2 D): mu, then the raw log of the variance. `shape` is (C, S, S)."""
        raise ConfigError(f"model={self.choice} has no encoder; define the method")

    def decoder(self, shape: Shape, latent_dim: int) -> "nn.Module":
        """(B, D) -> (B, C, S, S): the mean, without a last activation."""
        raise ConfigError(f"model={self.choice} has no decoder; define the method")

    def size_multiple(self) -> int:
        """image_size must be a multiple of this."""
        return 1


class Batch(NamedTuple):
    """What an objective sees of a batch. B examples, C channels, S side, D latent dimensions."""

    x: "Tensor"  # (B, C, S, S) in [0, 1]
    x_hat: "Tensor"  # (B, C, S, S), not clamped
    mu: "Tensor"  # (B, D), as are logvar and z
    logvar: "Tensor"
    z: "Tensor"
    recon: "Tensor"  # (B,) squared error, summed over pixels
    kl: "Tensor"  # (B, D) KL to N(0, 1) in nats
    beta: "float | Tensor"  # twice the decoder's variance
    progress: "float | Tensor"  # share of the training's steps done; nan unless `scheduled`
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


class Score(NamedTuple):
    """A number of a measure."""

    value: float
    meaning: str  # what it is, for the page
    unit: str = ""
    better: Literal["higher", "lower", ""] = ""
    references: Mapping[str, float] = {}  # the same number of something to compare with


class Measure(Plugin):
    """Numbers of a trained model, for an evaluation and for the table of a sweep."""

    group: ClassVar[str] = "measures"
    key: ClassVar[str] = "name"
    name: str = knob("", "the measure; measures=[NAME] chooses it")

    def scores(self, vae: Any, faces: Any) -> dict[str, Score]:
        """Numbers by their names, of a models.vae.VAE in eval mode and data.Faces.

        The held-out faces are `faces.rows("val")`. Raises DataError where these faces do not allow them.
        """
        raise ConfigError(f"measures={self.choice} has no scores; define the method")

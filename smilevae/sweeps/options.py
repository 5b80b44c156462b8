"""The options of a sweep, which no job sees: sweep.budget, sweep.halving, ..."""

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from smilevae.errors import ConfigError, sentences

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class SweepOptions(BaseModel):
    """The group `sweep` of conf/train.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    yes: bool = Field(False, description="more than 200 jobs start only with it")
    mix: bool = Field(False, description="jobs of a changed program join the sweep")
    budget: str | None = Field(None, description="time that the sweep may run, pauses excluded: 90s, 10m, 2h, 1d")
    halving: int | None = Field(None, description="the best 1/N of the settings train on after each rung", ge=2, le=10)
    first: int | None = Field(None, description="epochs of the first rung; one shows no trend", ge=2)
    trials: int | None = Field(None, description="points that a search tries", ge=1, le=100_000)

    @field_validator("budget", mode="before")
    @classmethod
    def _time(cls, value: Any) -> Any:
        if value is not None and not re.fullmatch(r"[1-9]\d*[smhd]", str(value)):
            raise ValueError("must be a time such as 90s, 10m, 2h or 1d")
        return value

    @property
    def seconds(self) -> float | None:
        """The budget in seconds."""
        return int(self.budget[:-1]) * UNITS[self.budget[-1]] if self.budget else None


class _Command(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    retry_failed: bool
    sweep: SweepOptions


def parse(retry_failed: Any, sweep: Any) -> SweepOptions:
    """The checked options. Raises ConfigError, one sentence a problem."""
    fields = {f"sweep.{name}": field for name, field in SweepOptions.model_fields.items()}
    try:
        options = _Command.model_validate({"retry_failed": retry_failed, "sweep": sweep}).sweep
    except ValidationError as error:
        known = fields | {"retry_failed": _Command.model_fields["retry_failed"]}
        raise ConfigError("\n".join(sentences(error, known, f"an option; there are {', '.join(fields)}"))) from None
    if options.first and not options.halving:
        raise ConfigError(f"sweep.first={options.first} is the first rung's epochs; add sweep.halving=3")
    return options

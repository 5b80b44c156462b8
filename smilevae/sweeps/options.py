"""The options of a sweep, which no job sees: retry_failed, sweep.budget, sweep.halving, ..."""

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from smilevae.errors import ConfigError, sentences

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class SweepOptions(BaseModel):
    """The group `sweep` of conf/train.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    yes: bool = Field(False, description="more than 200 jobs start only with it")
    budget: str | None = Field(None, description="time that the sweep may run: 90s, 10m, 2h")
    halving: int | None = Field(None, description="the best 1/N of a rung go on", ge=2, le=10)
    first: int | None = Field(None, description="epochs of the first rung", ge=2)
    trials: int | None = Field(None, description="points of a search", ge=1, le=100_000)

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


class Command(BaseModel):
    model_config = ConfigDict(strict=True)
    retry_failed: bool
    sweep: SweepOptions


def parse(retry_failed: Any, sweep: Any) -> SweepOptions:
    """The checked options. Raises ConfigError, one sentence a problem."""
    fields = {f"sweep.{name}": field for name, field in SweepOptions.model_fields.items()}
    try:
        options = Command(retry_failed=retry_failed, sweep=sweep).sweep
    except ValidationError as error:
        known = fields | {"retry_failed": Command.model_fields["retry_failed"]}
        unknown = f"an option; there are {', '.join(fields)}"
        raise ConfigError("\n".join(sentences(error, known, unknown))) from None
    if options.first and not options.halving:
        first = f"sweep.first={options.first}"
        raise ConfigError(f"{first} is the first rung's epochs; add sweep.halving=3")
    return options

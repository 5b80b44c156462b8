"""The options of photo, app and export. Importing this costs no torch."""

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

MAX_INTENSITY, MAX_STEPS = 10, 100


class Common(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    ckpt: str = Field(description="a run folder or checkpoint that evaluate.py has been run on")


def _intensities(value: Any) -> list[float]:
    """NUMBER or FROM:TO:STEPS as a list of intensities."""
    try:
        parts = str(value).split(":")
        low, high, num = float(parts[0]), float(parts[min(1, len(parts) - 1)]), int(parts[2]) if parts[1:] else 1
        if len(parts) in (1, 3) and max(abs(low), abs(high)) <= MAX_INTENSITY and 1 <= num <= MAX_STEPS:
            return [low + (high - low) * step / max(1, num - 1) for step in range(num)]
    except (ValueError, IndexError):
        pass
    raise ValueError(f"must be a number from -{MAX_INTENSITY} to {MAX_INTENSITY}, or FROM:TO:STEPS")


def _box(value: Any) -> Any:
    """frame, or LEFT,TOP,SIDE in pixels."""
    if value == "frame":
        return value
    try:
        box = tuple(float(part) for part in str(value).split(","))
        if len(box) == 3 and all(map(math.isfinite, box)):
            return box
    except ValueError:
        pass
    raise ValueError("must be LEFT,TOP,SIDE in pixels, or frame")


class PhotoOptions(Common):
    """smilevae photo ckpt=RUN image=me.jpg smile=1.5 out=me_smiling.png

    Makes the face in a photo smile, at the photo's own resolution. PNG keeps every pixel outside the face to the bit.
    The photo is turned upright and keeps its colour profile; place, camera and dates are left out.
    """

    image: str = Field(description="a photo, or a folder of them (then out is a folder)")
    out: str = Field(description="the new file; .gif and .mp4 give an animation, other kinds a picture or a strip")
    smile: Annotated[list[float], BeforeValidator(_intensities)] = Field(
        [1.0], description="intensity: 0 as it is, 1 an average smile, negative less; or FROM:TO:STEPS"
    )
    face: int | Literal["all"] = Field(1, description="the number of a face, largest first, or all")
    box: Annotated[Any, BeforeValidator(_box)] = Field(
        None, description="LEFT,TOP,SIDE in pixels of the square that holds the face, or frame"
    )
    direction: str | None = Field(None, description="one of the scorecard's; its best unless given")


class AppOptions(Common):
    """smilevae app ckpt=RUN [port=7860]

    A smile on a slider, in a browser on this machine. The page listens on 127.0.0.1 only.
    """

    port: int = Field(7860, ge=0, le=65535, description="0 chooses a free one")


class ExportOptions(Common):
    """smilevae export ckpt=RUN out=FOLDER

    Writes a model to give away: safetensors, ONNX, calibrated directions and a model card.
    """

    out: str = Field(description="a new folder")

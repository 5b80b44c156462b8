"""The options of photo, app and export. Importing this costs no torch."""

from contextlib import suppress
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field

ATTRIBUTE = "the one that is changed; that of the evaluation unless given"


def _intensities(word: str) -> list[float]:
    with suppress(ValueError):
        low, high, num = word.split(":") if ":" in word else (word, word, "1")
        if all(-10 <= float(end) <= 10 for end in (low, high)) and 1 <= int(num) <= 100:
            return np.linspace(float(low), float(high), int(num)).tolist()
    raise ValueError("must be a number from -10 to 10, or FROM:TO:STEPS with at most 100 steps")


def _face(word: str) -> int | str:
    with suppress(ValueError):
        if word == "all" or int(word) > 0:
            return word
    raise ValueError("must be a number from 1, or all")


def _box(word: str) -> Any:
    with suppress(ValueError):
        box = word if word == "frame" else tuple(map(float, word.split(",")))
        if box == "frame" or (len(box) == 3 and np.isfinite(box).all()):
            return box
    raise ValueError("must be LEFT,TOP,SIDE in pixels, or frame")


class Common(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    ckpt: str = Field(description="an evaluated run folder or checkpoint, or an exported folder")


class PhotoOptions(Common):
    """smilevae photo ckpt=RUN image=me.jpg intensity=1.5 out=me_smiling.png

    Makes the face in a photo smile, or changes another attribute, at the photo's own resolution.
    PNG keeps every pixel outside the face.
    The photo is turned upright and keeps its colour profile. Place, camera and dates are left out.
    """

    image: str = Field(description="a photo, or a folder of photos (then out is a folder)")
    out: str = Field(description="the new file: .png, .jpg or .webp; .gif or .mp4 for an animation")
    attribute: str | None = Field(None, description=ATTRIBUTE)
    intensity: Annotated[list[float], BeforeValidator(_intensities)] = Field(
        [1.0],
        validation_alias=AliasChoices("intensity", "smile"),
        description="0 as it is, 1 an average smile, negative less; FROM:TO:STEPS for several",
    )
    face: Annotated[int | Literal["all"], BeforeValidator(_face)] = Field(
        1, description="the number of a face, largest first, or all"
    )
    box: Annotated[Any, BeforeValidator(_box)] = Field(
        None, description="LEFT,TOP,SIDE of the face in pixels, or frame"
    )
    direction: str | None = Field(None, description="a direction of the scorecard; its best unless given")


class AppOptions(Common):
    """smilevae app ckpt=RUN [port=7860]

    A smile and other attributes on sliders, in a browser on this machine. The page is served on 127.0.0.1 only.
    """

    attribute: str | None = Field(None, description=ATTRIBUTE)
    port: int = Field(7860, ge=0, le=65535, description="0 chooses a free one")


class ExportOptions(Common):
    """smilevae export ckpt=RUN out=FOLDER

    Writes a model to give away: safetensors, ONNX, calibrated directions and a model card.
    """

    attribute: str | None = Field(None, description=ATTRIBUTE)
    out: str = Field(description="a new folder")

"""The options of photo, app and export. Importing this costs no torch."""

import math
from contextlib import suppress
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

ATTRIBUTE = "the one that is changed; that of the evaluation unless given"


def _face(word: str) -> int | str:
    with suppress(ValueError):
        if word == "all" or int(word) > 0:
            return word
    raise ValueError("must be a number from 1, or all")


def _box(word: str) -> tuple[float, ...]:
    with suppress(ValueError):
        box = tuple(map(float, word.split(",")))
        if len(box) == 3 and all(map(math.isfinite, box)):
            return box
    raise ValueError("must be LEFT,TOP,SIDE in pixels")


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
    out: str = Field(description="the new file: .png, .jpg or .webp")
    attribute: str | None = Field(None, description=ATTRIBUTE)
    intensity: float = Field(
        1.0, ge=-10, le=10, description="0 as it is, 1 an average smile, negative less"
    )
    face: Annotated[int | Literal["all"], BeforeValidator(_face)] = Field(
        1, description="the number of a face, largest first, or all"
    )
    box: Annotated[tuple[float, ...] | None, BeforeValidator(_box)] = Field(
        None, description="LEFT,TOP,SIDE of the face in pixels"
    )


class AppOptions(Common):
    """smilevae app ckpt=RUN [port=7860]

    A smile and other attributes on sliders, in a browser on this machine. The page is served on 127.0.0.1 only.
    """

    attribute: str | None = Field(None, description=ATTRIBUTE)
    port: int = Field(7860, ge=0, le=65535, description="0 chooses a free one")


class ExportOptions(Common):
    """smilevae export ckpt=RUN out=FOLDER

    Writes a model to give away: safetensors, ONNX, calibrated edits and a model card.
    """

    attribute: str | None = Field(None, description=ATTRIBUTE)
    out: str = Field(description="a new folder")

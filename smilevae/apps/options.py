"""The options of photo, app and export. Importing this costs no torch."""

import math
from contextlib import suppress
from typing import Annotated, Literal

from annotated_types import Ge
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

ATTRIBUTE = "the one that is changed; that of the evaluation unless given"
INTENSITY = "0 as it is, 1 an average smile, negative less"
FACE = "the number of a face, largest first, or all"
BOX = "LEFT,TOP,SIDE of the face in pixels"
Box = tuple[float, float, float]  # left, top, side


def _box(word: str) -> Box:
    with suppress(ValueError):
        left, top, side = map(float, word.split(","))
        if math.isfinite(left + top + side):
            return left, top, side
    raise ValueError("must be LEFT,TOP,SIDE in pixels")


class Common(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    ckpt: str = Field(
        description="an evaluated run, an exported folder, drawn, or hf-hub:OWNER/NAME"
    )
    attribute: str | None = Field(None, description=ATTRIBUTE)


class PhotoOptions(Common):
    """smilevae photo ckpt=RUN image=me.jpg intensity=1.5 out=me_smiling.png

    Makes the face in a photo smile, or changes another attribute, at the photo's own resolution.
    PNG keeps every pixel outside the face.
    The photo is turned upright and keeps its colour profile. Place, camera and dates are left out.
    """

    image: str = Field(description="a photo, or a folder of photos (then out is a folder)")
    out: str = Field(description="the new file: .png, .jpg or .webp")
    intensity: float = Field(1.0, ge=-10, le=10, description=INTENSITY)
    face: Annotated[int, Ge(1)] | Literal["all"] = Field(1, description=FACE)
    box: Annotated[Box | None, BeforeValidator(_box)] = Field(None, description=BOX)


class AppOptions(Common):
    """smilevae app ckpt=RUN [port=7860]

    A smile and other attributes on sliders, in a browser on this machine. The page is served on 127.0.0.1 only.
    """

    port: int = Field(7860, ge=0, le=65535, description="0 chooses a free one")


class ExportOptions(Common):
    """smilevae export ckpt=RUN out=FOLDER

    Writes a model to give away: safetensors, ONNX, calibrated edits and a model card.
    """

    out: str = Field(description="a new folder")
    hub: str | None = Field(None, description="OWNER/NAME: upload it to the Hugging Face Hub, too")


class PageOptions(Common):
    """smilevae page ckpt=RUN [out=face.html]

    Writes the model as one page that opens from disk: sliders, new faces and a map, drawn by the browser.
    """

    out: str | None = Field(
        None, description="the new file: .html; face.html of the run unless given"
    )

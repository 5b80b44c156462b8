"""The options of `evaluate.py`. Importing this costs no torch."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from smilevae.config import Names

Sampler = Literal["auto", "prior"]


class EvaluateOptions(BaseModel):
    """python evaluate.py ckpt=RUN|FILE|SWEEP [option=value ...]

    Measures and draws a checkpoint: a run's best, one file, or those of the best two
    configurations of a sweep side by side. Prints what it finds, and writes a page.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    ckpt: str = Field(description="a run folder, a checkpoint file or a sweep folder")
    verbose: bool = Field(False, description="print every table of the page")
    root: str | None = Field(None, description="where the images are now, if they moved")
    unlabelled: str | None = Field(None, description="where data.unlabelled is now, if it moved")
    edits: bool = Field(
        True, description="fit and score edits of attributes, where there are labels"
    )
    attribute: str | None = Field(None, description="the main one; the label unless given")
    realism: bool = Field(True, description="compare reconstructions and new faces with real ones")
    measures: Names = Field(
        [], description="more numbers: disentanglement, or those of your plugin"
    )
    attributes: str | None = Field(
        None, description="a CSV table of what else is known of the faces: file, gender, ..."
    )
    device: Literal["auto", "cpu"] = Field(
        "auto", description="where the networks run; auto: on a GPU if there is one"
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="which faces and which noise are shown")
    sampler: Sampler = Field("auto", description="prior, or auto: blends of training codes")
    temperature: float = Field(
        1, ge=0, le=10, description="spread of new faces; below 1 they are more alike"
    )

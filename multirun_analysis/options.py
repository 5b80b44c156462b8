"""The options of the analysis."""

from pydantic import BaseModel, ConfigDict, Field


class AnalyseOptions(BaseModel):
    """python -m multirun_analysis SWEEP [SWEEP ...] [rank_by=val/nelbo] [out=FOLDER], or diff RUN RUN

    Ranks the configurations of a sweep and compares the values of each hyper-parameter; writes
    tables, figures and a page. `diff RUN RUN` prints
    the differences between two runs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    folders: list[str] = Field(
        description="sweep folders, or run folders; diff and two run folders"
    )
    rank_by: str = Field(
        "val/nelbo", description="the metric that ranks: val/nelbo, val/psnr, val/loss, ..."
    )
    out: str | None = Field(None, description="where to write; <first sweep>/analysis unless given")

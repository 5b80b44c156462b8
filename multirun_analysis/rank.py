"""The best runs, and the effect of each knob with a 95% interval."""

import math
from typing import Any, NamedTuple

import pandas as pd
from scipy.special import stdtrit

from multirun_analysis.collect import REPEATS, Sweep
from smilevae.errors import ConfigError

BETTER = {"val/nelbo": -1, "val/psnr": 1, "val/recon": -1, "val/loss": -1}  # the sign of better
COMPARABLE = (  # for val/loss
    *("beta", "data_fingerprint", "image_size", "data.split_seed", "data.val_fraction", "data.test_fraction"),
)
UNITS = {"val/psnr": " dB", "val/kl": " nats", "val/nelbo": " nats"}
SPLIT = "data.split_seed"
MAX_LEVELS = 12  # of a knob whose levels are compared one by one
MIN_REPEATED = 4  # levels: of more, one needs two runs
SETTLED = 0.01  # a run has settled once val/loss is within this share of its best


class Effect(NamedTuple):
    """How a metric's mean changes from a knob's value `versus` to `level`, with a 95% interval over n units.

    A unit is a pair of runs. If the sweep has several splits it is a split, because runs on one split share their
    people. Outside of a full grid it is a run.
    """

    knob: str
    level: Any
    versus: Any
    metric: str
    difference: float
    low: float
    high: float
    n: int
    unit: str  # pairs, splits or runs

    @property
    def tells(self) -> bool:
        return self.n >= 2 and (self.low > 0 or self.high < 0)

    def sentence(self) -> str:
        name, unit = self.metric.partition("/")[2], UNITS.get(self.metric, "")
        over = f"{self.n} {self.unit}" + ", not paired" * (self.unit == "runs")
        if self.n < 2:
            return f"{self.knob} {self.level} against {self.versus}: cannot tell what it does to {name} (one run each)"
        interval = f"95% interval {self.low:+.4g} to {self.high:+.4g}, {over}"
        if not self.tells:
            return f"{self.knob} {self.level} against {self.versus}: cannot tell what it does to {name} ({interval})"
        return f"{self.knob} {self.level} against {self.versus}: {name} {self.difference:+.4g}{unit} ({interval})"


def check_rank_by(sweep: Sweep, rank_by: str) -> None:
    """Raises ConfigError if a metric cannot rank runs, or not these runs."""
    if rank_by not in BETTER:
        raise ConfigError(f"rank_by={rank_by} is unknown; choose one of {', '.join(BETTER)}")
    if rank_by == "val/loss" and len(groups(sweep)) > 1:
        raise ConfigError("rank_by=val/loss does not compare runs of different beta, data or size; use val/nelbo")


def usable(sweep: Sweep, rank_by: str) -> str:
    """The metric to rank by: val/nelbo grows with the number of pixels, so val/psnr replaces it if sizes differ."""
    sizes = sweep.completed.get("image_size")
    return "val/psnr" if rank_by == "val/nelbo" and sizes is not None and sizes.nunique() > 1 else rank_by


def best(frame: pd.DataFrame, metric: str, num: int = 2) -> pd.DataFrame:
    """The best rows by a metric, ties by name."""
    if frame.empty:
        return frame
    order = frame.assign(_key=-BETTER[metric] * frame[metric]).sort_values(["_key", "run"], kind="stable")
    return order.head(num).drop(columns="_key")


def groups(sweep: Sweep) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """Groups of completed runs that val/loss can compare, each with the values that tell it from the others."""
    frame = sweep.completed
    keys = [key for key in COMPARABLE if key in frame and frame[key].astype(str).nunique() > 1]
    if frame.empty or not keys:
        return [({}, frame)] if len(frame) else []
    return [
        (dict(zip(keys, map(plain, values))), part) for values, part in frame.groupby(keys, dropna=False, sort=True)
    ]


def effects(sweep: Sweep, metrics: tuple[str, ...]) -> list[Effect]:
    """The effect of every swept knob's values against its first value, on every metric.

    In a full grid runs are compared in pairs that differ in this knob only (paired t test, of the means over each split
    if there are several), else all runs (Welch).
    """
    frame = sweep.completed
    result = []
    for knob in (knob for knob in sweep.swept if knob not in REPEATS):  # knobs are compared over these
        levels = sorted(map(plain, frame[knob].dropna().unique()), key=lambda v: (isinstance(v, str), v))
        if len(levels) > MAX_LEVELS or MIN_REPEATED < len(levels) == len(frame):  # as a search draws them
            continue
        others = [k for k in (*sweep.swept, "data_fingerprint") if k != knob]
        for level in levels[1:]:
            for metric in metrics:
                result.append(_effect(frame, knob, level, levels[0], others, metric))
    return result


def _effect(frame: pd.DataFrame, knob: str, level: Any, versus: Any, others: list[str], metric: str) -> Effect:
    two = frame[frame[knob].isin([level, versus])]
    blocks = [two[k].astype(str) for k in others]
    grid = two.pivot_table(index=blocks, columns=two[knob], values=metric, aggfunc="mean", observed=True)
    if level in grid and versus in grid and not grid.isna().any(axis=None):
        d, unit = grid[level] - grid[versus], "pairs"
        if SPLIT in others:
            d, unit = d.groupby(level=SPLIT).mean(), "splits"
        return Effect(knob, level, versus, metric, *interval(d.mean(), d.var() / len(d), len(d) - 1), len(d), unit)
    a, b = (two.loc[two[knob] == value, metric] for value in (level, versus))
    error, df = welch(a.var(), len(a), b.var(), len(b))
    n = len(a) + len(b) if df else 1
    return Effect(knob, level, versus, metric, *interval(a.mean() - b.mean(), error, df), n, "runs")


def welch(var_a: float, n_a: int, var_b: float, n_b: int) -> tuple[float, float]:
    """Squared error and degrees of freedom of a difference of two means (Welch 1947); 0 degrees if nothing varies."""
    a, b = var_a / n_a, var_b / n_b
    return a + b, (a + b) ** 2 / (a**2 / (n_a - 1) + b**2 / (n_b - 1)) if min(n_a, n_b) > 1 and a + b > 0 else 0


def plain(level: Any) -> Any:
    """A value as the user typed it: 64, not the 64.0 of a column with gaps."""
    level = level.item() if hasattr(level, "item") else level
    return int(level) if isinstance(level, float) and level.is_integer() else level


def interval(mean: float, squared_error: float, df: float) -> tuple[float, float, float]:
    """A mean with its 95% t interval; infinite without degrees of freedom."""
    mean = float(mean)
    if df <= 0:
        return mean, -math.inf, math.inf
    half = float(stdtrit(df, 0.975)) * math.sqrt(squared_error)
    return mean, mean - half, mean + half


def pareto(frame: pd.DataFrame) -> pd.DataFrame:
    """The runs that no other run beats in both rate (KL) and distortion (PSNR), by rising rate."""
    order = frame.sort_values(["val/kl", "val/psnr"], ascending=[True, False], kind="stable")
    return order[order["val/psnr"] > order["val/psnr"].cummax().shift(fill_value=-math.inf)]


def settled(points: list[tuple[int, float]]) -> int | None:
    """The first epoch from which val/loss stays within SETTLED of its lowest; None if that is in the last tenth."""
    lowest = min((value for _, value in points), default=0)
    above = [epoch for epoch, value in points if value > lowest + SETTLED * abs(lowest)]
    settled = next((epoch for epoch, _ in points if not above or epoch > above[-1]), math.inf)
    return int(settled) if points and settled <= 0.9 * points[-1][0] else None

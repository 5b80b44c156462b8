"""The best runs, and the effect of each knob with a 95% interval."""

import math
from typing import Any, NamedTuple

import pandas as pd
from scipy.special import stdtrit

from multirun_analysis.collect import PEOPLE, REPEATS, Sweep, differing, held_out
from smilevae.errors import ConfigError

BETTER = {"val/nelbo": -1, "val/psnr": 1, "val/recon": -1, "val/loss": -1}  # the sign of better
COMPARABLE = ("used_beta", "image_size", *PEOPLE)  # val/loss compares runs that are equal in these
UNITS = {"val/psnr": " dB", "val/kl": " nats", "val/nelbo": " nats"}
MAX_LEVELS = 12  # of a knob whose levels are compared one by one
MIN_REPEATED = 4  # levels: of more, one needs two runs
SETTLED = 0.01  # share of val/loss


class Effect(NamedTuple):
    """How a metric's mean changes from a knob's value `versus` to `level`, with a 95% interval over n units.

    A unit is a pair of runs, outside of a full grid a run. If the runs are on several splits it is a split, because
    runs on one split share their people. The interval is infinite if a level has one unit.
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
    sizes: tuple[int, int] | None = None  # units of `level` and of `versus`; None if they are paired

    @property
    def tells(self) -> bool:
        return self.low > 0 or self.high < 0

    @property
    def bounded(self) -> bool:
        """Whether there is an interval."""
        return math.isfinite(self.low)

    @property
    def numbers(self) -> str:
        """How many units this is from."""
        if self.sizes is None:
            return f"{self.n} {self.unit}"
        if self.sizes == (1, 1):
            return f"one {self.unit[:-1]} each"
        return f"{self.sizes[0]} against {self.sizes[1]} {self.unit}, not paired"

    def sentence(self) -> str:
        name, unit = self.metric.partition("/")[2], UNITS.get(self.metric, "")
        interval = self.numbers
        if self.bounded:
            interval = f"95% interval {self.low:+.4g} to {self.high:+.4g}, {self.numbers}"
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
    """The metric to rank by: sums over pixels grow with their number, so val/psnr replaces them if sizes differ."""
    if rank_by in ("val/nelbo", "val/recon") and differing(sweep.completed, ("image_size",)):
        return "val/psnr"
    return rank_by


def best(frame: pd.DataFrame, metric: str, num: int = 2) -> pd.DataFrame:
    """The best rows by a metric, ties by name."""
    if frame.empty:
        return frame
    order = frame.assign(_key=-BETTER[metric] * frame[metric]).sort_values(["_key", "run"], kind="stable")
    return order.head(num).drop(columns="_key")


def groups(sweep: Sweep) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """Groups of completed runs that val/loss can compare, each with the values that tell it from the others."""
    frame = sweep.completed
    keys = differing(frame, COMPARABLE)
    if frame.empty or not keys:
        return [({}, frame)] if len(frame) else []
    names = ["beta" if key == "used_beta" else key for key in keys]
    return [
        (dict(zip(names, map(plain, values))), part) for values, part in frame.groupby(keys, dropna=False, sort=True)
    ]


def effects(sweep: Sweep, metrics: tuple[str, ...]) -> list[Effect]:
    """The effect of every swept knob's values against its first value, on every metric.

    In a full grid runs are compared in pairs that differ in this knob only (paired t test), else all runs (Welch); of
    several splits their means. With a knob that changes the held-out people, there are no pairs.
    """
    frame = sweep.completed
    result = []
    for knob in (knob for knob in sweep.swept if knob not in REPEATS):  # knobs are compared over these
        levels = sorted(map(plain, frame[knob].dropna().unique()), key=lambda v: (isinstance(v, str), v))
        if len(levels) > MAX_LEVELS or MIN_REPEATED < len(levels) == len(frame):  # as a search draws them
            continue
        others = [k for k in sweep.swept if k != knob]
        for level in levels[1:]:
            for metric in metrics:
                result.append(_effect(frame, knob, level, levels[0], others, metric))
    return result


def _effect(frame: pd.DataFrame, knob: str, level: Any, versus: Any, others: list[str], metric: str) -> Effect:
    two = frame[frame[knob].isin([level, versus])]
    people = held_out(two).rename("people")
    several = people.nunique() > 1
    blocks = [*(two[k].map(str) for k in others), people]
    grid = two.pivot_table(index=blocks, columns=two[knob], values=metric, aggfunc="mean", observed=True)
    if len(grid) > 1 and level in grid and versus in grid and not grid.isna().any(axis=None):
        d = grid[level] - grid[versus]
        if several:
            d = d.groupby(level="people").mean()
        unit = "splits" if several else "pairs"
        return Effect(knob, level, versus, metric, *interval(d.mean(), d.var() / len(d), len(d) - 1), len(d), unit)
    a, b = (two.loc[two[knob] == value, metric] for value in (level, versus))
    if several:
        a, b = (part.groupby(people).mean() for part in (a, b))
    unit, sizes = "splits" if several else "runs", (len(a), len(b))
    error, df = welch(a.var(), len(a), b.var(), len(b))
    return Effect(knob, level, versus, metric, *interval(a.mean() - b.mean(), error, df), sum(sizes), unit, sizes)


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
    """The first epoch after which val/loss falls by less than SETTLED; None if that is in the last tenth.

    Until its lowest value val/loss stays within SETTLED of it; afterwards it may rise.
    """
    lowest = min((value for _, value in points), default=0)
    near = [epoch for epoch, value in points if value <= lowest + SETTLED * abs(lowest)]
    before = [epoch for epoch, _ in points if epoch not in near and epoch < near[-1]]
    settled = [epoch for epoch in near if epoch > max(before, default=-1)]
    return settled[0] if settled and settled[0] <= 0.9 * points[-1][0] else None

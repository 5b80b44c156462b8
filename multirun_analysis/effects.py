"""The effect of each hyper-parameter: how a metric's mean changes from one value to another."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from multirun_analysis.collect import REPEATS, Sweep, held_out, plain
from multirun_analysis.configurations import half_width, welch
from smilevae.config import FIELDS

MAX_VALUES = 12  # of a knob whose values are compared one by one
MIN_REPEATED = 4  # values; a knob with more of them needs two runs of one


def effects(sweep: Sweep, metrics: list[str]) -> pd.DataFrame:
    """The change of each metric's mean from a swept knob's first value to each other one.

    `half_width` is that of the change's 95% interval; NaN if a value has one unit.
    """
    frame = sweep.completed
    rows = []
    for knob in sweep.swept:
        values = in_order(knob, [plain(value) for value in frame[knob].dropna().unique()])
        drawn = MIN_REPEATED < len(values) == len(frame)  # as a search draws them
        if knob in REPEATS or drawn or len(values) > MAX_VALUES:
            continue
        others = [other for other in sweep.swept if other != knob]
        for value in values[1:]:
            for metric in metrics:
                key = {"knob": knob, "value": value, "instead_of": values[0], "metric": metric}
                effect = _effect(frame, others, **key)
                sign = sweep.better.get(metric)
                verdict = verdict_of(effect["change"], effect["half_width"], sign)
                rows.append(key | effect | {"verdict": verdict})
    return pd.DataFrame(rows)


def in_order(knob: str, values: Sequence[Any]) -> list[Any]:
    """Values of a knob: numbers as they rise, then texts, the default first."""
    default = FIELDS[knob].default if knob in FIELDS else None
    numbers = sorted(value for value in values if not isinstance(value, str))
    texts = [value for value in values if isinstance(value, str)]
    return numbers + sorted(texts, key=lambda text: (text != default, text))


def _effect(
    frame: pd.DataFrame, others: list[str], knob: str, value: Any, instead_of: Any, metric: str
) -> dict[str, Any]:
    """The change, the half width of its interval, and the number of units.

    If the runs are on several splits a unit is a split, because runs on one split share people.
    """
    two = frame[frame[knob].isin([value, instead_of])]
    people = held_out(two).rename("people")
    several = people.nunique() > 1

    # In a full grid: pairs of runs that differ in this knob only and hold out the same people.
    blocks = [*(two[other].map(str) for other in others), people]
    grid = two.pivot_table(index=blocks, columns=knob, values=metric)
    if len(grid) > 1 and grid.shape[1] == 2 and grid.notna().all(axis=None):
        pairs = grid[value] - grid[instead_of]
        if several:
            pairs = pairs.groupby(level="people").mean()
        width = half_width(pairs.sem(), len(pairs) - 1)
        n = f"{len(pairs)} {'splits' if several else 'pairs'}"
        return {"change": pairs.mean(), "half_width": width, "n": n}

    # Otherwise: all runs of one value against all of the other.
    a = two.loc[two[knob] == value, metric]
    b = two.loc[two[knob] == instead_of, metric]
    if several:
        a = a.groupby(people).mean()
        b = b.groupby(people).mean()
    n = f"{len(a)} and {len(b)} {'splits' if several else 'runs'}"
    return {"change": a.mean() - b.mean(), "half_width": welch(a, b), "n": n}


def verdict_of(change: float, width: float, sign: int | None) -> str:
    """A change in words. `sign` is that of better, None if neither is."""
    if not abs(change) > width:  # NaN cannot tell either
        return "cannot tell"
    if sign is None:
        return "higher" if change > 0 else "lower"
    return "better" if change * sign > 0 else "worse"

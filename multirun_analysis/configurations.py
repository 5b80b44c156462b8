"""Ranks settings. A setting is the runs that differ in `seed` and `data.split_seed` only.

A split is one unit if the runs hold out different people: runs on one split share them, so they are not independent.
Otherwise a run is one unit. A setting's mean is the mean over its units, with a t interval.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd

from multirun_analysis import rank
from multirun_analysis.collect import REPEATS, Sweep, held_out

NUM_DRAWS = 2000
LEVEL = 0.95


class Setting(NamedTuple):
    """A setting and its mean of a metric, with 95% intervals. Unknown numbers are NaN or infinite.

    `ahead` is by how much the best setting is better than this one. Its interval holds for all pairs of settings at
    once. `probability` is that of the best mean. It is known if every setting has two units or more: the mean of a
    single one has no interval, so it could be the best whatever the others are.
    """

    name: str
    runs: pd.DataFrame  # best first
    mean: float
    low: float
    high: float
    num_splits: int
    probability: float
    ahead: float
    ahead_low: float
    ahead_high: float

    @property
    def apart(self) -> bool:
        """Whether the interval says that the best setting is better than this one."""
        return self.ahead_low > 0


def rank_settings(sweep: Sweep, metric: str) -> list[Setting]:
    """The settings of the completed runs, best mean first."""
    frame, sign = sweep.completed, rank.BETTER[metric]
    if frame.empty:
        return []
    knobs = [knob for knob in sweep.swept if knob not in REPEATS]
    values = zip(*(frame[knob] for knob in knobs)) if knobs else [()] * len(frame)
    names = [", ".join(f"{knob}={rank.plain(value)}" for knob, value in zip(knobs, row)) for row in values]
    frame = rank.best(_units(frame.assign(_name=[name or "all runs" for name in names])), metric, len(frame))
    cells = frame.groupby(["_unit", "_block", "_name"])[metric].mean()  # the same run twice counts once
    table = cells.groupby(["_unit", "_name"]).mean().unstack()  # units x settings
    mean, n, error = table.mean(), table.count(), table.var() / table.count()
    order = list((-sign * mean).sort_values(kind="stable").index)
    several = [name for name in order if n[name] > 1]
    shared = cells.unstack()[several].dropna().groupby("_unit").mean()
    means, draws, margin = _paired(shared) if several and len(shared) > 1 else _alone(table[several])
    wins = np.bincount((sign * draws).argmax(1), minlength=len(several)) / NUM_DRAWS if several else np.empty(0)
    parts, settings = dict(list(frame.groupby("_name"))), []
    for name in order:
        probability, ahead, half = math.nan, math.nan, math.inf
        if name in several:
            own = several.index(name)
            if len(several) == len(order):
                probability = float(wins[own])
            if order[0] in several and own:  # the best is the first of both
                ahead, half = sign * float(means[0] - means[own]), float(margin(0, own))
        interval = rank.interval(mean[name], error[name], n[name] - 1)
        splits = parts[name]["_split"].nunique()
        settings.append(Setting(name, parts[name], *interval, splits, probability, ahead, ahead - half, ahead + half))
    return settings


def _units(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with `_split`, `_block`, which is a split and a seed, and `_unit`."""
    split = held_out(frame)
    block = split + " " + frame["seed"].map(str) if "seed" in frame else split
    return frame.assign(_split=split, _block=block, _unit=split if split.nunique() > 1 else block)


def _paired(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, Callable[[int, int], float]]:
    """Means, draws of them, and the half width of the interval of a difference, of settings that share all units.

    The draws are those of a Gaussian multiplier bootstrap over units (Chernozhukov et al. 1212.6906, section 3), scaled
    to t: for two settings the probability of the best mean is that of the paired t test.
    """
    y, rng = table.to_numpy(), np.random.default_rng(0)
    (n, k), centred = y.shape, y - y.mean(0)
    noise = rng.standard_normal((NUM_DRAWS, n)) / np.sqrt(n * rng.chisquare(n - 1, (NUM_DRAWS, 1)))
    residual, df = centred - centred.mean(1, keepdims=True), max((n - 1) * (k - 1), 1)
    common = _critical(k, df) * math.sqrt(2 * (residual**2).sum() / df / n)

    def margin(a: int, b: int) -> float:
        return max(common, rank.interval(0, (y[:, a] - y[:, b]).var(ddof=1) / n, n - 1)[2])

    return y.mean(0), y.mean(0) + noise @ centred, margin


def _alone(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, Callable[[int, int], float]]:
    """The same for settings that share no units: each mean has its own t distribution, a difference is Welch's."""
    n, var, mean = table.count().to_numpy(), table.var().to_numpy(), table.mean().to_numpy()
    draws = np.random.default_rng(0).standard_t(np.maximum(n - 1, 1), (NUM_DRAWS, len(n)))
    df = max(int((n - 1).sum()), 1)
    common = _critical(len(n), df) * math.sqrt((var * (n - 1)).sum() / df)

    def margin(a: int, b: int) -> float:
        own = rank.interval(0, *rank.welch(var[a], n[a], var[b], n[b]))[2]
        return max(common * math.sqrt(1 / n[a] + 1 / n[b]), own)

    return mean, mean + draws * np.sqrt(var / n), margin


@functools.cache
def _critical(k: int, df: int) -> float:
    """The critical value of the largest of all differences of k means (Tukey 1949; Kramer 1956 for unequal numbers).

    The best setting is chosen by the data, so the interval must hold for all pairs. For two it is that of the t test.
    """
    if k < 2:
        return 0.0
    from scipy.stats import studentized_range  # the import takes a second

    return float(studentized_range.ppf(LEVEL, k, df)) / math.sqrt(2)


def repeated(settings: list[Setting]) -> bool:
    """Whether a setting has more than one run."""
    return any(len(setting.runs) > 1 for setting in settings)


def candidates(sweep: Sweep, metric: str) -> pd.DataFrame:
    """The best run of each of the best two settings, on one split if possible; else the best two runs."""
    settings = rank_settings(sweep, metric)
    if len(settings) < 2 or not repeated(settings):
        return rank.best(sweep.completed, metric)
    first, second = (setting.runs for setting in settings[:2])
    same = second[second["_split"] == first["_split"].iloc[0]]
    return pd.concat([first.head(1), (second if same.empty else same).head(1)])


def conclusion(settings: list[Setting], metric: str, most: int) -> str:
    """The best setting, and those that may be as good; no more than `most` are named."""
    if not repeated(settings):
        return "Each setting has one run, so a difference may be luck; add seed=0,1,2."
    if len(settings) == 1:
        return f"All {len(settings[0].runs)} runs have one setting."
    alike = [setting.name for setting in settings[1:] if not setting.apart]
    names = "; ".join([*alike[:most], *[f"{len(alike) - most} more"] * (len(alike) > most)])
    verdict = f"cannot tell it apart from {names}" if alike else "it is better than every other"
    return f"The best setting of {len(settings)} by {metric} is {settings[0].name}: {verdict}."

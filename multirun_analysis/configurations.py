"""Ranks configurations. Runs that differ only in `seed` and `data.split_seed` have one.

Runs on one split share their held-out people, so they are not independent: a unit is a split, the
mean of its runs. If all runs are on one split, a unit is a run.
"""

import functools
import math

import numpy as np
import pandas as pd
from scipy import stats

from multirun_analysis.collect import PEOPLE, REPEATS, SIZE, Sweep, differing, held_out, plain
from smilevae.errors import ConfigError

MAX_NAMED = 3


def check_rank_by(sweep: Sweep, metric: str) -> None:
    """Raises ConfigError if a metric cannot rank runs, or not these runs."""
    if metric not in sweep.better:
        raise ConfigError(f"rank_by={metric} is unknown; choose one of {', '.join(sweep.better)}")
    if missing := int(sweep.completed[metric].isna().sum()) if metric in sweep.completed else 0:
        remedy = f"evaluate each with evaluate.py ckpt=RUN measures={metric.partition('/')[0]}"
        raise ConfigError(f"rank_by={metric}: {missing} completed runs lack it; {remedy}")
    if metric == "val/loss" and differing(sweep.completed, ("used_beta", *SIZE, *PEOPLE)):
        mixed = "runs of different beta, data or size"
        raise ConfigError(f"rank_by=val/loss does not compare {mixed}; use val/nelbo")


def usable(sweep: Sweep, metric: str) -> str:
    """The metric to rank by: with several image sizes val/psnr replaces sums over pixels."""
    if metric in ("val/nelbo", "val/recon") and differing(sweep.completed, SIZE):
        return "val/psnr"
    return metric


def rank(sweep: Sweep, metric: str) -> pd.DataFrame:
    """A row for each configuration of the completed runs, best mean first.

    `half_width` is that of the 95% interval of `mean`. `ahead` is by how much the first
    configuration is better than this one; its interval holds for all pairs of configurations at
    once. Numbers that are not known are NaN.
    """
    frame = with_units(sweep, metric)
    # The same run twice counts once: a cell is a split and a seed.
    cells = frame.groupby(["unit", "block", "configuration"])[metric].mean().unstack()
    table = cells.groupby("unit").mean()
    order = (-sweep.better[metric] * table.mean()).sort_values(kind="stable").index

    ranked = frame.groupby("configuration").agg(
        runs=("run", "size"),
        splits=("split", "nunique"),
        psnr=("val/psnr", "mean"),
        kl=("val/kl", "mean"),
        mean_face_psnr=("mean_face_psnr", "mean"),
        best_run=("run", "first"),
        path=("path", "first"),
        checkpoint=("checkpoint", "first"),
    )
    ranked[sweep.measures] = frame.groupby("configuration")[sweep.measures].mean()
    ranked["mean"] = table.mean()
    ranked["half_width"] = half_width(table.sem(), table.count() - 1)
    ranked["behind_mean_face"] = ranked["psnr"] <= ranked["mean_face_psnr"]
    difference, ranked["ahead_half_width"] = _ahead(cells[order], table[order])
    ranked["ahead"] = sweep.better[metric] * difference
    ranked["apart"] = ranked["ahead"] > ranked["ahead_half_width"]
    return ranked.loc[order].reset_index()


def with_units(sweep: Sweep, metric: str) -> pd.DataFrame:
    """The completed runs, best first, with `configuration`, `split`, `block` and `unit`.

    A block is a split and a seed.
    """
    frame = sweep.completed.sort_values("run", kind="stable")
    frame = frame.sort_values(metric, ascending=sweep.better[metric] < 0, kind="stable")
    knobs = [knob for knob in sweep.swept if knob not in REPEATS]
    rows = frame[knobs].astype(object).to_dict("records")
    known = [{k: value for k, value in row.items() if not pd.isna(value)} for row in rows]
    names = [", ".join(f"{knob}={plain(value)}" for knob, value in row.items()) for row in known]
    split = held_out(frame)
    block = split + " " + frame["seed"].map(str) if "seed" in frame else split
    return frame.assign(
        configuration=[name or "all runs" for name in names],
        split=split,
        block=block,
        unit=split if split.nunique() > 1 else block,
    )


def half_width(standard_error: pd.Series, df: pd.Series) -> pd.Series:
    """Half of the 95% interval of Student's t; NaN without degrees of freedom."""
    return stats.t.ppf(0.975, df) * standard_error


def welch(a: pd.Series, b: pd.Series) -> float:
    """Half of the 95% interval of the difference of two means (Welch 1947); NaN if not known."""
    var_a = a.var() / len(a)
    var_b = b.var() / len(b)
    if min(len(a), len(b)) < 2 or var_a + var_b == 0:
        return math.nan
    df = (var_a + var_b) ** 2 / (var_a**2 / (len(a) - 1) + var_b**2 / (len(b) - 1))
    return half_width(math.sqrt(var_a + var_b), df)


def _ahead(cells: pd.DataFrame, table: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """The difference of the first column to each, and the half width of its interval.

    Only configurations of two units or more have one. If they share two units or more, only these
    are compared, in pairs: an easy split is easy for all.
    """
    several = table.columns[table.count() > 1]
    if len(several) < 2 or several[0] != table.columns[0]:
        return pd.Series(dtype=float), pd.Series(dtype=float)
    shared = cells[several].dropna().groupby("unit").mean()
    differences, half_widths = _paired(shared) if len(shared) > 1 else _unpaired(table[several])
    return differences[1:], half_widths[1:]


def _paired(table: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Differences of configurations that share all units.

    The common variance is that of the residuals. A pair's own t interval is taken where it is
    wider, as a configuration may vary much more than the others.
    """
    n, k = table.shape
    difference = -table.sub(table.iloc[:, 0], axis=0)
    residual = table - table.mean()
    residual = residual.sub(residual.mean(axis=1), axis=0)
    df = (n - 1) * (k - 1)
    common = critical(k, df) * math.sqrt(2 * (residual**2).to_numpy().sum() / df / n)
    own = half_width(difference.sem(), n - 1)
    return difference.mean(), own.clip(lower=common)


def _unpaired(table: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Differences of configurations that share no units. A pair's own interval is Welch's."""
    n = table.count()
    df = int((n - 1).sum())
    pooled = (table.var() * (n - 1)).sum() / df
    common = critical(len(n), df) * np.sqrt(pooled * (1 / n.iloc[0] + 1 / n))
    best = table.iloc[:, 0].dropna()
    own = pd.Series({name: welch(best, table[name].dropna()) for name in table})
    return table.mean().iloc[0] - table.mean(), own.clip(lower=common)


@functools.cache
def critical(k: int, df: int) -> float:
    """The critical value of the largest difference of k means (Tukey 1949; Kramer 1956).

    The best mean is chosen by the data, so its interval must hold for all pairs at once. For two
    means it is the critical value of the t test.
    """
    return float(stats.studentized_range.ppf(0.95, k, df)) / math.sqrt(2)


def candidates(sweep: Sweep, metric: str) -> pd.DataFrame:
    """The best run of each of the best two configurations, on one split if possible.

    Of a single configuration the best two runs.
    """
    if sweep.completed.empty:
        return sweep.completed
    frame = with_units(sweep, metric)
    first, *others = rank(sweep, metric)["configuration"].head(2)
    best = frame[frame["configuration"] == first]
    if not others:
        return best.head(2)
    second = frame[frame["configuration"] == others[0]]
    same = second[second["split"] == best["split"].iloc[0]]
    return pd.concat([best.head(1), (second if same.empty else same).head(1)])


def verdict(ranked: pd.DataFrame) -> str:
    """Whether the first configuration can be told apart from the others."""
    if len(ranked) == 1:
        return "All runs have the same configuration."
    if ranked["runs"].max() == 1:
        remedy = "repeat with seed=0,1,2"
        return f"Each configuration has one run, so a difference may be luck: {remedy}."
    best, *alike = ranked.loc[~ranked["apart"], "configuration"]
    if not alike:
        return f"{best} is better than every other configuration."
    names = alike[:MAX_NAMED]
    if len(alike) > MAX_NAMED:
        names.append(f"{len(alike) - MAX_NAMED} more")
    return f"{best} has the best mean, but these runs cannot tell it apart from {'; '.join(names)}."

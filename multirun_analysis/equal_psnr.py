"""Compares measures of networks or objectives at equal PSNR.

A larger beta changes a measure, and the PSNR too. So two objectives are compared where they
reconstruct equally well, not where they have the same beta.
"""

from typing import Any

import numpy as np
import pandas as pd

from multirun_analysis.collect import CHOICES, Sweep
from multirun_analysis.configurations import half_width, with_units
from multirun_analysis.effects import in_order, verdict_of

NUM_LEVELS = 20  # of PSNR


def equal_psnr(sweep: Sweep) -> pd.DataFrame:
    """The change of each measure from the first network or objective to each other one.

    Within one split and seed the runs of each choice give a curve, the measure against PSNR, from
    one point to the next by straight lines. The change is the mean distance of two curves over the
    PSNR that both reach, from `low` to `high` dB on average. `half_width` is that of its 95%
    interval over the units of `configurations`.
    """
    rows = []
    choices = [knob for knob in sweep.swept if knob in CHOICES.values()]
    for metric in sweep.measures if choices else []:
        frame = with_units(sweep, "val/psnr").dropna(subset=metric)
        for knob in choices:
            first, *others = in_order(knob, frame[knob].unique())
            for value in others:
                key = {"knob": knob, "value": value, "instead_of": first, "metric": metric}
                runs = [frame[frame[knob] == choice] for choice in (first, value)]
                if own := _compared(runs[0], runs[1], metric):
                    sign = sweep.better.get(metric)
                    verdict = verdict_of(own["change"], own["half_width"], sign)
                    rows.append(key | own | {"verdict": verdict})
    return pd.DataFrame(rows)


def _compared(one: pd.DataFrame, two: pd.DataFrame, metric: str) -> dict[str, Any]:
    """The comparison of two choices; {} if no two curves share any PSNR."""
    rows = []
    for block, runs in one.groupby("block"):
        others = two[two["block"] == block]
        low = max(runs["val/psnr"].min(), others["val/psnr"].min())
        high = min(runs["val/psnr"].max(), others["val/psnr"].max())
        if low < high:
            levels = np.linspace(low, high, NUM_LEVELS)
            change = np.mean(_curve(others, metric, levels) - _curve(runs, metric, levels))
            unit = runs["unit"].iloc[0]
            rows.append({"unit": unit, "change": change, "low": low, "high": high})
    if not rows:
        return {}
    units = pd.DataFrame(rows).groupby("unit").mean()
    kind = "splits" if one["split"].nunique() > 1 else "seeds"
    width = half_width(units["change"].sem(), len(units) - 1)
    return {**units.mean(), "half_width": width, "n": f"{len(units)} {kind}"}


def _curve(runs: pd.DataFrame, metric: str, levels: np.ndarray) -> np.ndarray:
    """A measure at some levels of PSNR."""
    points = runs.groupby("val/psnr")[metric].mean()
    return np.interp(levels, points.index.astype(float), points.astype(float))

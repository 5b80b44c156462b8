"""Sweeps with rungs: why a run is paused, and all runs as they were after the first rung."""

import itertools
from pathlib import Path
from typing import Any

import pandas as pd

from multirun_analysis import collect, settings
from smilevae import runs


def of(folder: Path) -> list[tuple[int, int]]:
    """(epochs, settings) of each rung of a sweep, the full length last; [] without rungs."""
    rungs = runs.read_json(folder / "sweep.json").get("rungs")
    pairs = rungs if isinstance(rungs, list) else []
    return [(int(pair[0]), int(pair[1])) for pair in pairs if isinstance(pair, list) and len(pair) == 2]


def explain(sweep: collect.Sweep, rungs: list[tuple[int, int]]) -> list[str]:
    """Write into each paused run's reason its setting's place in its last rung. Gives a sentence on the rungs."""
    if len(rungs) < 2:
        return []
    for (epochs, _), (_, num) in itertools.pairwise(rungs):
        reached = settings.rank_settings(after(sweep, epochs), "val/nelbo")
        places = {path: place for place, setting in enumerate(reached, start=1) for path in setting.runs["path"]}
        for index, row in sweep.runs[sweep.runs["status"] == "paused"].iterrows():
            if row["path"] in places:
                reason = f"after epoch {epochs}: place {places[row['path']]} of {len(reached)} settings by val/nelbo"
                sweep.runs.loc[index, "reason"] = f"{reason}; the best {num}, now or by their trend, go on"
    text = ", ".join(f"{num} settings to epoch {epochs}" for epochs, num in rungs)
    paused = int((sweep.runs["status"] == "paused").sum())
    return [
        f"Rungs: {text}; {paused} runs are paused. The effects of knobs are those after epoch {rungs[0][0]}, which all"
        " settings reach: a knob that makes training slower looks worse there than it is at the end."
    ]


def after(sweep: collect.Sweep, epochs: int) -> collect.Sweep:
    """All runs that reached an epoch, with the metrics of their best epoch until then, as `runs.rank_of` ranks it."""
    rows = []
    for row in sweep.runs.to_dict("records"):
        lines = [line for line in runs.read_metrics(row["path"]) if all(name in line for name in collect.METRICS)]
        if row["status"] in ("completed", "paused") and lines and lines[-1]["epoch"] >= epochs:
            best = min((line for line in lines if line["epoch"] <= epochs), key=runs.rank_of)
            rows.append(_knobs(row) | {name: best[name] for name in collect.METRICS} | {"status": "completed"})
    frame = pd.DataFrame(rows, columns=None if rows else sweep.runs.columns)
    return collect.Sweep(frame, collect.swept(frame))


def _knobs(row: dict[str, Any]) -> dict[str, Any]:
    """A run's row with its knobs, which a paused one has in config.yaml."""
    if row["status"] == "completed":
        return row
    fingerprint = runs.read_json(row["path"] / "data_card.json").get("fingerprint")
    knobs = {name: collect.plain(value) for name, value in runs.read_settings(row["path"]).flat().items()}
    return row | knobs | {"data_fingerprint": fingerprint}

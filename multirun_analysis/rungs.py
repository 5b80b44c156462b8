"""Sweeps with rungs: why a run is paused, and all runs as they were after the first rung."""

import itertools
from pathlib import Path

import pandas as pd

from multirun_analysis import configurations
from multirun_analysis.collect import METRICS, Sweep
from smilevae import runs


def of(folder: Path) -> list[tuple[int, int]]:
    """(epochs, configurations) of each rung, the full length last; [] without rungs."""
    rungs = runs.read_json(folder / "sweep.json").get("rungs") or []
    return [(int(epochs), int(num)) for epochs, num in rungs]


def explain(sweep: Sweep, rungs: list[tuple[int, int]]) -> str:
    """Write the place of each paused run's configuration in its last rung into its reason.

    Gives a sentence on the rungs.
    """
    for (epochs, _), (_, num) in itertools.pairwise(rungs):
        reached = after(sweep, epochs)
        if reached.runs.empty:
            break
        ranked = list(configurations.rank(reached, "val/nelbo")["configuration"])
        go_on = f"the best {num}, now or by their trend, go on"
        paused = sweep.runs["status"] == "paused"
        for run in configurations.with_units(reached, "val/nelbo").to_dict("records"):
            place = f"place {ranked.index(run['configuration']) + 1} of {len(ranked)}"
            reason = f"after epoch {epochs}: {place} configurations by val/nelbo; {go_on}"
            sweep.runs.loc[paused & (sweep.runs["path"] == run["path"]), "reason"] = reason
    text = ", ".join(f"{num} to epoch {epochs}" for epochs, num in rungs)
    return (
        f"Successive halving trained {rungs[0][1]} configurations: {text}. Effects are those after"
        f" epoch {rungs[0][0]}, which all reach. There a value that slows training looks worse than"
        " it is at the end."
    )


def after(sweep: Sweep, epochs: int) -> Sweep:
    """All runs that reached an epoch, with the metrics of their best epoch until then."""
    rows = []
    for row in sweep.runs.to_dict("records"):
        recorded = runs.read_metrics(row["path"])
        lines = [line for line in recorded if all(name in line for name in METRICS)]
        trained = row["status"] in ("completed", "paused")
        until = [line for line in lines if line["epoch"] <= epochs]
        if trained and until and lines[-1]["epoch"] >= epochs:
            best = min(until, key=runs.rank_of)
            metrics = {name: best[name] for name in METRICS}
            rows.append(row | metrics | {"status": "completed"})
    return Sweep(pd.DataFrame(rows, columns=sweep.runs.columns), sweep.swept)

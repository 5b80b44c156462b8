"""Does a search beat random points? On synthetic faces, three knobs, small networks, one thread.

    python benchmarks/search.py [points=24] [repeats=5] [epochs=6]

Each repeat trains `points` proposals of the search and as many random ones, and prints the best
val/nelbo of both.
"""

import logging
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy import stats

from smilevae import console, runs
from smilevae.config import Settings, flatten
from smilevae.sweeps import claim
from smilevae.sweeps.plan import Plan
from smilevae.sweeps.search import STARTUP, interval
from smilevae.training.fit import fit

SMALL = {
    **{
        "image_size": 64,
        "model.network": "patch",
        "model.widths": [8, 16],
        "threads": 1,
        "schedule": "cosine",
    },
    **{"data.num_smiling": 100, "data.num_not_smiling": 100, "data.num_test": 4, "batch_size": 16},
}
SPACE = {"beta": (0.1, 50, True), "lr": (1e-4, 3e-2, True), "latent_dim": (4, 64, True)}


def best_of(points: int, seed: int, epochs: int, search: bool) -> list[float]:
    """The lowest val/nelbo so far after each point."""
    values: list[float] = []
    with tempfile.TemporaryDirectory() as place:
        base = Settings().with_values(SMALL | {"epochs": epochs})
        content = {
            "trials": points if search else points * STARTUP,  # the first ones are random
            "at_once": 1,
            "seed": seed,
            "base": flatten(base.plain()),
            "space": {knob: interval(knob, *limits) for knob, limits in SPACE.items()},
        }
        Plan(Path(place), search=content).begin()
        while len(values) < points and (claimed := claim(Path(place), "benchmark")):
            queue, run, _ = claimed
            settings = queue.jobs[run.dir.name]
            run.write_config(settings)
            with run.recording():
                values.append(fit(settings, run, runs.Stop(), lambda *_: "")["val/nelbo"])
    return np.minimum.accumulate(values).tolist()


def main(points: int = 24, repeats: int = 5, epochs: int = 6) -> None:
    logging.disable()
    console.quiet_lightning()
    pairs = []
    for seed in range(repeats):
        searched = best_of(points, seed, epochs, search=True)[-1]
        random = best_of(points, 1000 + seed, epochs, search=False)[-1]
        print(f"repeat {seed}: search {searched:.1f}, random {random:.1f}", flush=True)
        pairs.append((searched, random))
    differences = np.diff(pairs).ravel()
    half = stats.t.ppf(0.975, repeats - 1) * differences.std(ddof=1) / repeats**0.5
    mean = differences.mean()
    interval_ = f"95% {mean - half:.1f} to {mean + half:.1f}, n = {repeats}"
    print(f"random minus search: {mean:.1f} nats ({interval_})")


if __name__ == "__main__":
    main(**{key: int(value) for key, value in (word.split("=") for word in sys.argv[1:])})

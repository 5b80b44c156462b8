"""Does a search beat random points? On synthetic faces, three knobs, small networks, one thread.

    python benchmarks/search.py [points=24] [repeats=5] [epochs=6]

Each repeat trains `points` proposals of the search and as many random ones, and prints the best val/nelbo of both.
"""

import logging
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy import stats

from smilevae import console, runs
from smilevae.config import Settings
from smilevae.sweeps import search
from smilevae.training.fit import fit

SMALL = {
    **{"image_size": 64, "model.network": "patch", "model.widths": [8, 16], "threads": 1, "schedule": "cosine"},
    **{"data.num_smiling": 100, "data.num_not_smiling": 100, "data.num_test": 4, "batch_size": 16},
}
SPACE = {"beta": (0.1, 50, True), "lr": (1e-4, 3e-2, True), "latent_dim": (4, 64, True)}


def best_of(points: int, seed: int, epochs: int, startup: int | None) -> list[float]:
    """The lowest val/nelbo so far after each point."""
    values: list[float] = []
    with tempfile.TemporaryDirectory() as place:
        own = {name: search.interval(name, *limits) for name, limits in SPACE.items()}
        found = search.Search(Path(place), own, points, seed)
        if startup:
            found.num = startup * search.STARTUP  # so many are random
        for _ in range(points):
            ((number, point),) = found.propose(1)
            folder = Path(place) / str(number)
            settings = Settings().with_values(SMALL | point | {"epochs": epochs})
            run = runs.Run(folder)
            run.write_config(settings)
            with run.recording():
                values.append(fit(settings, run, runs.Stop())["val/nelbo"])
            found.end(number, folder)
    return np.minimum.accumulate(values).tolist()


def main(points: int = 24, repeats: int = 5, epochs: int = 6) -> None:
    logging.disable()
    console.quiet_lightning()
    pairs = []
    for seed in range(repeats):
        pair = best_of(points, seed, epochs, None)[-1], best_of(points, 1000 + seed, epochs, points)[-1]
        print(f"repeat {seed}: search {pair[0]:.1f}, random {pair[1]:.1f}", flush=True)
        pairs.append(pair)
    differences = np.diff(pairs).ravel()
    half = stats.t.ppf(0.975, repeats - 1) * differences.std(ddof=1) / repeats**0.5
    mean = differences.mean()
    print(f"random minus search: {mean:.1f} nats (95% {mean - half:.1f} to {mean + half:.1f}, n = {repeats})")


if __name__ == "__main__":
    main(**{key: int(value) for key, value in (word.split("=") for word in sys.argv[1:])})

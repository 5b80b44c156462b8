r"""Does successive halving keep the best settings of a grid that was trained in full?

    python benchmarks/halving.py multirun/<sweep> [factor=3] [first=N] [jobs=2] [orders=200] \
        [epochs=9,20,40]

Replays the grid's metrics in random orders, `jobs` at a time, with the rule of
smilevae/sweeps/halving.py, as if the grid had been trained for each number of `epochs`. All epochs
take equally long. Prints how often the true best two settings reach the last rung, and the share of
the epochs.
"""

import dataclasses
import heapq
import random
import sys
from pathlib import Path
from typing import Any

from smilevae import runs
from smilevae.sweeps import halving
from smilevae.sweeps.plan import Plan


@dataclasses.dataclass
class Replay(halving.Halving):
    """The rungs of a finished grid, as if only `done` epochs of each job were trained."""

    scores: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.done = dict.fromkeys(self.jobs, 0)
        self.now: set[str] = set()
        self.mean_faces = {name: super(Replay, self).mean_face(name) for name in self.jobs}

    def score(self, name: str, epochs: int) -> float:
        return self.scores[name][epochs - 1] if self.done[name] >= epochs else float("inf")

    def mean_face(self, name: str) -> float:
        return self.mean_faces[name]

    def finished(self, name: str, epochs: int) -> bool:
        return self.done[name] >= epochs

    def free(self, name: str) -> bool:
        return name not in self.now

    def run(self, at_once: int) -> int:
        """Train until nothing is left; gives the epochs."""
        clock = 0
        total = 0
        ends: list[tuple[int, str, int]] = []
        while True:
            while len(ends) < at_once and (left := self.left()):
                name, epochs = left[0]
                total += epochs - self.done[name]
                heapq.heappush(ends, (clock + epochs - self.done[name], name, epochs))
                self.now.add(name)
            if not ends:
                return total
            clock, name, epochs = heapq.heappop(ends)
            self.done[name] = epochs
            self.now.discard(name)


def scores_of(folder: Path) -> list[float]:
    """A job's score after each of its epochs: val/nelbo of the best epoch so far."""
    lines = runs.read_metrics(folder)
    scores = []
    for number in range(1, len(lines) + 1):
        scores.append(min(lines[:number], key=runs.rank_of)[halving.RANK_BY])
    return scores


def replay(
    folder: Path, factor: int, first: int | None, jobs: int, orders: int, epochs: int | None
) -> None:
    grid = Plan.read(folder).jobs
    grid = {name: own.with_values({"epochs": epochs or own.epochs}) for name, own in grid.items()}
    scores = {name: scores_of(folder / name)[: grid[name].epochs] for name in grid}
    rungs = halving.plan_rungs(grid, factor, first)
    best = sorted(grid, key=lambda name: scores[name][-1])[:2]
    rng = random.Random(0)
    kept = 0
    share = []
    for _ in range(orders):
        order = {name: grid[name] for name in rng.sample([*grid], len(grid))}
        one = Replay(folder, order, rungs, scores=scores)
        share.append(one.run(jobs) / sum(map(len, scores.values())))
        kept += all(one.done[name] == rungs[-1][0] for name in best)
    shown = ", ".join(f"{num} to epoch {epoch}" for epoch, num in rungs)
    print(f"rungs: {shown}; {jobs} at a time")
    for name in best:
        places = []
        for epoch, _ in rungs:
            ranked = sorted(grid, key=lambda other: scores[other][epoch - 1])
            places.append(ranked.index(name) + 1)
        print(f"{name}: places {places} after each rung")
    span = f"{min(share):.3f} to {max(share):.3f}"
    print(f"best two kept in {kept} of {orders} orders, {span} of the epochs")


if __name__ == "__main__":
    words: dict[str, Any] = {"factor": 3, "first": None, "jobs": 2, "orders": 200}
    words |= dict(word.split("=") for word in sys.argv[2:])
    lengths = str(words.pop("epochs", "")).split(",")
    numbers = {key: value and int(value) for key, value in words.items()}
    for length in lengths:
        replay(Path(sys.argv[1]), **numbers, epochs=int(length) if length else None)

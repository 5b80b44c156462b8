"""Does successive halving keep the best settings of a grid that was trained in full?

    python benchmarks/halving.py multirun/<sweep> [factor=3] [first=N] [jobs=2] [orders=200]

Replays the grid's metrics in random orders, `jobs` at a time, with the rule of smilevae/sweeps/halving.py. All epochs
take equally long. Prints how often the true best two settings reach the last rung, and the share of the epochs.
"""

import heapq
import random
import sys
from pathlib import Path

from smilevae import runs
from smilevae.sweeps import halving, plan


class Replay(halving.Halving):
    """The rungs of a finished grid, as if only `done` epochs of each job were trained."""

    def begin(self, scores: dict[str, list[float]]) -> None:
        self.scores, self.done, self.now = scores, dict.fromkeys(scores, 0), set()

    def score(self, name: str, epochs: int) -> float:
        return min(self.scores[name][:epochs]) if self.done[name] >= epochs else float("inf")

    def finished(self, name: str, rung: halving.Rung) -> bool:
        return self.done[name] >= rung.epochs

    def running(self, name: str) -> bool:
        return name in self.now

    def run(self, at_once: int) -> int:
        """Train until nothing is left; gives the epochs."""
        clock, total, ends = 0, 0, []
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


def main(folder: Path, factor: int = 3, first: int | None = None, jobs: int = 2, orders: int = 200) -> None:
    grid = {name: job.settings for name, job in plan.read(folder).items()}
    scores = {name: [line[halving.RANK_BY] for line in runs.read_metrics(folder / name)] for name in grid}
    rungs = halving.plan_rungs(grid, factor, first)
    best = sorted(grid, key=lambda name: min(scores[name]))[:2]
    rng, kept, share = random.Random(0), 0, []
    for _ in range(orders):
        names = rng.sample([*grid], len(grid))
        replay = Replay(folder, {name: grid[name] for name in names}, rungs)
        replay.begin(scores)
        share.append(replay.run(jobs) / sum(map(len, scores.values())))
        kept += all(replay.done[name] == rungs[-1].epochs for name in best)
    print("rungs:", ", ".join(f"{rung.num} to epoch {rung.epochs}" for rung in rungs), f"; {jobs} at a time")
    for name in best:
        places = [sorted(grid, key=lambda other: min(scores[other][: rung.epochs])).index(name) + 1 for rung in rungs]
        print(f"{name}: places {places} after each rung")
    print(f"best two kept in {kept} of {orders} orders, {min(share):.3f} to {max(share):.3f} of the epochs")


if __name__ == "__main__":
    words = dict(word.split("=") for word in sys.argv[2:])
    main(Path(sys.argv[1]), **{key: int(value) for key, value in words.items()})

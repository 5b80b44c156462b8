"""A sweep: its queue, a process for each job, and its progress. No torch, no Hydra."""

from pathlib import Path

from smilevae import runs
from smilevae.sweeps.halving import Halving
from smilevae.sweeps.plan import FILE, lock_of
from smilevae.sweeps.queue import Queue


def open_queue(folder: Path, sweep: str | None = None) -> Queue:
    """The queue of a sweep folder as sweep.json describes it now. Raises ConfigError."""
    content = runs.read_json(folder / FILE)
    strategy = Halving if content.get("rungs") else Queue
    if content.get("search"):
        from smilevae.sweeps.search import Search  # Optuna is an extra

        strategy = Search
    queue = strategy.read(folder)
    queue.sweep = sweep
    return queue


def next_task(folder: Path, sweep: str) -> tuple[str, int] | None:
    """The job that is next for the workers of a sweep, and the epoch until which it trains."""
    with lock_of(folder):
        return open_queue(folder, sweep).next()


def claim(folder: Path, sweep: str) -> tuple[Queue, runs.Run, int] | None:
    """The queue, the run folder of the next job, locked, and the epoch until which it trains."""
    with lock_of(folder):
        queue = open_queue(folder, sweep)
        if not (task := queue.next()):
            return None
        name, until = task
        run = runs.Run(folder / name)
        run.sweep = sweep
        return queue, run, until

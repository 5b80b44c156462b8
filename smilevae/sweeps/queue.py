"""A sweep is a queue; a strategy says who is next.

The queue is the sweep's folder: `sweep.json` names the jobs, and the files in their run folders say
how far each has come. There is no other state, so a kill at any moment loses no decision.

A worker forks one process a job until nothing is left for it (jobs.work). The process of a job
claims it: under the lock of the queue it asks the strategy who is next, and locks that run folder.
The lock of a run folder ends with its process, so a job whose worker is killed is next again, and
two sweeps that are started on one folder share its jobs and run none twice.

    Grid      grid.py      every job to its end; one that begins with a shorter job comes after it
    Halving   halving.py   the jobs of the lowest rung that is not full
    Search    search.py    the points that Optuna proposes

`strategy.left()` gives the jobs that wait, the first one first, and the epoch until which each
trains; `strategy.total_epochs()` gives the epochs of the whole sweep. A closed queue is empty for
the workers of its sweep, and their jobs end with a checkpoint. A signal closes it, and the end of
the budget does.
"""

import contextlib
import time
from pathlib import Path

from smilevae import runs
from smilevae.sweeps.grid import Grid
from smilevae.sweeps.halving import Halving
from smilevae.sweeps.plan import FILE, Plan, lock_of

GRACE = 8.0  # seconds between a signal and the end


class Queue:
    """The jobs of a sweep folder as its workers see them; `sweep` is the id of their sweep."""

    def __init__(self, folder: Path, sweep: str):
        self.folder = folder
        self.sweep = sweep
        self.stop_file = stop_file_of(folder, sweep)
        self.lock = lock_of(folder)
        self._text = ""

    @property
    def strategy(self) -> Grid:
        """The strategy over the jobs that sweep.json holds now. Raises ConfigError."""
        text = (self.folder / FILE).read_text()
        if text != self._text:
            self._strategy = strategy_of(Plan.read(self.folder), self.sweep)
            self._text = text
        return self._strategy

    @property
    def plan(self) -> Plan:
        return self.strategy.plan

    def left(self) -> list[tuple[str, int]]:
        """(job, epoch) of the jobs that wait, in order; each trains until that epoch."""
        with self.lock:
            return [] if self.stop_file.exists() else self.strategy.left()

    def next(self) -> tuple[str, int] | None:
        """The first of the jobs that wait which comes after no other job."""
        ready = (task for task in self.left() if self.strategy.ready(task[0]))
        return next(ready, None)

    def claim(self) -> tuple[runs.Run, int] | None:
        """The run folder of the next job, locked, and the epoch until which it trains."""
        with self.lock:
            task = self.next()
            if task is None:
                return None
            name, until = task
            run = runs.Run(self.folder / name)
            run.sweep = self.sweep
            return run, until

    def retry_failed(self) -> None:
        """Let failed jobs train again."""
        for name in self.plan.jobs:
            path = self.folder / name
            state = runs.state(path)
            if state["status"] == "FAILED":
                with contextlib.closing(runs.Run(path)) as run:
                    run.status("INTERRUPTED", f"failed before: {state['reason']}")

    def close(self) -> None:
        """Empty the queue for this sweep and end its jobs; wait for them, GRACE at most."""
        self.stop_file.touch()
        end = time.monotonic() + GRACE
        while time.monotonic() < end and any(map(self._trains, self.plan.jobs)):
            time.sleep(0.05)

    def _trains(self, name: str) -> bool:
        """Whether a job of this sweep runs."""
        state = runs.state(self.folder / name)
        return (state["status"], state["sweep"]) == ("RUNNING", self.sweep)


def stop_file_of(folder: Path, sweep: str | None) -> Path:
    """The file that closes the queue for the workers of a sweep."""
    return folder / f".stop-{sweep}"


def strategy_of(plan: Plan, sweep: str | None = None) -> Grid:
    if plan.search:
        from smilevae.sweeps.search import Search  # Optuna is an extra

        return Search(plan, sweep)
    if plan.rungs:
        return Halving(plan, sweep)
    return Grid(plan, sweep)

"""A sweep is a queue; a strategy says who is next.

The queue is the sweep's folder: `sweep.json` names the jobs, and the files in their run folders say
how far each has come. There is no other state, so a kill at any moment loses no decision.

The process of a job claims it: under the lock of the queue it asks the strategy who is next, and
locks that run folder until it ends. So a job that is killed is next again, and none runs twice.

    Queue     queue.py     every job to its end; one that begins with a shorter job comes after it
    Halving   halving.py   the jobs of the lowest rung that is not full
    Search    search.py    the points that Optuna proposes

A strategy has two methods, `left()` and `total_epochs()`. A closed queue is empty for the workers
of its sweep, and their jobs end with a checkpoint. A signal closes it, and the end of the budget.
"""

import contextlib
import dataclasses
import time
from pathlib import Path

from smilevae import runs
from smilevae.sweeps.plan import Plan, key

GRACE = 8.0  # seconds between a signal and the end


@dataclasses.dataclass
class Queue(Plan):
    """The jobs of a sweep in the order of the plan; the base of the other strategies.

    `sweep` is the id of the sweep whose workers ask. A job that was interrupted in it, by hand or
    by trainer.max_time, is not next again in it.
    """

    sweep: str | None = None

    def left(self) -> list[tuple[str, int]]:
        """(job, epoch) of the jobs that wait, in order; each trains until that epoch."""
        waiting = [name for name in self.jobs if not self.ended(name) and self.free(name)]
        return [(name, self.jobs[name].epochs) for name in waiting]

    def total_epochs(self) -> float:
        """The epochs that all jobs have in the end."""
        return sum(settings.epochs for settings in self.jobs.values())

    def next(self) -> tuple[str, int] | None:
        """The first of the jobs that wait which comes after no other job."""
        if stop_file(self.folder, self.sweep).exists():
            return None
        return next((task for task in self.left() if self.ready(task[0])), None)

    def retry_failed(self) -> None:
        """Let failed jobs train again."""
        for name in self.jobs:
            state = runs.state(self.folder / name)
            if state["status"] == "FAILED":
                with contextlib.closing(runs.Run(self.folder / name)) as run:
                    run.status("INTERRUPTED", f"failed before: {state['reason']}")

    def close(self) -> None:
        """Empty the queue for this sweep and end its jobs; wait for them, GRACE at most."""
        stop_file(self.folder, self.sweep).touch()
        end = time.monotonic() + GRACE
        while time.monotonic() < end and any(map(self._trains, self.jobs)):
            time.sleep(0.05)

    def _trains(self, name: str) -> bool:
        """Whether a job of this sweep runs."""
        state = runs.state(self.folder / name)
        return (state["status"], state["sweep"]) == ("RUNNING", self.sweep)

    def ended(self, name: str) -> bool:
        """Whether a job has completed or failed."""
        status = runs.read_json(self.folder / name / "status.json").get("status")
        return status == "FAILED" or (self.folder / name / "result.json").exists()

    def free(self, name: str) -> bool:
        """Whether a job neither runs nor was cut off in this sweep."""
        if runs.in_use(self.folder / name):
            return False
        state = runs.read_json(self.folder / name / "status.json")
        return not self.cut_off(name) or self.sweep is None or state.get("sweep") != self.sweep

    def cut_off(self, name: str) -> bool:
        """Whether a job runs, or stopped before it had to."""
        status = runs.read_json(self.folder / name / "status.json").get("status")
        return status in ("INTERRUPTED", "RUNNING")

    def ready(self, name: str) -> bool:
        """Whether a job need not wait for a shorter one."""
        return all(map(self.ended, self.shorter(name)))

    def shorter(self, name: str) -> list[str]:
        """The jobs whose epochs are the first ones of a job, the longest last.

        Only a run that does not depend on its number of epochs has such jobs.
        """
        settings = self.jobs[name]
        if settings.fixed_length:
            return []
        own = key(settings, "epochs")
        fewer = [other for other, its in self.jobs.items() if its.epochs < settings.epochs]
        shorter = [other for other in fewer if key(self.jobs[other], "epochs") == own]
        return sorted(shorter, key=lambda other: self.jobs[other].epochs)

    def beginning(self, name: str) -> Path | None:
        """The longest completed run whose epochs are the first ones of a job."""
        settings = self.jobs[name]
        for path in (self.folder / other for other in reversed(self.shorter(name))):
            if (path / "result.json").exists():
                own = runs.read_settings(path)  # it may have been resumed to more epochs
                if own.threads == settings.threads and own.epochs < settings.epochs:
                    return path
        return None


def stop_file(folder: Path, sweep: str | None) -> Path:
    """The file that closes the queue for the workers of a sweep."""
    return folder / f".stop-{sweep}"

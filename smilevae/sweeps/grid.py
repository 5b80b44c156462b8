"""A strategy says which jobs of a sweep are next. This one trains all of them to their end."""

from pathlib import Path

from smilevae import runs
from smilevae.sweeps.plan import Plan, key


class Grid:
    """Every job to its last epoch, in the order of the plan; the base of the other strategies.

    A job whose first epochs are another job comes after it. `sweep` is the id of the sweep that
    asks: a job that it has interrupted, or that trainer.max_time has, is not next again in it.
    """

    def __init__(self, plan: Plan, sweep: str | None = None):
        self.plan = plan
        self.folder = plan.folder
        self.jobs = plan.jobs
        self.sweep = sweep

    def left(self) -> list[tuple[str, int]]:
        """(job, epoch) of the jobs that wait, in order; each trains until that epoch."""
        waiting = [name for name in self.jobs if not self.ended(name) and self.free(name)]
        return [(name, self.jobs[name].epochs) for name in waiting]

    def total_epochs(self) -> float:
        """The epochs that all jobs have in the end."""
        return sum(settings.epochs for settings in self.jobs.values())

    def ended(self, name: str) -> bool:
        """Whether a job has completed or failed."""
        status = runs.read_json(self.folder / name / "status.json").get("status")
        return status == "FAILED" or (self.folder / name / "result.json").exists()

    def free(self, name: str) -> bool:
        """Whether a job neither runs nor was cut off in this sweep."""
        if runs.in_use(self.folder / name):
            return False
        state = runs.read_json(self.folder / name / "status.json")
        cut_off = state.get("status") in ("INTERRUPTED", "RUNNING")
        return not cut_off or self.sweep is None or state.get("sweep") != self.sweep

    def ready(self, name: str) -> bool:
        """Whether a job need not wait for a shorter one."""
        return all(map(self.ended, self.shorter(name)))

    def shorter(self, name: str) -> list[str]:
        """The jobs whose epochs are the first ones of a job, the longest last.

        With schedule=plateau a run does not know its number of epochs.
        """
        settings = self.jobs[name]
        if settings.schedule != "plateau" or settings.sharpen.epochs:
            return []
        own = key(settings, "epochs")
        shorter = [
            other
            for other, its in self.jobs.items()
            if its.epochs < settings.epochs and key(its, "epochs") == own
        ]
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

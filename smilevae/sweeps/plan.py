"""The plan of a sweep: its jobs, which of them are left, and which settings may change when it goes on.

sweep.json    the command, the program, and every job's folder name with its overrides and settings
sweep.log     one line for every change        <job>/    a run folder
"""

import contextlib
import hashlib
import itertools
import json
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from smilevae import runs
from smilevae.config import Settings, flatten
from smilevae.errors import ConfigError
from smilevae.sweeps import halving
from smilevae.sweeps.options import SweepOptions

DEFAULT = SweepOptions()
MAX_NAME = 150
ONCE = ("hydra.sweep.dir=", "retry_failed=")  # words that the printed line does not repeat


class Job(NamedTuple):
    """One point of the grid."""

    overrides: list[str]
    settings: Settings

    @property
    def key(self) -> str:
        """A hash of the result settings: jobs with equal keys are one job."""
        text = json.dumps(self.settings.result_settings(), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class Plan:
    """The old and new jobs of a sweep by folder name; `wanted` names those of this command.

    Raises ConfigError if the folder holds something else, or if a fixed result setting was changed.
    """

    def __init__(self, folder: Path, points: list[tuple[str, Job]], argv: list[str], options: SweepOptions = DEFAULT):
        self.folder, self.argv = folder, [word for word in argv if not word.startswith(ONCE)]
        self.jobs = read(folder) if folder.exists() else {}
        check_code(folder, options.mix)
        if not (folder / "sweep.json").exists() and folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty and holds no sweep; choose another hydra.sweep.dir")
        self._refuse_changes([job for _, job in points])
        self.wanted: list[str] = []
        self.add(points)
        self.rungs: list[halving.Rung] = []
        if options.halving:
            self.wanted = list(self.jobs)
            every = {name: job.settings for name, job in self.jobs.items()}
            self.rungs = halving.plan_rungs(every, options.halving, options.first)

    def add(self, points: list[tuple[str, Job]]) -> list[str]:
        """Let points join; gives their names. Raises ConfigError if a knob that tells no jobs apart differs."""
        names = {job.key: name for name, job in self.jobs.items()}
        new: dict[str, Job] = {}
        for name, job in points:
            own, first = (flatten(one.settings.plain()) for one in (job, new.setdefault(job.key, job)))
            if changed := [knob for knob in own if own[knob] != first.get(knob)]:
                raise ConfigError(f"{changed[0]} cannot be swept, because it tells no jobs apart; give it one value")
            if job.key not in names:
                names[job.key] = name if name not in self.jobs else f"{name}_{job.key[:8]}"
            self.jobs[names[job.key]] = job
        self.wanted += [names[key] for key in new if names[key] not in self.wanted]
        return [names[key] for key in new]

    def _refuse_changes(self, new: list[Job]) -> None:
        """Raise ConfigError if all old jobs share a value of a setting, and all new jobs another."""
        problems, before, after = [], _values(self.jobs.values()), _values(new)
        for name in sorted(before | after) if self.jobs and new else ():
            olds, news = before.get(name, {"null"}), after.get(name, {"null"})
            if len(olds) == len(news) == 1 and olds != news:
                (then,), (now,) = olds, news
                problems.append(
                    f"{name}={now} would change the results of {self.folder}, which has {name}={then};"
                    f" leave it, start a new sweep, or add to this one with {name}={then},{now}"
                )
        if problems:
            raise ConfigError("\n".join(problems))

    def claim(self) -> None:
        """Create the folder, unless another sweep just has, and write the plan. Raises ConfigError."""
        jobs = {n: {"overrides": j.overrides, "settings": j.settings.result_settings()} for n, j in self.jobs.items()}
        file = self.folder / "sweep.json"
        try:
            if not file.exists():
                self.folder.mkdir(parents=True, exist_ok=self.folder.exists())
            content = {"argv": self.argv, "code": runs.code(), "rungs": self.rungs, "jobs": jobs}
            runs.write_text(file, json.dumps(content, indent=1) + "\n")
        except FileExistsError:
            raise ConfigError(f"{self.folder} was made by another sweep just now; start again") from None
        except OSError as error:
            raise ConfigError(f"hydra.sweep.dir={self.folder} cannot be written: {error.strerror}") from None

    @property
    def halving(self) -> halving.Halving:
        """The rungs and the jobs in them."""
        return halving.Halving(self.folder, {name: job.settings for name, job in self.jobs.items()}, self.rungs)

    def rungs_line(self) -> str:
        """The rungs, with a warning where a job's first epochs say little about its last."""
        if len(self.rungs) == 1:
            return f"rungs: none, the sweep is too short for them; every setting trains to epoch {self.rungs[0].epochs}"
        text = ", ".join(f"{num} settings to epoch {epochs}" for epochs, num in self.rungs)
        if any(job.settings.schedule == "cosine" for job in self.jobs.values()):
            text += "; schedule=cosine keeps each job's own full schedule, and lr is still high at the first rungs"
        return f"rungs: {text}"

    def left(self, retry_failed: bool) -> list[str]:
        """The wanted jobs that have not completed and, unless `retry_failed`, not failed; in the rung that is next."""
        done = {"COMPLETED"} if retry_failed else {"COMPLETED", "FAILED"}
        states = {name: runs.state(self.folder / name)["status"] for name in self.wanted}
        now = {name for name, _ in self.halving.left()} if self.rungs else set()
        return [
            name
            for name, state in states.items()
            if state not in done and (not self.rungs or name in now or state == "FAILED")
        ]

    def retry(self, names: list[str]) -> None:
        """Let the failed jobs among these train again."""
        for path in (self.folder / name for name in names):
            if (state := runs.state(path))["status"] == "FAILED":
                with contextlib.closing(runs.Run(path)) as run:
                    run.status("INTERRUPTED", f"failed before: {state['reason']}")

    def _growing(self, names: list[str]) -> list[list[str]]:
        """Groups of jobs that differ in epochs only, the shortest first: each begins with the epochs before it."""
        groups: dict[str, list[str]] = {}
        for name in sorted(names, key=lambda name: self.jobs[name].settings.epochs):
            settings = self.jobs[name].settings
            begins = settings.schedule == "plateau" and not settings.sharpen.epochs
            groups.setdefault(Job([], settings.with_values({"epochs": 1})).key if begins else name, []).append(name)
        return [*groups.values()]

    def waves(self, names: list[str]) -> list[list[str]]:
        """The jobs in groups that may run together: a job comes after those whose epochs are its first ones."""
        return [[name for name in wave if name] for wave in itertools.zip_longest(*self._growing(names))]

    def epochs_left(self, names: list[str]) -> list[float]:
        """How many epochs each job has to train; with rungs, their mean."""
        done = {name: runs.epochs_done(self.folder / name) for name in names}
        if self.rungs:
            each = max(0.0, (self.halving.total_epochs() - sum(done.values())) / len(names))
            return [each for _ in names]
        left = {}
        for group in self._growing(names):
            before = 0
            for name in group:
                epochs = self.jobs[name].settings.epochs
                left[name] = max(0, epochs - max(before, done[name]))
                before = epochs
        return [left[name] for name in names]

    def resume_line(self) -> str:
        """The command that continues this sweep."""
        folder = runs.hydra_argument("hydra.sweep.dir", self.folder)
        return f"{runs.command_name('train')} {shlex.join(self.argv)} {folder}"


def job_name(varied: list[str]) -> str:
    """The folder name of a job, from the overrides that differ between jobs: beta-1_batch_size-32."""
    name = re.sub(r"[^\w.+-]", "-", "_".join(text.lstrip("+").replace("=", "-", 1) for text in varied))
    if len(name) > MAX_NAME:
        name = f"{name[:MAX_NAME]}_{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"
    return name if name.strip(".") else "job"


def check_code(folder: Path, mix: bool = False) -> None:
    """Raise ConfigError if the program on the disk is not the one that the sweep was last started with."""
    then, now = runs.read_json(folder / "sweep.json").get("code"), runs.code_now()
    if then and then != now and not mix:
        raise ConfigError(
            f"the program changed during {folder} ({then}, now {now}): undo the change, start a new sweep, or"
            " continue this one with sweep.mix=true"
        )


def read_halving(folder: Path) -> halving.Halving | None:
    """The rungs of a sweep folder; None if all its jobs train to their end."""
    rungs = [halving.Rung(*rung) for rung in runs.read_json(folder / "sweep.json").get("rungs") or ()]
    return halving.Halving(folder, {n: job.settings for n, job in read(folder).items()}, rungs) if rungs else None


def prefix(folder: Path, settings: Settings) -> Path | None:
    """The completed job whose epochs are the first ones of a job with these settings; None without one.

    With schedule=plateau a run does not know its number of epochs.
    """
    longest, best = 0, None
    jobs = read(folder) if (folder / "sweep.json").exists() else {}
    for name, job in jobs.items() if settings.schedule == "plateau" and not settings.sharpen.epochs else ():
        same = job.settings.with_values({"epochs": settings.epochs}).result_settings() == settings.result_settings()
        if same and (folder / name / "result.json").exists():
            own = runs.read_settings(folder / name)  # it may have been resumed to more epochs
            if own.threads == settings.threads and longest < own.epochs < settings.epochs:
                longest, best = own.epochs, folder / name
    return best


def read(folder: Path) -> dict[str, Job]:
    """The jobs in a folder's sweep.json, {} where there is none. Raises ConfigError."""
    try:
        jobs = json.loads((folder / "sweep.json").read_text())["jobs"].items()
        return {n: Job(j["overrides"], Settings().with_values(j["settings"])) for n, j in jobs}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError):
        raise ConfigError(f"{folder}/sweep.json cannot be read; restore it, or start a new sweep") from None


def _values(jobs: Iterable[Job]) -> dict[str, set[str]]:
    """Every result setting's values, as JSON."""
    rows = [job.settings.result_settings() for job in jobs]
    return {name: {json.dumps(row.get(name)) for row in rows} for name in {name for row in rows for name in row}}

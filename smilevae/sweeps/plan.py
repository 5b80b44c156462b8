"""sweep.json: the jobs of a sweep.

argv    the words of the last command
code    a hash of the program that the sweep began with
jobs    NAME: {"settings": ...}, where NAME is the job's run folder
rungs   [epochs, num] of each rung of successive halving
search  what a search varies, see search.py
"""

import contextlib
import dataclasses
import datetime
import hashlib
import json
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from filelock import FileLock

from smilevae import runs
from smilevae.config import Settings, flatten
from smilevae.errors import ConfigError

FILE = "sweep.json"
LOG = "sweep.log"
MAX_NAME = 150
ONE_VALUE = "because it tells no jobs apart; give it one value"
REPLACED = ("hydra.sweep.dir=", "retry_failed=")  # words that the printed line does not repeat


@dataclasses.dataclass
class Plan:
    """The content of sweep.json, which changes only under its lock."""

    folder: Path
    jobs: dict[str, Settings] = dataclasses.field(default_factory=dict)
    rungs: list[list[int]] = dataclasses.field(default_factory=list)
    search: dict[str, Any] = dataclasses.field(default_factory=dict)
    argv: list[str] = dataclasses.field(default_factory=list)
    code: str = dataclasses.field(default_factory=runs.code)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The plan of a sweep folder, empty for a new one. Raises ConfigError."""
        try:
            content = json.loads((folder / FILE).read_text())
            planned = content.pop("jobs").items()
            jobs = {name: Settings().with_values(job["settings"]) for name, job in planned}
            return cls(folder, jobs, **content)
        except FileNotFoundError:
            if any(not path.name.startswith(".") for path in folder.glob("*")):
                text = "is not empty and holds no sweep; choose another hydra.sweep.dir"
                raise ConfigError(f"{folder} {text}") from None
            return cls(folder)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError):
            text = "cannot be read; restore it, or start a new sweep"
            raise ConfigError(f"{folder}/{FILE} {text}") from None

    def add_grid(self, points: list[tuple[str, Settings]]) -> None:
        """Let the points of a grid join. Raises ConfigError, also if they change fixed settings."""
        refuse_changes(self.folder, self.jobs.values(), [settings for _, settings in points])
        self.add(points)
        self.search = {}
        self.rungs = []

    def add_search(self, search: dict[str, Any]) -> None:
        """Begin or continue a search. Raises ConfigError if it was another one, or a grid."""
        if self.jobs and not self.search:
            raise ConfigError(f"{self.folder} holds a grid; search in another hydra.sweep.dir")
        if self.search:
            if self.search["space"] != search["space"]:
                remedy = "give the same, or start a new sweep"
                raise ConfigError(f"{self.folder} searched other intervals or values; {remedy}")
            before = Settings().with_values(self.search["base"])
            refuse_changes(self.folder, [before], [Settings().with_values(search["base"])])
        self.search = search

    def add(self, points: list[tuple[str, Settings]]) -> list[str]:
        """Let points join; gives the names of their jobs.

        A point with the result settings of a job is that job. Raises ConfigError if two points
        differ only in knobs that tell no jobs apart.
        """
        names = {key(settings): name for name, settings in self.jobs.items()}
        new: dict[str, Settings] = {}
        for name, settings in points:
            own = key(settings)
            for knob in changes(new.setdefault(own, settings), settings):
                raise ConfigError(f"{knob} cannot be swept, {ONE_VALUE}")
            if own not in names:
                names[own] = f"{name}_{_digest(own)}" if name in self.jobs else name
            self.jobs[names[own]] = settings
        return [names[own] for own in new]

    def begin(self) -> None:
        """Create the folder, or join the sweep that it holds. Raises ConfigError."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with lock_of(self.folder):
                if Plan.read(self.folder).jobs.keys() - self.jobs.keys():
                    raise FileExistsError
                self.write()
        except FileExistsError:
            text = "was changed by another sweep just now; start again"
            raise ConfigError(f"{self.folder} {text}") from None
        except OSError as error:
            text = f"hydra.sweep.dir={self.folder} cannot be written: {error.strerror}"
            raise ConfigError(text) from None

    def write(self) -> None:
        content = {
            "argv": self.argv,
            "code": self.code,
            "rungs": self.rungs,
            "search": self.search,
            "jobs": {name: {"settings": flatten(job.plain())} for name, job in self.jobs.items()},
        }
        runs.write_text(self.folder / FILE, json.dumps(content, indent=1) + "\n")

    def resume_line(self) -> str:
        """The command that continues this sweep."""
        words = shlex.join(word for word in self.argv if not word.startswith(REPLACED))
        return f"{runs.command_name('train')} {words} {runs.hydra_argument('hydra.sweep.dir', self.folder)}"

    def changed_program(self, code: str) -> str:
        """A warning that a job trains with another program than the first one."""
        return f"warning: the program changed during this sweep ({self.code}, now {code})"

    def say(self, line: str) -> None:
        """Print a line and append it to sweep.log."""
        print(line, flush=True)
        with contextlib.suppress(OSError), open(self.folder / LOG, "a") as log:
            log.write(f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S} {line}\n")


def lock_of(folder: Path) -> FileLock:
    """The lock of a sweep's queue."""
    return FileLock(folder / ".queue")


def key(settings: Settings, *without: str) -> str:
    """The result settings as text, without some: jobs with equal keys are one job."""
    values = {k: v for k, v in settings.result_settings().items() if k not in without}
    return json.dumps(values, sort_keys=True)


def job_name(varied: list[str]) -> str:
    """The folder name of a job, from the overrides that differ: beta-1_batch_size-32."""
    text = "_".join(word.lstrip("+").replace("=", "-", 1) for word in varied)
    name = re.sub(r"[^\w.+-]", "-", text)
    if len(name) > MAX_NAME:
        name = f"{name[:MAX_NAME]}_{_digest(name)}"
    return name if name.strip(".") else "job"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def refuse_changes(folder: Path, before: Iterable[Settings], after: Iterable[Settings]) -> None:
    """Raise ConfigError if all old jobs share a value of a setting, and all new ones another."""
    problems = []
    olds = _values(before)
    news = _values(after)
    for knob in sorted(olds.keys() | news.keys()) if olds else ():
        then, *more = olds.get(knob, ["null"])
        now, *new = news.get(knob, ["null"])
        if then != now and not more and not new:
            problems.append(
                f"{knob}={now} would change the results of {folder}, which has {knob}={then};"
                f" leave it, start a new sweep, or add to this one with {knob}={then},{now}"
            )
    if problems:
        raise ConfigError("\n".join(problems))


def _values(jobs: Iterable[Settings]) -> dict[str, set[str]]:
    """Every result setting's values, as JSON."""
    rows = [settings.result_settings() for settings in jobs]
    names = {name for row in rows for name in row}
    return {name: {json.dumps(row.get(name)) for row in rows} for name in names}


def changes(before: Settings, after: Settings) -> dict[str, Any]:
    """The flat settings of `after` that `before` has not."""
    old = flatten(before.plain())
    return {k: v for k, v in flatten(after.plain()).items() if k not in old or v != old[k]}

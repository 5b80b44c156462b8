"""The plan of a sweep: its jobs, which of them are left, and which settings may change when it goes on.

sweep.json    the command, and every job's folder name with its overrides and settings
sweep.log     one line for every change        <job>/    a run folder
"""

import hashlib
import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from smilevae import runs
from smilevae.config import BEFORE, PLACES, SAME_RESULT, Settings
from smilevae.errors import ConfigError

ONCE = ("hydra.sweep.dir=", "retry_failed=")  # words that the printed line does not repeat
RESULT_BEFORE = {name: value for name, value in BEFORE.items() if name not in SAME_RESULT}


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

    def __init__(self, folder: Path, points: list[tuple[str, Job]], argv: list[str]):
        self.folder, self.argv = folder, [word for word in argv if not word.startswith(ONCE)]
        self.jobs = read(folder) if folder.exists() else {}
        if not self.jobs and folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty and holds no sweep; choose another hydra.sweep.dir")
        self._refuse_changes([job for _, job in points])
        names = {job.key: name for name, job in self.jobs.items()}
        new: dict[str, Job] = {}
        for name, job in points:
            data, first = job.settings.data, new.setdefault(job.key, job).settings.data
            if changed := [name for name in PLACES[:-1] if getattr(data, name) != getattr(first, name)]:
                raise ConfigError(f"data.{changed[0]} cannot be swept; start a sweep for each folder")
            if job.key not in names:
                names[job.key] = name if name not in self.jobs else f"{name}_{job.key[:8]}"
            self.jobs[names[job.key]] = job
        self.wanted = [names[key] for key in new]

    def _refuse_changes(self, new: list[Job]) -> None:
        """Raise ConfigError if all old jobs share a value of a setting, and all new jobs another."""
        problems, before, after = [], _values(self.jobs.values()), _values(new)
        for name in sorted(before | after) if self.jobs else ():
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
            runs.write_text(file, json.dumps({"argv": self.argv, "jobs": jobs}, indent=1) + "\n")
        except FileExistsError:
            raise ConfigError(f"{self.folder} was made by another sweep just now; start again") from None
        except OSError as error:
            raise ConfigError(f"hydra.sweep.dir={self.folder} cannot be written: {error.strerror}") from None

    def left(self, retry_failed: bool) -> list[str]:
        """The wanted jobs that have not completed and, unless `retry_failed`, not failed."""
        done = {"COMPLETED"} if retry_failed else {"COMPLETED", "FAILED"}
        return [name for name in self.wanted if runs.state(self.folder / name)["status"] not in done]

    def resume_line(self) -> str:
        """The command that continues this sweep."""
        return f"{runs.program('train')} {shlex.join(self.argv)} {runs.typed('hydra.sweep.dir', self.folder)}"


def read(folder: Path) -> dict[str, Job]:
    """The jobs in a folder's sweep.json, {} where there is none. Raises ConfigError."""
    try:
        jobs = json.loads((folder / "sweep.json").read_text())["jobs"].items()
        return {n: Job(j["overrides"], Settings().with_values(RESULT_BEFORE | j["settings"])) for n, j in jobs}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError):
        raise ConfigError(f"{folder}/sweep.json cannot be read; restore it, or start a new sweep") from None


def _values(jobs: Iterable[Job]) -> dict[str, set[str]]:
    """Every result setting's values, as JSON."""
    rows = [job.settings.result_settings() for job in jobs]
    return {name: {json.dumps(row.get(name)) for row in rows} for name in {name for row in rows for name in row}}

"""The plan of a sweep: its jobs, which of them are left, and what a resumed sweep may change.

sweep.json    the command, and every job's folder name with its overrides and settings
sweep.log     one line for every change        <job>/    a run folder each; see runs/
analysis/     written by multirun_analysis
"""

import hashlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

from smilevae import runs
from smilevae.config import BEFORE, SAME_RESULT, Settings
from smilevae.errors import ConfigError

MAX_NAME = 150
RESULT_BEFORE = {name: value for name, value in BEFORE.items() if name not in SAME_RESULT}


class Plan:
    """The jobs of a sweep folder by name, with what a resumed sweep adds to them.

    `jobs` maps a folder name to {"overrides", "settings"}; `wanted` lists the names that this command asks for.
    Raises ConfigError if the folder holds something else, or if a fixed knob that changes results was changed.
    """

    def __init__(self, folder: Path, points: list[tuple[str, list[str], Settings]], argv: list[str]):
        once = ("hydra.sweep.dir=", "retry_failed=")
        self.folder, self.argv = folder, [text for text in argv if not text.startswith(once)]
        self.jobs: dict[str, dict[str, Any]] = read(folder).get("jobs", {}) if folder.exists() else {}
        if not self.jobs and folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty and holds no sweep; choose another hydra.sweep.dir")
        new = [(name, overrides, settings.result_settings()) for name, overrides, settings in points]
        self._refuse_changes([settings for _, _, settings in new])
        known = {_key(job["settings"]): name for name, job in self.jobs.items()}
        self.wanted: list[str] = []
        places: dict[str, list[Any]] = {}
        for (wish, overrides, settings), (_, _, whole) in zip(new, points):
            paths = [whole.data.root, whole.data.unlabelled]
            name = known.get(_key(settings))
            if places.setdefault(_key(settings), paths) != paths:
                raise ConfigError(
                    "data.root cannot be swept: jobs are told apart by knobs; start a sweep for each folder"
                )
            if name is None:
                name = wish if wish not in self.jobs else f"{wish}_{_key(settings)[:8]}"
                known[_key(settings)] = name
            self.jobs[name] = {"overrides": overrides, "settings": settings}
            if name not in self.wanted:
                self.wanted.append(name)

    def _refuse_changes(self, new: list[dict[str, Any]]) -> None:
        old = [job["settings"] for job in self.jobs.values()]
        if not old:
            return
        problems = []
        for knob in sorted({k for settings in old + new for k in settings}):
            before, after = ({json.dumps(s.get(knob)) for s in some} for some in (old, new))
            if len(before) == len(after) == 1 and before != after:
                then, now = before.pop(), after.pop()
                problems.append(
                    f"{knob}={now} would change the results of {self.folder}, which has {knob}={then};"
                    f" leave it, start a new sweep, or add to this one with {knob}={then},{now}"
                )
        if problems:
            raise ConfigError("\n".join(problems))

    def claim(self) -> None:
        """Make the folder, which nobody else made, and write the plan. Raises ConfigError."""
        try:
            if not (self.folder / "sweep.json").exists():
                self.folder.mkdir(parents=True, exist_ok=self.folder.exists())
            content = {"argv": self.argv, "jobs": self.jobs}
            runs.write_text(self.folder / "sweep.json", json.dumps(content, indent=1) + "\n")
        except FileExistsError:
            raise ConfigError(f"{self.folder} was made by another sweep just now; start again") from None
        except OSError as error:
            raise ConfigError(f"hydra.sweep.dir={self.folder} cannot be written: {error.strerror}") from None

    def left(self, retry_failed: bool) -> list[str]:
        """The wanted jobs that are still to run: neither completed nor, unless they are retried, failed."""
        done = {"COMPLETED"} if retry_failed else {"COMPLETED", "FAILED"}
        return [name for name in self.wanted if runs.state(self.folder / name)["status"] not in done]

    def resume_line(self) -> str:
        """The command that goes on with this sweep."""
        folder = runs.override("hydra.sweep.dir", shlex.split(runs.short(self.folder))[0])
        return f"python train.py {shlex.join([*self.argv, folder])}"


def read(folder: Path) -> dict[str, Any]:
    """sweep.json of a folder, {} where there is none. Raises ConfigError if it is damaged."""
    try:
        content = json.loads((folder / "sweep.json").read_text())
        for job in content["jobs"].values():
            job["settings"] = RESULT_BEFORE | job["settings"]
        if not all(isinstance(word, str) for word in content["argv"]):
            raise ValueError
        return content
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"{folder}/sweep.json cannot be read; restore it, or start a new sweep") from None


def job_name(varied: list[str]) -> str:
    """A job's folder, from the overrides that its sweep varies: beta-1_batch_size-32."""
    name = re.sub(r"[^\w.+-]", "-", "_".join(text.lstrip("+").replace("=", "-", 1) for text in varied))
    if len(name) > MAX_NAME:
        name = f"{name[:MAX_NAME]}_{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"
    return name if name.strip(".") else "job"


def _key(settings: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16).hexdigest()

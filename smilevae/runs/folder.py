"""A claimed run folder: its lock, its status, its config and its result."""

import contextlib
import datetime
import json
import os
import platform
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from smilevae.config import Settings
from smilevae.errors import ConfigError, Interrupted, Paused, UserError
from smilevae.runs.checkpoint_files import link, ranked
from smilevae.runs.commands import command_line, resume_line, shell_path
from smilevae.runs.files import TEMPORARY, write_bytes, write_text
from smilevae.runs.machine import CostMeter, code
from smilevae.runs.reading import LOCK, read_json, read_metrics

OTHER_FOLDER = "choose another with hydra.run.dir=PATH"


class Run:
    """A claimed run folder. The claim is a lock that ends with the process.

    Of processes that train together only the main one claims and writes.
    Raises ConfigError if another process holds the folder or it cannot be written.
    """

    def __init__(self, path: str | Path):
        self.dir = Path(path)
        self.new = False
        self.sweep: str | None = None  # the id of the sweep that may stop this run
        self.meter = CostMeter(self.dir / "cost.json")
        self.is_main_process = is_main_process()
        if self.is_main_process:
            self._claim()

    def _claim(self) -> None:
        """Lock the folder, and remove what a killed process left half written."""
        try:
            self.dir.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.dir / LOCK, timeout=2)  # `in_use` holds it for a moment
            self._lock.acquire()
            for folder in (self.dir, self.checkpoints):
                for left in folder.glob(f"*{TEMPORARY}"):
                    left.unlink(missing_ok=True)
        except Timeout:
            text = "is in use by another process; wait for it or stop it"
            raise ConfigError(f"{self.dir} {text}") from None
        except OSError as error:
            raise ConfigError(f"{self.dir}: {error.strerror}; {OTHER_FOLDER}") from None

    @property
    def checkpoints(self) -> Path:
        return self.dir / "checkpoints"

    @property
    def code(self) -> str:
        """The programs that trained this run, the first one first."""
        before = str(read_json(self.dir / "status.json").get("code") or "").split()
        return " ".join(dict.fromkeys([*before, code()]))

    @property
    def trained(self) -> bool:
        """Whether there is a checkpoint."""
        return any(self.checkpoints.glob("*.ckpt"))

    @property
    def can_resume(self) -> bool:
        """Whether a resume has, or should have, a checkpoint to continue from."""
        if (self.checkpoints / "last.ckpt").exists() or (self.dir / "result.json").exists():
            return True
        return len(read_metrics(self.dir)) > 1

    @contextlib.contextmanager
    def recording(self) -> Iterator["Run"]:
        """Write the status RUNNING, then FAILED, INTERRUPTED or PAUSED if the body raises."""
        try:
            self.status("RUNNING")
            yield self
        except Paused as stop:
            self.status("PAUSED", str(stop))
            raise
        except (Interrupted, KeyboardInterrupt) as stop:
            self.status("INTERRUPTED", str(stop))
            text = "nothing was learnt yet"
            if self.trained:
                text = f"to go on: {resume_line(self.dir)}"
            if self.is_main_process:
                print(text, file=sys.stderr)
            raise
        except BaseException as error:
            name = type(error).__name__
            reason = str(error) if isinstance(error, UserError) else f"{name}: {error}"
            self.status("FAILED", reason, name)
            raise
        finally:
            self.close()

    def close(self) -> None:
        if self.is_main_process:
            self._lock.release()

    def begin(self, settings: Settings) -> None:
        """Write config.yaml. Raises ConfigError for a new run in a folder that is not empty."""
        if self.is_main_process and not settings.resume:
            refuse_used(self.dir)
            self.new = True
        self.write_config(settings)

    def begin_from(self, other: Path) -> None:
        """Take over the epochs of a completed run.

        last.ckpt comes last: before it, the run is still untrained.
        """
        for path in ranked(other):
            link(path, self.checkpoints / path.name)
        for file in other.glob("events.out.tfevents.*"):
            write_bytes(self.dir / file.name, file.read_bytes())
        link(other / "checkpoints" / "last.ckpt", self.checkpoints / "last.ckpt")

    def discard_if_untrained(self) -> None:
        """Remove a new run's folder if it has no checkpoint. At the start it held nothing."""
        if self.new and not self.trained:
            shutil.rmtree(self.dir, ignore_errors=True)
            if self.dir.parent == Path("runs").resolve():  # of conf/train.yaml
                with contextlib.suppress(OSError):  # it holds other runs
                    self.dir.parent.rmdir()

    def status(self, state: str, reason: str | None = None, error: str | None = None) -> None:
        """Write status.json. On a full disk a failure overwrites it in place."""
        content = {
            "status": state,
            "reason": reason,
            "error": error,
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "pid": os.getpid(),
            "host": platform.node(),
            "sweep": self.sweep,
            "code": self.code,
        }
        try:
            self.write_json("status.json", content)
        except OSError:
            if state not in ("FAILED", "INTERRUPTED"):
                raise
            with contextlib.suppress(OSError), open(self.dir / "status.json", "r+") as file:
                file.write(json.dumps(content) + "\n")
                file.truncate()

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        if self.is_main_process:
            write_text(self.dir / name, json.dumps(content, indent=2) + "\n")

    def write_config(self, settings: Settings) -> None:
        if self.is_main_process:
            content = settings.plain() | {"resume": None}
            write_text(self.dir / "config.yaml", yaml.safe_dump(content, sort_keys=False))

    def write_metrics(self, epochs: list[dict[str, Any]]) -> None:
        """Replace metrics.jsonl: one JSON object an epoch."""
        if self.is_main_process:
            lines = [json.dumps(line) + "\n" for line in epochs]
            write_text(self.dir / "metrics.jsonl", "".join(lines))

    def write_cost(self) -> dict[str, float]:
        """Write cost.json: what the run has cost up to now. A failing write stops no training."""
        cost = self.meter.read()
        with contextlib.suppress(OSError):
            if self.is_main_process:
                write_text(self.meter.file, json.dumps(cost) + "\n")
        return cost

    def complete(self, result: Mapping[str, Any]) -> None:
        """Write the cost and result.json, then the status: a run with a result is COMPLETED."""
        self.write_json("result.json", {**result, **self.write_cost(), "code": self.code})
        self.status("COMPLETED")


def is_main_process() -> bool:
    """Whether this process is the first of those that train together; Lightning starts others."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def refuse_used(path: Path) -> None:
    """Raise ConfigError if a folder holds more than what a killed start leaves.

    Processes that the main one has started may find its files.
    """
    if not is_main_process():
        return
    if (path / "config.yaml").exists():
        raise ConfigError(f"{path} already holds a run; go on with {resume_line(path)}")
    for name in os.listdir(path):
        if name not in (LOCK, "train.log") and not name.endswith(TEMPORARY):
            raise ConfigError(f"{path} is not empty and holds no run; {OTHER_FOLDER}")


def new_run_dir(parent: str, resume: str | None) -> str:
    """The folder of a run: the resumed one, or a new name by time with a random suffix."""
    if resume:
        return os.path.expanduser(resume).rstrip("/")
    return f"{parent}/{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}-{secrets.token_hex(4)}"


def closing_lines(run: Path, best: Mapping[str, Any]) -> str:
    """What to do after a training."""
    return (
        f"best val loss {best['val/loss']:.1f} in epoch {best['epoch']};"
        f" run folder {shell_path(run)}\n"
        f"next: {command_line('evaluate', 'ckpt', run)}\n"
        f"      tensorboard --logdir {shell_path(run.parent)}"
    )

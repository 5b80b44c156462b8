"""Processes that are ended at an event; and a tiny training whose calls to the file system fail.

python tests/faults.py FOLDER STRIDE: trains again and again, each time with another failing call,
and prints a JSON line for every STRIDE-th call of every kind of failure. Each training is a forked
child, so that the libraries are imported once and a process that just ends is one that just ends.
"""

import atexit
import builtins
import contextlib
import errno
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from conftest import TINY  # noqa: E402

from smilevae import cli, runs  # noqa: E402
from smilevae.errors import CheckpointError  # noqa: E402
from smilevae.runs import checkpoint  # noqa: E402
from smilevae.training import fit  # noqa: E402, F401


class Process:
    """A Python process whose output goes to a file of `folder`; it does not outlive the tests."""

    def __init__(self, folder: Path, *words: object, **options):
        self.log = folder / "output"
        command = [sys.executable, *map(str, words)]
        with open(self.log, "w") as out:
            self.popen = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, **options)
        self.pid = self.popen.pid
        atexit.register(self.popen.kill)

    def wait_for(self, event: Callable[[], object], seconds: float = 120) -> None:
        """Wait until event() is true or the process has ended."""
        deadline = time.monotonic() + seconds
        while not event() and self.popen.poll() is None:
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.01)

    def end(self, signum: int | None = None) -> int:
        """Send a signal, if one is given; the exit code."""
        if signum:
            self.popen.send_signal(signum)
        return self.popen.wait(timeout=60)

    def output(self) -> str:
        return self.log.read_text()


KINDS = {
    "full disk": errno.ENOSPC,
    "input/output error": errno.EIO,
    "no permission": errno.EACCES,
    "process exit": None,
}
EXIT = 77
LEFT_OUT = (".lock", ".log")
LASTING = ("full disk", "no permission")  # these go on failing


class Failing:
    """Counts calls that change the folder; from the given one on (or then alone) they fail."""

    def __init__(self, folder: Path, kind: str | None, number: int):
        self.folder = str(folder)
        self.kind = kind
        self.number = number
        self.calls = 0
        for name, position in {"fsync": 0, "mkdir": 0, "replace": 1, "link": 1}.items():
            setattr(os, name, self.guard(getattr(os, name), position))
        builtins.open = io.open = self.open_guard(io.open)

    def strike(self, path: object, *filename: str) -> None:
        if not str(path).startswith(self.folder):
            return
        self.calls += 1
        later = self.kind in LASTING and self.calls > self.number
        if self.kind and (self.calls == self.number or later):
            if KINDS[self.kind] is None:
                os._exit(EXIT)
            raise OSError(KINDS[self.kind], os.strerror(KINDS[self.kind]), *filename)

    def guard(self, real, position: int):
        """A call that may fail; the argument at `position` is a path or an open file."""

        def call(*args, **kwargs):
            path = args[position]
            if isinstance(path, int):
                path = os.readlink(f"/proc/self/fd/{path}")
            self.strike(path, str(path))
            return real(*args, **kwargs)

        return call

    def open_guard(self, real):
        def call(file, mode="r", *args, **kwargs):
            opened = real(file, mode, *args, **kwargs)
            writes = set(mode) & set("wax")  # r+ needs no room
            if writes and isinstance(file, (str, Path)) and not str(file).endswith(LEFT_OUT):
                write = opened.write
                opened.write = lambda data: self.strike(file) or write(data)
            return opened

        return call


def trained(folder: Path, words: tuple[str, ...], kind: str | None = None, number: int = 0):
    """Run train.py in a child: its exit code, the calls it made, and what it said."""
    log = folder.with_suffix(".log")
    child = os.fork()
    if child == 0:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        failing = Failing(folder, kind, number)
        code = 1
        try:
            cli.main(["train", *words])
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        except BaseException as error:
            print(f"Traceback of {type(error).__name__}: {error}", flush=True)
        os.write(out, f"\ncalls {failing.calls}\n".encode())
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    said, _, calls = log.read_text().rpartition("\ncalls ")
    return code, int(calls) if calls.strip().isdigit() else 0, said or calls


def digests(folder: Path) -> dict[str, str | None]:
    """A hash of the weights by the checkpoint's name, None for one that does not load."""
    found: dict[str, str | None] = {}
    for path in sorted((folder / "checkpoints").glob("*.ckpt")):
        found[path.name] = None
        with contextlib.suppress(CheckpointError):
            found[path.name] = checkpoint.digest(checkpoint.load(path).vae)
    return found


def case(folder: Path, words: tuple[str, ...], kind: str, number: int, whole: dict) -> dict:
    """One failure and what follows; `problems` is empty if all is as it should be."""
    shutil.rmtree(folder, ignore_errors=True)
    code, _, said = trained(folder, (f"hydra.run.dir={folder}", *words), kind, number)
    status = runs.state(folder)["status"] if folder.exists() else "NEW"
    completed = status == "COMPLETED"
    loud = status in ("NEW", "FAILED", "COMPLETED") and "error: " in said
    found = digests(folder)
    wrong = {
        f"exit {code}": code not in (0, 1, 2, EXIT),
        "silent success": code == 0 and not completed,
        f"exit {code} with status {status}": code in (1, 2) and not loud,
        "complete, but with other weights": completed and found != whole,
        "traceback": "Traceback" in said,
        f"status {status}": status not in ("NEW", "STALE", "FAILED", "COMPLETED"),
        f"unreadable: {found}": None in found.values(),
    }
    problems = [text for text, holds in wrong.items() if holds]
    if not completed:  # else nobody comes back
        resumable = (folder / "config.yaml").exists()
        again = (f"resume={folder}",) if resumable else (f"hydra.run.dir={folder}", *words)
        code_again, _, complaint = trained(folder, again)
        if code_again != 0 or digests(folder) != whole:
            problems.append(f"not resumed: exit {code_again}, {complaint[-300:]}")
        if left := [path.name for path in folder.rglob(".*.tmp")]:
            problems.append(f"left over: {left}")
    return {"kind": kind, "number": number, "code": code, "status": status, "problems": problems}


def main(home: Path, stride: int) -> None:
    torch.set_num_threads(1)  # a fork inherits no threads
    words = (*TINY, "epochs=2")
    whole_run = home / "whole"
    code, calls, said = trained(whole_run, (f"hydra.run.dir={whole_run}", *words))
    assert code == 0, said
    whole = digests(whole_run)
    for i, kind in enumerate(KINDS):
        for number in range(1 + i, calls + 1, stride):
            print(json.dumps(case(home / "run", words, kind, number, whole)), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]))

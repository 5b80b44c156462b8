"""Trains a tiny run again and again, each time with another call to the file system failing; prints what came of it.

python tests/faults.py FOLDER STRIDE: a JSON line for every STRIDE-th call of every kind of failure. Each training is a
forked child, so that the libraries are imported once and a process that just ends is a process that just ends.
"""

import builtins
import errno
import hashlib
import io
import itertools
import json
import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402

torch.set_num_threads(1)  # a fork inherits no threads

from conftest import TINY  # noqa: E402

from smilevae import cli, runs  # noqa: E402
from smilevae.errors import CheckpointError  # noqa: E402
from smilevae.runs import checkpoint  # noqa: E402
from smilevae.training import fit  # noqa: E402, F401

KINDS = {
    "full disk": errno.ENOSPC,
    "input/output error": errno.EIO,
    "no permission": errno.EACCES,
    "process exit": None,
}
EXIT = 77
LASTING = ("full disk", "no permission")  # these go on failing


class Failing:
    """Counts calls that change the folder; from the given one on (or then alone) they fail."""

    def __init__(self, folder: Path, kind: str | None, number: int):
        self.folder, self.kind, self.number, self.calls = str(folder), kind, number, 0
        for name in ("fsync", "replace", "mkdir", "link"):
            setattr(os, name, self.guard(getattr(os, name), name == "fsync"))
        builtins.open = io.open = self.open_guard(io.open)

    def strike(self, path: object) -> None:
        if not str(path).startswith(self.folder):
            return
        self.calls += 1
        if self.kind and (self.calls == self.number or (self.kind in LASTING and self.calls > self.number)):
            if KINDS[self.kind] is None:
                os._exit(EXIT)
            raise OSError(KINDS[self.kind], os.strerror(KINDS[self.kind]))

    def guard(self, real, by_number: bool):
        def call(*args, **kwargs):
            self.strike(os.readlink(f"/proc/self/fd/{args[0]}") if by_number else args[-1])
            return real(*args, **kwargs)

        return call

    def open_guard(self, real):
        failing = self

        class Guarded:
            def __init__(self, file, path):
                self.file, self.path, self.writes = file, path, 0

            def write(self, data):
                self.writes += 1
                if not self.writes & (self.writes - 1):  # the 1st, 2nd, 4th, ...: a checkpoint has hundreds
                    failing.strike(self.path)
                return self.file.write(data)

            def __getattr__(self, name):
                return getattr(self.file, name)

            def __enter__(self):
                return self

            def __exit__(self, *error):
                self.file.close()

        def call(file, mode="r", *args, **kwargs):
            opened = real(file, mode, *args, **kwargs)
            writes = set(mode) & set("wax") and not str(file).endswith((".lock", ".log"))  # r+ needs no room
            return Guarded(opened, file) if writes and isinstance(file, (str, Path)) else opened

        return call


def trained(folder: Path, words: tuple[str, ...], kind: str | None = None, number: int = 0) -> tuple[int, int, str]:
    """Run train.py in a child: its exit code, the calls it made, and what it said."""
    log = folder.with_suffix(".log")
    child = os.fork()
    if child == 0:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        failing, code = Failing(folder, kind, number), 1
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
    said = log.read_text()
    return code, int(said.rpartition("calls ")[2] or 0) if "\ncalls " in said else 0, said


def digests(folder: Path) -> dict[str, str]:
    """A hash of all weights by the checkpoint's name, and the names among the result."""
    found = {}
    for path in sorted((folder / "checkpoints").glob("*.ckpt")):
        state = checkpoint.read(path)["state_dict"]
        whole = b"".join(t.contiguous().numpy().tobytes() for _, t in sorted(state.items()))
        found[path.name] = hashlib.sha256(whole).hexdigest()
    return found


def readable(folder: Path) -> list[str]:
    """The checkpoints that load, of those there are."""
    found = []
    for path in sorted((folder / "checkpoints").glob("*.ckpt")):
        try:
            checkpoint.load(path)
            found.append(path.name)
        except CheckpointError:
            found.append(f"not {path.name}")
    return found


def case(folder: Path, words: tuple[str, ...], kind: str, number: int, whole: dict[str, str]) -> dict[str, object]:
    """One failure and what follows; `problems` is empty if all is as it should be."""
    shutil.rmtree(folder, ignore_errors=True)
    code, _, said = trained(folder, (f"hydra.run.dir={folder}", *words), kind, number)
    problems = []
    status = runs.state(folder)["status"] if folder.exists() else "NEW"
    if code not in (0, 1, 2, EXIT):
        problems.append(f"exit {code}")
    if code == 0 and status != "COMPLETED":
        problems.append("silent success")
    if code in (1, 2) and (status not in ("NEW", "FAILED", "COMPLETED") or "error: " not in said):
        problems.append(f"exit {code} with status {status}")
    if status == "COMPLETED" and digests(folder) != whole:
        problems.append("complete, but with other weights")
    if "Traceback" in said:
        problems.append("traceback")
    if status not in ("NEW", "STALE", "FAILED", "COMPLETED"):
        problems.append(f"status {status}")
    kept = readable(folder)
    if any(name.startswith("not ") for name in kept):
        problems.append(f"unreadable: {kept}")
    if status != "COMPLETED":  # else nobody comes back
        resumed = f"resume={folder}" if (folder / "config.yaml").exists() else f"hydra.run.dir={folder}"
        more = () if resumed.startswith("resume") else words
        again, _, complaint = trained(folder, (resumed, *more))
        if again != 0 or digests(folder) != whole:
            problems.append(f"not resumed: exit {again}, {complaint[-300:]}")
        if left := [p.name for p in folder.rglob(".*.tmp")]:
            problems.append(f"left over: {left}")
    return {"kind": kind, "number": number, "code": code, "status": status, "kept": kept, "problems": problems}


def main(home: Path, stride: int) -> None:
    words = (*TINY, "epochs=2")
    whole_run = home / "whole"
    code, calls, said = trained(whole_run, (f"hydra.run.dir={whole_run}", *words))
    assert code == 0, said
    whole = digests(whole_run)
    numbers = range(1, calls + 1)
    for kind, number in itertools.chain(*([(k, n) for n in numbers[i::stride]] for i, k in enumerate(KINDS))):
        print(json.dumps(case(home / "run", words, kind, number, whole)), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]))

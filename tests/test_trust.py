"""Nothing is lost: failing writes, kills, signals, full, read-only and moved folders."""

import contextlib
import ctypes
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, TINY, script, slow
from faults import Process
from test_training import assert_same_run

from smilevae import runs
from smilevae.runs import checkpoint

# The marks of a scorecard's whole row; its short version is slow only.
WRITES = pytest.mark.scorecard(
    2, "the Nth write, fsync, replace, mkdir, link fails: old or new, legal, loud, resumable"
)


@slow
@pytest.mark.parametrize("stride", [25, pytest.param(1, marks=WRITES)])
def test_whatever_write_fails_nothing_is_lost(tmp_path, stride, record_property):
    done = script("tests/faults", tmp_path, stride, timeout=3000)
    cases = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, done.stderr[-3000:]
    assert not [case for case in cases if case["problems"]]
    assert len(cases) >= 4 * 60 // stride
    assert {case["code"] for case in cases} >= {1, 77}
    kinds = {case["kind"] for case in cases}
    record_property("figure", f"{len(cases)} failures of {len(kinds)} kinds")


# a checkpoint that takes its time to be written, and says when it is
SLOW_WRITES = """
import os, sys, time
sys.path.insert(0, os.getcwd())
from smilevae.runs import checkpoint
replace = checkpoint.replace_file
def slow(path, write, check=None):
    def gently(file):
        class Slow:
            def write(self, data):
                for start in range(0, len(data), 4096):
                    file.write(data[start:start + 4096])
                    if path.name == "last.ckpt": time.sleep(0.002)
        return write(Slow())
    return replace(path, gently, check)
checkpoint.replace_file = slow
import runpy
sys.argv = ["train.py", *sys.argv[1:]]
runpy.run_path("train.py", run_name="__main__")
"""
KILLS = pytest.mark.scorecard(
    3, "kill -9 inside a checkpoint write, TMPDIR on another file system: resumable"
)


@slow
@pytest.mark.parametrize("kills", [2, pytest.param(30, marks=KILLS)])
def test_a_kill_within_a_checkpoint_write_is_resumed(train, tmp_path, kills, record_property):
    epochs = f"epochs={kills + 8}"  # a kill that comes too late for its write lets one pass
    whole = train(epochs, to="whole")
    run = tmp_path / "cut"
    rng = random.Random(0)
    landed = 0
    words = [f"hydra.run.dir={run}", *TINY, epochs, "checkpoint_every=0"]
    elsewhere = {"TMPDIR": "/dev/shm"} if os.path.isdir("/dev/shm") else {}
    for _ in range(kills):
        process = Process(tmp_path, "-c", SLOW_WRITES, *words, env=os.environ | elsewhere)
        partial = run / "checkpoints" / f".last.ckpt.{process.pid}.smilevae.tmp"
        process.wait_for(partial.exists)
        time.sleep(rng.uniform(0, 0.15))
        assert process.end(signal.SIGKILL) == -signal.SIGKILL, process.output()
        landed += partial.exists()
        for path in run.glob("checkpoints/*.ckpt"):
            checkpoint.load(path)
        words = [f"resume={run}"]
    done = script("train", *words)
    assert done.returncode == 0, done.stderr
    assert not list(run.rglob(".*.tmp"))
    assert_same_run(whole, run)
    assert landed > kills / 2
    figure = f"{kills} of {kills} resumable, {landed} kills before the write was over"
    record_property("figure", f"{figure}; bits equal in the end")


# where a signal is to arrive: a function that says so with a file and dawdles
PHASES = {
    "scan": ("smilevae.data.dataset", "decode_all", "data=folder"),
    "training": ("smilevae.training.module.VAEModule", "training_step", ""),
    "validation": ("smilevae.training.module.VAEModule", "validation_step", ""),
    "checkpoint": ("smilevae.runs.checkpoint", "replace_file", ""),
    "between jobs": ("", "", "-m"),
}
DAWDLE = """
import importlib, os, pkgutil, runpy, sys, time
sys.path.insert(0, os.getcwd())
place, name, mark = sys.argv[1:4]
owner = pkgutil.resolve_name(place)
real, calls = getattr(owner, name), []
def dawdling(*args, **kwargs):
    calls.append(1)
    late = name != "replace_file" or str(args[0]).endswith("last.ckpt")
    if late and (len(calls) >= 4 or name == "decode_all"):
        open(mark, "w").close()
        time.sleep(0.5)
    return real(*args, **kwargs)
setattr(owner, name, dawdling)
sys.argv = ["train.py", *sys.argv[4:]]
runpy.run_path("train.py", run_name="__main__")
"""


SIGTERM = pytest.mark.scorecard(
    5,
    "SIGTERM in scan, training, validation, checkpoint, between jobs: exit 143, resumable, < 10 s",
)
SLOW_PHASES = [pytest.param(name, marks=slow) for name in PHASES if name != "training"]


@SIGTERM
@pytest.mark.parametrize("phase", ["training", *SLOW_PHASES])
def test_a_termination_in_any_phase_is_resumable(tmp_path, pictures, phase, record_property):
    place, name, more = PHASES[phase]
    run, mark = tmp_path / "run", tmp_path / "mark"
    small = [word for word in TINY if not word.startswith("data.")]
    words = [f"hydra.run.dir={run}", *TINY, "epochs=40", "checkpoint_every=0"]
    if phase == "scan":
        words = [f"hydra.run.dir={run}", more, f"data.root={pictures}", "data.cache=false", *small]
    command = ["-c", DAWDLE, place, name, mark, *words]
    if phase == "between jobs":
        words = ["-m", f"hydra.sweep.dir={run}", *TINY, "seed=0,1,2", "epochs=2"]
        command = ["train.py", *words]
    process = Process(tmp_path, *command, start_new_session=True)
    process.wait_for(mark.exists if place else (run / "seed-0" / "result.json").exists)
    sent = time.monotonic()
    assert process.end(signal.SIGTERM) == 143, process.output()
    took = time.monotonic() - sent
    said = process.output()
    assert took < 10, said
    assert "Traceback" not in said
    if phase == "scan":
        assert not run.exists()
        assert "nothing was learnt yet" in said
    else:
        line = re.search(r"to go on: python train.py (.*)", said)
        assert line, said
        words = shlex.split(line[1])
    if phase in ("training", "validation", "checkpoint"):
        words = [*words, "epochs=6"]
    done = script("train", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    record_property("figure", f"{phase} {took:.1f} s")


def without_override() -> None:
    """In a child: let permissions bind root, too, by giving up CAP_DAC_OVERRIDE."""
    ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)


@contextlib.contextmanager
def read_only(*folders: Path):
    for folder in folders:
        folder.chmod(0o555)
    try:
        yield
    finally:
        for folder in folders:
            folder.chmod(0o755)


EVALUATE = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from smilevae.evaluation.options import EvaluateOptions
from smilevae.evaluation.report import evaluate
evaluate(Path(sys.argv[2]).absolute(), EvaluateOptions(ckpt=sys.argv[2]))
"""


@slow
@pytest.mark.scorecard(
    12, "moved run, other working directory, read-only folder: evaluate gives the same to the bit"
)
def test_an_evaluation_is_the_same_wherever_the_run_lies(evaluated_run, tmp_path, record_property):
    expected = evaluated_run / "evaluation" / "best"
    moved = tmp_path / "far" / "away, = 'x'"
    shutil.copytree(evaluated_run, moved, ignore=lambda *_: ["evaluation"])
    best = runs.find(str(moved))
    lone = Path(shutil.copy(best, tmp_path / "lone.ckpt"))
    desk = tmp_path / "desk"
    desk.mkdir()

    def evaluated(path, where, out):
        command = [sys.executable, "-c", EVALUATE, str(ROOT), os.path.relpath(path, where)]
        done = subprocess.run(
            command, cwd=where, capture_output=True, text=True, preexec_fn=without_override
        )
        assert done.returncode == 0, done.stderr
        found = [runs.read_json(folder / "metrics.json") for folder in (expected, where / out)]
        assert all(metrics.pop("checkpoint") for metrics in found)
        assert found[0] == found[1]
        strips = [(folder / "edit_strip.png").read_bytes() for folder in (expected, where / out)]
        assert strips[0] == strips[1]

    evaluated(best, moved, f"evaluation/{best.stem}")
    evaluated(lone, tmp_path, "evaluation")
    shutil.rmtree(moved / "evaluation")
    with read_only(moved, moved / "checkpoints"):
        evaluated(best, desk, f"evaluation-{moved.name}/{best.stem}")
    record_property("figure", "3 places, numbers and pictures equal")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB; needs the right to mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], capture_output=True
    )
    if done.returncode:
        pytest.skip("may not mount a small disk here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def watched(run: Path, spoil, tmp_path: Path) -> tuple[str, int]:
    """Train, `spoil` after two epochs: what was said, and how many epochs were recorded then."""
    words = (f"hydra.run.dir={run}", *TINY, "epochs=100000")
    process = Process(tmp_path, "train.py", *words, preexec_fn=without_override)
    process.wait_for(lambda: len(runs.read_metrics(run)) >= 2)
    spoil()
    before = len(runs.read_metrics(run))
    assert process.end() == 1
    more = len(runs.read_metrics(run)) - before
    assert more <= 1
    assert "Traceback" not in process.output()
    assert runs.state(run)["status"] == "FAILED"
    for path in (run / "checkpoints").glob("*.ckpt"):
        checkpoint.load(path)
    return process.output(), more


def resumed(run: Path) -> None:
    done = script("train", f"resume={run}", f"epochs={len(runs.read_metrics(run)) + 2}")
    assert done.returncode == 0, done.stderr


DISK = pytest.mark.scorecard(
    13, "chmod 555, full disk at a save: loud within an epoch, FAILED, the checkpoints load"
)


@slow
@DISK
def test_a_folder_that_becomes_read_only_is_loud(tmp_path, record_property):
    run = tmp_path / "run"
    with contextlib.ExitStack() as stack:
        spoil = lambda: stack.enter_context(read_only(run, run / "checkpoints"))  # noqa: E731
        said, more = watched(run, spoil, tmp_path)
        assert re.search(r"error: .*Permission denied; make room there", said)
    resumed(run)
    record_property("figure", f"chmod 555: FAILED after {more} more epochs")


@slow
@DISK
def test_a_disk_that_fills_up_is_loud(tmp_path, small_disk, record_property):
    run = small_disk / "run"

    def fill():
        with contextlib.suppress(OSError), open(small_disk / "rubbish", "wb") as file:
            while True:
                file.write(bytes(4096))
                file.flush()

    said, more = watched(run, fill, tmp_path)
    assert re.search(r"error: .*No space left on device; make room there", said)
    (small_disk / "rubbish").unlink()
    resumed(run)
    record_property("figure", f"full disk: FAILED after {more} more epochs")

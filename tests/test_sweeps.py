"""Sweeps: names, plans, the queue; jobs that fail in every way; signals, kills and launchers."""

import contextlib
import hashlib
import itertools
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import pytest
import torch
from conftest import ROOT, TINY, script, slow

from smilevae import runs
from smilevae.config import Settings
from smilevae.errors import ConfigError, UserError
from smilevae.sweeps import claim, jobs, next_task, open_queue
from smilevae.sweeps.plan import Plan, job_name

KNOBS = {"epochs": 3, "lr": 0.1, "data.source": "folder", "data.root": "/a"}
SETTINGS = Settings().with_values(KNOBS)
GRID = ("beta=1,10,50", "batch_size=8,10,12")


def points(*changes: dict) -> list[tuple[str, Settings]]:
    names = [job_name([f"{k}={v}" for k, v in change.items()]) for change in changes]
    return [(name, SETTINGS.with_values(change)) for name, change in zip(names, changes)]


def plan(folder: Path, *changes: dict) -> Plan:
    """The plan of a sweep folder after a grid has joined."""
    new = Plan.read(folder)
    new.add_grid(points(*changes))
    new.begin()
    return new


def sweep(folder: Path, *words: str, code: int = 0, **options) -> subprocess.CompletedProcess:
    done = script("train", "-m", f"hydra.sweep.dir={folder}", *TINY, *words, **options)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def start(command: list[str], **options) -> subprocess.Popen:
    """A command in a process group of its own."""
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True, **options)


def start_sweep(folder: Path, *words: str, out: IO | int = subprocess.DEVNULL) -> subprocess.Popen:
    command = [sys.executable, "train.py", "-m", f"hydra.sweep.dir={folder}", *TINY, *words]
    return start(command, stdout=out, stderr=subprocess.STDOUT, text=True)


def weights(folder: Path) -> dict[str, str]:
    """A hash of all weights of every checkpoint name of every job."""
    found = {}
    for path in sorted(folder.glob("*/checkpoints/epoch-*.ckpt")):
        state = torch.load(path, weights_only=True)["state_dict"]
        content = [t.contiguous().numpy().tobytes() for _, t in sorted(state.items())]
        found[str(path.relative_to(folder))] = hashlib.sha256(b"".join(content)).hexdigest()
    return found


def table(folder: Path) -> dict[str, dict]:
    results = {path.parent.name: runs.read_result(path.parent) for path in results_in(folder)}
    return {name: result["best"] | {"images_per_second": 0} for name, result in results.items()}


def results_in(folder: Path) -> dict[Path, int]:
    """The result of each completed job, and when it was written."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("*/result.json")}


def complete(made: Plan, name: str, **changes) -> Path:
    """Give a job a result without a training."""
    with contextlib.closing(runs.Run(made.folder / name)) as run:
        run.write_config(made.jobs[name].with_values(changes))
        run.complete({})
    return run.dir


def epochs_trained(path: Path) -> list[str]:
    """The epochs that all processes of a job have trained."""
    return re.findall(r"^epoch (\d+)/", (path / "train.log").read_text(), re.MULTILINE)


def assert_equal(folder: Path, other: Path) -> None:
    """Two sweeps have the same statuses, weights and results."""
    assert statuses(folder) == statuses(other)
    assert weights(folder) == weights(other)
    assert table(folder) == table(other)


def statuses(folder: Path) -> dict[str, str]:
    return {name: runs.state(folder / name)["status"] for name in Plan.read(folder).jobs}


@pytest.mark.parametrize(
    ("varied", "name"),
    [
        (["beta=1", "batch_size=32"], "beta-1_batch_size-32"),
        (["+trainer.limit=1"], "trainer.limit-1"),
        (["data.root='/a b=c'"], "data.root---a-b-c-"),
        (["..=.."], "..-.."),
        ([], "job"),
    ],
)
def test_names_survive_a_command_line(varied, name):
    assert job_name(varied) == name
    long = {job_name([*varied, f"data.root={'x' * 300}{i}"]) for i in range(3)}
    assert len(long) == 3  # they stay apart
    assert max(map(len, long)) < 200


def test_a_plan_refuses_changed_settings_by_name_and_value(tmp_path):
    plan(tmp_path / "s", {"beta": 1}, {"beta": 10})
    changed = r"lr=0\.2 would change the results of .*, which has lr=0\.1"
    with pytest.raises(ConfigError, match=changed):
        plan(tmp_path / "s", {"beta": 1, "lr": 0.2}, {"beta": 10, "lr": 0.2})
    with pytest.raises(ConfigError, match="bf16-true"):
        plan(tmp_path / "s", {"beta": 1, "trainer.precision": "bf16-true"})
    moved = {"beta": 1, "data.root": "/moved", "trainer.accelerator": "cpu"}
    again = plan(tmp_path / "s", moved)
    assert list(again.jobs) == ["beta-1", "beta-10"]
    assert Plan.read(tmp_path / "s").jobs["beta-1"].data.root == "/moved"


def test_equal_points_are_one_job_and_equal_names_stay_apart(tmp_path):
    assert [*plan(tmp_path / "a", {"beta": 1}, {"beta": 1}).jobs] == ["beta-1"]
    assert [*plan(tmp_path / "c", {"beta": 1}, {"beta": 1.0}).jobs] == ["beta-1"]
    same = [("x", settings) for _, settings in points({"beta": 1}, {"beta": 2})]
    assert len(set(Plan(tmp_path / "b").add(same))) == 2


def test_a_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("five years")
    with pytest.raises(ConfigError, match="is not empty"):
        plan(tmp_path, {"beta": 1})
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        plan(tmp_path, {"beta": 1})


@pytest.mark.parametrize("many", [True, False])
def test_resume_names_a_run_and_not_a_sweep(tmp_path, call, many):
    plan(tmp_path / "s", {"beta": 1})
    code, errors = call("train", *["-m"] * many, f"resume={tmp_path / 's'}")
    assert (code, len(errors.strip().splitlines())) == (2, 1), errors
    assert "is a sweep, and resume names a run; go on with the line that it printed" in errors
    assert f"hydra.sweep.dir={runs.shell_path(tmp_path / 's')}" in errors


def test_a_sweep_over_what_tells_no_jobs_apart_is_refused(tmp_path):
    """Otherwise it is one job under the name of the first value, trained with the last one."""
    one, two = {"data.root": "/a"}, {"data.root": "/b"}
    with pytest.raises(ConfigError, match=r"data\.root cannot be swept, because it tells no jobs"):
        plan(tmp_path / "s", one, two)
    assert not (tmp_path / "s").exists()
    assert plan(tmp_path / "s", {"beta": 1} | one, {"beta": 2} | two).jobs


def test_a_plan_comes_back_from_its_file(tmp_path):
    made = plan(tmp_path / "s", {"trainer.limit_val_batches": 3, "jitter.shift": 2}, {"beta": 1.5})
    assert vars(Plan.read(tmp_path / "s")) == vars(made)
    late = Plan(tmp_path / "s")  # it was read before the jobs of the other joined
    with pytest.raises(ConfigError, match="was changed by another sweep just now"):
        late.begin()


def test_what_is_left_is_what_did_not_end(tmp_path):
    """A job that was interrupted in this sweep is not handed out again in it."""
    folder = tmp_path / "s"
    names = [*plan(folder, *({"beta": b} for b in range(1, 9))).jobs]
    states = ["COMPLETED", "FAILED", "INTERRUPTED", "RUNNING", "RUNNING", "INTERRUPTED", "RUNNING"]
    held = [runs.Run(folder / name) for name in names[:7]]
    held[5].sweep = "this"
    for run, status in zip(held, states):
        run.status(status, "so")
    held[0].write_json("result.json", {})
    held[6].write_json("status.json", {"status": "RUNNING", "host": "another-host", "pid": 1})
    for run in (*held[:4], *held[5:]):
        run.close()  # the fourth says RUNNING and is not: stale; the fifth runs
    states[3] = "STALE"
    assert [*statuses(folder).values()] == [*states, "NEW"]  # one of another host is never stale
    queue = open_queue(folder, "this")
    waiting = [names[2], names[3], names[6], names[7]]
    assert [name for name, _ in queue.left()] == waiting
    assert [name for name, _ in open_queue(folder, "other").left()] == [*waiting[:2], *names[5:]]
    queue.retry_failed()
    assert [name for name, _ in queue.left()] == [names[1], *waiting]
    held[4].close()


def test_a_claim_is_exclusive_and_a_closed_queue_is_empty(tmp_path):
    plan(tmp_path / "s", {"beta": 1}, {"beta": 2})
    folder = tmp_path / "s"
    _, first, until = claim(folder, "one")
    _, second, _ = claim(folder, "two")
    assert (first.dir.name, second.dir.name, until) == ("beta-1", "beta-2", 3)
    assert claim(folder, "one") is None
    first.close()
    open_queue(folder, "one").close()
    assert (next_task(folder, "one"), next_task(folder, "two")) == (None, ("beta-1", 3))
    second.close()


def sabotaged(tmp_path: Path, program: str) -> dict[str, str]:
    """The environment of processes that run a program before all else."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(program)
    return os.environ | {"PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}"}


NO_FLOCK = """
import errno, fcntl, os
def refused(*arguments):
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
fcntl.flock = refused
"""


@slow
def test_where_flock_is_refused_a_run_works_and_one_process_claims_it(tmp_path):
    """Lustre and some NFS answer flock with ENOSYS."""
    refused = sabotaged(tmp_path, NO_FLOCK)
    done = script("train", f"hydra.run.dir={tmp_path / 'run'}", *TINY, "epochs=1", env=refused)
    assert done.returncode == 0, done.stderr
    assert runs.state(tmp_path / "run")["status"] == "COMPLETED"

    code = "import sys; from smilevae import runs; run = runs.Run(sys.argv[1]);"
    code += "print('claimed', flush=True); input()"
    command = [sys.executable, "-c", code, str(tmp_path / "claimed")]
    options = {"env": refused, "text": True, "stderr": subprocess.PIPE, "stdout": subprocess.PIPE}
    first = start(command, stdin=subprocess.PIPE, **options)
    assert first.stdout.readline() == "claimed\n"
    second = subprocess.run(command, cwd=ROOT, **options)
    assert "in use by another process" in second.stderr
    first.communicate("\n", timeout=20)
    third = subprocess.run(command, cwd=ROOT, input="\n", **options)
    assert third.stdout == "claimed\n", third.stderr


def test_a_sweeper_of_another_package_gets_an_error_for_a_job_without_result(tmp_path, monkeypatch):
    """Also: it may use a folder again with other settings, which must not give the old result."""
    run = runs.Run(tmp_path / "0")
    run.write_config(SETTINGS)
    with pytest.raises(ConfigError, match="holds a run with other settings"):
        jobs.run_job(SETTINGS.with_values({"beta": 2}), tmp_path / "0")
    monkeypatch.setattr(jobs, "in_process", lambda *_: SimpleNamespace(exitcode=1, pid=0))
    with pytest.raises(UserError, match="has no result"):
        jobs.run_job(SETTINGS, tmp_path / "0")
    run.close()


def test_jobs_take_different_gpus_until_none_is_free(tmp_path):
    assert jobs._free_device(tmp_path, 1) is None
    taken = [jobs._free_device(tmp_path, 3) for _ in range(4)]
    assert taken[:3] == [[0], [1], [2]]
    assert taken[3][0] in (0, 1, 2)
    while jobs._held:
        jobs._held.pop().release()


@pytest.mark.parametrize(
    ("words", "sentences"),
    [
        (
            ["beta=1,-1,x", "batch_size=32,0", "model=conv,resnet"],
            ["beta=-1 must", "beta=x must", "batch_size=0 must", "Could not find 'model/resnet'"],
        ),
        (["seed=range(201)"], ["402 jobs, more than 200; if you mean it, add sweep.yes=true"]),
        (["retry_failed=maybe"], ["retry_failed=maybe must be true or false"]),
        (["trainer.devices=2"], ["trainer.devices must be 1 in a sweep"]),
        (["resume=/nowhere"], ["/nowhere is not a run folder"]),
        (["hydra.sweep.dir=README.md"], ["README.md"]),
        (["data=folder"], ["data.root is not set"]),
        (["data=folder", "data.root=/nowhere"], ["/nowhere"]),
        (["threads=1,2"], ["threads cannot be swept, because it tells no jobs apart"]),
        (["trainer=cpu,auto"], ["trainer.accelerator cannot be swept, because it tells no jobs"]),
        (["hydra/launcher=nothing"], ["Could not find 'hydra/launcher/nothing'"]),
        (["sweep.budget=soon"], ["sweep.budget=soon must be a time such as 90s, 10m, 2h or 1d"]),
        (["sweep.halving=1"], ["sweep.halving=1 must be a whole number from 2 to 10"]),
        (["+sweep.halvin=3"], ["sweep.halvin is not an option; did you mean sweep.halving?"]),
        (["sweep.first=3"], ["sweep.first=3 is the first rung's epochs; add sweep.halving=3"]),
        (["sweep.trials=3"], ["sweep.trials is for a search; give a knob an interval"]),
        (["lr=interval(0,1)"], ["say how many points with sweep.trials=N"]),
        (["lr=interval(-5,1)", "sweep.trials=3"], ["lr=-5.0 must be a number from"]),
        (["lr=tag(log,interval(0,1))", "sweep.trials=3"], ["lr=interval(0,1) is no space"]),
        (["sparkle=interval(0,1)", "sweep.trials=3"], ["sparkle is not a knob"]),
        (["num_workers=interval(0,3)", "sweep.trials=3"], ["num_workers cannot be searched"]),
    ],
)
def test_a_mistake_in_a_sweep_is_one_sentence_and_leaves_nothing(call, tmp_path, words, sentences):
    if "interval" in words[0]:
        pytest.importorskip("optuna")
    code, errors = call("train", "-m", f"hydra.sweep.dir={tmp_path / 's'}", "beta=1,2", *words)
    assert code in (2, 3), errors
    assert len(errors.strip().splitlines()) == len(sentences), errors
    assert all(sentence in errors for sentence in sentences), errors
    assert not (tmp_path / "s").exists()


@slow
def test_a_sweep_equals_single_runs_and_new_points_join_it(tmp_path, train):
    """A second call with one more seed runs the new points, and changes no file of the old ones."""
    folder = tmp_path / "s"
    done = sweep(folder, "beta=1,10", "seed=0")
    assert "2 of 2 completed" in done.stdout
    alone = train("beta=10")
    last = "checkpoints/epoch-0002.ckpt"
    assert weights(tmp_path)[f"{alone.name}/{last}"] == weights(folder)[f"beta-10/{last}"]

    files = [path for path in folder.glob("beta-*/**/*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files}
    line = re.search(r"^if this is cut off: python train.py (.*)", done.stdout, re.MULTILINE)[1]
    more = script("train", *shlex.split(line.replace("seed=0", "seed=0,1")))
    assert more.returncode == 0, more.stdout + more.stderr
    assert re.search("^4 jobs in .*, 2 to run", more.stdout, re.MULTILINE)
    names = ["beta-1", "beta-10", "beta-1_seed-1", "beta-10_seed-1"]
    assert statuses(folder) == dict.fromkeys(names, "COMPLETED")
    assert {path: path.stat().st_mtime_ns for path in files} == before

    assert (folder / "analysis" / "index.html").exists()
    compared = script("evaluate", f"ckpt={folder}")
    assert compared.returncode == 0, compared.stderr
    found = json.loads((folder / "analysis" / "top.json").read_text())["configurations"]
    assert [configuration["runs"] for configuration in found] == [2, 2]
    one, two = (configuration["best_run"] for configuration in found)
    assert f"{one} minus {two}, " in compared.stdout


SABOTAGE = """
import os, signal, sys
from smilevae.training.progress import Progress
def at_end(self, trainer, module):
    seed = module.settings.seed
    if seed == 1: raise ZeroDivisionError("a bug")
    if seed == 3: sys.exit(0)
    if seed == 4: os.kill(os.getpid(), signal.SIGKILL)
    if seed == 5: raise MemoryError("cannot allocate 1 TB")
def at_start(self, trainer, module):
    if module.settings.seed == 2 and trainer.current_epoch == 1:
        next(module.vae.parameters()).data.fill_(float("nan"))
Progress.on_train_epoch_end = at_end
Progress.on_train_epoch_start = at_start
"""


@slow
def test_a_job_that_fails_in_any_way_costs_only_itself(tmp_path):
    """Raised, diverged, sys.exit(0), killed, out of memory; then retry_failed runs the five."""
    folder = tmp_path / "s"
    done = sweep(folder, "seed=range(9)", code=1, env=sabotaged(tmp_path, SABOTAGE))
    reasons = {
        "seed-1": "ZeroDivisionError: a bug",
        "seed-2": "the loss became nan in epoch 2",
        "seed-3": "SystemExit: 0",
        "seed-4": "killed by SIGKILL, as the system does when memory runs out",
        "seed-5": "MemoryError: cannot allocate 1 TB",
    }
    states = {name: runs.state(folder / name) for name in statuses(folder)}
    completed = {name for name, state in states.items() if state["status"] == "COMPLETED"}
    assert completed == {"seed-0", "seed-6", "seed-7", "seed-8"}
    for name, reason in reasons.items():
        assert states[name]["status"] == "FAILED"
        assert reason in states[name]["reason"]
        assert re.search(rf"{name} FAILED: .*{re.escape(reason)}", done.stdout)  # when it happened
        assert re.search(rf"{name}: FAILED, .*{re.escape(reason)}", done.stderr)  # and at the end
    assert "5 of 9 jobs did not complete" in done.stderr
    assert "Traceback" not in done.stderr
    assert "ZeroDivisionError" in (folder / "seed-1" / "train.log").read_text()

    assert "0 to run" in sweep(folder, "seed=range(9)", code=1).stdout
    assert set(statuses(folder).values()) == {"COMPLETED", "FAILED"}
    sweep(folder, "seed=range(9)", "retry_failed=true")
    assert set(statuses(folder).values()) == {"COMPLETED"}


def members(group: int) -> list[str]:
    """The living processes of a process group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, pgrp = path.read_text().rpartition(")")[2].split()[:3]
            found += [path.parent.name] * (int(pgrp) == group and state != "Z")
    return found


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@contextlib.contextmanager
def sweep_to_stop(folder: Path, code: int, seconds: float, *words: str):
    """A sweep that the body stops: it ends with an exit code in time, and leaves nobody behind."""
    with open(folder.with_name("out"), "w") as out:
        process = start_sweep(folder, "seed=0,1", *words, out=out)
        try:
            yield process
            assert process.wait(timeout=seconds) == code
        finally:
            wait_for(lambda: not members(process.pid), seconds)


@pytest.mark.parametrize(
    ("whole_group", "signum", "code"),
    [
        (True, signal.SIGINT, 130),
        pytest.param(False, signal.SIGTERM, 143, marks=slow),
        pytest.param(True, signal.SIGTERM, 143, marks=slow),
        pytest.param(False, signal.SIGINT, 130, marks=slow),
    ],
)
def test_a_signal_stops_the_sweep_at_once_and_it_goes_on_later(tmp_path, signum, code, whole_group):
    folder = tmp_path / "s"
    with sweep_to_stop(folder, code, 10, "epochs=400") as process:
        wait_for(lambda: len(runs.read_metrics(folder / "seed-0")) >= 2)
        (os.killpg if whole_group else os.kill)(process.pid, signum)
    printed = (tmp_path / "out").read_text()
    assert statuses(folder) == {"seed-0": "INTERRUPTED", "seed-1": "NEW"}
    assert (folder / "seed-0" / "checkpoints" / "last.ckpt").exists()
    assert "Traceback" not in printed
    again = printed.partition("to go on: python train.py -m ")[2]
    assert f"hydra.sweep.dir={runs.shell_path(folder)}" in again


@pytest.mark.parametrize("seconds", [1.5, pytest.param(4, marks=slow)])
def test_ctrl_c_while_the_libraries_are_imported_is_one_word(tmp_path, seconds):
    with sweep_to_stop(tmp_path / "s", 130, 20) as process:
        wait_for(lambda: len(members(process.pid)) > 1)  # the server of the jobs has begun
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGINT)
    assert "Traceback" not in (tmp_path / "out").read_text()
    assert "interrupted" in (tmp_path / "out").read_text()


TOGETHER = pytest.mark.scorecard(
    11, "sweeps of the same second, two processes on one sweep: each job exactly once"
)


@slow
@TOGETHER
def test_an_orphaned_job_stops_by_itself_and_a_second_sweep_takes_over(tmp_path):
    """The sweep alone is killed with -9; two sweeps then resume at once and share the work."""
    folder = tmp_path / "s"
    words = ("seed=0,1,2,3", "epochs=30")
    process = start_sweep(folder, *words)
    wait_for(lambda: runs.read_metrics(folder / "seed-0"))
    process.kill()
    process.wait()
    wait_for(lambda: not runs.in_use(folder / "seed-0"), 10)
    assert statuses(folder)["seed-0"] == "INTERRUPTED"
    both = [start_sweep(folder, *words, out=subprocess.PIPE) for _ in range(2)]
    printed = [process.communicate(timeout=200)[0] for process in both]
    assert set(statuses(folder).values()) == {"COMPLETED"}
    for name in statuses(folder):
        assert len(epochs_trained(folder / name)) == 30, name  # each once, over all processes
    assert [process.returncode for process in both] == [0, 0], printed


@slow
def test_two_at_a_time_give_the_same_bits(tmp_path):
    words = ("seed=0,1,2", "trainer.precision=${fast_precision:}")
    sweep(tmp_path / "one", *words)
    sweep(tmp_path / "two", *words, "hydra/launcher=local")
    assert_equal(tmp_path / "one", tmp_path / "two")


KILLED = pytest.mark.scorecard(
    1, "kill -9 at random moments of a sweep: nothing lost or run again, equal in the end"
)


def crash_until_done(folder: Path, words: tuple, kills: int, least: float, most: float) -> int:
    """kill -9 the process group of a sweep so many times, each after `least` to `most` seconds.

    It is started again with the line that it printed. What is completed is not touched again.
    Gives the number of starts.
    """
    rng = random.Random(0)
    first = [f"hydra.sweep.dir={folder}", *TINY, *words]
    command = [sys.executable, "train.py", "-m", *first]
    out = folder.with_name("out")
    finished: dict[Path, int] = {}
    for number in itertools.count():
        with open(out, "w") as file:
            process = start(command, stdout=file, stderr=file)
        try:
            code = process.wait(timeout=rng.uniform(least, most) if number < kills else 600)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for path, before in finished.items():
            assert path.stat().st_mtime_ns == before, path  # neither lost nor run again
        finished = results_in(folder)
        if process.returncode >= 0:
            assert code == 0, out.read_text()
            assert number == kills  # else it was over before the kills
            return number + 1
        if printed := re.search(r"if this is cut off: python train.py (.*)", out.read_text()):
            command = [sys.executable, "train.py", *shlex.split(printed[1])]


@slow
@pytest.mark.parametrize(
    ("kills", "grid", "most"),
    [
        (2, ("seed=0,1", "epochs=30", "checkpoint_every=1"), 6),
        pytest.param(50, (*GRID, "epochs=400", "checkpoint_every=1"), 12, marks=KILLED),
    ],
)
def test_a_killed_sweep_ends_as_if_it_never_was(tmp_path, kills, grid, most, record_property):
    sweep(tmp_path / "whole", *grid, timeout=1500)
    starts = crash_until_done(tmp_path / "cut", grid, kills, 0.3, most)
    assert_equal(tmp_path / "cut", tmp_path / "whole")
    num = len(table(tmp_path / "cut"))
    record_property("figure", f"{kills} kills, {starts} starts, {num} jobs")


@slow
@pytest.mark.parametrize("num", [2, pytest.param(20, marks=TOGETHER)])
def test_sweeps_of_one_second_have_folders_of_their_own(tmp_path, num, record_property):
    """Each in its own folder, and every result belongs to its command."""
    command = [sys.executable, str(ROOT / "train.py"), "-m", *TINY, "epochs=1"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    grids = [f"seed={2 * i},{2 * i + 1}" for i in range(num)]
    every = [subprocess.Popen([*command, grid], **quiet) for grid in grids]
    assert [process.wait(timeout=600) for process in every] == [0] * num
    folders = list((tmp_path / "multirun").iterdir())
    assert len(folders) == num
    seeds = []
    for path in (tmp_path / "multirun").glob("*/seed-*"):
        seeds.append(runs.read_result(path)["settings"]["seed"])
        assert path.name == f"seed-{seeds[-1]}"
        assert runs.read_settings(path).seed == seeds[-1]
    assert sorted(seeds) == list(range(2 * num))
    record_property("figure", f"{num} folders, {len(seeds)} results, each its command's")


@slow
def test_memory_does_not_grow_with_jobs(tmp_path):
    """The sweep's own process after job 20 within 10% of after job 2, and so the jobs' peaks."""
    process = start_sweep(tmp_path / "s", "seed=range(22)")
    resident = {}
    while process.poll() is None:
        done = len(list((tmp_path / "s").glob("*/result.json")))
        with contextlib.suppress(OSError, IndexError):
            status = Path(f"/proc/{process.pid}/status").read_text()
            resident[done] = int(re.findall(r"VmRSS:\s+(\d+)", status)[0])
        time.sleep(0.05)
    assert process.returncode == 0
    early, late = (runs.read_result(tmp_path / "s" / f"seed-{n}") for n in (1, 19))
    assert resident[20] < 1.1 * resident[2]
    assert late["peak_memory_mb"] < 1.1 * early["peak_memory_mb"]


SBATCH = """#!/usr/bin/env bash
# a Slurm of one machine: runs every task of an array, or the one job, in the background
script="${!#}"; tools="$(dirname "$0")"; echo "$script" >> "$tools/submitted"
id=$((76 + $(wc -l < "$tools/submitted")))
export SLURM_JOB_ID=$id SLURM_JOB_NUM_NODES=1 SLURM_NTASKS=1
export SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 SLURM_JOB_NODELIST=localhost
cp "$script" "$tools/submitted.sh"
range=$(sed -n 's/^#SBATCH --array=\\([0-9-]*\\).*/\\1/p' "$script")
if [[ "$range" ]]; then
  for task in $(seq "${range%-*}" "${range#*-}"); do
    SLURM_ARRAY_JOB_ID=$id SLURM_ARRAY_TASK_ID=$task setsid bash "$script" >/dev/null 2>&1 &
  done
else
  setsid bash "$script" >/dev/null 2>&1 &
fi
echo "Submitted batch job $id"
"""
SRUN = """#!/usr/bin/env bash
while [[ "$1" != *python* ]]; do shift; done
exec "$@"
"""
SACCT = """#!/usr/bin/env bash
echo 'JobID|State|NodeList'
for id in 77 78 79 80; do
  echo "$id|RUNNING|localhost"
  for task in 0 1 2; do echo "${id}_$task|RUNNING|localhost"; done
done
"""


@slow
def test_slurm_up_to_a_fake_sbatch(tmp_path):
    """The real launcher writes the real script; a stand-in for sbatch, srun and sacct runs it."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("sacct", SACCT)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    path = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"}
    own = [f"hydra.launcher.{option}" for option in ("partition=debug", "cpus_per_task=1")]
    sweep(tmp_path / "s", "seed=0,1,2", "hydra/launcher=slurm", *own, env=path)
    sweep(tmp_path / "s", "seed=3", "hydra/launcher=slurm", *own, env=path)  # no array
    assert list(statuses(tmp_path / "s").values()) == ["COMPLETED"] * 4
    script = (tools / "submitted.sh").read_text()
    assert "#SBATCH --partition=debug" in script
    assert "#SBATCH --cpus-per-task=1" in script

"""The jobs of a sweep. Each trains in its own process: a crash ends one job only."""

import contextlib
import logging
import math
import multiprocessing
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import connection, forkserver, resource_tracker
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from smilevae import console, runs
from smilevae.config import SAME_RESULT, Settings
from smilevae.errors import ConfigError, Paused, UserError
from smilevae.sweeps import plan

ID = "SMILEVAE_SWEEP"  # environment variable: the sweep that a job belongs to
MAX_FORECASTS = 4  # datasets
MAX_KINDS = 8  # of steps that differ in speed
BUSY = 75  # exit code of a job that another sweep runs
GRACE = 8.0  # seconds between a signal and the end


def in_process(function: Callable[..., None], *arguments: Any) -> Any:
    """Call a function in a process forked from a server that has imported torch. Gives the ended process."""
    multiprocessing.set_start_method(None, force=True)  # joblib may have set its own
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["__main__", "smilevae.training.fit", "tensorboard"])
    resource_tracker.ensure_running()  # it unblocks signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Ctrl-C would interrupt the server's imports
    forkserver.ensure_running()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    process = server.Process(target=function, args=arguments)
    process.start()
    process.join()
    return process


@console.one_sentence()
def forecast(points: list[Settings], epochs: list[float], at_once: int) -> None:
    """Print the forecast of every point, and how long their `epochs` take. Raises DataError for faces not readable."""
    from smilevae.data import load_faces, spectrum_of
    from smilevae.models import linear

    runs.Stop().install()
    wanted: dict[Any, dict[Any, None]] = {}
    for settings in points:
        faces, point = (settings.data, settings.image_size), (settings.beta, settings.latent_dim)
        wanted.setdefault(faces, {})[point] = None
    for (data, image_size), targets in list(wanted.items())[:MAX_FORECASTS]:
        least = max(latent_dim for _, latent_dim in targets)
        spectrum = spectrum_of(load_faces(data, image_size), least)
        for target in targets:
            print(linear.forecast(spectrum, *target), flush=True)
    if seconds := _duration(points, epochs, at_once):
        print(f"about {_rounded(seconds)}, from a few timed steps; evaluations are not counted", flush=True)


def _rounded(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _duration(points: list[Settings], epochs: list[float], at_once: int) -> float | None:
    """The expected seconds of a sweep; None on a GPU, for second phases, and for many different steps."""
    import torch

    from smilevae.data import load_faces
    from smilevae.training.speed import START, seconds_per_epoch

    points, epochs = [p for p, num in zip(points, epochs) if num], [num for num in epochs if num]
    kinds = [(p.model.network, *p.model.widths, p.image_size, p.batch_size) for p in points]
    if not points or torch.cuda.is_available() or len(set(kinds)) > MAX_KINDS or any(p.sharpen.epochs for p in points):
        return None
    runs.keep_memory()
    faces = load_faces(points[0].data, points[0].image_size)
    epoch = {kind: seconds_per_epoch(settings, faces) for kind, settings in dict(zip(kinds, points)).items()}
    return sum(START + epoch[kind] * num for kind, num in zip(kinds, epochs)) / at_once


def run_job(settings: Settings, path: Path) -> float:
    """Train one point of a sweep in its own process. Gives val/nelbo of its best epoch.

    In a sweep with rungs the process trains the job that is next, and the value is infinite if that is another one.
    Raises UserError if there is no result: a Hydra sweeper then counts a failure.
    """
    sweep, folder = os.environ.get(ID), path.parent
    rungs = sweep is not None and plan.read_halving(folder) is not None
    known = sweep is not None or not (path / "config.yaml").exists()  # our sweeper has compared them
    if not known and runs.read_settings(path).result_settings() != settings.result_settings():
        raise ConfigError(f"{path} holds a run with other settings; choose another hydra.sweep.dir")
    if not (folder / f".stop-{sweep}").exists() and (rungs or runs.state(path)["status"] != "COMPLETED"):
        if sweep:
            plan.check_code(folder)
        process = in_process(_next_job if rungs else _job, settings, folder if rungs else path, sweep)
        if process.exitcode != BUSY:
            _record_death(list(plan.read(folder)) if rungs else [path.name], folder, process)
    if best := runs.read_result(path).get("best"):
        return best["val/nelbo"]
    if rungs:
        return math.inf
    raise UserError(f"{path} has no result; see its status.json and train.log")


def _record_death(names: list[str], folder: Path, process: Any) -> None:
    """Write the status of a job whose process ended without one."""
    for path in (folder / name for name in names):
        state, code = runs.state(path), process.exitcode
        if (state["status"] == "NEW" and len(names) == 1) or (state["status"], state["pid"]) == ("STALE", process.pid):
            with contextlib.suppress(ConfigError):  # another sweep has claimed it
                run = runs.Run(path)
                reason = f"the process ended with exit code {code} and without a result"
                reason = f"killed by {signal.Signals(-code).name}" if code < 0 else reason
                run.status("FAILED", reason + ", as the system does when memory runs out" * (-code == signal.SIGKILL))
                run.close()


@console.one_sentence()
def _next_job(settings: Settings, folder: Path, sweep: str | None) -> None:
    """Train the next job of a sweep with rungs to the end of its rung. One process at a time chooses."""
    halving, jobs = plan.read_halving(folder), plan.read(folder)
    assert halving is not None
    with FileLock(folder / ".next"):
        if not (left := halving.left()):
            return
        name, epochs = left[0]
        run = runs.Run(folder / name)
    own = settings.with_values(jobs[name].settings.result_settings())
    _train(own, run, sweep, epochs if epochs < own.epochs else None)


@console.one_sentence()
def _job(settings: Settings, path: Path, sweep: str | None) -> None:
    """Train in this process."""
    try:
        run = runs.Run(path)
    except ConfigError:
        sys.exit(BUSY)
    if runs.state(path)["status"] != "COMPLETED":
        _train(settings, run, sweep)


def _train(settings: Settings, run: runs.Run, sweep: str | None, until: int | None = None) -> None:
    """Train in a claimed run folder. The output goes to train.log."""
    path, stop = run.dir, runs.Stop()
    stop.install()
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    log = open(path / "train.log", "a", buffering=1)  # noqa: SIM115, open until the process ends
    for stream in (1, 2):
        os.dup2(log.fileno(), stream)
    sys.stdout = sys.stderr = log
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=log, force=True)
    run.sweep = sweep
    with contextlib.suppress(Paused), run.recording():
        if not run.can_resume and (first := plan.prefix(path.parent, settings)):
            print(f"the first epochs are those of {first.name}")
            run.write_config(settings)
            run.begin_from(first)
        if run.trained:
            settings = runs.settings_for_resume(str(path), settings, set(SAME_RESULT))
            settings = settings.with_values({"resume": str(path)})
        run.write_config(settings)
        import torch

        from smilevae.evaluation import report
        from smilevae.training.fit import fit

        console.quiet_lightning()
        fit(settings, run, stop, report.after_training, _free_device(path.parent, torch.cuda.device_count()), until)


def _stop_with_parent() -> None:
    """End this job with SIGTERM when the process of its sweep ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


_held: list[FileLock] = []  # locks that are held until the process ends


def _free_device(folder: Path, num: int) -> list[int] | None:
    """The first free one of `num` GPUs of this machine; None if there are fewer than two."""
    if num < 2:
        return None
    for device in range(num):
        lock = FileLock(folder / f".gpu-{platform.node()}-{device}", timeout=0)
        with contextlib.suppress(Timeout):
            lock.acquire()
            _held.append(lock)
            return [device]
    return [os.getpid() % num]


def stop_jobs(folder: Path, names: list[str], sweep: str, signum: int) -> None:
    """Signal the jobs of a sweep on this machine; wait for their end, GRACE at most."""
    (folder / f".stop-{sweep}").touch()  # no other job begins
    here = {"status": "RUNNING", "host": platform.node(), "sweep": sweep}
    ours = {
        path: state["pid"]
        for path in map(folder.joinpath, names)
        if here.items() <= (state := runs.state(path)).items()
    }
    for pid in ours.values():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signum)
    end = time.monotonic() + GRACE
    while time.monotonic() < end and any(map(runs.in_use, ours)):
        time.sleep(0.05)

"""Workers and jobs. Each job trains in its own process: a crash ends one job only."""

import contextlib
import logging
import multiprocessing
import os
import platform
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing import connection, forkserver, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from smilevae import console, runs
from smilevae.config import SAME_RESULT, Settings
from smilevae.errors import ConfigError, Paused, UserError
from smilevae.sweeps import claim, next_task, open_queue
from smilevae.sweeps.mps import SHARE
from smilevae.sweeps.queue import stop_file

ID = "SMILEVAE_SWEEP"  # environment variable of a worker: the id of its sweep
ONE_JOB = "SMILEVAE_ONE_JOB"  # environment variable of a worker that ends after one job
MAX_FORECASTS = 4  # datasets
POLL = 0.25  # seconds


def in_process(function: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Call a function in a process forked from a server that has imported torch.

    Gives the ended process.
    """
    multiprocessing.set_start_method(None, force=True)  # joblib may have set its own
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["__main__", "smilevae.sweeps.server"])
    resource_tracker.ensure_running()  # it unblocks signals

    # Ctrl-C would interrupt the server's imports.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    forkserver.ensure_running()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)

    child = server.Process(target=function, args=arguments)
    child.start()
    child.join()
    return child


@console.one_sentence()
def forecast(points: list[Settings]) -> None:
    """Print the forecast of a linear VAE for every point.

    Raises DataError for faces that cannot be read.
    """
    from smilevae.data.dataset import load_faces, spectrum_of
    from smilevae.models import linear

    runs.Stop().install()
    wanted: dict[Any, dict[Any, None]] = {}
    for settings in points:
        images = (settings.data, settings.image_size, settings.channels)
        targets = wanted.setdefault(images, {})
        targets[settings.beta, settings.latent_dim] = None
    for images, targets in list(wanted.items())[:MAX_FORECASTS]:
        least = max(latent_dim for _, latent_dim in targets)
        spectrum = spectrum_of(load_faces(*images), least)
        for target in targets:
            print(linear.forecast(spectrum, *target), flush=True)


def work(folder: Path) -> None:
    """Train jobs of a sweep folder until its queue is empty. Raises UserError if one cannot begin.

    This is what a launcher runs; the sweeper has set the environment.
    """
    sweep = os.environ[ID]
    while task := next_task(folder, sweep):
        job = in_process(_next_job, folder, sweep)
        for name in open_queue(folder).jobs:
            _record_death(folder / name, job)
        if job.exitcode and next_task(folder, sweep) == task:
            raise UserError(f"the process of {task[0]} ended with exit code {job.exitcode}")
        if ONE_JOB in os.environ:
            return


@console.one_sentence()
def _next_job(folder: Path, sweep: str) -> None:
    """Train the job that is next in a queue."""
    claimed = claim(folder, sweep)
    if not claimed:
        return
    queue, run, until = claimed
    settings = queue.jobs[run.dir.name]
    with _recording(run) as stop:
        if runs.code() != queue.code:
            print(queue.changed_program(runs.code()))
        beginning = queue.beginning(run.dir.name)
        if beginning and not run.can_resume:
            print(f"the first epochs are those of {beginning.name}")
            run.write_config(settings)
            run.begin_from(beginning)
        _train(settings, run, stop, until if until < settings.epochs else None)


def run_job(settings: Settings, path: Path) -> float:
    """Train a job of another package's sweeper. Gives val/nelbo of its best epoch.

    Raises UserError if there is no result: the sweeper then counts a failure.
    """
    if (path / "config.yaml").exists():
        before = runs.read_settings(path)
        if before.result_settings() != settings.result_settings():
            remedy = "choose another hydra.sweep.dir"
            raise ConfigError(f"{path} holds a run with other settings; {remedy}")
    if runs.state(path)["status"] != "COMPLETED":
        _record_death(path, in_process(_one_job, settings, path))
    best = runs.read_result(path).get("best")
    if not best:
        raise UserError(f"{path} has no result; see its status.json and train.log")
    return best["val/nelbo"]


@console.one_sentence()
def _one_job(settings: Settings, path: Path) -> None:
    run = runs.Run(path)
    with _recording(run) as stop:
        _train(settings, run, stop)


@contextlib.contextmanager
def _recording(run: runs.Run) -> Iterator[runs.Stop]:
    """Record the end of a job. Its output goes to train.log; a signal and its sweep can stop it."""
    stop = runs.Stop()
    stop.install()
    threading.Thread(target=_stop_with_sweep, args=[run], daemon=True).start()
    log = open(run.dir / "train.log", "a", buffering=1)  # noqa: SIM115, until the process ends
    for stream in (1, 2):
        os.dup2(log.fileno(), stream)
    sys.stdout = sys.stderr = log
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=log, force=True)
    with contextlib.suppress(Paused), run.recording():
        yield stop


def _train(settings: Settings, run: runs.Run, stop: runs.Stop, until: int | None = None) -> None:
    """Train, from the last checkpoint if there is one; pause after the epoch `until`."""
    if run.trained:
        resume = str(run.dir)
        settings = runs.settings_for_resume(resume, settings, set(SAME_RESULT))
        settings = settings.with_values({"resume": resume})
    run.write_config(settings)
    run.meter.share = float(os.environ.get(SHARE, 1))
    import torch

    from smilevae.evaluation import report
    from smilevae.training.fit import fit

    console.quiet_lightning()
    devices = _free_device(run.dir.parent, torch.cuda.device_count())
    fit(settings, run, stop, report.after_training, devices, until)


def _stop_with_sweep(run: runs.Run) -> None:
    """End this job with SIGTERM when its sweep closes the queue, or when its worker ends."""
    worker = multiprocessing.parent_process()
    assert worker is not None
    closed = stop_file(run.dir.parent, run.sweep)
    while not closed.exists():
        if connection.wait([worker.sentinel], POLL):
            run.sweep = None  # other workers of the sweep may go on with it
            break
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


def _record_death(path: Path, job: BaseProcess) -> None:
    """Write the status of a run whose process ended without one."""
    state = runs.state(path)
    if (state["status"], state["pid"]) != ("STALE", job.pid):
        return
    code = job.exitcode or 0
    reason = f"the process ended with exit code {code} and without a result"
    if code < 0:
        reason = f"killed by {signal.Signals(-code).name}"
    if code == -signal.SIGKILL:
        reason += ", as the system does when memory runs out"
    with contextlib.suppress(ConfigError), contextlib.closing(runs.Run(path)) as run:
        run.status("FAILED", reason)  # unless another sweep has claimed it

"""The jobs of a sweep: each trains in a process of its own, whose end costs nobody else anything."""

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing import connection
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from smilevae import console, runs
from smilevae.config import Settings
from smilevae.errors import ConfigError, Interrupted, UserError

ID = "SMILEVAE_SWEEP"  # environment variable: which sweep a worker belongs to
MAX_FORECASTS = 4  # sets of faces that are read before the first job
BUSY = 75  # exit code of a job that another sweep already runs


def _server() -> Any:
    """A server that has imported torch and Lightning; the processes of the jobs are forked from it."""
    multiprocessing.set_start_method(None, force=True)  # joblib's workers have set one that only joblib knows
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["__main__", "smilevae.training.fit", "tensorboard"])
    return server


def forecast(points: list[Settings]) -> int:
    """Print what a linear VAE would reach at every point. The exit code is not 0 if no faces can be read."""
    process = _server().Process(target=_forecast, args=(points,))
    process.start()
    process.join()
    return process.exitcode or 0


def _forecast(points: list[Settings]) -> None:
    from smilevae.data import load_faces, spectrum_of
    from smilevae.models import linear

    runs.Stop().install()
    spectra: dict[tuple[str, int], Any] = {}
    printed = set()
    try:
        for settings in points:
            faces = settings.data.model_dump_json(), settings.image_size
            if faces not in spectra and len(spectra) < MAX_FORECASTS:
                spectra[faces] = spectrum_of(load_faces(settings.data, settings.image_size), settings.data.cache)
            point = faces, settings.beta, settings.latent_dim
            if faces in spectra and point not in printed:
                printed.add(point)
                print(linear.forecast(spectra[faces], settings.beta, settings.latent_dim), flush=True)
    except UserError as error:
        console.end(str(error), error.exit_code)
    except Interrupted as stopped:
        sys.exit(stopped.exit_code)


def run_job(settings: Settings, path: Path) -> float | None:
    """Train one point of a sweep in a process of its own; gives val/nelbo of its best epoch, None without a result.

    Every outcome is in the run folder; nothing is raised but a signal to this process.
    """
    if not (path.parent / f".stop-{os.environ.get(ID)}").exists() and runs.state(path)["status"] != "COMPLETED":
        process = _server().Process(target=_job, args=(settings, path, os.environ.get(ID)))
        process.start()
        process.join()
        if process.exitcode != BUSY:
            _record_death(path, process.exitcode or 0)
    best = runs.read_result(path).get("best")
    return best.get("val/nelbo") if isinstance(best, dict) else None


def _record_death(path: Path, code: int) -> None:
    """Write the status of a job whose process ended before it could write its own."""
    with contextlib.suppress(ConfigError):  # another sweep has claimed it
        run = runs.Run(path)
        if runs.state(path)["status"] in ("RUNNING", "STALE", "NEW"):
            reason = f"the process ended with exit code {code} and without a result"
            if code < 0:
                reason = f"killed by {signal.Signals(-code).name}"
                reason += ", as the system does when memory runs out" if -code == signal.SIGKILL else ""
            run.status("FAILED", reason)
        run.close()


def _job(settings: Settings, path: Path, sweep: str | None) -> None:
    """The process of a job: output goes to its train.log, its status to its folder; a signal leaves a checkpoint."""
    stop = runs.Stop()
    stop.install()
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    log = open(path / "train.log", "a", buffering=1)  # noqa: SIM115, for as long as the process lives
    for stream in (1, 2):
        os.dup2(log.fileno(), stream)
    sys.stdout = sys.stderr = log
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=log, force=True)
    try:
        run = runs.Run(path)
    except ConfigError:
        sys.exit(BUSY)
    run.sweep = sweep
    if runs.state(path)["status"] == "COMPLETED":
        return
    try:
        with run.recording():
            if run.trained:
                settings = runs.continued(str(path), settings, {"data", "num_workers", "log_images_every", "evaluate"})
            run.write_config(settings)
            from smilevae.training.fit import fit

            console.quiet_lightning()
            settings = settings.with_values({"resume": str(path) if run.trained else None})
            fit(settings, run, stop, _free_device(path.parent))
    except UserError as error:
        logging.error(str(error))
        sys.exit(error.exit_code)
    except Interrupted as stopped:
        sys.exit(stopped.exit_code)


def _stop_with_parent() -> None:
    """End this job with SIGTERM when its sweep is killed, so that nobody waits for an orphan."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


_held: list[FileLock] = []  # locks that live as long as the process


def _free_device(folder: Path, num: int | None = None) -> list[int] | None:
    """The first of several GPUs that no other job of the sweep on this machine holds; None where there is no choice."""
    if num is None:
        import torch

        num = torch.cuda.device_count()
    if num < 2:
        return None
    for device in range(num):
        lock = FileLock(folder / f".gpu-{os.uname().nodename}-{device}", timeout=0)
        with contextlib.suppress(Timeout):
            lock.acquire()
            _held.append(lock)
            return [device]
    return [os.getpid() % num]

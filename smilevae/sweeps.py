"""A sweep: which jobs it has, which are left, each in a process of its own, and how it stands.

sweep.json    the command, and every job's folder name with its overrides and settings
sweep.log     one line for every change        <job>/    a run folder each; see runs.py
analysis/     written by multirun_analysis
"""

import contextlib
import datetime
import fcntl
import hashlib
import json
import logging
import math
import multiprocessing
import os
import re
import secrets
import shlex
import signal
import sys
import threading
import time
from multiprocessing import connection
from pathlib import Path
from typing import IO, Any

from smilevae import ConfigError, UserError, knobs, runs

GRACE = 8.0  # seconds that jobs have to write a checkpoint after a signal
RANK_BY = "val/nelbo"  # comparable across beta
SHOWN = (RANK_BY, "val/psnr", "val/kl")
GROUPS = ("data", "model", "trainer", "experiment", "hydra/launcher")
LAUNCHING = ("n_jobs", "partition", "account", "qos", "cpus_per_task", "gpus_per_node", "mem_gb", "timeout_min")
ID = "SMILEVAE_SWEEP"  # environment variable: which sweep a worker belongs to
MAX_NAME = 150
MAX_FORECASTS = 4  # sets of faces that are looked at before the first job
BUSY = 75  # exit code of a job that another sweep already runs


class Plan:
    """The jobs of a sweep folder by name, with what a resumed sweep adds to them.

    `jobs` maps a folder name to {"overrides", "settings"}; `wanted` lists the names that this command asks for.
    Raises ConfigError if the folder holds something else, or if a fixed knob that changes results was changed.
    """

    def __init__(self, folder: Path, points: list[tuple[str, list[str], dict[str, Any]]], argv: list[str]):
        once = ("hydra.sweep.dir=", "retry_failed=")
        self.folder, self.argv = folder, [text for text in argv if not text.startswith(once)]
        self.jobs: dict[str, dict[str, Any]] = read(folder).get("jobs", {}) if folder.exists() else {}
        if not self.jobs and folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty and holds no sweep; choose another hydra.sweep.dir")
        new = [(name, overrides, runs.decisive(settings)) for name, overrides, settings in points]
        self._refuse_changes([settings for _, _, settings in new])
        known = {_key(job["settings"]): name for name, job in self.jobs.items()}
        self.wanted: list[str] = []
        places: dict[str, list[Any]] = {}
        for (wish, overrides, settings), (_, _, whole) in zip(new, points):
            paths = [whole["data"].get("root"), whole["data"].get("unlabelled")]
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
            job["settings"] = knobs.SINCE | job["settings"]
        if not all(isinstance(word, str) for word in content["argv"]):
            raise ValueError
        return content
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"{folder}/sweep.json cannot be read; restore it, or start a new sweep") from None


def full_command(argv: list[str]) -> list[str]:
    """A command line in which resume=SWEEP stands for the sweep's own command; later values win."""
    for text in argv:
        path = Path(os.path.expanduser(text.removeprefix("resume=").strip("'\"")))
        if text.startswith("resume=") and os.path.exists(path / "sweep.json"):
            given = [a for a in argv if a != text and a not in ("-m", "--multirun")]
            keys = {a.partition("=")[0] for a in given}
            before = [a for a in read(path).get("argv", []) if a.partition("=")[0] not in keys]
            if strange := [word for word in before if not _harmless(word)]:
                raise ConfigError(f"{path}/sweep.json asks for {strange[0]}, which a file may not; type the command")
            return [*before, *given, runs.override("hydra.sweep.dir", str(path))]
    return argv


def _harmless(word: str) -> bool:
    """Whether a word of a sweep.json, which may be a stranger's, may stand on a command line: Hydra believes those."""
    key, _, value = word.partition("=")
    if key in GROUPS or key in (f"hydra.launcher.{name}" for name in LAUNCHING):
        return re.fullmatch(r"[\w.,-]+", value) is not None
    known = key in knobs.KNOBS or key == "sweep.yes" or key.lstrip("+").startswith("trainer.")
    return word in ("-m", "--multirun") or (known and "$" not in value and "_target_" not in value)


def job_name(varied: list[str]) -> str:
    """A job's folder, from the overrides that its sweep varies: beta-1_batch_size-32."""
    name = re.sub(r"[^\w.+-]", "-", "_".join(text.lstrip("+").replace("=", "-", 1) for text in varied))
    if len(name) > MAX_NAME:
        name = f"{name[:MAX_NAME]}_{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"
    return name if name.strip(".") else "job"


def _key(settings: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16).hexdigest()


# processes


def _server() -> Any:
    """Forks processes that have torch and Lightning imported already, from a server that has done nothing else."""
    multiprocessing.set_start_method(None, force=True)  # joblib's workers have set one that only joblib knows
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["__main__", "smilevae.training", "tensorboard"])
    return server


def forecast(points: list[dict[str, Any]]) -> int:
    """Print what a linear VAE would reach at every point; the exit code, not 0 if the faces cannot be read at all."""
    process = _server().Process(target=_forecast, args=(points,))
    process.start()
    process.join()
    return process.exitcode or 0


def _forecast(points: list[dict[str, Any]]) -> None:
    from smilevae import console, datasets, linear

    runs.Stop().install()
    told: dict[str, Any] = {}
    try:
        for settings in points:
            faces = json.dumps([settings["data"], settings["image_size"]])
            if faces not in told and len(told) < MAX_FORECASTS:
                found = datasets.load_faces(**settings["data"], image_size=settings["image_size"])
                told[faces] = datasets.spectrum_of(found, settings["data"].get("cache", True)), set()
            spectrum, done = told.get(faces, (None, set()))
            if spectrum and (point := (settings["beta"], settings["latent_dim"])) not in done:
                done.add(point)
                print(linear.forecast(spectrum, *point), flush=True)
    except UserError as error:
        console.end(str(error), error.exit_code)
    except runs.Interrupted as stopped:
        sys.exit(stopped.exit_code)


def run_job(settings: dict[str, Any], path: Path) -> None:
    """Train one point of a sweep in a process of its own, whose end costs nobody else anything.

    Every outcome is in the run folder; nothing is raised but a signal to this process.
    """
    if (path.parent / f".stop-{os.environ.get(ID)}").exists() or runs.state(path)["status"] == "COMPLETED":
        return
    process = _server().Process(target=_job, args=(settings, path, os.environ.get(ID)))
    process.start()
    process.join()
    code = process.exitcode or 0
    if code == BUSY:
        return
    with contextlib.suppress(ConfigError):  # another sweep has claimed it
        run = runs.Run(path)
        if runs.state(path)["status"] in ("RUNNING", "STALE", "NEW"):  # it could not say so itself
            reason = f"the process ended with exit code {code} and without a result"
            if code < 0:
                reason = f"killed by {signal.Signals(-code).name}"
                reason += ", as the system does when memory runs out" if -code == signal.SIGKILL else ""
            run.status("FAILED", reason)
        run.close()


def _job(settings: dict[str, Any], path: Path, sweep: str | None) -> None:
    """The job's process: output to its own train.log, status to its folder, a signal to its checkpoint."""
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
            run.write_config(settings | {"resume": None})
            from smilevae import console, training

            console.quiet_lightning()
            training.fit(
                settings | {"resume": str(path) if run.trained else None}, run, stop, _free_device(path.parent)
            )
    except UserError as error:
        logging.error(str(error))
        sys.exit(error.exit_code)
    except runs.Interrupted as stopped:
        sys.exit(stopped.exit_code)


def _stop_with_parent() -> None:
    """A job whose sweep was killed stops as if it had been asked to, so that nobody waits for an orphan."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


_held: list[IO[Any]] = []  # locks that live as long as the process


def _free_device(folder: Path, num: int | None = None) -> list[int] | None:
    """The first of several GPUs that no other job of the sweep on this machine holds; None where there is no choice."""
    if num is None:
        import torch

        num = torch.cuda.device_count()
    if num < 2:
        return None
    for device in range(num):
        lock = open(folder / f".gpu-{os.uname().nodename}-{device}", "w")  # noqa: SIM115
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        _held.append(lock)
        return [device]
    return [os.getpid() % num]


# the view


class Watch(threading.Thread):
    """Prints and logs every change of a sweep's jobs, with how many are done, the best so far and the expected end.

    It reads run folders only, so it serves every launcher. On a terminal a last line shows what runs now.
    """

    def __init__(self, plan: Plan, every: float = 0.5):
        super().__init__(daemon=True)
        self.plan, self.every, self.id = plan, every, secrets.token_hex(4)
        self.states = {name: runs.state(plan.folder / name) for name in plan.wanted}
        self.scores: dict[str, float] = {}
        self._over, self._start = threading.Event(), time.monotonic()
        self._begun = self._epochs()
        self._line: Any = None

    def __enter__(self) -> "Watch":
        os.environ[ID] = self.id
        if sys.stderr.isatty():
            from rich.console import Console

            self._line = Console(stderr=True).status("starting")
            self._line.start()
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self.join()
        if self._line:
            self._line.stop()

    def run(self) -> None:
        while not self._over.wait(self.every):
            self.look()
        self.look()

    def look(self) -> None:
        """Tell what changed since the last look."""
        for name in self.plan.wanted:
            before = self.states[name]
            if before["status"] == "COMPLETED":
                continue
            now = runs.state(self.plan.folder / name)
            self.states[name] = now
            if now["status"] == before["status"]:
                continue
            if now["status"] == "COMPLETED":
                best = self._best(name)
                text = ", ".join(f"{term.partition('/')[2]} {best.get(term, math.nan):.5g}" for term in SHOWN)
                self.say(f"{name} COMPLETED: {text} | {self.summary()}")
            elif now["status"] in ("FAILED", "INTERRUPTED"):
                self.say(f"{name} {now['status']}: {now['reason']} | {self.summary()}")
            elif now["status"] == "RUNNING":
                self.say(f"{name} started")
        if self._line:
            running = [f"{n} {self._done(n)}" for n, s in self.states.items() if s["status"] == "RUNNING"]
            self._line.update(f"{', '.join(running) or 'between jobs'} | {self.summary()}")

    def say(self, line: str) -> None:
        print(line, flush=True)
        with contextlib.suppress(OSError), open(self.plan.folder / "sweep.log", "a") as log:
            log.write(f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S} {line}\n")

    def summary(self) -> str:
        """Counts, the best so far, and when it ends if epochs go on as they did."""
        found = [state["status"] for state in self.states.values()]
        kinds = {kind: found.count(kind) for kind in ("COMPLETED", "RUNNING", "FAILED", "INTERRUPTED")}
        parts = [f"{kinds.pop('COMPLETED')} of {len(found)} completed"]
        parts += [f"{number} {kind.lower()}" for kind, number in kinds.items() if number]
        if waiting := len(found) - sum(status in ("COMPLETED", *kinds) for status in found):
            parts.append(f"{waiting} left")
        for name, state in self.states.items():
            if state["status"] == "COMPLETED" and name not in self.scores:
                self.scores[name] = self._best(name).get(RANK_BY, math.inf)
        if self.scores and len({job["settings"].get("image_size") for job in self.plan.jobs.values()}) == 1:
            parts.append(f"best {min(self.scores, key=lambda name: (self.scores[name], name))}")
        gone, total = self._epochs() - self._begun, self._epochs(total=True)
        if gone > 0 and self._epochs() < total:
            left = (total - self._epochs()) * (time.monotonic() - self._start) / gone
            end = datetime.datetime.now() + datetime.timedelta(seconds=left)
            parts.append(f"ends about {end:%H:%M}" if left < 20 * 3600 else f"ends about {end:%d %B, %H:%M}")
        return ", ".join(parts)

    def _best(self, name: str) -> dict[str, Any]:
        best = runs.read_result(self.plan.folder / name).get("best")
        return best if isinstance(best, dict) else {}

    def _epochs(self, total: bool = False) -> int:
        """Epochs of all jobs, done or `total`; a failed job counts as over."""
        count = 0
        for name, state in self.states.items():
            epochs = self.plan.jobs[name]["settings"]["epochs"]
            over = total or state["status"] in ("COMPLETED", "FAILED")
            count += epochs if over else runs.epochs_done(self.plan.folder / name)
        return count

    def _done(self, name: str) -> str:
        done = runs.epochs_done(self.plan.folder / name)
        return f"{done}/{self.plan.jobs[name]['settings']['epochs']} epochs"

    def stop_jobs(self, signum: int) -> None:
        """Ask this sweep's running jobs on this machine to write a checkpoint and end; wait for them, GRACE at most."""
        (self.plan.folder / f".stop-{self.id}").touch()  # workers begin no other job
        here = {"status": "RUNNING", "host": os.uname().nodename, "sweep": self.id}
        states = {name: runs.state(self.plan.folder / name) for name in self.plan.wanted}
        ours = {name: s["pid"] for name, s in states.items() if here.items() <= s.items()}
        for pid in ours.values():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signum)
        end = time.monotonic() + GRACE
        while time.monotonic() < end and any(runs.in_use(self.plan.folder / name) for name in ours):
            time.sleep(0.05)

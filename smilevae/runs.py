"""The run folder: what a run was, how it stands and what came of it. The only hand-over between programs.

config.yaml    resolved, plain             status.json   RUNNING | COMPLETED | FAILED | INTERRUPTED, with the reason
metrics.jsonl  one line an epoch           result.json   written last: its presence means COMPLETED
checkpoints/   see checkpoints.py          evaluation/   metrics.json and pictures
"""

import contextlib
import datetime
import fcntl
import hashlib
import json
import math
import os
import platform
import re
import resource
import secrets
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from smilevae import ConfigError, UserError, knobs

# what a run writes before it has learnt anything
BEFORE_TRAINING = (
    "config.yaml",
    "status.json",
    "data_card.json",
    "spectrum.json",
    "forecast.json",
    "train.log",
    ".lock",
)
RUNS = "runs"  # where runs go unless told otherwise: conf/train.yaml
HARDWARE = ("accelerator", "devices", "num_nodes", "strategy", "max_time")  # of the trainer, free to change on resume


class Interrupted(BaseException):
    """A signal asked the run to end; not an Exception, so that no library's `except Exception` swallows it."""

    def __init__(self, signum: int):
        super().__init__(f"stopped by signal {signum}")
        self.exit_code = 128 + signum


class Stop:
    """SIGINT and SIGTERM: raise Interrupted at once, or, while `deferred`, remember the signal for the training loop.

    A second signal is never deferred, unless it comes at once: a terminal and a sweep both tell a job.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.deferred = False
        self._time = -math.inf

    def install(self, deferred: bool = False) -> None:
        self.deferred = deferred
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self._receive)

    def _receive(self, signum: int, frame: object) -> None:
        if self.signum and time.monotonic() - self._time < 1:
            return
        self._time = time.monotonic()
        if not self.deferred or self.signum:
            self.signum = signum
            raise Interrupted(signum)
        self.signum = signum
        print("\nstopping after this step; once more to stop at once", file=sys.stderr)


class Run:
    """A claimed run folder; the claim is a lock that the kernel frees when the process ends.

    Of several processes that train together (trainer.devices=2) only the one that `leads` claims and writes.
    Raises ConfigError if another process holds the folder or it cannot be written.
    """

    def __init__(self, path: str | Path):
        self.dir, self.new = Path(path), False
        self.sweep: str | None = None  # which running sweep it belongs to: only that one may stop it
        self.leads = os.environ.get("LOCAL_RANK", "0") == "0"  # Lightning sets it for the processes it starts
        if not self.leads:
            return
        try:
            self.dir.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.dir / ".lock", "w")  # noqa: SIM115, held until the process ends
            if not _locked(self._lock, fcntl.LOCK_EX):
                raise ConfigError(f"{self.dir} is in use by another process; wait for it or stop it")
            for folder in (self.dir, self.checkpoints):
                for left in folder.glob(".*.[0-9]*.tmp"):  # by a process that was killed
                    left.unlink(missing_ok=True)
            self.foreign = set(os.listdir(self.dir)) - {".lock", "train.log"}
        except OSError as error:
            raise ConfigError(f"{self.dir}: {error.strerror}; choose another with hydra.run.dir=PATH") from None

    @property
    def checkpoints(self) -> Path:
        return self.dir / "checkpoints"

    @property
    def trained(self) -> bool:
        """Whether there is a checkpoint, of this process or an earlier one."""
        return any(self.checkpoints.glob("*.ckpt"))

    @property
    def goes_on(self) -> bool:
        """Whether a resume has a checkpoint to go on from, or ought to have."""
        return self.trained or len(read_metrics(self.dir)) > 1 or (self.dir / "result.json").exists()

    @contextlib.contextmanager
    def recording(self) -> Iterator["Run"]:
        """Keep status.json true while the body runs: RUNNING, then FAILED or INTERRUPTED if it raises."""
        if not self.leads:
            yield self
            return
        try:
            self.status("RUNNING")
            yield self
        except (Interrupted, KeyboardInterrupt) as stop:
            self.status("INTERRUPTED", str(stop))
            print(f"to go on: {resume_line(self.dir)}" if self.trained else "nothing was learnt yet", file=sys.stderr)
            raise
        except BaseException as error:
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            self.status("FAILED", reason, type(error).__name__)
            raise
        finally:
            self.close()

    def close(self) -> None:
        """Give the folder up for others to claim."""
        if self.leads:
            self._lock.close()

    def begin(self, settings: dict[str, Any]) -> None:
        """Write config.yaml. Raises ConfigError if a run that is not resumed already lies here."""
        if self.leads and not settings["resume"]:
            if (self.dir / "config.yaml").exists():
                raise ConfigError(f"{self.dir} already holds a run; go on with {resume_line(self.dir)}")
            if self.foreign:
                raise ConfigError(f"{self.dir} is not empty and holds no run; choose another with hydra.run.dir=PATH")
            self.new = True
        self.write_config(settings | {"resume": None})

    def discard_if_untrained(self) -> None:
        """Remove what a new run wrote if it has no checkpoint: a mistake before training leaves nothing behind."""
        if self.new and not self.trained:
            for path in (*map(self.dir.joinpath, BEFORE_TRAINING), *self.dir.glob("events.out.tfevents.*")):
                path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # somebody else's files are not ours to remove
                self.dir.rmdir()
                if self.dir.parent == Path(RUNS).resolve():
                    self.dir.parent.rmdir()

    def status(self, state: str, reason: str | None = None, error: str | None = None) -> None:
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        where = {"time": now, "pid": os.getpid(), "host": os.uname().nodename, "sweep": self.sweep}
        content = {"status": state, "reason": reason, "error": error, **where}
        try:
            self.write_json("status.json", content)
        except OSError:
            if state not in ("FAILED", "INTERRUPTED"):
                raise
            # a full or read-only folder still lets its file be written over
            with contextlib.suppress(OSError), open(self.dir / "status.json", "r+") as file:
                file.write(json.dumps(content) + "\n")
                file.truncate()

    def write_json(self, name: str, content: Any) -> None:
        if self.leads:
            write_text(self.dir / name, json.dumps(content, indent=2, allow_nan=True) + "\n")

    def write_config(self, settings: dict[str, Any]) -> None:
        if self.leads:
            write_text(self.dir / "config.yaml", yaml.safe_dump(settings, sort_keys=False))

    def write_metrics(self, epochs: list[dict[str, Any]]) -> None:
        """Replace metrics.jsonl: one JSON object an epoch."""
        write_text(self.dir / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in epochs))

    def complete(self, result: dict[str, Any]) -> None:
        """Write result.json, then the status: a run with a result is COMPLETED."""
        self.write_json("result.json", result)
        self.status("COMPLETED")


def state(path: Path) -> dict[str, Any]:
    """How a run folder stands, as status.json with two more words.

    NEW has no status yet; STALE says RUNNING, but its process is gone. A result means COMPLETED, whatever the status.
    """
    empty = {"status": "NEW", "reason": None, "error": None, "pid": None, "host": None, "sweep": None}
    held = in_use(path)  # asked first: a process that ends between the two has said how by then
    found: Any = None
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads((path / "status.json").read_text())
    found = empty | found if isinstance(found, dict) else empty
    if (path / "result.json").exists():
        return found | {"status": "COMPLETED", "reason": None}
    if found["status"] == "RUNNING" and not held and not in_use(path):  # nor did one begin meanwhile
        return found | {"status": "STALE", "reason": "its process is gone"}
    return found


def in_use(path: Path) -> bool:
    """Whether a living process holds the run folder."""
    try:
        with open(path / ".lock") as lock:
            return not _locked(lock, fcntl.LOCK_SH)
    except OSError:
        return False


def _locked(file: IO[Any], kind: int) -> bool:
    """Take a lock; tries again for a moment, since whoever asks `in_use` holds it that long."""
    for attempt in range(5):
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.01 * attempt)
    return False


def evaluation_folder(run: Path) -> Path:
    """Where a run's evaluation goes: into it, or, where that may not be written, beside the reader."""
    inside = run / "evaluation"
    if os.access(inside if inside.exists() else run, os.W_OK):
        return inside
    return Path(f"evaluation-{run.resolve().name}")


def evaluated(run: Path) -> Path:
    """Where a run's evaluation is found."""
    inside = run / "evaluation"
    return inside if inside.exists() else evaluation_folder(run)


def read_result(path: Path) -> dict[str, Any]:
    """result.json of a run folder; {} where there is none or it is not whole."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads((path / "result.json").read_text())
        return found if isinstance(found, dict) else {}
    return {}


def read_settings(path: str | Path) -> dict[str, Any]:
    """A run folder's config.yaml, checked. Raises ConfigError."""
    try:
        settings = yaml.safe_load((Path(path) / "config.yaml").read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{path} is not a run folder (no config.yaml); pass the one that train.py printed") from None
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}/config.yaml cannot be read ({type(error).__name__}); restore it") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}/config.yaml holds no settings; restore it")
    settings = knobs.completed(settings)
    knobs.check(settings)
    return settings


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """metrics.jsonl of a run folder, as far as it is whole; [] where there is none."""
    lines: list[dict[str, Any]] = []
    with contextlib.suppress(OSError, ValueError, RecursionError):
        for line in (path / "metrics.jsonl").read_text().splitlines():
            lines.append(json.loads(line))
    return [line for line in lines if isinstance(line, dict) and isinstance(line.get("epoch"), int)]


def epochs_done(path: Path) -> int:
    """The last whole epoch of a run folder."""
    return max((line["epoch"] for line in read_metrics(path)), default=0)


def settings_of(config: DictConfig, overrides: Iterable[str]) -> dict[str, Any]:
    """The plain, resolved, checked settings that a composed config and its command line ask for.

    With `resume` they are the resumed run's own. Raises ConfigError with every problem, one sentence each.
    """
    named = {text.lstrip("+~").partition("=")[0] for text in overrides}
    try:
        own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        settings = cast("dict[str, Any]", OmegaConf.to_container(own, resolve=True, throw_on_missing=True))
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} is not set; add {error.full_key}=VALUE") from None
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from None
    for of_the_sweep in ("sweep", "retry_failed"):
        settings.pop(of_the_sweep, None)
    knobs.check(settings)
    if settings["data"]["source"] == "folder" and not settings["data"]["root"] and not settings["resume"]:
        raise ConfigError("data.root is not set; name the folder of your pictures: data=folder data.root=PATH")
    for name in ("root", "unlabelled", "attributes"):  # found again from any working directory
        if path := settings["data"].get(name):
            settings["data"][name] = os.path.abspath(os.path.expanduser(path))
    return continued(settings["resume"], settings, named) if settings["resume"] else settings


def continued(resume: str, wanted: dict[str, Any], named: set[str]) -> dict[str, Any]:
    """The settings with which a run goes on: its own, plus those knobs the user `named` that change no result.

    `epochs` may change too. Raises ConfigError, by name with both values, for any other change.
    """
    settings = read_settings(resume)
    target = wanted["epochs"] if "epochs" in named else settings["epochs"]
    done, complete = epochs_done(Path(resume)), (Path(resume) / "result.json").exists()
    if target != settings["epochs"] and settings["schedule"] == "cosine":
        raise ConfigError(f"{resume} has schedule=cosine, which ends at epochs={settings['epochs']}; start a new run")
    if target < done or (complete and target == done):
        raise ConfigError(f"{resume} has trained {done} epochs already; to train on, add a larger epochs=N")
    old, new = knobs.flatten(settings), knobs.flatten(wanted)
    asked = {name for name in new if name in named or name.partition(".")[0] in named}
    allowed = asked & {*knobs.SAME_RESULT, "epochs"}
    changed = [
        f"{name}={new[name]} would change the result of {resume}, which has {name}={old.get(name)}; start a new run"
        for name in sorted(asked - allowed)
        if new[name] != old.get(name)
    ]
    hardware = {}
    for name, value in wanted["trainer"].items():
        old_value = settings["trainer"].get(name)
        if named & {"trainer", f"trainer.{name}"} and value != old_value:
            hardware[name] = value
            if name not in HARDWARE:
                changed.append(f"trainer.{name}={value} would change the result of {resume}, which has {old_value}")
    if changed:
        raise ConfigError("\n".join(changed))
    settings["trainer"] |= hardware
    for name in allowed:
        group, _, leaf = name.rpartition(".")
        (settings[group] if group else settings)[leaf] = new[name]
    return settings


def identity(settings: dict[str, Any], fingerprint: str) -> str:
    """A hash of what changes a run's result: its settings and its data."""
    flat = {k: v for k, v in knobs.flatten(settings).items() if k not in knobs.SAME_RESULT}
    text = json.dumps([flat, settings.get("trainer"), fingerprint], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def decisive(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that change a run's result beyond its last bits, flat, the trainer's among them."""
    flat = {k: v for k, v in knobs.flatten(settings).items() if k not in (*knobs.SAME_RESULT, "threads")}
    flat |= {f"trainer.{k}": v for k, v in settings["trainer"].items() if k not in HARDWARE}
    return {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in flat.items()}  # beta=1.0 is beta=1


def environment() -> dict[str, Any]:
    """What a number depends on besides the settings: versions, machine and the process's peak memory so far."""
    packages = ("torch", "torchvision", "pytorch-lightning", "hydra-core", "numpy", "pillow", "smilevae")
    return {
        "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        // (2**20 if sys.platform == "darwin" else 2**10),
    }


def new_run_dir(parent: str, resume: str | None) -> str:
    """Where a run goes: the folder it resumes, or a new one named by the second with a random suffix."""
    if resume:
        return resume.rstrip("/")
    return f"{parent}/{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}-{secrets.token_hex(4)}"


def resume_line(path: Path) -> str:
    """The command that continues a run."""
    return f"python train.py {typed('resume', path)}"


def what_next(run: Path, best: dict[str, Any]) -> str:
    """The closing lines of a run."""
    return (
        f"best val loss {best['val/loss']:.1f} in epoch {best['epoch']}; run folder {short(run)}\n"
        f"next: python evaluate.py {typed('ckpt', run)}\n"
        f"      tensorboard --logdir {short(run.parent)}"
    )


def short(path: Path) -> str:
    """A path as one would type it: relative where that is shorter, quoted where it must be."""
    return shlex.quote(min(os.path.relpath(path), str(path.resolve()), key=len))


def typed(key: str, path: Path) -> str:
    """key=path as one would type it for Hydra, in a shell."""
    word = override(key, shlex.split(short(path))[0])
    return word if "'" not in word else shlex.quote(word)


def override(key: str, value: str) -> str:
    """key=value as Hydra reads it, quoted where it must be."""
    if re.fullmatch(r"[A-Za-z0-9/._+-]+", value):
        return f"{key}={value}"
    return f"{key}='" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def replace_file(path: Path, write: Callable[[IO[bytes]], Any], check: Callable[[Path], Any] | None = None) -> None:
    """Write a file whole or not at all: a temporary file beside it, fsync, `check`, rename, fsync the folder."""
    with taking_its_place(path) as work:
        with open(work, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if check:
            check(work)


@contextlib.contextmanager
def taking_its_place(path: Path) -> Iterator[Path]:
    """A name beside `path` to make a file or folder under, which then takes its place, whole or not at all.

    The folder it lies in is synced. What a killed process leaves there, the folder's next owner removes. An OSError
    names `path`.
    """
    work = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield work
            os.replace(work, path)
        finally:
            if work.is_dir():
                shutil.rmtree(work)
            work.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        error.filename = str(path)  # a full disk does not say where
        raise


def write_bytes(path: Path, content: bytes) -> None:
    replace_file(path, lambda file: file.write(content))


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())

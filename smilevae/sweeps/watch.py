"""The progress of a sweep."""

import collections
import contextlib
import datetime
import itertools
import json
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from smilevae import runs
from smilevae.sweeps import open_queue
from smilevae.sweeps.halving import RANK_BY, Halving
from smilevae.sweeps.plan import FILE

PRINTED = (RANK_BY, "val/psnr", "val/kl")
LISTED = ("RUNNING", "PAUSED", "FAILED", "INTERRUPTED")
ENDED = ("COMPLETED", "FAILED", "INTERRUPTED", "PAUSED")
SPENT = "spent.json"  # the seconds that a sweep has run
EVERY = 0.5  # seconds
MAX_STEP = 5.0  # seconds: a longer one was a pause of the whole machine
SAVE_EVERY = 10  # looks


class Watch:
    """Prints and logs every change of a sweep's jobs. A terminal's last line shows those that run.

    It only reads run folders, so it works with every launcher. When `budget` seconds are spent it
    sends SIGTERM to this process and is `over`.
    """

    def __init__(self, folder: Path, budget: float | None):
        self.folder = folder
        self.budget = budget or math.inf
        self.over = False
        self.spent = spent(folder)
        self.states: dict[str, dict[str, Any]] = {}
        self.stamp = 0
        self._read_all()
        self.programs = {self.queue.code, *map(last_program, self.states.values())}
        self.start = time.monotonic()
        self.begun = self._epochs_done()
        self.line = Console(stderr=True).status("starting")

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Look every half second while the body runs."""
        end = threading.Event()
        thread = threading.Thread(target=self._loop, args=[end], daemon=True)
        with self.line:
            thread.start()
            try:
                yield
            finally:
                end.set()
                thread.join()
                self._save_spent()
                self.look()

    def _loop(self, end: threading.Event) -> None:
        last = time.monotonic()
        for number in itertools.count(1):
            if end.wait(EVERY):
                return
            now = time.monotonic()
            self.spent += min(now - last, MAX_STEP)
            last = now
            if number % SAVE_EVERY == 0:
                self._save_spent()
            if self.spent >= self.budget and not self.over:
                self.over = True
                os.kill(os.getpid(), signal.SIGTERM)
            self.look()

    def _save_spent(self) -> None:
        with contextlib.suppress(OSError):  # a full disk ends the jobs, which say so
            text = json.dumps({"seconds": round(self.spent, 1)})
            runs.write_text(self.folder / SPENT, text + "\n")

    def look(self) -> None:
        """Print the changes since the last look."""
        before = dict(self.states)
        self._read_all()
        for name, state in self.states.items():
            if state["status"] != before.get(name, {"status": "NEW"})["status"]:
                self._tell(name, state)
        running = {n: state for n, state in self.states.items() if state["status"] == "RUNNING"}
        texts = [f"{n} {state['done']}/{state['epochs']} epochs" for n, state in running.items()]
        self.line.update(f"{', '.join(texts) or 'between jobs'} | {self.summary()}")

    def _read_all(self) -> None:
        """Each job's state, `best` epoch, planned `epochs` and those `done`: all if it failed."""
        stamp = (self.folder / FILE).stat().st_mtime_ns
        if stamp != self.stamp:  # points have joined
            self.stamp = stamp
            self.queue = open_queue(self.folder)
        for name, settings in self.queue.jobs.items():
            if self.states.get(name, {}).get("status") == "COMPLETED":
                continue
            state = runs.state(self.folder / name)
            ended = state["status"] in ("COMPLETED", "FAILED")
            state["epochs"] = settings.epochs
            state["done"] = settings.epochs if ended else runs.epochs_done(self.folder / name)
            state["best"] = runs.read_result(self.folder / name).get("best") or {}
            self.states[name] = state

    def _tell(self, name: str, state: dict[str, Any]) -> None:
        """Print a job's new status."""
        status = state["status"]
        text = state["reason"]
        program = last_program(state)
        if status == "RUNNING":
            self.queue.say(f"{name} started")
        if program not in self.programs:
            self.programs.add(program)
            self.queue.say(self.queue.changed_program(program))
        if status == "PAUSED" and isinstance(self.queue, Halving):
            text += f", {RANK_BY[4:]} {self.queue.score(name, state['done']):.5g}"
        if status == "COMPLETED":
            best = state["best"]
            text = ", ".join(f"{term[4:]} {best.get(term, math.inf):.5g}" for term in PRINTED)
        if status in ENDED:
            self.queue.say(f"{name} {status}: {text} | {self.summary()}")

    def summary(self) -> str:
        """The number of jobs by status, the best so far, and the expected end."""
        counts = collections.Counter(state["status"] for state in self.states.values())
        completed = counts.pop("COMPLETED", 0)
        parts = [f"{completed} of {len(self.states)} completed"]
        parts += [f"{counts.pop(status)} {status.lower()}" for status in LISTED if counts[status]]
        if counts.total():
            parts.append(f"{counts.total()} left")
        sizes = {(settings.image_size, settings.channels) for settings in self.queue.jobs.values()}
        best = {n: state["best"] for n, state in self.states.items() if RANK_BY in state["best"]}
        if best and len(sizes) == 1:
            parts.append(f"best {min(best, key=lambda name: (best[name][RANK_BY], name))}")

        # The rest takes as long an epoch as the epochs since the start.
        epochs = self._epochs_done()
        total = self.queue.total_epochs()
        if self.begun < epochs < total:
            seconds = (total - epochs) * (time.monotonic() - self.start) / (epochs - self.begun)
            end = datetime.datetime.now() + datetime.timedelta(seconds=seconds)
            parts.append(f"ends about {end:%d %B, %H:%M}")
        return ", ".join(parts)

    def _epochs_done(self) -> int:
        return sum(state["done"] for state in self.states.values())


def last_program(state: dict[str, Any]) -> str:
    """The hash of the program that trained a job last, empty before it has begun."""
    return (state.get("code") or "").rpartition(" ")[2]


def spent(folder: Path) -> float:
    """The seconds that a sweep has run, pauses excluded."""
    return float(runs.read_json(folder / SPENT).get("seconds", 0))

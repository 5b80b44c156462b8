"""The progress of a sweep."""

import collections
import contextlib
import datetime
import json
import math
import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from smilevae import runs
from smilevae.sweeps.halving import RANK_BY
from smilevae.sweeps.jobs import ID
from smilevae.sweeps.options import SweepOptions
from smilevae.sweeps.plan import Plan

PRINTED = (RANK_BY, "val/psnr", "val/kl")
ENDED = ("COMPLETED", "FAILED", "INTERRUPTED", "PAUSED")
SPENT = "spent.json"  # the seconds that a sweep has run
MAX_STEP = 5.0  # seconds: a longer one was a pause of the whole machine
SAVE_EVERY = 10  # looks


class Watch:
    """Prints and logs every change of a sweep's jobs. On a terminal a last line shows the running jobs.

    It only reads run folders, so it works with every launcher.
    """

    def __init__(self, plan: Plan, options: SweepOptions):
        self.plan, self.id, self.budget = plan, secrets.token_hex(4), options.seconds
        self.trials = options.trials
        self.spent = spent(plan.folder)
        self.states = {name: self._read(name) for name in plan.wanted}
        self.start, self.begun = time.monotonic(), self._sum("done")
        self.line = Console(stderr=True).status("starting")

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Look every half second while the body runs. The jobs that it starts belong to this sweep."""
        os.environ[ID], over = self.id, threading.Event()

        def loop() -> None:
            last, looks = time.monotonic(), 0
            while not over.wait(0.5):
                now, looks = time.monotonic(), looks + 1
                self.spent, last = self.spent + min(now - last, MAX_STEP), now
                if looks % SAVE_EVERY == 0:
                    self._save_spent()
                if self.budget and self.spent >= self.budget:
                    self.budget = None
                    os.kill(os.getpid(), signal.SIGALRM)  # the main thread stops the jobs
                self.look()

        thread = threading.Thread(target=loop, daemon=True)
        with self.line:
            thread.start()
            try:
                yield
            finally:
                over.set()
                thread.join()
                self._save_spent()
                self.look()

    def _save_spent(self) -> None:
        with contextlib.suppress(OSError):  # a full disk ends the jobs, which say so
            runs.write_text(self.plan.folder / SPENT, json.dumps({"seconds": round(self.spent, 1)}) + "\n")

    def look(self) -> None:
        """Print the changes since the last look."""
        for name in [name for name in self.plan.wanted if name not in self.states]:  # a search has added it
            self.states[name] = self._read(name)
        for name, before in list(self.states.items()):
            if before["status"] == "COMPLETED":
                continue
            now = self.states[name] = self._read(name)
            status, text = now["status"], now["reason"]
            if status == before["status"]:
                continue
            if status == "RUNNING":
                self.say(f"{name} started")
            if status == "PAUSED":
                score = self.plan.halving.score(name, now["done"])
                text = f"{text}, {RANK_BY[4:]} {score:.5g}"
            if status == "COMPLETED":
                text = ", ".join(f"{term[4:]} {now['best'].get(term, math.inf):.5g}" for term in PRINTED)
            if status in ENDED:
                self.say(f"{name} {status}: {text} | {self.summary()}")
        running = [
            f"{name} {state['done']}/{state['epochs']} epochs"
            for name, state in self.states.items()
            if state["status"] == "RUNNING"
        ]
        self.line.update(f"{', '.join(running) or 'between jobs'} | {self.summary()}")

    def say(self, line: str) -> None:
        """Print a line and append it to sweep.log."""
        print(line, flush=True)
        with contextlib.suppress(OSError), open(self.plan.folder / "sweep.log", "a") as log:
            log.write(f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S} {line}\n")

    def summary(self) -> str:
        """The number of jobs by status, the best so far, and the expected end."""
        counts = collections.Counter(state["status"] for state in self.states.values())
        completed = counts.pop("COMPLETED", 0)
        parts = [f"{completed} of {len(self.states)} completed"]
        for status in ("RUNNING", "PAUSED", "FAILED", "INTERRUPTED"):
            if number := counts.pop(status, 0):
                parts.append(f"{number} {status.lower()}")
        if left := counts.total():
            parts.append(f"{left} left")
        if completed and len({job.settings.image_size for job in self.plan.jobs.values()}) == 1:
            ended = {name: state["best"] for name, state in self.states.items() if state["status"] == "COMPLETED"}
            parts.append(f"best {min((best.get(RANK_BY, math.inf), name) for name, best in ended.items())[1]}")
        done = self._sum("done")
        total = self._sum("epochs") * max(1, (self.trials or 0) / max(1, len(self.states)))
        total = self.plan.halving.total_epochs() if self.plan.rungs else total
        if self.begun < done < total:
            seconds = (total - done) * (time.monotonic() - self.start) / (done - self.begun)
            end = datetime.datetime.now() + datetime.timedelta(seconds=seconds)
            parts.append(f"ends about {end:%d %B, %H:%M}")
        return ", ".join(parts)

    def _read(self, name: str) -> dict[str, Any]:
        """A job's state, `best` epoch, planned `epochs` and those `done`: all if the job failed."""
        folder, epochs = self.plan.folder / name, self.plan.jobs[name].settings.epochs
        state = runs.state(folder)
        done = epochs if state["status"] in ("COMPLETED", "FAILED") else runs.epochs_done(folder)
        return state | {"epochs": epochs, "done": done, "best": runs.read_result(folder).get("best") or {}}

    def _sum(self, name: str) -> int:
        return sum(state[name] for state in self.states.values())


def spent(folder: Path) -> float:
    """The seconds that a sweep has run, pauses excluded."""
    seconds = runs.read_json(folder / SPENT).get("seconds")
    return float(seconds) if isinstance(seconds, (int, float)) else 0.0

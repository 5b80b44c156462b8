"""The progress of a sweep."""

import collections
import contextlib
import datetime
import math
import os
import secrets
import threading
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from smilevae import runs
from smilevae.sweeps.jobs import ID
from smilevae.sweeps.plan import Plan

RANK_BY = "val/nelbo"  # comparable across beta
PRINTED = (RANK_BY, "val/psnr", "val/kl")
ENDED = ("COMPLETED", "FAILED", "INTERRUPTED")


class Watch:
    """Prints and logs every change of a sweep's jobs. On a terminal a last line shows the running jobs.

    It only reads run folders, so it works with every launcher.
    """

    def __init__(self, plan: Plan):
        self.plan, self.id = plan, secrets.token_hex(4)
        self.states = {name: self._read(name) for name in plan.wanted}
        self.start, self.begun = time.monotonic(), self._sum("done")
        self.line = Console(stderr=True).status("starting")

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Look every half second while the body runs. The jobs that it starts belong to this sweep."""
        os.environ[ID], over = self.id, threading.Event()

        def loop() -> None:
            while not over.wait(0.5):
                self.look()

        thread = threading.Thread(target=loop, daemon=True)
        with self.line:
            thread.start()
            try:
                yield
            finally:
                over.set()
                thread.join()
                self.look()

    def look(self) -> None:
        """Print the changes since the last look."""
        for name, before in list(self.states.items()):
            if before["status"] == "COMPLETED":
                continue
            now = self.states[name] = self._read(name)
            status, text = now["status"], now["reason"]
            if status == before["status"]:
                continue
            if status == "RUNNING":
                self.say(f"{name} started")
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
        for status in ("RUNNING", "FAILED", "INTERRUPTED"):
            if number := counts.pop(status, 0):
                parts.append(f"{number} {status.lower()}")
        if left := counts.total():
            parts.append(f"{left} left")
        if completed and len({job.settings.image_size for job in self.plan.jobs.values()}) == 1:
            ended = {name: state["best"] for name, state in self.states.items() if state["status"] == "COMPLETED"}
            parts.append(f"best {min((best.get(RANK_BY, math.inf), name) for name, best in ended.items())[1]}")
        done, total = self._sum("done"), self._sum("epochs")
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

"""The progress of a sweep: what changed, the best job so far, the expected end."""

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


class Watch:
    """Prints and logs every change of a sweep's jobs, how many are done, the best so far and the expected end.

    It only reads run folders, so it works with every launcher. On a terminal a last line shows the running jobs.
    """

    def __init__(self, plan: Plan):
        self.plan, self.id = plan, secrets.token_hex(4)
        self.states = {name: self._read(name) for name in plan.wanted}
        self.start, self.begun = time.monotonic(), self._sum("done")
        self.line = Console(stderr=True).status("starting")

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Look every half second, in a thread, while the body runs. The jobs that it starts belong to this sweep."""
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
            if now["status"] == before["status"]:
                continue
            if now["status"] == "RUNNING":
                self.say(f"{name} started")
            elif now["status"] in ("COMPLETED", "FAILED", "INTERRUPTED"):
                numbers = ", ".join(
                    f"{term.partition('/')[2]} {now['best'].get(term, math.inf):.5g}" for term in PRINTED
                )
                text = numbers if now["status"] == "COMPLETED" else now["reason"]
                self.say(f"{name} {now['status']}: {text} | {self.summary()}")
        running = [(name, state) for name, state in self.states.items() if state["status"] == "RUNNING"]
        text = ", ".join(f"{name} {state['done']}/{state['epochs']} epochs" for name, state in running)
        self.line.update(f"{text or 'between jobs'} | {self.summary()}")

    def say(self, line: str) -> None:
        """Print a line and append it to sweep.log."""
        print(line, flush=True)
        with contextlib.suppress(OSError), open(self.plan.folder / "sweep.log", "a") as log:
            log.write(f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S} {line}\n")

    def summary(self) -> str:
        """The number of jobs by status, the best so far, and the expected end."""
        statuses = [state["status"] for state in self.states.values()]
        parts = [f"{statuses.count('COMPLETED')} of {len(statuses)} completed"]
        counts = {status: statuses.count(status) for status in ("RUNNING", "FAILED", "INTERRUPTED")}
        parts += [f"{number} {status.lower()}" for status, number in counts.items() if number]
        if left := len(statuses) - statuses.count("COMPLETED") - sum(counts.values()):
            parts.append(f"{left} left")
        scores = {
            n: state["best"].get(RANK_BY, math.inf)
            for n, state in self.states.items()
            if state["status"] == "COMPLETED"
        }
        if scores and len({job.settings.image_size for job in self.plan.jobs.values()}) == 1:
            parts.append(f"best {min(scores, key=lambda name: (scores[name], name))}")
        done, total = self._sum("done"), self._sum("epochs")
        if self.begun < done < total:
            seconds = (total - done) * (time.monotonic() - self.start) / (done - self.begun)
            end = datetime.datetime.now() + datetime.timedelta(seconds=seconds)
            parts.append(f"ends about {end:%d %B, %H:%M}")
        return ", ".join(parts)

    def _read(self, name: str) -> dict[str, Any]:
        """A job's state, its best epoch, its planned `epochs` and those `done`: all of them if the job failed."""
        folder, epochs = self.plan.folder / name, self.plan.jobs[name].settings.epochs
        state = runs.state(folder)
        done = epochs if state["status"] in ("COMPLETED", "FAILED") else runs.epochs_done(folder)
        return state | {"epochs": epochs, "done": done, "best": runs.read_result(folder).get("best") or {}}

    def _sum(self, name: str) -> int:
        return sum(state[name] for state in self.states.values())

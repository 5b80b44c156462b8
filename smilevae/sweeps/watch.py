"""The view of a running sweep: what changed, the best so far, the expected end."""

import contextlib
import datetime
import math
import os
import secrets
import sys
import threading
import time
from typing import Any

from smilevae import runs
from smilevae.sweeps.jobs import ID
from smilevae.sweeps.plan import Plan

GRACE = 8.0  # seconds that jobs have to write a checkpoint after a signal
RANK_BY = "val/nelbo"  # comparable across beta
SHOWN = (RANK_BY, "val/psnr", "val/kl")


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

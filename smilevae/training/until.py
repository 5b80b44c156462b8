"""When a training stops before its last epoch."""

import math
import time

from smilevae.config import Trainer
from smilevae.errors import Interrupted, Paused
from smilevae.runs import Stop


class Until:
    """Stops a training at a signal, when `trainer.max_time` is over, or after an epoch.

    Lightning's timer would count a part of an epoch as whole.
    """

    def __init__(self, stop: Stop, trainer: Trainer, epoch: int | None = None):
        self.stop = stop
        self.epoch = epoch  # of a rung of a sweep
        self._seconds = math.inf
        if max_time := getattr(trainer, "max_time", None):  # DD:HH:MM:SS
            days, hours, minutes, seconds = map(int, max_time.split(":"))
            self._seconds = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
        self._end = math.inf  # in time.perf_counter()

    def begin(self) -> None:
        """Start the clock. From now on a signal waits for the next checkpoint."""
        self._end = time.perf_counter() + self._seconds
        self.stop.install(deferred=True)

    def end(self) -> None:
        self.stop.deferred = False

    def due(self) -> bool:
        """Whether to write a checkpoint and stop."""
        return bool(self.stop.signum) or time.perf_counter() > self._end

    def check(self) -> None:
        """Raise Interrupted at a signal or after the time limit."""
        if self.stop.signum:
            raise Interrupted(self.stop.signum)
        if time.perf_counter() > self._end:
            raise Interrupted(text="trainer.max_time is over")

    def check_epoch(self, epoch: int, last: int | None) -> None:
        """Raise Interrupted as `check` does, or Paused after the epoch of a rung."""
        self.check()
        if self.epoch and epoch >= self.epoch:
            raise Paused(text=f"after epoch {epoch} of {last}")

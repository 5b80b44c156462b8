"""SIGINT and SIGTERM end a process between two steps."""

import math
import signal
import sys
import time

from smilevae.errors import Interrupted


class Stop:
    """Raises Interrupted at a signal; while `deferred`, at the second one.

    The first one is then kept in `signum`. Repeats within 1 s are ignored: Ctrl-C reaches a sweep
    job twice.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.deferred = False
        self._time = -math.inf

    def install(self, deferred: bool = False) -> None:
        self.deferred = deferred
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self._receive)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # a job's server blocks it

    def _receive(self, signum: int, frame: object) -> None:
        if self.signum and time.monotonic() - self._time < 1:
            return
        self._time = time.monotonic()
        waits = self.deferred and not self.signum
        self.signum = signum
        if not waits:
            raise Interrupted(signum)
        print("\nstopping after this step; once more to stop at once", file=sys.stderr)

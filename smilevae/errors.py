"""The errors that a user can cause: one sentence (what, where, what to do) and an exit code each."""

import signal


class UserError(Exception):
    """A mistake with a remedy. It is printed without a traceback."""

    exit_code = 1


class ConfigError(UserError):
    """A setting is unknown, has the wrong type or lies outside its range."""

    exit_code = 2


class DataError(UserError):
    """The images are missing, unreadable or too few."""

    exit_code = 3


class CheckpointError(UserError):
    """A model file is missing, damaged or not one of ours."""

    exit_code = 4


class Diverged(UserError):
    """The loss is no longer a finite number. The checkpoints are from before."""


class Interrupted(BaseException):
    """A signal or a time limit ends the process. Not an Exception: no library's `except Exception` may swallow it."""

    def __init__(self, signum: int = signal.SIGTERM, text: str | None = None):
        super().__init__(text or f"stopped by signal {int(signum)}")
        self.exit_code = 128 + signum

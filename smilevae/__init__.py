"""Variational autoencoders on smiling and non-smiling faces.

Every mistake a user can make ends in one of these errors: one sentence (what, where, what to do) and an exit code.
"""

__version__ = "0.1.0"


class UserError(Exception):
    """A mistake with a remedy; printed without a traceback."""

    exit_code = 1


class ConfigError(UserError):
    """A knob is unknown, of the wrong type or out of its range."""

    exit_code = 2


class DataError(UserError):
    """The pictures are missing, unreadable or too few."""

    exit_code = 3


class CheckpointError(UserError):
    """A model file is missing, damaged or not one of ours."""

    exit_code = 4

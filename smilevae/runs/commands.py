"""Command lines to print, quoted for the shell and for Hydra."""

import contextlib
import os
import re
import shlex
import sys
from pathlib import Path

from smilevae.plugins import loading


def command_name(command: str) -> str:
    """A command as this process was started: `smilevae train`, or `python train.py`."""
    installed = Path(sys.argv[0]).name == "smilevae"
    return f"smilevae {command}" if installed else f"python {command}.py"


def command_line(command: str, key: str, path: Path) -> str:
    """The command for key=path, with the plug-in file that this process was given."""
    words = [command_name(command), hydra_argument(key, path)]
    if loading.REQUESTED in os.environ:
        words.append(hydra_argument("plugin", Path(os.environ[loading.REQUESTED])))
    return " ".join(words)


def resume_line(path: Path) -> str:
    """The command that continues a run."""
    return command_line("train", "resume", path)


def shell_path(path: Path) -> str:
    """A path for a shell: relative where that is shorter, quoted where it must be."""
    return shlex.quote(_shortest(path))


def hydra_argument(key: str, path: Path) -> str:
    """key=path for Hydra, in a shell."""
    word = override(key, _shortest(path))
    return shlex.quote(word) if "'" in word else word


def override(key: str, value: str) -> str:
    """key=value as Hydra reads it, quoted where it must be.

    Backslashes count double only before a quote.
    """
    no_text = re.fullmatch(r"(?i)null|true|false|[+-]?(inf|nan|[\d._]+(e[+-]?\d+)?)", value)
    if re.fullmatch(r"[A-Za-z0-9/._+-]+", value) and not no_text:
        return f"{key}={value}"
    doubled = re.sub(r"(\\*)('|$)", r"\1\1\2", value)
    quoted = doubled.replace("'", "\\'")
    return f"{key}='{quoted}'"


def _shortest(path: Path) -> str:
    """A path from the current folder or from the root, whichever is shorter."""
    absolute = str(path.resolve())
    with contextlib.suppress(ValueError):  # another drive of Windows
        return min(absolute, os.path.relpath(path), key=len)
    return absolute

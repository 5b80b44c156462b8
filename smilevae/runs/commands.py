"""Command lines to print, quoted for the shell and for Hydra."""

import contextlib
import os
import re
import shlex
import sys
from pathlib import Path


def command_name(command: str) -> str:
    """A command as this process was started: `smilevae train` if it is installed, else `python train.py`."""
    return f"smilevae {command}" if Path(sys.argv[0]).name == "smilevae" else f"python {command}.py"


def resume_line(path: Path) -> str:
    """The command that continues a run."""
    return f"{command_name('train')} {hydra_argument('resume', path)}"


def shell_path(path: Path) -> str:
    """A path for a shell: relative where that is shorter, quoted where it must be."""
    names = [str(path.resolve())]
    with contextlib.suppress(ValueError):  # another drive of Windows
        names.insert(0, os.path.relpath(path))
    return shlex.quote(min(names, key=len))


def hydra_argument(key: str, path: Path) -> str:
    """key=path for Hydra, in a shell."""
    word = override(key, shlex.split(shell_path(path))[0])
    return word if "'" not in word else shlex.quote(word)


def override(key: str, value: str) -> str:
    """key=value as Hydra reads it, quoted where it must be. Backslashes count double only before a quote."""
    no_text = re.fullmatch(r"(?i)null|true|false|[+-]?(inf|nan|[\d._]+(e[+-]?\d+)?)", value)
    if re.fullmatch(r"[A-Za-z0-9/._+-]+", value) and not no_text:
        return f"{key}={value}"
    quoted = re.sub(r"(\\*)('|$)", lambda part: 2 * part[1] + part[2].replace("'", "\\'"), value)
    return f"{key}='{quoted}'"

"""Command lines to print, quoted for the shell and for Hydra."""

import os
import re
import shlex
import sys
from pathlib import Path


def program(command: str) -> str:
    """A command as this process was started: `smilevae train` if it is installed, else `python train.py`."""
    return f"smilevae {command}" if Path(sys.argv[0]).name == "smilevae" else f"python {command}.py"


def resume_line(path: Path) -> str:
    """The command that continues a run."""
    return f"{program('train')} {typed('resume', path)}"


def short(path: Path) -> str:
    """A path for a shell: relative where that is shorter, quoted where it must be."""
    return shlex.quote(min(os.path.relpath(path), str(path.resolve()), key=len))


def typed(key: str, path: Path) -> str:
    """key=path for Hydra, in a shell."""
    word = override(key, shlex.split(short(path))[0])
    return word if "'" not in word else shlex.quote(word)


def override(key: str, value: str) -> str:
    """key=value as Hydra reads it, quoted where it must be."""
    if re.fullmatch(r"[A-Za-z0-9/._+-]+", value):
        return f"{key}={value}"
    return f"{key}='" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"

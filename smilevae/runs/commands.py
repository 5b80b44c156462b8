"""Command lines as a user would type them, quoted for the shell and for Hydra."""

import os
import re
import shlex
import sys
from pathlib import Path


def program(command: str) -> str:
    """How this process would be started again: `python train.py` in a checkout, else `smilevae train`."""
    return f"python {command}.py" if os.path.basename(sys.argv[0]) != "smilevae" else f"smilevae {command}"


def resume_line(path: Path) -> str:
    """The command that continues a run."""
    return f"{program('train')} {typed('resume', path)}"


def short(path: Path) -> str:
    """A path as one would type it: relative where that is shorter, quoted where the shell needs it."""
    return shlex.quote(min(os.path.relpath(path), str(path.resolve()), key=len))


def typed(key: str, path: Path) -> str:
    """key=path as one would type it for Hydra, in a shell."""
    word = override(key, shlex.split(short(path))[0])
    return word if "'" not in word else shlex.quote(word)


def override(key: str, value: str) -> str:
    """key=value as Hydra reads it, quoted where it must be."""
    if re.fullmatch(r"[A-Za-z0-9/._+-]+", value):
        return f"{key}={value}"
    return f"{key}='" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"

"""Reads a run folder, which anybody may have written: its state, result and metrics."""

import contextlib
import json
import platform
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

LOCK = ".lock"
LOCK_TIMEOUT = 0.1  # seconds; another `in_use` holds the lock for a moment


def read_json(path: Path) -> dict[str, Any]:
    """A file's JSON object; {} where there is none or it is not whole."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        content = json.loads(path.read_text())
        return content if isinstance(content, dict) else {}
    return {}


def state(path: Path) -> dict[str, Any]:
    """The content of status.json. `status` may also be NEW (not written yet) or STALE.

    STALE is a RUNNING whose process on this host is gone; a job of another host is never stale.
    A run with a result is COMPLETED, whatever its status says.
    """
    empty = dict.fromkeys(("reason", "error", "pid", "host", "sweep")) | {"status": "NEW"}
    held = in_use(path)  # first: a process that ends after this has written its status before
    status = empty | read_json(path / "status.json")
    if (path / "result.json").exists():
        return status | {"status": "COMPLETED", "reason": None}
    here = status["host"] in (None, platform.node())
    running = status["status"] == "RUNNING"
    if running and here and not held and not in_use(path):  # asked again: one may have begun
        return status | {"status": "STALE", "reason": "its process is gone"}
    return status


def in_use(path: Path) -> bool:
    """Whether a living process holds the run folder."""
    if not (path / LOCK).exists():
        return False
    try:
        with FileLock(path / LOCK, timeout=LOCK_TIMEOUT):
            return False
    except OSError as error:
        # A folder that may not be written holds no process of this user.
        return isinstance(error, Timeout)


def read_result(path: Path) -> dict[str, Any]:
    return read_json(path / "result.json")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl."""
    lines: list[dict[str, Any]] = []
    with contextlib.suppress(OSError, ValueError, RecursionError):
        for line in (path / "metrics.jsonl").read_text().splitlines():
            lines.append(json.loads(line))
    return [line for line in lines if isinstance(line, dict) and isinstance(line.get("epoch"), int)]


def epochs_done(path: Path) -> int:
    """The last whole epoch of a run folder."""
    return max((line["epoch"] for line in read_metrics(path)), default=0)

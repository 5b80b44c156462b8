"""Decoded images in the user's cache folder. An entry is complete or absent."""

import contextlib
import json
import math
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from filelock import FileLock, Timeout

from smilevae.errors import DataError

CACHE_VERSION = 3  # raise it if the same file would decode to other pixels or notes
UNFINISHED = "building-"  # begins the name of an entry that is not complete
PIXELS_BY = ("pillow", "resvg-py")  # libraries that decode and draw
Notes = dict[str, Any]
Build = Callable[[np.ndarray], Notes]


def cached(key: str, shape: tuple[int, ...], build: Build, cache: bool) -> tuple[np.ndarray, Notes]:
    """The uint8 array that `build` fills and the notes that it returns; `cache` keeps them."""
    if not cache:
        images = np.zeros(shape, dtype=np.uint8)
        return images, build(images)
    advice = "free space there, set XDG_CACHE_HOME, or pass data.cache=false"
    versions = "-".join(map(version, PIXELS_BY))
    entry = Path(platformdirs.user_cache_dir("smilevae")) / f"{key}-{CACHE_VERSION}-{versions}"
    try:
        if not (entry / "notes.json").exists():
            _build(entry, shape, build, advice)
        try:
            notes = json.loads((entry / "notes.json").read_text())
            return np.load(entry / "images.npy", mmap_mode="r"), notes
        except ValueError:  # half-written before a power failure
            problem = f"the image cache {entry} is damaged; remove it, and it is built again"
            raise DataError(problem) from None
    except OSError as error:
        problem = f"the image cache {entry} cannot be used ({error.strerror}); {advice}"
        raise DataError(problem) from None


def _build(entry: Path, shape: tuple[int, ...], build: Build, advice: str) -> None:
    """Build an entry, unless another process has just done so. Its lock ends with the process."""
    size = math.prod(shape)
    parent = entry.parent
    parent.mkdir(parents=True, exist_ok=True)
    _remove_unfinished(parent)
    with FileLock(parent / f".{entry.name}.lock"):
        if (entry / "notes.json").exists():
            return
        if shutil.disk_usage(parent).free < 1.1 * size:  # a full memory map ends in a bus error
            raise DataError(f"the image cache needs {size / 1e9:.1f} GB in {parent}; {advice}")
        work = parent / f"{UNFINISHED}{entry.name}"
        try:
            work.mkdir(exist_ok=True)
            images = np.lib.format.open_memmap(work / "images.npy", "w+", np.uint8, shape)
            notes = build(images)
            images.flush()
            (work / "notes.json").write_text(json.dumps(notes))
            work.rename(entry)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _remove_unfinished(parent: Path) -> None:
    """Remove what killed processes were building: nobody holds the lock of such an entry."""
    for work in parent.glob(f"{UNFINISHED}*"):
        name = work.name.removeprefix(UNFINISHED)
        with contextlib.suppress(Timeout), FileLock(parent / f".{name}.lock", timeout=0):
            shutil.rmtree(work, ignore_errors=True)

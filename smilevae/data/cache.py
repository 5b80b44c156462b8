"""Decoded images in the user's cache folder: a whole entry or none."""

import contextlib
import json
import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

from smilevae.errors import DataError

CACHE_VERSION = 2  # raise when the same file would decode to other pixels or notes


def cached(
    key: str, shape: tuple[int, ...], build: Callable[[np.ndarray], dict[str, Any]], use: bool
) -> tuple[np.ndarray, dict[str, Any]]:
    """An uint8 array of `shape` and its notes, from the user's cache directory or built into it."""
    if not use:
        images = np.zeros(shape, dtype=np.uint8)
        return images, build(images)
    home = Path(platformdirs.user_cache_dir("smilevae")) / f"{key}-{CACHE_VERSION}"
    hint = "free space there, set XDG_CACHE_HOME, or pass data.cache=false"
    try:
        if not (home / "notes.json").exists():
            home.parent.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(home.parent).free < 1.1 * math.prod(shape):  # writing a full memory map is a bus error
                raise DataError(f"the image cache needs {math.prod(shape) / 1e9:.1f} GB in {home.parent}; {hint}")
            work = Path(tempfile.mkdtemp(prefix="building-", dir=home.parent))
            try:
                images = np.lib.format.open_memmap(work / "images.npy", "w+", np.uint8, shape)
                notes = build(images)
                images.flush()
                (work / "notes.json").write_text(json.dumps(notes))
                with contextlib.suppress(OSError):  # another process finished the same cache first
                    work.rename(home)  # a whole cache or none
            finally:
                shutil.rmtree(work, ignore_errors=True)
        try:
            return np.load(home / "images.npy", mmap_mode="r"), json.loads((home / "notes.json").read_text())
        except ValueError:  # torn by a power cut
            raise DataError(f"the image cache {home} is damaged; remove it, and it is built again") from None
    except OSError as error:
        raise DataError(f"the image cache {home} cannot be used ({error.strerror}); {hint}") from None

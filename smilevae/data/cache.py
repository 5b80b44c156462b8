"""Decoded images in the user's cache folder. An entry is complete or absent."""

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

CACHE_VERSION = 2  # raise it if the same file would decode to other pixels or notes
Notes = dict[str, Any]
Build = Callable[[np.ndarray], Notes]


def cached(key: str, shape: tuple[int, ...], build: Build, cache: bool) -> tuple[np.ndarray, Notes]:
    """The uint8 array that `build` fills and the notes that it returns; `cache` keeps them."""
    if not cache:
        images = np.zeros(shape, dtype=np.uint8)
        return images, build(images)
    advice = "free space there, set XDG_CACHE_HOME, or pass data.cache=false"
    entry = Path(platformdirs.user_cache_dir("smilevae")) / f"{key}-{CACHE_VERSION}"
    try:
        if not (entry / "notes.json").exists():
            entry.parent.mkdir(parents=True, exist_ok=True)
            size, parent = math.prod(shape), entry.parent
            if shutil.disk_usage(parent).free < 1.1 * size:  # a full memory map ends in a bus error
                raise DataError(f"the image cache needs {size / 1e9:.1f} GB in {parent}; {advice}")
            with tempfile.TemporaryDirectory("", "building-", parent, ignore_cleanup_errors=True) as work:
                images = np.lib.format.open_memmap(f"{work}/images.npy", "w+", np.uint8, shape)
                notes = build(images)
                images.flush()
                Path(work, "notes.json").write_text(json.dumps(notes))
                with contextlib.suppress(OSError):  # another process was faster
                    Path(work).rename(entry)
        try:
            notes = json.loads((entry / "notes.json").read_text())
            return np.load(entry / "images.npy", mmap_mode="r"), notes
        except ValueError:  # half-written before a power failure
            raise DataError(f"the image cache {entry} is damaged; remove it, and it is built again") from None
    except OSError as error:
        raise DataError(f"the image cache {entry} cannot be used ({error.strerror}); {advice}") from None

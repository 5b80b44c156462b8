"""Whole-file writes: a reader sees the old content or the new, never a part."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

TEMPORARY = ".smilevae.tmp"  # ends the name of a file that is not whole yet


def replace_file(
    path: Path, write: Callable[[IO[bytes]], Any], check: Callable[[Path], Any] | None = None
) -> None:
    """Write a temporary file beside `path`, fsync it, `check` it, rename it, fsync the folder."""
    with replacing(path) as work:
        with open(work, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if check:
            check(work)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`: the file or folder written there then replaces `path`.

    A killed process leaves it behind; the folder's next owner removes it. An OSError names `path`.
    """
    work = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield work
            os.replace(work, path)
        finally:
            if work.is_dir():
                shutil.rmtree(work)
            work.unlink(missing_ok=True)
        if hasattr(os, "O_DIRECTORY"):  # Windows opens no folders
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        error.filename = str(path)  # the error of a full disk names no file
        raise


def write_bytes(path: Path, content: bytes) -> None:
    replace_file(path, lambda file: file.write(content))


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())

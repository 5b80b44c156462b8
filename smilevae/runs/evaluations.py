"""Evaluation folders: one for each checkpoint. The link `best` leads to that of a run's best one.

evaluation/epoch-0142/, evaluation/last/    of a run's checkpoint
evaluation/                                 of a lone file, an exported model, a sweep
evaluation-RUN/...                          in the current folder, where the run is read-only
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from smilevae.errors import CheckpointError, NotEvaluated
from smilevae.runs.checkpoint_files import ranked, run_of
from smilevae.runs.commands import command_name, shell_path
from smilevae.runs.files import TEMPORARY
from smilevae.runs.reading import read_json


def evaluation_folder(path: Path) -> Path:
    """Where the evaluation of a checkpoint file, or of a sweep's folder, is written."""
    home = path if path.is_dir() else run_of(path)
    inside = home / "evaluation"
    if not os.access(inside if inside.exists() else home, os.W_OK):
        inside = Path(f"evaluation-{home.resolve().name}")
    return inside / _part(path)


def point_to_best(path: Path) -> None:
    """Link evaluation/best to the evaluation of `path`, if that is its run's best checkpoint."""
    folder = evaluation_folder(path)
    if path.parent.name == "checkpoints" and path in ranked(run_of(path))[:1]:
        link = folder.with_name(f".best.{os.getpid()}{TEMPORARY}")
        with contextlib.suppress(OSError):  # not every file system has links
            link.symlink_to(folder.name)
            link.replace(folder.with_name("best"))


def read_evaluation(
    path: Path, name: str, weights: str, read: Callable[[Path], dict[str, Any]] = read_json
) -> dict[str, Any]:
    """A file of a checkpoint's evaluation, if it is of the same `weights` (a digest).

    Of a read-only run the user's own evaluation is read before the one in the run.
    Raises NotEvaluated, or CheckpointError for a damaged file.
    """
    inside = run_of(path) / "evaluation" / _part(path) / name
    files = [evaluation_folder(path) / name, inside]
    again = f"run {command_name('evaluate')} ckpt={shell_path(path)}"
    for file in filter(Path.exists, files):
        content = read(file)
        if content.get("weights") == weights:
            return content
        if not content:
            raise CheckpointError(f"{file} is damaged; {again} again")
    if inside.exists():
        raise NotEvaluated(f"{inside} is of another checkpoint than {path.name}; {again}")
    raise NotEvaluated(f"{inside} is missing; {again} first")


@contextlib.contextmanager
def whole(path: Path, name: str, *errors: type[Exception]) -> Iterator[None]:
    """While a file of a checkpoint's evaluation is used: an error of Python means that it is damaged.

    `errors` are more errors of that kind. Raises CheckpointError in place of them.
    """
    caught = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
    try:
        yield
    except caught + errors:
        again = f"run {command_name('evaluate')} ckpt={shell_path(path)} again"
        raise CheckpointError(f"{name} of {path} is damaged; {again}") from None


def _part(path: Path) -> str:
    """The folder of a checkpoint among those of its run."""
    return path.stem if path.parent.name == "checkpoints" else ""

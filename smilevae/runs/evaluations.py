"""Evaluation folders: one a checkpoint. The link `best` leads to that of a run's best.

evaluation/epoch-0142/   of a run's checkpoint; last/ and model/ (an exported model) likewise
evaluation/              of a lone checkpoint file, of a sweep, of every checkpoint in older folders
evaluation-RUN/          in the current folder, where the run may not be written
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from smilevae.errors import CheckpointError, NotEvaluated
from smilevae.runs.checkpoint_files import EXPORTED, ranked, run_of
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
    """A file of a checkpoint's newest evaluation of `weights`, a digest. Raises NotEvaluated, CheckpointError."""
    home = run_of(path)
    folders = [home / "evaluation", Path(f"evaluation-{home.resolve().name}")]
    files = [folder / part / name for folder in folders for part in (_part(path), "")]
    files = sorted((file for file in files if file.exists()), key=lambda file: -file.stat().st_mtime)
    contents = [read(file) for file in files]
    for content in contents:
        if content.get("weights") == weights:
            return content
    again = f"run {command_name('evaluate')} ckpt={shell_path(path)}"
    if not files:
        raise NotEvaluated(f"{folders[0] / _part(path) / name} is missing; {again} first")
    if not all(contents):
        raise CheckpointError(f"{files[contents.index({})]} is damaged; {again} again")
    raise NotEvaluated(f"{files[0]} is of another checkpoint than {path.name}; {again}")


def _part(path: Path) -> str:
    in_a_run = path.parent.name == "checkpoints" or path.name == EXPORTED
    return path.stem if in_a_run and not path.is_dir() else ""

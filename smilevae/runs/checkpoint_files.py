"""The checkpoint files of a run folder, and which of them is best.

epoch-0042.ckpt   the two best by val/loss       last.ckpt   a run continues from it
"""

import math
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from smilevae.errors import CheckpointError
from smilevae.runs import hub
from smilevae.runs.files import replacing
from smilevae.runs.reading import read_metrics

EXPORTED = "model.safetensors"


def find(ckpt: str) -> Path:
    """The file that a path or a name stands for, or the best one of a run folder.

    Raises CheckpointError, ConfigError.
    """
    if hub.is_name(ckpt):
        return hub.folder_of(ckpt) / EXPORTED
    if "://" in ckpt:
        raise CheckpointError(f"{ckpt} is a URL; download the file first and pass its path")
    path = Path(os.path.abspath(os.path.expanduser(ckpt)))  # its folder's name matters
    if not path.is_dir():
        return path
    if path.name == "checkpoints":
        path = path.parent
    if (path / EXPORTED).exists():
        return path / EXPORTED
    best = ranked(path)
    if not best:
        remedy = "pass a run folder that has finished an epoch, or a file"
        raise CheckpointError(f"{path} holds no checkpoint yet; {remedy}")
    epochs = {line["epoch"] for line in read_metrics(path)}
    if len(best) > 1 and epoch_of(best[0]) not in epochs:
        remedy = "pass " + " or ".join(file.name for file in best)
        text = f"{path} has no metrics.jsonl, which says what checkpoint is best; {remedy}"
        raise CheckpointError(text)
    return best[0]


def ranked(run: Path) -> list[Path]:
    """A run folder's best checkpoints, best first; last.ckpt where there are no others."""
    loss = {line["epoch"]: rank_of(line) for line in read_metrics(run)}
    folder = run / "checkpoints"
    paths = [path for path in folder.glob("epoch-*.ckpt") if epoch_of(path) >= 0]
    paths.sort(key=lambda path: (loss.get(epoch_of(path), math.inf), epoch_of(path)))
    if not paths and (folder / "last.ckpt").exists():
        return [folder / "last.ckpt"]
    return paths


def rank_of(line: Mapping[str, float]) -> float:
    """What ranks epochs, lowest first: val/loss."""
    return line.get("val/loss", math.inf)


def run_of(path: Path) -> Path:
    """A checkpoint's run folder, or the folder of a lone file."""
    return path.parent.parent if path.parent.name == "checkpoints" else path.parent


def best_name(epoch: int) -> str:
    return f"epoch-{epoch:04d}.ckpt"


def epoch_of(path: Path) -> int:
    """The epoch in the name of a best checkpoint; -1 for other files."""
    match = re.fullmatch(r"epoch-(\d+)\.ckpt", path.name)
    return int(match[1]) if match else -1


def link(source: Path, target: Path) -> None:
    """A hard link, or a copy where the file system has none, whole or not at all."""
    with replacing(target) as work:
        try:
            os.link(source, work)
        except OSError:
            shutil.copyfile(source, work)

"""The checkpoint files of a run folder: which is meant by a path, which is best, which are kept. No torch.

epoch-0042.ckpt   the two best by val/loss       last.ckpt, previous.ckpt   a run continues from these
"""

import contextlib
import os
import re
import shutil
from pathlib import Path

from smilevae.errors import CheckpointError
from smilevae.runs.files import replacing
from smilevae.runs.reading import read_metrics

EXPORTED = "model.safetensors"
NAME = re.compile(r"epoch-(\d+)\.ckpt")


def find(ckpt: str) -> Path:
    """The checkpoint file meant by a path: itself, or a run folder's best. Raises CheckpointError."""
    if "://" in ckpt:
        raise CheckpointError(f"{ckpt} is a URL; download the file first and pass its path")
    path = Path(os.path.expanduser(ckpt))
    path = path.parent if path.is_dir() and path.name == "checkpoints" else path
    if not path.is_dir():
        return path
    if (path / EXPORTED).exists():
        return path / EXPORTED
    if not (best := ranked(path)):
        raise CheckpointError(
            f"{path} holds no checkpoint yet; pass a run folder that has finished an epoch, or a file"
        )
    return best[0]


def ranked(run: Path) -> list[Path]:
    """A run folder's best checkpoints, best first by val/loss; its last one where there are no others."""
    loss = {line["epoch"]: line.get("val/loss", float("inf")) for line in read_metrics(run)}
    paths = [p for p in (run / "checkpoints").glob("epoch-*.ckpt") if NAME.fullmatch(p.name)]
    paths.sort(key=lambda p: (loss.get(epoch_of(p), float("inf")), epoch_of(p)))
    last = run / "checkpoints" / "last.ckpt"
    return paths or [p for p in (last, last.with_name("previous.ckpt")) if p.exists()]


def run_of(path: Path) -> Path:
    """The folder that a checkpoint's evaluation belongs to: its run, or where the lone file lies."""
    return path.parent.parent if path.parent.name == "checkpoints" else path.parent


def best_name(epoch: int) -> str:
    return f"epoch-{epoch:04d}.ckpt"


def epoch_of(path: Path) -> int:
    match = NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def keep_previous(last: Path) -> None:
    """Give the current last.ckpt a second name before it is replaced."""
    if last.exists():
        link(last, last.with_name("previous.ckpt"))


def link(source: Path, target: Path) -> None:
    """A second name for a checkpoint's bytes (a copy where the file system has no hard links), whole or not at all."""
    with replacing(target) as work:
        try:
            os.link(source, work)
        except OSError:
            shutil.copyfile(source, work)


def prune(folder: Path, keep: set[int]) -> None:
    """Remove the epoch checkpoints that are not among the best."""
    for path in folder.glob("epoch-*.ckpt"):
        if epoch_of(path) not in keep:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()

"""The only writer and the only reader of model files. A checkpoint may come from a stranger: it is data, never code.

checkpoints/epoch-0042.ckpt   the two best by val/loss      last.ckpt, previous.ckpt   where a run goes on
model.safetensors, model.json   what python -m smilevae.checkpoints export ckpt=RUN out=FOLDER writes
"""

import contextlib
import hashlib
import json
import os
import pickletools
import re
import shutil
import sys
import zipfile
from pathlib import Path
from typing import IO, Any

import torch

from smilevae import CheckpointError, ConfigError, knobs, runs
from smilevae.vae import VAE

FORMAT = 1
EXPORTED = "model.safetensors"
NAME = re.compile(r"epoch-(\d+)\.ckpt")
MAX_PLAIN = 16 * 2**20  # bytes of what is not weights
STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Byte", "Bool")
KEYS = {
    *("smilevae", "hyper_parameters", "fingerprint", "epoch", "state_dict", "callbacks"),
    *("global_step", "optimizer_states", "lr_schedulers", "plateau", "loops", "sums", "MixedPrecision"),  # to go on
    *("pytorch-lightning_version", "contract"),
}
# what a checkpoint's pickle may name; more could be asked for memory without bound even under weights_only
GLOBALS = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", *(f"torch {s}Storage" for s in STORAGES)}


def write(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint whole or not at all; what cannot be read back as a stranger's would be is not kept."""
    content["smilevae"] = {"format": FORMAT}

    def save(file: IO[bytes]) -> None:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's writer complains in its own words of what the file's has raised
            raise error.__context__ if isinstance(error.__context__, OSError) else error  # noqa: B904

    runs.replace_file(path, save, _plain_content)


def read(path: str | Path) -> dict[str, Any]:
    """A checkpoint's plain content, its settings checked. Raises CheckpointError."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise ValueError("a device, a pipe or a folder")
        exported = Path(path).name == EXPORTED
        content = _exported(Path(path)) if exported else _plain_content(Path(path))
        if (found := content["smilevae"]["format"]) != FORMAT:
            raise CheckpointError(f"{path} has the format {found}; this smilevae reads {FORMAT}")
        content["hyper_parameters"] = knobs.completed(content["hyper_parameters"])
        knobs.check(content["hyper_parameters"])
        kinds = {"state_dict": dict, "fingerprint": str, "epoch": int}
        if set(content) - KEYS or not all(isinstance(content[key], kind) for key, kind in kinds.items()):
            raise TypeError("a part of another kind")
        epochs_trained(content)
        return content
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; pass a checkpoint or a run folder") from None
    except ConfigError as error:
        raise CheckpointError(
            f"{path} holds settings out of range ({str(error).splitlines()[0]}); not loaded"
        ) from None
    except CheckpointError:
        raise
    except Exception as error:  # torch.load raises pickle, zip, runtime and key errors alike
        raise CheckpointError(f"{path} is not a smilevae checkpoint ({type(error).__name__}); pass another") from None


def _plain_content(path: Path) -> dict[str, Any]:
    """What torch.save wrote, if every record is whole (CRC-32), none is larger than the file and all are plain tensors.

    Raises whatever a file of another kind makes zipfile, pickletools and torch raise, OSError if it cannot be read.
    """
    with zipfile.ZipFile(path) as file:
        records = file.infolist()
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise ValueError("compressed records")
        if len({record.filename for record in records}) < len(records):
            raise ValueError("two records of one name")
        if sum(record.file_size for record in records) > path.stat().st_size:
            raise ValueError("records larger than the file")
        if damaged := file.testzip():
            raise ValueError(f"{damaged} is damaged")
        (plain,) = [record for record in records if record.filename.endswith("data.pkl")]
        if plain.file_size > MAX_PLAIN:
            raise ValueError("a pickle over the limit")
        for opcode, argument, _ in pickletools.genops(file.read(plain)):
            odd = opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4")
            if odd or (opcode.name == "GLOBAL" and argument not in GLOBALS):
                raise ValueError(f"a pickle that names {argument}")
    return torch.load(path, map_location="cpu", weights_only=True)


def _exported(path: Path) -> dict[str, Any]:
    """An exported folder's content, laid out as a checkpoint's."""
    from safetensors.torch import load_file

    if path.with_suffix(".json").stat().st_size > MAX_PLAIN:
        raise ValueError("settings over the limit")
    content = json.loads(path.with_suffix(".json").read_text())
    prefix = "ema." if content["hyper_parameters"]["ema"] else "vae."
    content["state_dict"] = {prefix + name: tensor for name, tensor in load_file(path).items()}
    return content | {"callbacks": {"Record": {"epochs": [{"epoch": int(content["epoch"])}]}}}


def load_vae(path: str | Path) -> tuple[VAE, dict[str, Any]]:
    """The VAE of a checkpoint, rebuilt from its own settings, in eval mode; and its content."""
    content = read(path)
    with torch.device("meta"):  # no memory is taken before the shapes are known to fit
        vae = build_vae(content["hyper_parameters"])
    shown = "ema." if content["hyper_parameters"]["ema"] else "vae."
    weights = {str(k).removeprefix(shown): v for k, v in content["state_dict"].items() if str(k).startswith(shown)}
    expected, found = (
        {name: (tuple(t.shape), t.dtype) if isinstance(t, torch.Tensor) else None for name, t in part.items()}
        for part in (vae.state_dict(), weights)
    )
    if expected != found:
        raise CheckpointError(f"{path}: the weights do not fit the network in its own settings; not loaded")
    vae.load_state_dict(weights, assign=True)
    return vae.to(memory_format=torch.channels_last).eval(), content


def digest(vae: VAE) -> str:
    """A hash of a VAE's weights: what was found for one is not another's."""
    whole = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(vae.state_dict().items()):
        whole.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return whole.hexdigest()


def build_vae(settings: dict[str, Any]) -> VAE:
    """The network that a run's settings describe, with new weights."""
    shared = {name: settings[name] for name in ("image_size", "latent_dim", "normalize")}
    return VAE(**settings["model"], **shared, linear=settings["warm_start"] == "ppca")


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
    loss = {line["epoch"]: line.get("val/loss", float("inf")) for line in runs.read_metrics(run)}
    found = [p for p in (run / "checkpoints").glob("epoch-*.ckpt") if NAME.fullmatch(p.name)]
    found.sort(key=lambda p: (loss.get(epoch_of(p), float("inf")), epoch_of(p)))
    last = run / "checkpoints" / "last.ckpt"
    return found or [p for p in (last, last.with_name("previous.ckpt")) if p.exists()]


def resume_point(run: Path, settings: dict[str, Any], fingerprint: str) -> Path:
    """Where a run goes on: last.ckpt; if that cannot be read, previous.ckpt takes its place.

    Raises CheckpointError if neither can, or if `settings` or the pictures' `fingerprint` are not those that it was
    trained with.
    """
    last = run / "checkpoints" / "last.ckpt"
    try:
        content = read(last)
    except CheckpointError as problem:
        previous = last.with_name("previous.ckpt")
        try:
            content = read(previous)
        except CheckpointError:
            raise CheckpointError(f"{run} cannot go on, nor from previous.ckpt: {problem}") from None
        link(previous, last)
    if content["fingerprint"] != fingerprint:
        raise CheckpointError("the pictures changed since this run began; restore them, or start a new run")
    now, then = knobs.flatten(settings), knobs.flatten(content["hyper_parameters"])
    for name in sorted(now.keys() | then.keys()):
        if name not in (*knobs.SAME_RESULT, "epochs") and now.get(name) != then.get(name):
            raise CheckpointError(
                f"{run} cannot go on: config.yaml says {name}={now.get(name)}, trained was {then.get(name)}"
            )
    return last


def epochs_trained(content: dict[str, Any]) -> int:
    """How many epochs a checkpoint's weights have seen; 0 for a warm start as it began."""
    return max((int(line["epoch"]) for line in content["callbacks"]["Record"]["epochs"]), default=0)


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
    with runs.taking_its_place(target) as work:
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


if __name__ == "__main__":
    from smilevae import console, export

    with console.one_sentence():
        export.main(sys.argv[1:])

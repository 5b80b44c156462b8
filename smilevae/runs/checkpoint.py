"""Writes and reads checkpoints, and reads exported models. The file may be hostile: it is read as data, never as code.

last.ckpt, previous.ckpt, epoch-0042.ckpt   plain tensors and settings
model.safetensors, model.json               written by `smilevae export`
"""

import hashlib
import json
import pickletools
import zipfile
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch

from smilevae.config import RESUMABLE, Settings, checked
from smilevae.errors import CheckpointError, ConfigError
from smilevae.models.vae import VAE, build_vae
from smilevae.runs.checkpoint_files import EXPORTED, link
from smilevae.runs.files import replace_file

FORMAT = 1
MAX_PLAIN = 16 * 2**20  # bytes of what is not weights
KEYS = {
    *("smilevae", "hyper_parameters", "fingerprint", "epoch", "state_dict", "callbacks"),
    *("global_step", "optimizer_states", "lr_schedulers", "plateau", "loops", "sums", "MixedPrecision"),  # to go on
    "pytorch-lightning_version",
}
GLOBALS = {  # what a pickle may name; others can demand any amount of memory, even under weights_only
    *("collections OrderedDict", "torch._utils _rebuild_tensor_v2"),
    *(f"torch {kind}Storage" for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Byte", "Bool")),
}
NEVER = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}  # opcodes


def write(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint whole or not at all. It is read back first."""
    content["smilevae"] = {"format": FORMAT}

    def save(file: IO[bytes]) -> None:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch.save wraps the OSError; raise the original
            raise error.__context__ if isinstance(error.__context__, OSError) else error  # noqa: B904

    replace_file(path, save, _plain_content)


def read(path: str | Path) -> dict[str, Any]:
    """The plain content of a checkpoint, its settings checked and complete. Raises CheckpointError."""
    file = Path(path)
    try:
        if file.exists() and not file.is_file():
            raise ValueError("a device, a pipe or a folder")
        content = _exported(file) if file.name == EXPORTED else _plain_content(file)
        if (number := content["smilevae"]["format"]) != FORMAT:
            raise CheckpointError(f"{path} has the format {number}; this smilevae reads {FORMAT}")
        content["hyper_parameters"] = checked(content["hyper_parameters"]).plain()
        kinds = {"state_dict": dict, "fingerprint": str, "epoch": int}
        if set(content) - KEYS or not all(isinstance(content[key], kind) for key, kind in kinds.items()):
            raise TypeError("a part of another kind")
        epochs_trained(content)
        return content
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; pass a checkpoint or a run folder") from None
    except ConfigError as error:
        problem = str(error).splitlines()[0]
        raise CheckpointError(f"{path} holds settings out of range ({problem}); not loaded") from None
    except CheckpointError:
        raise
    except Exception as error:  # torch.load raises pickle, zip, runtime and key errors alike
        raise CheckpointError(f"{path} is not a smilevae checkpoint ({type(error).__name__}); pass another") from None


def _plain_content(path: Path) -> dict[str, Any]:
    """Plain tensors that torch.save wrote. Raises anything for other files, OSError if it cannot be read."""
    with zipfile.ZipFile(path) as file:
        records = file.infolist()
        (plain,) = [record for record in records if record.filename.endswith("data.pkl")]
        if (
            any(record.compress_type != zipfile.ZIP_STORED for record in records)
            or len({record.filename for record in records}) < len(records)
            or sum(record.file_size for record in records) > path.stat().st_size
            or plain.file_size > MAX_PLAIN
            or file.testzip()  # CRC-32
        ):
            raise ValueError("records that are compressed, repeated, too large or damaged")
        for opcode, argument, _ in pickletools.genops(file.read(plain)):
            if opcode.name in NEVER or (opcode.name == "GLOBAL" and argument not in GLOBALS):
                raise ValueError(f"a pickle that names {argument}")
    return torch.load(path, map_location="cpu", weights_only=True)


def _exported(path: Path) -> dict[str, Any]:
    """An exported folder's content, laid out as a checkpoint's."""
    from safetensors.torch import load_file

    plain = path.with_suffix(".json")
    if plain.stat().st_size > MAX_PLAIN:
        raise ValueError("settings over the limit")
    content = json.loads(plain.read_text())
    prefix = "ema." if content["hyper_parameters"]["ema"] else "vae."
    content["state_dict"] = {prefix + name: tensor for name, tensor in load_file(path).items()}
    return content | {"callbacks": {"Record": {"epochs": [{"epoch": int(content["epoch"])}]}}}


class Loaded(NamedTuple):
    """A checkpoint's VAE in eval mode, its settings, its data's fingerprint and its trained epochs."""

    vae: VAE
    settings: Settings
    fingerprint: str
    epoch: int


def load(path: str | Path) -> Loaded:
    """The VAE of a checkpoint, rebuilt from its own settings. Raises CheckpointError."""
    content = read(path)
    settings = checked(content["hyper_parameters"])
    with torch.device("meta"):  # no memory is taken before the shapes are known to fit
        vae = build_vae(settings)
    prefix = "ema." if settings.ema else "vae."
    weights = {str(k).removeprefix(prefix): v for k, v in content["state_dict"].items() if str(k).startswith(prefix)}
    expected, given = (
        {name: (getattr(t, "shape", None), getattr(t, "dtype", None)) for name, t in part.items()}
        for part in (vae.state_dict(), weights)
    )
    if expected != given:
        raise CheckpointError(f"{path}: the weights do not fit the network in its own settings; not loaded")
    vae.load_state_dict(weights, assign=True)
    vae = vae.to(memory_format=torch.channels_last).eval()
    return Loaded(vae, settings, content["fingerprint"], epochs_trained(content))


def digest(vae: VAE) -> str:
    """A hash of a VAE's weights."""
    whole = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(vae.state_dict().items()):
        whole.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return whole.hexdigest()


def resume_point(run: Path, settings: Settings, fingerprint: str) -> Path:
    """The checkpoint that a run continues from: last.ckpt; if it cannot be read, previous.ckpt takes its place.

    Raises CheckpointError if neither can be read, or if it was trained with other settings or images.
    """
    last, previous = (run / "checkpoints" / name for name in ("last.ckpt", "previous.ckpt"))
    try:
        content = read(last)
    except CheckpointError as problem:
        try:
            content = read(previous)
        except CheckpointError:
            raise CheckpointError(f"{run} cannot go on, nor from previous.ckpt: {problem}") from None
        link(previous, last)
    if content["fingerprint"] != fingerprint:
        raise CheckpointError("the pictures changed since this run began; restore them, or start a new run")
    now, then = settings.flat(), checked(content["hyper_parameters"]).flat()
    for name in now:
        if name not in RESUMABLE and now[name] != then[name]:
            raise CheckpointError(f"{run} cannot go on: config.yaml says {name}={now[name]}, trained was {then[name]}")
    return last


def epochs_trained(content: dict[str, Any]) -> int:
    """How many epochs a checkpoint's weights have seen; 0 for a warm start."""
    return max((int(line["epoch"]) for line in content["callbacks"]["Record"]["epochs"]), default=0)

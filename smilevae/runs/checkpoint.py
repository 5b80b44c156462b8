"""Writes and reads checkpoints, and reads exported models.

last.ckpt, epoch-0042.ckpt       plain tensors and settings
model.safetensors, model.json    written by `smilevae export`

A file may come from a stranger: it is read as data, never as code.
"""

import hashlib
import io
import json
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from smilevae.config import RESUMABLE, Settings, checked
from smilevae.errors import CheckpointError, ConfigError
from smilevae.models.vae import VAE, build_vae
from smilevae.runs.checkpoint_files import EXPORTED
from smilevae.runs.files import replace_file

FORMAT = 1
MAX_PLAIN = 16 * 2**20  # bytes of what is not weights
KINDS = {"state_dict": dict, "fingerprint": str, "epoch": int}
KEYS = {"smilevae", "hyper_parameters", "callbacks", *KINDS}
# of last.ckpt, for a resume
KEYS |= {"global_step", "optimizer_states", "lr_schedulers", "plateau", "loops", "sums"}
KEYS |= {"MixedPrecision", "pytorch-lightning_version"}
# What a pickle may name. weights_only allows more: a bytearray of any size, for example.
STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Byte", "Bool")
GLOBALS = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2"}
GLOBALS |= {f"torch {kind}Storage" for kind in STORAGES}
FORBIDDEN_OPCODES = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}


def write(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint whole or not at all. It is read back first."""
    buffer = io.BytesIO()
    torch.save(content | {"smilevae": {"format": FORMAT}}, buffer)
    replace_file(path, lambda file: file.write(buffer.getbuffer()), _plain_content)


def read(path: str | Path) -> dict[str, Any]:
    """The plain content of a checkpoint; its settings are checked. Raises CheckpointError."""
    file = Path(path)
    try:
        if file.exists() and not file.is_file():
            raise ValueError("a device, a pipe or a folder")
        content = _exported(file) if file.name == EXPORTED else _plain_content(file)
        number = content["smilevae"]["format"]
        if number != FORMAT:
            raise CheckpointError(f"{path} has the format {number}; this smilevae reads {FORMAT}")
        content["hyper_parameters"] = checked(content["hyper_parameters"]).plain()
        if set(content) - KEYS:
            raise ValueError("an unknown part")
        if not all(isinstance(content[key], kind) for key, kind in KINDS.items()):
            raise TypeError("a part of another kind")
        epochs_trained(content)
        return content
    except FileNotFoundError:
        problem = "does not exist; pass a checkpoint or a run folder"
    except ConfigError as error:
        problem = f"holds settings that cannot be used ({str(error).splitlines()[0]}); not loaded"
    except CheckpointError:
        raise
    except Exception as error:  # torch.load raises pickle, zip, runtime and key errors alike
        problem = f"is not a smilevae checkpoint ({type(error).__name__}); pass another"
    raise CheckpointError(f"{path} {problem}")


def _plain_content(path: Path) -> dict[str, Any]:
    """Plain tensors that torch.save wrote. Raises an exception of any kind for other files."""
    with zipfile.ZipFile(path) as file:
        # The archive holds what it says, and is not larger in memory than on the disk.
        records = file.infolist()
        (plain,) = [record for record in records if record.filename.endswith("data.pkl")]
        compressed = any(record.compress_type != zipfile.ZIP_STORED for record in records)
        repeated = len({record.filename for record in records}) < len(records)
        size = sum(record.file_size for record in records)
        too_large = size > path.stat().st_size or plain.file_size > MAX_PLAIN
        if compressed or repeated or too_large or file.testzip():  # testzip checks the CRC-32
            raise ValueError("records that are compressed, repeated, too large or damaged")
        # Its pickle names only what a checkpoint needs.
        for opcode, argument, _ in pickletools.genops(file.read(plain)):
            unknown = opcode.name == "GLOBAL" and argument not in GLOBALS
            if unknown or opcode.name in FORBIDDEN_OPCODES:
                raise ValueError(f"a pickle that names {argument}")
    return torch.load(path, map_location="cpu", weights_only=True)


def _exported(path: Path) -> dict[str, Any]:
    """The content of an exported folder, laid out as a checkpoint's."""
    from safetensors.torch import load_file

    plain = path.with_suffix(".json")
    if plain.stat().st_size > MAX_PLAIN:
        raise ValueError("settings over the limit")
    content = json.loads(plain.read_text())
    prefix = "ema." if content["hyper_parameters"]["ema"] else "vae."
    weights = load_file(path)
    content["state_dict"] = {prefix + name: tensor for name, tensor in weights.items()}
    content["callbacks"] = {"Record": {"epochs": [{"epoch": int(content["epoch"])}]}}
    return content


class Loaded(NamedTuple):
    """A checkpoint's VAE in eval mode, its settings, its data's fingerprint, its trained epochs."""

    vae: VAE
    settings: Settings
    fingerprint: str
    epoch: int


def load(path: str | Path) -> Loaded:
    """The VAE of a checkpoint, built from the checkpoint's settings. Raises CheckpointError."""
    content = read(path)
    settings = checked(content["hyper_parameters"])
    prefix = "ema." if settings.ema else "vae."
    weights = {
        str(name).removeprefix(prefix): tensor
        for name, tensor in content["state_dict"].items()
        if str(name).startswith(prefix) and isinstance(tensor, Tensor)
    }
    with torch.device("meta"):  # takes no memory before the shapes are known to fit
        vae = build_vae(settings)
    if _shapes(weights) != _shapes(vae.state_dict()):
        raise CheckpointError(f"{path}: the weights do not fit the network of the settings in it")
    if not all(tensor.isfinite().all() for tensor in weights.values()):
        raise CheckpointError(f"{path} holds weights that are not finite; take another checkpoint")
    vae.load_state_dict(weights, assign=True)
    vae = vae.to(memory_format=torch.channels_last).eval()
    return Loaded(vae, settings, content["fingerprint"], epochs_trained(content))


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in weights.items()}


def digest(vae: VAE) -> str:
    """A hash of a VAE's weights."""
    whole = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(vae.state_dict().items()):
        whole.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return whole.hexdigest()


def resume_point(run: Path, settings: Settings, fingerprint: str) -> Path:
    """The checkpoint from which a run continues.

    Raises CheckpointError if it is damaged, or was trained with other settings or images.
    """
    last = run / "checkpoints" / "last.ckpt"
    try:
        content = read(last)
    except CheckpointError:
        text = "is damaged or missing, so its run cannot go on; start a new run"
        raise CheckpointError(f"{last} {text}") from None
    if content["fingerprint"] != fingerprint:
        text = "the images changed since this run began; restore them, or start a new run"
        raise CheckpointError(text)
    now = settings.flat()
    trained = checked(content["hyper_parameters"]).flat()
    for name in now:
        if name not in RESUMABLE and now[name] != trained[name]:
            text = f"config.yaml says {name}={now[name]}, trained was {trained[name]}"
            raise CheckpointError(f"{run} cannot go on: {text}")
    return last


def epochs_trained(content: dict[str, Any]) -> int:
    """How many epochs a checkpoint's weights have seen; 0 for a warm start."""
    lines = content["callbacks"]["Record"]["epochs"]
    return max((int(line["epoch"]) for line in lines), default=0)

"""Tensors with what describes them in one safetensors file: shapes and types come checked."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

CONTENT = "smilevae"  # the key of the header under which the content stands, as JSON


def tensor_file(tensors: Mapping[str, "Tensor"], content: Mapping[str, Any]) -> bytes:
    """The bytes of a file with tensors, as float32, and a JSON object."""
    from safetensors.torch import save

    plain = {name: tensor.float().contiguous().clone() for name, tensor in tensors.items()}
    return save(plain, {CONTENT: json.dumps(content)})


def read_tensors(path: Path) -> dict[str, Any]:
    """The content of a file, with its `tensors` as float32; {} where there is none or it is not whole."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
            content = json.loads((file.metadata() or {})[CONTENT])
        return {**content, "tensors": tensors}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}

"""Landmarks of faces by MediaPipe's face mesh, which was trained on other images (see NOTICE).

Shapes: B batch, S image side, L = 468 landmarks.
"""

import contextlib
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from smilevae.errors import DataError

MODEL = Path(__file__).with_name("face_landmark.tflite")
SIDE = 192  # of its input
MARGIN = 42  # pixels about a face: so it tells smiles best
OUTPUTS = ("add_12", "p_re_lu_16", "conv2d_20", "conv2d_30")  # two layers, landmarks, score
NUM_FEATURES = 256
EARLY = ("add", "add_1", "add_3", "add_4", "add_6", "add_7")  # layers that see edges
CELLS = 6  # a side, into which `see_edges` divides a face
NUM_EDGES = 2 * (16 + 16 + 32 + 32 + 64 + 64) * CELLS**2  # of their channels
NUM_POINTS = 468
CHUNK = 64  # crops enlarged at a time
EYES = ((33, 133), (263, 362))  # corners of the photo's left and right eye
INSTALL = "pip install -e '.[photo]'"
_idle: defaultdict[Path, list[Any]] = defaultdict(list)  # networks that no thread is using
_reading = threading.Lock()  # OpenCV fails if two threads read their first networks at once


def opencv() -> Any:
    try:
        import cv2
    except ImportError:
        raise DataError(f"finding faces needs OpenCV, which is not installed: {INSTALL}") from None
    return cv2


def _free_network(model: Path) -> Any:
    """One that no other thread is using: read once, given back by `forward`."""
    with contextlib.suppress(IndexError):
        return _idle[model].pop()
    dnn = opencv().dnn
    # A face a core takes less than half the time of one face on both
    opencv().setNumThreads(1)
    # The new engine of OpenCV 5 gives no inner layers and only the last output
    engine = [dnn.ENGINE_CLASSIC] if hasattr(dnn, "ENGINE_CLASSIC") else []
    with _reading:
        return dnn.readNetFromTFLite(str(model), *engine)


def forward(model: Path, blob: np.ndarray, names: Sequence[str]) -> list[np.ndarray]:
    """Outputs of a network's layers for one input, in any thread. Raises DataError if OpenCV cannot."""
    try:
        network = _free_network(model)
        network.setInput(blob)  # it keeps no reference
        outputs = network.forward(list(names))
    except opencv().error as error:
        raise DataError(f"{model.name}: {str(error).splitlines()[0]}; run {INSTALL}") from None
    _idle[model].append(network)
    return outputs


class Seen(NamedTuple):
    """Outputs of the mesh for face crops. A score is the logit that a crop shows a face."""

    features: Tensor  # (B, F), means of its layers over the image
    points: np.ndarray  # (B, L, 2), shares of the side, across and down
    scores: np.ndarray  # (B,)


def see(x: Tensor, margin: int = MARGIN) -> Seen:
    """One pass over crops (B, C, S, S) in [0, 1], `margin` in pixels of SIDE. Raises DataError."""
    rows = _forward_all(x, margin, lambda blob: forward(MODEL, blob, OUTPUTS))
    *layers, points, scores = (np.concatenate(parts) for parts in zip(*rows))
    features = torch.from_numpy(np.concatenate([layer.mean((2, 3)) for layer in layers], 1))
    points = (points.reshape(len(x), -1, 3)[..., :2] - margin) / (SIDE - 2 * margin)
    return Seen(features, points, scores.reshape(len(x)))


def see_edges(x: Tensor) -> np.ndarray:
    """What early layers see in crops (B, C, S, S): (B, NUM_EDGES). Raises DataError.

    The mean and the root mean square of each channel in each of CELLS x CELLS cells of a face.
    """
    return np.stack(_forward_all(x, MARGIN, _edges))


def _edges(blob: np.ndarray) -> np.ndarray:
    parts = []
    for layer in forward(MODEL, blob, EARLY):
        edge = round(MARGIN * layer.shape[-1] / SIDE)
        inner = torch.from_numpy(layer)[0, :, edge:-edge, edge:-edge]
        mean = F.adaptive_avg_pool2d(inner, CELLS)
        square = F.adaptive_avg_pool2d(inner.square(), CELLS)
        parts += [mean.flatten(), square.sqrt().flatten()]
    return torch.cat(parts).numpy()


def _forward_all(x: Tensor, margin: int, look: Callable[[np.ndarray], Any]) -> list[Any]:
    """`look` at crops (B, C, S, S) as the network takes them, a crop a core."""
    inner = (SIDE - 2 * margin,) * 2
    seen: list[Any] = []
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for chunk in x.cpu().split(CHUNK):
            colours = chunk.expand(-1, 3, -1, -1)
            large = F.interpolate(colours, inner, mode="bicubic", align_corners=False).clamp(0, 1)
            large = F.pad(large, (margin,) * 4, mode="replicate") * 2 - 1
            seen += pool.map(look, large[:, None].contiguous().numpy())
    return seen

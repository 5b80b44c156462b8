"""Faces in a photo: MediaPipe's full-range detector proposes them, the face mesh checks them (see NOTICE).

Shapes: H, W sides of the photo, N faces, K = 3 keypoints (both eyes, the mouth), L landmarks.
Points are pixels of the photo, across and down.
"""

import itertools
from pathlib import Path

import numpy as np
import torch

from smilevae.editing import alignment, mesh
from smilevae.editing.alignment import keypoints, matrix_of, moved_back
from smilevae.errors import DataError

MODEL = Path(__file__).with_name("face_detection_full_range.tflite")
OUTPUTS = ("reshaped_classifier_face_4", "reshaped_regressor_face_4")
SIDE = 192  # pixels of its input
STRIDE = 4  # pixels between its anchors
KEYPOINTS = (2, 3, 5)  # among the eight pairs of its second output
ZOOMS = (0.5, 1, 2, 4)  # it finds faces of an eighth to a half of its input
ANGLES = np.radians([0, 45, -45])
LIKELY = -0.5  # logit of a proposal
TRUST = 11.0  # score of the mesh; of 84 faces 82 had over 12, wrong places at most 10.2
TURNS = np.multiply.outer([0.92, 1.08], np.exp([0.1j, -0.1j])).ravel()  # of averaged crops
MARGIN = 36  # pixels of the mesh's input about a face


def find_faces(photo: np.ndarray) -> list[np.ndarray]:
    """Landmarks (L, 2) of the faces in a photo (H, W, 3), largest first; tilted ones if none is upright."""
    share = min(1, alignment.LONGEST / max(photo.shape))
    size = [max(1, round(share * side)) for side in photo.shape[1::-1]]
    small = mesh.opencv().resize(photo, size, interpolation=mesh.opencv().INTER_AREA)
    faces: list[np.ndarray] = []
    for angle in ANGLES:
        for points in _proposals(small, angle):
            face, score = place(photo, points / share)
            apart = [np.hypot(*(face - other).mean(0)) / np.ptp(other, 0).max() for other in faces]
            if score >= TRUST and min(apart, default=1) > 0.5:
                faces.append(steadied(photo, face))
        if faces:
            break
    return sorted(faces, key=lambda face: -np.ptp(face, 0).max())


def typical_points(images: np.ndarray) -> alignment.Points | None:
    """Median keypoints of images (N, S, S, 3) uint8 and their mirror images, as shares of the side.

    None where fewer than ten show a face, or OpenCV is not installed.
    """
    try:
        _, points, scores = mesh.see(torch.from_numpy(images).movedim(-1, 1) / 255, MARGIN)
    except DataError:
        return None
    if (scores >= TRUST).sum() < 10:
        return None
    median = np.median(keypoints(points[scores >= TRUST]), 0)
    mirrored = median[[1, 0, 2]] * [-1, 1] + [1, 0]
    return tuple((x, y) for x, y in ((median + mirrored) / 2).tolist())


def place(photo: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, float]:
    """Landmarks (L, 2) of the face at keypoints, and the mesh's score."""
    for _ in range(3):  # each time in a better crop
        face, score = _see(photo, points, 1)
        points = keypoints(face)
    return face, score


def steadied(photo: np.ndarray, face: np.ndarray) -> np.ndarray:
    """Mean landmarks (L, 2) of crops that are turned and zoomed a little: one crop's are off by more."""
    return np.mean([face, *(_see(photo, keypoints(face), turn)[0] for turn in TURNS)], 0)


def _see(photo: np.ndarray, points: np.ndarray, turn: complex) -> tuple[np.ndarray, float]:
    """Landmarks (L, 2) and the mesh's score in one crop, turned and zoomed by a factor."""
    layout = MARGIN + (mesh.SIDE - 2 * MARGIN) * np.array(alignment.LAYOUT)
    turned = alignment.moved(layout, matrix_of(turn, complex(mesh.SIDE, mesh.SIDE) / 2, mesh.SIDE))
    matrix = alignment.similarity(points, turned)
    crop = torch.from_numpy(alignment.cut(photo, matrix, mesh.SIDE)).permute(2, 0, 1)
    _, marks, scores = mesh.see(crop[None] / 255, 0)
    return moved_back(mesh.SIDE * marks[0], matrix), float(scores[0])


def _proposals(photo: np.ndarray, angle: float) -> list[np.ndarray]:
    """Keypoints (K, 2) of possible faces that are tilted by about `angle`, the likeliest first."""
    sides = np.array(photo.shape[1::-1])
    turn = np.exp(-1j * angle)
    span = max(abs(turn.real) * sides + abs(turn.imag) * sides[::-1])

    # Windows of SIDE pixels over the turned photo, at several sizes
    seen: list[tuple[float, np.ndarray]] = []
    for zoom in ZOOMS:
        side = round(SIDE * max(1, zoom))
        if zoom > 1 and side > 1.5 * span:
            break
        matrix = matrix_of(SIDE * zoom / span * turn, complex(*sides) / 2, side)
        view = alignment.cut(photo, matrix, side)
        starts = range(0, side - SIDE + 1, SIDE // 2)
        for left, top in itertools.product(starts, starts):
            logits, points = _detect(view[top : top + SIDE, left : left + SIDE])
            seen += zip(logits, moved_back(points + np.array([left, top]), matrix))

    # Of those nearer to each other than the eyes are, the likeliest
    kept: list[np.ndarray] = []
    for _, points in sorted(seen, key=lambda pair: -pair[0]):
        if all(np.hypot(*(points - k).mean(0)) > np.hypot(*(k[0] - k[1])) for k in kept):
            kept.append(points)
    return kept


def _detect(window: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N,) and keypoints (N, K, 2) in a window (SIDE, SIDE, 3)."""
    blob = np.ascontiguousarray(window.transpose(2, 0, 1)[None] / np.float32(127.5) - 1)
    logits, pairs = (output[0] for output in mesh.forward(MODEL, blob, OUTPUTS))
    likely = np.flatnonzero(logits[:, 0] > LIKELY)
    down, across = np.divmod(likely, SIDE // STRIDE)
    anchors = np.stack([across, down], 1) * STRIDE + STRIDE / 2
    points = pairs[likely].reshape(-1, 8, 2)[:, KEYPOINTS] + anchors[:, None]
    return logits[likely, 0], points

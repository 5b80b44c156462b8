"""Locates a face in a photo, crops it as training images are, and pastes a change back at full resolution.

Shapes: H, W sides of the photo, S side of a crop. A matrix (2, 3) maps points of the photo to points of the crop.
"""

import functools
from typing import Any

import numpy as np

from smilevae.editing.mesh import opencv
from smilevae.errors import DataError

EYES = ((0.24, 0.255), (0.76, 0.255))  # shares of the side, where training images were not measured
INSET = (0.13, 0.21, 0.73)  # left, top and side of the crop in a detector's box, as in LFWcrop
TILT = np.radians(5)
SOFT = 0.2  # share of the side over which the edit fades out
MIN_FACE = 24  # pixels
LONGEST = 1024  # side at which faces are detected
Box = tuple[float, float, float, float]  # left, top, width, height
Points = tuple[tuple[float, float], tuple[float, float]]


def find_faces(photo: np.ndarray) -> list[Box]:
    """Boxes of the faces in a photo (H, W, 3), largest first."""
    shrink = max(1.0, max(photo.shape[:2]) / LONGEST)
    detect = _cascade("frontalface_alt2").detectMultiScale
    boxes = detect(_grey(photo, shrink), 1.1, 4, minSize=(MIN_FACE, MIN_FACE))
    boxes = [tuple(float(v) * shrink for v in box) for box in boxes]
    return sorted(boxes, key=lambda box: -box[2] * box[3])


def find_eyes(photo: np.ndarray, box: Box) -> Points | None:
    """The middles of both eyes of a face, the photo's left one first; None where they are not clear."""
    left, top, width, height = (round(v) for v in box)
    upper = photo[max(0, top) : top + round(0.6 * height), max(0, left) : left + width]
    if min(upper.shape[:2]) < MIN_FACE // 2:
        return None
    cv2, zoom = opencv(), 160 / upper.shape[1]
    grey = cv2.resize(_grey(upper, 1), None, fx=zoom, fy=zoom, interpolation=cv2.INTER_LINEAR)
    found = _cascade("eye_tree_eyeglasses").detectMultiScale(grey, 1.05, 3, minSize=(18, 18), maxSize=(64, 64))
    middles = [((x + w / 2) / zoom, (y + h / 2) / zoom) for x, y, w, h in found]
    lefts, rights = ([m for m in middles if (m[0] < upper.shape[1] / 2) == side] for side in (True, False))
    pairs = [(a, b) for a in lefts for b in rights if 0.25 * width < b[0] - a[0] < 0.65 * width]
    pairs = [(a, b) for a, b in pairs if abs(a[1] - b[1]) < 0.25 * (b[0] - a[0])]
    if not pairs:
        return None
    a, b = pairs[0]
    x, y = max(0, left), max(0, top)
    return (x + a[0], y + a[1]), (x + b[0], y + b[1])


def typical_eyes(pictures: np.ndarray) -> Points | None:
    """Median eyes of training images (N, S, S, 3) uint8, as shares of the side.

    None where fewer than ten show both eyes, or OpenCV is not installed.
    """
    try:
        found = [find_eyes(picture, (0, 0, picture.shape[1], picture.shape[0])) for picture in pictures]
    except DataError:
        return None
    points = np.array([eyes for eyes in found if eyes]) / pictures.shape[1]
    if len(points) < 10:
        return None
    (ax, ay), (bx, by) = np.median(points, 0).tolist()
    apart, height = bx - ax, (ay + by) / 2  # the crop's middle lies between the eyes
    return ((1 - apart) / 2, height), ((1 + apart) / 2, height)


def crop_matrix(box: Box, eyes: Points | None, side: int, typical: Points) -> np.ndarray:
    """Photo to crop of `side` pixels (2, 3), from a detector's box and, where they are known, the eyes.

    Middle and size are the means of both: each is wrong by a tenth of the side. A tilt beyond TILT is
    undone.
    """
    middle, scale, angle = complex(box[0], box[1]), INSET[2] * box[2] / side, 0.0
    middle += complex(INSET[0] * box[2], INSET[1] * box[3]) + scale * side * (1 + 1j) / 2
    if eyes is not None:
        (a, b), (c, d) = (complex(*p) for p in eyes), (side * complex(*p) for p in typical)
        turn = (b - a) / (d - c)  # crop to photo, a complex factor
        middle = (middle + a + turn * (side * (1 + 1j) / 2 - c)) / 2
        scale, angle = np.sqrt(scale * abs(turn)), np.angle(turn)
        angle -= np.clip(angle, -TILT, TILT)
    turn = np.exp(-1j * angle) / scale
    shift = side * (1 + 1j) / 2 - turn * middle
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def cut(photo: np.ndarray, matrix: np.ndarray, side: int) -> np.ndarray:
    """The antialiased crop (S, S, 3) uint8 of a photo."""
    cv2 = opencv()
    finer = int(np.clip(np.ceil(1 / np.sqrt(abs(np.linalg.det(matrix[:, :2])))), 1, 16))
    scale = np.array([[finer, 0, (finer - 1) / 2], [0, finer, (finer - 1) / 2]]) @ np.vstack([matrix, [0, 0, 1]])
    modes = {"flags": cv2.INTER_CUBIC, "borderMode": cv2.BORDER_REPLICATE}
    large = cv2.warpAffine(photo, scale, (side * finer, side * finer), **modes)
    return cv2.resize(large, (side, side), interpolation=cv2.INTER_AREA)


def soft_mask(side: int) -> np.ndarray:
    """(S, S) from 0 at the border to 1 within, smoothly."""
    edge = np.minimum(np.arange(side), np.arange(side)[::-1]) / (SOFT * side)
    ramp = np.clip(edge, 0, 1)
    ramp = ramp**2 * (3 - 2 * ramp)
    return (ramp[:, None] * ramp).astype(np.float32)


def paste(photo: np.ndarray, change: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The photo plus a crop's change (S, S, 3) in [-1, 1] under the soft mask."""
    cv2, side = opencv(), change.shape[0]
    corners = np.array([[0, 0], [side, 0], [0, side], [side, side]]) - matrix[:, 2]
    corners = np.linalg.solve(matrix[:, :2], corners.T).T
    (left, top), (right, low) = np.floor(corners.min(0)).astype(int), np.ceil(corners.max(0)).astype(int) + 1
    left, top = max(0, left), max(0, top)
    right, low = min(photo.shape[1], right), min(photo.shape[0], low)
    if right <= left or low <= top:
        return photo.copy()
    local = matrix + np.column_stack([np.zeros((2, 2)), matrix[:, :2] @ [left, top]])
    shown = change.astype(np.float32) * soft_mask(side)[:, :, None]
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    added = cv2.warpAffine(shown, local, (int(right - left), int(low - top)), flags=flags)
    result = photo.copy()
    region = result[top:low, left:right].astype(np.float32) + 255 * added
    result[top:low, left:right] = region.round().clip(0, 255).astype(np.uint8)
    return result


def _grey(photo: np.ndarray, shrink: float) -> np.ndarray:
    cv2 = opencv()
    grey = cv2.cvtColor(np.ascontiguousarray(photo), cv2.COLOR_RGB2GRAY)
    size = (max(1, round(grey.shape[1] / shrink)), max(1, round(grey.shape[0] / shrink)))
    return cv2.resize(grey, size, interpolation=cv2.INTER_AREA) if shrink > 1 else grey


@functools.cache
def _cascade(name: str) -> Any:
    cv2 = opencv()
    return cv2.CascadeClassifier(f"{cv2.data.haarcascades}haarcascade_{name}.xml")

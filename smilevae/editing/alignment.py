"""Crops a face from a photo as training images are, and pastes a change back at full resolution.

Shapes: S side of a crop, K keypoints, L landmarks. A matrix (2, 3) maps the photo to the crop.
"""

from typing import NamedTuple

import numpy as np

from smilevae.editing.mesh import opencv

LAYOUT = ((0.26, 0.255), (0.74, 0.255), (0.5, 0.735))  # usual eyes and mouth, shares of a side
OUTLINE = [
    *(10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377),
    *(152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109),
]  # of a face, among the mesh's landmarks
CORNERS = [[33, 133], [263, 362], [61, 291]]  # of the photo's left eye, its right eye and the mouth
SOFT = 0.12  # share of the side over which the edit fades out
MIN_FACE = 24  # pixels
LONGEST = 1024  # side of a photo for the detector, and of an animation
MAX_SIDE = 32_766  # pixels of a photo's side for warpAffine of OpenCV 4
Points = tuple[tuple[float, float], ...]


class Face(NamedTuple):
    matrix: np.ndarray  # (2, 3)
    mask: np.ndarray  # (S, S), the share of a change that is put back


def keypoints(landmarks: np.ndarray) -> np.ndarray:
    """(..., L, 2) -> (..., K, 2): the middles of both eyes and of the mouth."""
    return landmarks[..., CORNERS, :].mean(-2)


def matrix_of(turn: complex, middle: complex, side: int) -> np.ndarray:
    """The matrix that turns and scales by a factor and takes `middle` to the middle of a crop."""
    shift = side * (1 + 1j) / 2 - turn * middle
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def similarity(points: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The least-squares turn, scale and shift (2, 3) of points (K, 2) to others."""
    a = points @ [1, 1j]
    b = target @ [1, 1j]
    turn = np.vdot(a - a.mean(), b - b.mean()) / np.vdot(a - a.mean(), a - a.mean())
    return matrix_of(turn, a.mean() - b.mean() / turn, 0)


def moved(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Points (..., 2) of the photo in the crop."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def moved_back(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Points (..., 2) of the crop in the photo."""
    return (points - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T


def cut(photo: np.ndarray, matrix: np.ndarray, side: int) -> np.ndarray:
    """The antialiased crop (S, S, 3) uint8 of a photo."""
    cv2 = opencv()

    # Of a longer photo than OpenCV 4 takes, the part about the crop
    middle = moved_back(np.full(2, side / 2), matrix)
    last = np.array(photo.shape[1::-1]) - MAX_SIDE
    begin = (middle - MAX_SIDE // 2).clip(0, last.clip(0)).astype(int)
    photo = photo[begin[1] :, begin[0] :][:MAX_SIDE, :MAX_SIDE]
    matrix = np.column_stack([matrix[:, :2], moved(begin, matrix)])

    # A crop as fine as the photo, then shrunk
    zoom = np.sqrt(abs(np.linalg.det(matrix[:, :2])))
    finer = int(np.clip(np.ceil(1 / zoom), 1, 16))
    shift = (finer - 1) / 2
    scale = np.array([[finer, 0, shift], [0, finer, shift]]) @ np.vstack([matrix, [0, 0, 1]])
    modes = {"flags": cv2.INTER_CUBIC, "borderMode": cv2.BORDER_REPLICATE}
    large = cv2.warpAffine(photo, scale, (side * finer, side * finer), **modes)
    return cv2.resize(large, (side, side), interpolation=cv2.INTER_AREA)


def soft_mask(side: int, landmarks: np.ndarray | None = None) -> np.ndarray:
    """(S, S), 0 at the border to 1 within; with landmarks (L, 2) of the crop, 0 at their outline."""
    cv2 = opencv()
    inside = np.ones((side, side), np.uint8)
    if landmarks is not None:
        outline = landmarks[OUTLINE].round().astype(np.int32)
        inside = cv2.fillPoly(np.zeros((side, side), np.uint8), [outline], 1)
    inside[[0, -1]] = 0
    inside[:, [0, -1]] = 0
    depth = cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    ramp = np.clip(depth / (SOFT * side), 0, 1)
    return (ramp**2 * (3 - 2 * ramp)).astype(np.float32)


def face_at(landmarks: np.ndarray, side: int, layout: Points) -> Face:
    """The face at landmarks (L, 2) of a photo, its keypoints where training images have theirs."""
    matrix = similarity(keypoints(landmarks), side * np.array(layout))
    return Face(matrix, soft_mask(side, moved(landmarks, matrix)))


def paste(photo: np.ndarray, change: np.ndarray, face: Face) -> np.ndarray:
    """The photo plus the change (S, S, 3) in [-1, 1] of a face, under its mask."""
    cv2 = opencv()
    side = change.shape[0]

    # The part of the photo that holds the crop
    corners = moved_back(np.array([[0, 0], [side, 0], [0, side], [side, side]]), face.matrix)
    size = np.array(photo.shape[1::-1])
    begin = np.floor(corners.min(0)).astype(int).clip(0, size - 1)
    end = (np.ceil(corners.max(0)).astype(int) + 1).clip(begin + 1, size)

    # The change at that part's resolution
    local = np.column_stack([face.matrix[:, :2], moved(begin, face.matrix)])
    shown = change.astype(np.float32) * face.mask[:, :, None]
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    added = cv2.warpAffine(shown, local, (end - begin).tolist(), flags=flags)
    result = photo.copy()
    region = result[begin[1] : end[1], begin[0] : end[0]]
    region[:] = (region.astype(np.float32) + 255 * added).round().clip(0, 255)
    return result

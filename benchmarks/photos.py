"""Smiles put back into larger pictures: python benchmarks/photos.py RUN OUT [NUM]

RUN is a run on photographs, evaluated. Every picture is 600 to 1000 pixels of colours and grain, with one face laid in
of somebody held out who does not smile, 150 to 420 pixels wide, every other one turned by up to 8 degrees. Prints how
many faces are found and how far off, whether anything outside the mask changed, and how much detail is left inside;
writes OUT/pairs-N.png to look at: the whole picture, the face before, at 1, at 2. They show people: keep them.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

import smilevae
from smilevae import runs
from smilevae.apps import photo
from smilevae.data import load_faces
from smilevae.editing import alignment

GRAIN = 5  # of 255, standard deviation: the detail of a real sensor, which a decoder does not have
SHOWN, A_SHEET = 256, 5  # pixels of a tile; pictures on a sheet


def assembled(face: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A picture (H, W, 3) with a face (S, S, 3) in it, and where it is: picture to face, 2 x 3."""
    height, width = (int(n) for n in rng.integers(600, 1000, 2))
    small = rng.integers(40, 220, (3, 3, 3)).astype(np.uint8)
    ground = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    side = rng.uniform(150, 420)
    angle = np.radians(rng.uniform(-8, 8)) * (rng.random() < 0.5)
    x, y = rng.uniform(0.7 * side, width - 0.7 * side), rng.uniform(0.7 * side, height - 0.7 * side)
    turn = np.exp(-1j * angle) * face.shape[0] / side
    shift = face.shape[0] * (1 + 1j) / 2 - turn * complex(x, y)
    matrix = np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    reach = np.minimum(np.arange(face.shape[0]), np.arange(face.shape[0])[::-1]) / (0.06 * face.shape[0])
    shown = np.clip(np.minimum.outer(reach, reach), 0, 1).astype(np.float32)
    over = cv2.warpAffine(shown, matrix, (width, height), flags=flags)[:, :, None]
    laid = cv2.warpAffine(
        face.astype(np.float32), matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )
    picture = ground + over * (laid - ground) + rng.normal(0, GRAIN, ground.shape)
    return picture.round().clip(0, 255).astype(np.uint8), matrix


def detail(picture: np.ndarray) -> float:
    """Mean strength of the finest edges."""
    return float(np.abs(cv2.Laplacian(picture.astype(np.float32), cv2.CV_32F)).mean())


def corners(matrix: np.ndarray, side: int) -> np.ndarray:
    square = np.array([[0, 0], [side, 0], [0, side], [side, side]])
    return np.linalg.solve(matrix[:, :2], (square - matrix[:, 2]).T).T


def main(run: str, out: Path, num: int) -> None:
    model = smilevae.load(run)
    side = model.vae.image_size
    faces = load_faces(model.settings.data, model.settings.image_size)
    calm = faces.rows("val")[faces.smile[faces.rows("val")] == 0]
    rng = np.random.default_rng(0)
    off, sharp, changed, tiles = [], [], 0, []
    for row in rng.permutation(calm)[:num]:
        picture, true = assembled(faces.images[row], rng)
        found = alignment.find_faces(picture)
        if not found:
            continue
        matrix = alignment.crop_matrix(found[0], alignment.find_eyes(picture, found[0]), side, model.dials.eyes)
        at = corners(matrix, side), corners(true, len(faces.images[row]))
        width = np.hypot(*(at[1][1] - at[1][0]))
        off.append(np.hypot(*(at[0] - at[1]).T).mean() / width)
        after = [photo.edit(model, picture, matrix, intensity, None) for intensity in (1.0, 2.0)]
        inside = cv2.fillConvexPoly(np.zeros(picture.shape[:2], np.uint8), at[0][[0, 1, 3, 2]].round().astype(int), 1)
        inside = cv2.dilate(inside, np.ones((3, 3))).astype(bool)  # rounding
        changed += sum(int((a != picture)[~inside].any()) for a in after)
        views = [alignment.cut(p, matrix * SHOWN / side, SHOWN) for p in (picture, *after)]
        sharp.append(detail(_inner(after[0], at[0])) / detail(_inner(picture, at[0])))
        whole = cv2.resize(picture, (SHOWN, SHOWN), interpolation=cv2.INTER_AREA)
        tiles.append(np.hstack([whole, *views]))
    for sheet in range(0, len(tiles), A_SHEET):
        image = Image.fromarray(np.vstack(tiles[sheet : sheet + A_SHEET]))
        path = out / f"pairs-{sheet // A_SHEET}.png"
        runs.replace_file(path, lambda file, image=image: image.save(file, "PNG"))
    print(f"{num} pictures: {len(off)} faces found, of them {sum(o > 0.3 for o in off)} in a wrong place")
    print(f"corners off by {np.mean(off):.3f} of the side (largest {max(off):.3f})")
    print(f"pictures changed outside the mask: {changed} of {2 * len(off)}")
    print(f"detail inside at 1, share of before: {min(sharp):.3f} to {max(sharp):.3f}, median {np.median(sharp):.3f}")


def _inner(picture: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The upright square around a crop."""
    (left, top), (right, low) = np.maximum(at.min(0), 0).astype(int), at.max(0).astype(int)
    return picture[top:low, left:right]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 44)

"""Smiles put back into larger pictures: python benchmarks/photos.py RUN OUT

RUN is a run on photographs, evaluated. 44 pictures each hold one held-out face that does not smile, at a known place:
tight (the face is the picture), loose, tilted (15 to 40 degrees), steep (60 degrees), hard (sharp edges, on one colour
or on noise) and small (40 to 80 pixels). 8 more hold a face cut into shuffled squares: they show no face. Prints for
each kind how many faces are located, how many places are wrong and how far the corners are off; then whether anything
outside the masks changed and how much detail is left inside. The corners are compared with those of the same face,
aligned before it is put into the picture. Ends with 1 where under 95% are located, a place is wrong, the median of the
corners is over 0.05 of the side or a value outside a mask differs.

Writes OUT/pairs-N.png to look at: the whole picture, the face before, at 1, at 2. They show people: keep them.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

import smilevae
from smilevae import runs
from smilevae.apps import photo
from smilevae.data.dataset import load_faces
from smilevae.editing import alignment, detector, mesh
from smilevae.errors import DataError

GRAIN = 5  # of 255, standard deviation: the detail of a real sensor, which a decoder does not have
SHOWN, A_SHEET = 192, 6  # pixels of a tile; pictures on a sheet
WRONG = 0.3  # shares of the side
KINDS = {  # number, pixels of the face, degrees, share of the side over which its edge fades
    "tight": (8, (200, 600), (0, 0), 0),
    "loose": (8, (150, 420), (0, 8), 0.06),
    "tilted": (8, (120, 400), (15, 40), 0.06),
    "steep": (4, (120, 400), (60, 60), 0.06),
    "hard": (8, (100, 400), (0, 8), 0),
    "small": (8, (40, 80), (0, 8), 0.06),
    "no face": (8, (100, 400), (0, 8), 0),
}


def assembled(
    face: np.ndarray, kind: str, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A picture (H, W, 3) with a face (S, S, 3) in it, and where it is: picture to face, 2 x 3."""
    _, sides, degrees, fade = KINDS[kind]
    height, width = (int(n) for n in rng.integers(600, 1000, 2))
    side, size = rng.uniform(*sides), face.shape[0]
    if kind == "tight":
        height = width = side = round(side)
    angle = np.radians(rng.uniform(*degrees)) * rng.choice([-1, 1])
    x, y = (
        n / 2 if kind == "tight" else rng.uniform(0.7 * side, n - 0.7 * side)
        for n in (width, height)
    )
    matrix = alignment.matrix_of(np.exp(-1j * angle) * size / side, complex(x, y), size)
    small = rng.integers(40, 220, (3, 3, 3)).astype(np.uint8)
    ground = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    if kind in ("hard", "no face"):
        ground = ground * 0 + (
            rng.normal(128, 50, ground.shape) if rng.random() < 0.5 else small[0, 0]
        )
    reach = (np.minimum(np.arange(size), np.arange(size)[::-1]) + 1) / (fade * size + 1)
    over = np.clip(np.minimum.outer(reach, reach), 0, 1).astype(np.float32)
    finer = max(1, round(size / side))  # against aliasing
    blurred = cv2.resize(
        cv2.resize(face, None, fx=1 / finer, fy=1 / finer, interpolation=cv2.INTER_AREA),
        (size, size),
    )
    flags, stretch = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP, cv2.BORDER_REPLICATE
    laid = cv2.warpAffine(
        blurred.astype(np.float32), matrix, (width, height), flags=flags, borderMode=stretch
    )
    over = (
        1
        if kind == "tight"
        else cv2.warpAffine(over, matrix, (width, height), flags=flags)[:, :, None]
    )
    picture = ground + over * (laid - ground) + rng.normal(0, GRAIN, ground.shape)
    return picture.round().clip(0, 255).astype(np.uint8), matrix


def shuffled(face: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The face (S, S, 3) cut into 8 x 8 squares in another order."""
    n = face.shape[0] // 8
    squares = face[: 8 * n, : 8 * n].reshape(8, n, 8, n, 3).swapaxes(1, 2).reshape(64, n, n, 3)
    return rng.permutation(squares).reshape(8, 8, n, n, 3).swapaxes(1, 2).reshape(8 * n, 8 * n, 3)


def corners(matrix: np.ndarray, side: int) -> np.ndarray:
    return alignment.moved_back(np.array([[0, 0], [side, 0], [0, side], [side, side]]), matrix)


def unmasked(face: alignment.Face, shape: tuple[int, ...]) -> np.ndarray:
    """Where in a picture (H, W) the face's mask is 0, but for two pixels of the crop, the reach of interpolation."""
    reach = cv2.dilate((face.mask > 0).astype(np.float32), np.ones((5, 5)))
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(reach, face.matrix, shape[1::-1], flags=flags) == 0


def detail(picture: np.ndarray, area: np.ndarray) -> float:
    """Mean strength of the finest edges in an area (H, W)."""
    return float(np.abs(cv2.Laplacian(picture.astype(np.float32), cv2.CV_32F))[area].mean())


def main(run: str, out: Path) -> int:
    model = smilevae.load(run)
    side = model.vae.image_size
    faces = load_faces(model.settings.data, model.settings.image_size)
    calm = faces.rows("val")[faces.smile[faces.rows("val")] == 0]
    rng = np.random.default_rng(0)
    rows = iter(np.resize(rng.permutation(calm), 100))
    off, wrong, changed, sharp, tiles = {}, 0, 0, [], []
    for kind, (num, *_) in KINDS.items():
        off[kind], others = [], 0
        for row in (next(rows) for _ in range(num)):
            image = faces.images[row]
            picture, true = assembled(
                shuffled(image, rng) if kind == "no face" else image, kind, rng
            )
            marks = mesh.see(
                torch.tensor(image).permute(2, 0, 1)[None] / 255, detector.MARGIN
            ).points[0]
            marks, _ = detector.place(image, alignment.keypoints(image.shape[0] * marks))
            aim = alignment.face_at(
                detector.steadied(image, marks), side, model.edits.points
            ).matrix
            at = alignment.moved_back(corners(aim, side), true)
            try:
                located = photo.locate(model, picture, kind, face="all")
            except DataError:
                located = []
            width, nearest = np.hypot(*(at[1] - at[0])), None
            for face in located:
                error = np.hypot(*(corners(face.matrix, side) - at).T).max() / width
                if kind != "no face" and error < WRONG and nearest is None:
                    off[kind].append(error)
                    nearest = face
                else:
                    others += 1
            if nearest is None:
                tiles.append(
                    np.hstack([_thumbnail(picture), np.zeros((SHOWN, 3 * SHOWN, 3), np.uint8)])
                )
                continue
            after = [
                photo.edit(model, picture, nearest, {model.edits.main.name: intensity})
                for intensity in (1.0, 2.0)
            ]
            outside = unmasked(nearest, picture.shape)
            changed += sum(int((a != picture)[outside].any()) for a in after)
            views = [
                alignment.cut(p, nearest.matrix * SHOWN / side, SHOWN) for p in (picture, *after)
            ]
            sharp.append(detail(after[0], ~outside) / detail(picture, ~outside))
            tiles.append(np.hstack([_thumbnail(picture), *views]))
        wrong += others
        line = f"{kind:8} {num:2} pictures, {len(off[kind])} faces found, {others} in wrong places"
        if off[kind]:
            line += f"; corners off by {np.median(off[kind]):.3f} of the side (largest {max(off[kind]):.3f})"
        print(line)
    for sheet in range(0, len(tiles), A_SHEET):
        image = Image.fromarray(np.vstack(tiles[sheet : sheet + A_SHEET]))
        path = out / f"pairs-{sheet // A_SHEET}.png"
        runs.replace_file(path, lambda file, image=image: image.save(file, "PNG"))
    every = [error for errors in off.values() for error in errors]
    num = sum(num for num, *_ in KINDS.values()) - KINDS["no face"][0]
    print(f"all      {num} pictures, {len(every)} faces found, {wrong} in wrong places; corners off by"
          f" {np.median(every):.3f} of the side (90% {np.quantile(every, 0.9):.3f})")  # fmt: skip
    print(f"pictures changed outside the mask: {changed} of {2 * len(every)}")
    print(
        f"detail inside at 1, share of before: {min(sharp):.3f} to {max(sharp):.3f}, median {np.median(sharp):.3f}"
    )
    return int(len(every) < 0.95 * num or wrong > 0 or np.median(every) > 0.05 or changed > 0)


def _thumbnail(picture: np.ndarray) -> np.ndarray:
    scale = SHOWN / max(picture.shape)
    size = round(picture.shape[1] * scale), round(picture.shape[0] * scale)
    shown = np.zeros((SHOWN, SHOWN, 3), np.uint8)
    shown[: size[1], : size[0]] = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return shown


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))

"""Your own photograph, smiling: python -m smilevae.photo ckpt=RUN image=me.jpg smile=1.5 out=me_smiling.png

ckpt       a run folder or checkpoint that evaluate.py has been run on
image      a picture, or a folder of them (then out is a folder)
smile      an intensity of the dial: 0 as it is, 1 an average smile, negative less; or FROM:TO:STEPS for a strip (out=
           .png, .jpg) or an animation (out= .gif, .mp4)
out        where to; PNG keeps every pixel outside the face to the bit
face       all, or the number of a face, largest first (1)
box        LEFT,TOP,SIDE in pixels of the square that shows the face as the training pictures do, or `frame`
direction  one of the scorecard's; its best unless given

The picture is turned upright, its colour profile kept and all other metadata (place, camera, dates) left out. The face
is cut out as the training pictures are, decoded as it is and as it should be, and only the difference of the two is
added to the photograph, at its own resolution, under a soft mask: its detail stays. Shapes: H, W the photograph's
sides, S the model's, I intensities.
"""

import copy
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from smilevae import CheckpointError, ConfigError, DataError, checkpoints, images, runs
from smilevae.smile import Dial, dial_from

EYES = ((0.24, 0.255), (0.76, 0.255))  # in the training pictures, where they were not measured: shares of the side
INSET = (0.13, 0.21, 0.73)  # left, top and side of the crop within a detector's box (LFWcrop's, measured on LFW)
TILT = np.radians(5)
SOFT = 0.2  # share of the side over which the edit fades out
MIN_FACE = 24  # pixels
LONGEST = 1024  # side at which faces are looked for
OPTIONS = ("ckpt", "image", "smile", "out", "face", "box", "direction")
Points = tuple[tuple[float, float], tuple[float, float]]


class Editor:
    """A checkpoint's model with one of its dials. Raises CheckpointError."""

    def __init__(self, ckpt: str, direction: str | None = None):
        path = checkpoints.find(ckpt)
        self.vae, _ = checkpoints.load_vae(path)
        self.side, run = self.vae.image_size, checkpoints.run_of(path)
        home = run / "evaluation"
        self.dials = (home if home.exists() else runs.evaluation_folder(run)) / "dials.json"
        self.dial, self.eyes = read_dial(self.dials, self.vae.latent_dim, direction)

    def with_dial(self, direction: str) -> "Editor":
        """The same model with another dial."""
        other = copy.copy(self)
        other.dial, _ = read_dial(self.dials, self.vae.latent_dim, direction)
        return other

    def names(self) -> list[str]:
        """The directions there are dials for."""
        return list(json.loads(self.dials.read_text())["dials"])

    @torch.no_grad()
    def edit(self, photo: np.ndarray, matrix: np.ndarray, intensities: list[float]) -> list[np.ndarray]:
        """The photograph (H, W, 3) uint8 with the face at `matrix` (photograph to crop, 2 x 3) at each intensity."""
        x = torch.from_numpy(cut(photo, matrix, self.side)).permute(2, 0, 1)[None].float() / 255
        mu = self.vae.encode(x)[0]
        codes = self.dial.turn(mu, torch.tensor(intensities))[0]
        faces = self.vae.decode(torch.cat([mu, codes])).clamp(0, 1)
        return [paste(photo, (face - faces[0]).permute(1, 2, 0).numpy(), matrix) for face in faces[1:]]


def read_dial(path: Path, latent_dim: int, direction: str | None) -> tuple[Dial, Points]:
    """The chosen dial of an evaluation, and where eyes are in its training pictures."""
    try:
        content = json.loads(path.read_text())
        dials = {str(name): dial for name, dial in content["dials"].items()}
        chosen = direction or str(content["best"])
        eyes = [[float(v) for v in point] for point in content["eyes"] or EYES]
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; run python evaluate.py ckpt={path.parent.parent} first") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{path} is damaged; run python evaluate.py again") from None
    if chosen not in dials:
        raise ConfigError(f"direction={chosen} is unknown; choose one of {', '.join(sorted(dials))}")
    try:
        dial = dial_from(dials[chosen], latent_dim)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}); run python evaluate.py again") from None
    if np.shape(eyes) != (2, 2) or not all(0 <= v <= 1 for point in eyes for v in point):
        raise CheckpointError(f"{path} is damaged; run python evaluate.py again")
    return dial, ((eyes[0][0], eyes[0][1]), (eyes[1][0], eyes[1][1]))


def find_faces(photo: np.ndarray) -> list[tuple[float, float, float, float]]:
    """Boxes (left, top, width, height) of the faces in a photograph (H, W, 3), largest first."""
    shrink = max(1.0, max(photo.shape[:2]) / LONGEST)
    grey = _grey(photo, shrink)
    found = _cascade("frontalface_alt2").detectMultiScale(grey, 1.1, 4, minSize=(MIN_FACE, MIN_FACE))
    boxes = [tuple(float(v) * shrink for v in box) for box in found]
    return sorted(boxes, key=lambda box: -box[2] * box[3])  # type: ignore[return-value]


def find_eyes(photo: np.ndarray, box: tuple[float, float, float, float]) -> Points | None:
    """The middles of both eyes of a face, the photograph's left one first; None where they are not clear."""
    left, top, width, height = (round(v) for v in box)
    upper = photo[max(0, top) : top + round(0.6 * height), max(0, left) : left + width]
    if min(upper.shape[:2]) < MIN_FACE // 2:
        return None
    cv2, zoom = _cv2(), 160 / upper.shape[1]
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
    """Where eyes are in training pictures (N, S, S, 3) uint8, as shares of the side: medians over those that show both.

    None where fewer than ten do, or OpenCV is not installed.
    """
    try:
        found = [find_eyes(picture, (0, 0, picture.shape[1], picture.shape[0])) for picture in pictures]
    except DataError:
        return None
    points = np.array([eyes for eyes in found if eyes]) / pictures.shape[1]
    if len(points) < 10:
        return None
    (ax, ay), (bx, by) = np.median(points, 0).tolist()
    apart, height = bx - ax, (ay + by) / 2  # faces have no side: a crop's middle lies between the eyes
    return ((1 - apart) / 2, height), ((1 + apart) / 2, height)


def crop_matrix(box: tuple[float, float, float, float], eyes: Points | None, side: int, typical: Points) -> np.ndarray:
    """Photograph to crop of `side` pixels (2 x 3): by a detector's box and, where they are known, the eyes.

    Each is wrong by about a tenth of the side in ways of its own: middle and size are the mean of both (measured on
    training faces laid into pictures: a fifth less wrong). A tilt is undone as far as it exceeds what training
    pictures show.
    """
    middle, scale, angle = complex(box[0], box[1]), INSET[2] * box[2] / side, 0.0
    middle += complex(INSET[0] * box[2], INSET[1] * box[3]) + scale * side * (1 + 1j) / 2
    if eyes is not None:
        (a, b), (c, d) = (complex(*p) for p in eyes), (side * complex(*p) for p in typical)
        turn = (b - a) / (d - c)  # crop to photograph: a similarity is a complex factor and a shift
        middle = (middle + a + turn * (side * (1 + 1j) / 2 - c)) / 2
        scale, angle = np.sqrt(scale * abs(turn)), np.angle(turn)
        angle -= np.clip(angle, -TILT, TILT)
    turn = np.exp(-1j * angle) / scale
    shift = side * (1 + 1j) / 2 - turn * middle
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def cut(photo: np.ndarray, matrix: np.ndarray, side: int) -> np.ndarray:
    """The crop (S, S, 3) uint8 of a photograph, antialiased."""
    cv2 = _cv2()
    finer = int(np.clip(np.ceil(1 / np.sqrt(abs(np.linalg.det(matrix[:, :2])))), 1, 16))
    scale = np.array([[finer, 0, (finer - 1) / 2], [0, finer, (finer - 1) / 2]]) @ np.vstack([matrix, [0, 0, 1]])
    large = cv2.warpAffine(
        photo, scale, (side * finer, side * finer), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    return cv2.resize(large, (side, side), interpolation=cv2.INTER_AREA)


def soft_mask(side: int) -> np.ndarray:
    """(S, S) from 0 at the border to 1 within, smoothly."""
    edge = np.minimum(np.arange(side), np.arange(side)[::-1]) / (SOFT * side)
    ramp = np.clip(edge, 0, 1)
    ramp = ramp**2 * (3 - 2 * ramp)
    return (ramp[:, None] * ramp).astype(np.float32)


def paste(photo: np.ndarray, change: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The photograph with a crop's change (S, S, 3) in [-1, 1] added under the soft mask; no other pixel differs."""
    cv2, side = _cv2(), change.shape[0]
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


def main(arguments: list[str]) -> None:
    """Raises UserError with a sentence."""
    options = parse(arguments)
    editor = Editor(options["ckpt"], options.get("direction"))
    source, out = Path(os.path.expanduser(options["image"])), Path(os.path.expanduser(options["out"]))
    if not source.is_dir():
        print(one(editor, source, out, options))
        return
    paths, failed = images.list_images(source), []
    if not paths:
        raise DataError(f"{source} holds no images")
    for path in paths:
        try:
            print(one(editor, path, out / f"{path.stem}.png", options))
        except DataError as error:
            failed.append(str(error))
    if failed:
        raise DataError("\n".join(failed))


def one(editor: Editor, source: Path, out: Path, options: dict[str, Any]) -> str:
    """Edit one picture file into another; gives a line about it."""
    try:
        picture = images.read(source.read_bytes())
    except images.Unreadable as reason:
        raise DataError(f"{source}: {reason}; pass another picture") from None
    except OSError as error:
        raise DataError(f"{source}: {error.strerror}; pass image=FILE or image=FOLDER") from None
    photo = np.asarray(picture)
    places = where(photo, source, options, editor)
    intensities = options["intensities"]
    pictures = [photo] * len(intensities)
    for matrix in places:
        for index, intensity in enumerate(intensities):
            pictures[index] = editor.edit(pictures[index], matrix, [intensity])[0]
    save(pictures, out, picture.info.get("icc_profile"), places[0], editor.side)
    outside = [i for i in intensities if not editor.dial.low <= i <= editor.dial.high]
    note = f"; beyond {editor.dial.low:+g}..{editor.dial.high:+g} the smile no longer follows" if outside else ""
    return f"{source}: {len(places)} face{'s' * (len(places) != 1)}, {editor.dial.name}, {runs.short(out)}{note}"


def where(photo: np.ndarray, source: Path, options: dict[str, Any], editor: Editor) -> list[np.ndarray]:
    """The crops (photograph to crop) of the faces that the options mean."""
    height, width = photo.shape[:2]
    if box := options.get("box"):
        left, top, side = (
            ((width - min(width, height)) / 2, (height - min(width, height)) / 2, min(width, height))
            if (box == "frame")
            else box
        )
        if side < MIN_FACE or left < 0 or top < 0 or left + side > width or top + side > height:
            raise DataError(f"{source}: box={left:g},{top:g},{side:g} does not lie in its {width}x{height} pixels")
        scale = editor.side / side
        return [np.array([[scale, 0, -scale * left], [0, scale, -scale * top]])]
    faces = find_faces(photo)
    if not faces:
        raise DataError(
            f"{source}: no face of {MIN_FACE} pixels or more was found; pass box=LEFT,TOP,SIDE or box=frame, or a"
            " picture with a larger, more frontal face"
        )
    number = options.get("face", 1)
    if number != "all" and number > len(faces):
        raise DataError(
            f"{source}: face={number}, but only {len(faces)} were found; pass face=1 to {len(faces)} or all"
        )
    chosen = faces if number == "all" else [faces[number - 1]]
    return [crop_matrix(face, find_eyes(photo, face), editor.side, editor.eyes) for face in chosen]


def save(pictures: list[np.ndarray], out: Path, profile: bytes | None, matrix: np.ndarray, side: int) -> None:
    """One picture as it is; several as a strip of the face or, for .gif and .mp4, as an animation there and back."""
    form = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".gif": "GIF", ".mp4": "MP4"}.get(
        out.suffix.lower()
    )
    if form is None:
        raise ConfigError(f"out={out} is of no known kind; end it in .png, .jpg, .webp, .gif or .mp4")
    if form in ("GIF", "MP4"):
        shown = [cut(p, matrix, 2 * side) if max(p.shape) > LONGEST else p for p in [*pictures, *pictures[-2:0:-1]]]
        if form == "MP4":
            return _save_film(shown, out)
        frames = [Image.fromarray(p) for p in shown]
        extra: dict[str, Any] = {"save_all": True, "append_images": frames[1:], "duration": 80, "loop": 0}
        return runs.replace_file(out, lambda file: frames[0].save(file, "GIF", **extra))
    picture = pictures[0] if len(pictures) == 1 else np.hstack([cut(p, matrix * 2, 2 * side) for p in pictures])
    quality = {"quality": 95, "subsampling": 0} if form == "JPEG" else {"lossless": True} if form == "WEBP" else {}
    image = Image.fromarray(picture)
    runs.replace_file(out, lambda file: image.save(file, form, icc_profile=profile, **quality))
    return None


def _save_film(pictures: list[np.ndarray], out: Path) -> None:
    cv2 = _cv2()
    height, width = (n - n % 2 for n in pictures[0].shape[:2])
    with tempfile.TemporaryDirectory() as home:
        path = Path(home) / "film.mp4"
        film = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 12, (width, height))
        for picture in pictures:
            film.write(np.ascontiguousarray(picture[:height, :width, ::-1]))
        film.release()
        content = path.read_bytes() if path.exists() else b""
    if not content:
        raise ConfigError(f"out={out}: this OpenCV writes no MP4; use .gif")
    runs.write_bytes(out, content)


def parse(arguments: list[str]) -> dict[str, Any]:
    """key=value words as options, checked."""
    pairs = [argument.partition("=") for argument in arguments]
    options: dict[str, Any] = {key: value for key, _, value in pairs}
    for key in options:
        if key not in OPTIONS:
            raise ConfigError(f"{key} is not an option; there are {', '.join(OPTIONS)}")
    for key in ("ckpt", "image", "out"):
        if not options.get(key):
            raise ConfigError(f"{key} is not set; python -m smilevae.photo ckpt=RUN image=FILE smile=1 out=FILE")
    try:
        given = options.get("smile", "1").split(":")
        low, high, num = float(given[0]), float(given[-1]), int(given[2]) if len(given) == 3 else 1
        if len(given) == 3:
            low, high = float(given[0]), float(given[1])
        if len(given) == 2 or not -10 <= low <= 10 or not -10 <= high <= 10 or not 1 <= num <= 100:
            raise ValueError
        options["intensities"] = np.linspace(low, high, num).tolist()
    except (ValueError, IndexError):
        raise ConfigError(f"smile={options['smile']} must be a number from -10 to 10, or FROM:TO:STEPS") from None
    try:
        if "box" in options and options["box"] != "frame":
            options["box"] = tuple(float(v) for v in options["box"].split(","))
            if len(options["box"]) != 3 or not np.isfinite(options["box"]).all():
                raise ValueError
        if options.get("face", "all") != "all":
            options["face"] = int(options["face"])
            if options["face"] < 1:
                raise ValueError
    except ValueError:
        raise ConfigError("box is LEFT,TOP,SIDE in pixels or frame; face is a number from 1, or all") from None
    return options


def _grey(photo: np.ndarray, shrink: float) -> np.ndarray:
    cv2 = _cv2()
    grey = cv2.cvtColor(np.ascontiguousarray(photo), cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey, None, fx=1 / shrink, fy=1 / shrink, interpolation=cv2.INTER_AREA) if shrink > 1 else grey


def _cascade(name: str) -> Any:
    cv2 = _cv2()
    return cv2.CascadeClassifier(f"{cv2.data.haarcascades}haarcascade_{name}.xml")


def _cv2() -> Any:
    try:
        import cv2
    except ImportError:
        raise DataError("finding faces needs OpenCV, which is not installed: pip install -e '.[photo]'") from None
    return cv2


if __name__ == "__main__":
    from smilevae import console

    try:
        with console.one_sentence():
            if sys.argv[1:] in ([], ["--help"], ["-h"]):
                print(__doc__)
            else:
                main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)

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

from smilevae import CheckpointError, ConfigError, DataError, checkpoints, crops, images, runs
from smilevae.smile import Dial, dial_from

OPTIONS = ("ckpt", "image", "smile", "out", "face", "box", "direction")


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
        x = torch.from_numpy(crops.cut(photo, matrix, self.side)).permute(2, 0, 1)[None].float() / 255
        mu = self.vae.encode(x)[0]
        codes = self.dial.turn(mu, torch.tensor(intensities))[0]
        faces = self.vae.decode(torch.cat([mu, codes])).clamp(0, 1)
        return [crops.paste(photo, (face - faces[0]).permute(1, 2, 0).numpy(), matrix) for face in faces[1:]]


def read_dial(path: Path, latent_dim: int, direction: str | None) -> tuple[Dial, crops.Points]:
    """The chosen dial of an evaluation, and where eyes are in its training pictures."""
    try:
        content = json.loads(path.read_text())
        dials = {str(name): dial for name, dial in content["dials"].items()}
        chosen = direction or str(content["best"])
        eyes = [[float(v) for v in point] for point in content["eyes"] or crops.EYES]
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
        if side < crops.MIN_FACE or left < 0 or top < 0 or left + side > width or top + side > height:
            raise DataError(f"{source}: box={left:g},{top:g},{side:g} does not lie in its {width}x{height} pixels")
        scale = editor.side / side
        return [np.array([[scale, 0, -scale * left], [0, scale, -scale * top]])]
    faces = crops.find_faces(photo)
    if not faces:
        raise DataError(
            f"{source}: no face of {crops.MIN_FACE} pixels or more was found; pass box=LEFT,TOP,SIDE or box=frame, or a"
            " picture with a larger, more frontal face"
        )
    number = options.get("face", 1)
    if number != "all" and number > len(faces):
        raise DataError(
            f"{source}: face={number}, but only {len(faces)} were found; pass face=1 to {len(faces)} or all"
        )
    chosen = faces if number == "all" else [faces[number - 1]]
    return [crops.crop_matrix(face, crops.find_eyes(photo, face), editor.side, editor.eyes) for face in chosen]


def save(pictures: list[np.ndarray], out: Path, profile: bytes | None, matrix: np.ndarray, side: int) -> None:
    """One picture as it is; several as a strip of the face or, for .gif and .mp4, as an animation there and back."""
    form = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".gif": "GIF", ".mp4": "MP4"}.get(
        out.suffix.lower()
    )
    if form is None:
        raise ConfigError(f"out={out} is of no known kind; end it in .png, .jpg, .webp, .gif or .mp4")
    faces = [crops.cut(p, matrix * 2, 2 * side) for p in pictures] if len(pictures) > 1 else pictures
    if form in ("GIF", "MP4"):
        shown = faces if max(pictures[0].shape) > crops.LONGEST else pictures
        shown = [*shown, *shown[-2:0:-1]]
        if form == "MP4":
            return _save_film(shown, out)
        frames = [Image.fromarray(p) for p in shown]
        extra: dict[str, Any] = {"save_all": True, "append_images": frames[1:], "duration": 80, "loop": 0}
        return runs.replace_file(out, lambda file: frames[0].save(file, "GIF", **extra))
    picture = np.hstack(faces)
    quality = {"quality": 95, "subsampling": 0} if form == "JPEG" else {"lossless": True} if form == "WEBP" else {}
    image = Image.fromarray(picture)
    runs.replace_file(out, lambda file: image.save(file, form, icc_profile=profile, **quality))
    return None


def _save_film(pictures: list[np.ndarray], out: Path) -> None:
    cv2 = crops.opencv()
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

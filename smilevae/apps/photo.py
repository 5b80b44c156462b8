"""Your own photograph, smiling: python -m smilevae.apps.photo ckpt=RUN image=me.jpg smile=1.5 out=me_smiling.png

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

import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from smilevae import runs
from smilevae.data import images
from smilevae.editing import alignment, dials
from smilevae.editing.dial import Dial
from smilevae.errors import ConfigError, DataError
from smilevae.runs import checkpoint

OPTIONS = ("ckpt", "image", "smile", "out", "face", "box", "direction")


class Editor:
    """A checkpoint's model with its dials, one of them chosen. Raises CheckpointError, ConfigError."""

    def __init__(self, ckpt: str, direction: str | None = None):
        path = checkpoint.find(ckpt)
        self.vae = checkpoint.load(path).vae
        self.side, self.dials = self.vae.image_size, dials.read(path, self.vae)
        self.direction = direction or self.dials.best
        self.turn(torch.zeros(1, self.vae.latent_dim), [0.0])  # is there such a direction?

    @property
    def dial(self) -> Dial:
        return self.dials.dials[self.direction]

    @torch.no_grad()
    def turn(self, mu: torch.Tensor, intensities: list[float], direction: str | None = None) -> torch.Tensor:
        """Codes at intensities: (B, D) -> (B, I, D)."""
        return self.dials.turn(self.vae, mu, torch.tensor(intensities), direction or self.direction)

    @torch.no_grad()
    def edit(
        self, photo: np.ndarray, matrix: np.ndarray, intensities: list[float], direction: str | None = None
    ) -> list[np.ndarray]:
        """The photograph (H, W, 3) uint8 with the face at `matrix` (photograph to crop, 2 x 3) at each intensity."""
        x = torch.from_numpy(alignment.cut(photo, matrix, self.side)).permute(2, 0, 1)[None].float() / 255
        mu = self.vae.encode(x)[0]
        codes = self.turn(mu, intensities, direction)[0]
        faces = self.vae.decode(torch.cat([mu, codes])).clamp(0, 1)
        return [alignment.paste(photo, (face - faces[0]).permute(1, 2, 0).numpy(), matrix) for face in faces[1:]]


def main(arguments: list[str]) -> None:
    """Raises UserError with a sentence."""
    options = parse(arguments)
    editor = Editor(options["ckpt"], options.get("direction"))
    source, out = Path(os.path.expanduser(options["image"])), Path(os.path.expanduser(options["out"]))
    if out.resolve() == source.resolve():
        raise ConfigError(f"out={out} is the picture's own place; name another")
    if not source.is_dir():
        print(one(editor, source, out, options))
        return
    paths, failed = images.list_images(source), []
    if not paths:
        raise DataError(f"{source} holds no images; name another folder")
    names = Counter(path.with_suffix("") for path in paths)
    for path in paths:
        name = path.relative_to(source)
        alone = names[path.with_suffix("")] == 1
        try:
            print(one(editor, path, out / name.with_name(f"{name.stem if alone else name.name}.png"), options))
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
        if side < alignment.MIN_FACE:
            raise DataError(f"{source}: box has {side:g} pixels; the face needs {alignment.MIN_FACE} or more")
        if left < 0 or top < 0 or left + side > width or top + side > height:
            raise DataError(
                f"{source}: box={left:g},{top:g},{side:g} does not lie in its {width}x{height} pixels; move it"
            )
        scale = editor.side / side
        return [np.array([[scale, 0, -scale * left], [0, scale, -scale * top]])]
    faces = alignment.find_faces(photo)
    if not faces:
        raise DataError(
            f"{source}: no face of {alignment.MIN_FACE} pixels or more was found; pass box=LEFT,TOP,SIDE or box=frame, or a"
            " picture with a larger, more frontal face"
        )
    number = options.get("face", 1)
    if number != "all" and number > len(faces):
        raise DataError(
            f"{source}: face={number}, but only {len(faces)} were found; pass face=1 to {len(faces)} or all"
        )
    chosen = faces if number == "all" else [faces[number - 1]]
    return [
        alignment.crop_matrix(face, alignment.find_eyes(photo, face), editor.side, editor.dials.eyes) for face in chosen
    ]


def save(pictures: list[np.ndarray], out: Path, profile: bytes | None, matrix: np.ndarray, side: int) -> None:
    """One picture as it is; several as a strip of the face or, for .gif and .mp4, as an animation there and back."""
    form = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".gif": "GIF", ".mp4": "MP4"}.get(
        out.suffix.lower()
    )
    if form is None:
        raise ConfigError(f"out={out} is of no known kind; end it in .png, .jpg, .webp, .gif or .mp4")
    faces = [alignment.cut(p, matrix * 2, 2 * side) for p in pictures] if len(pictures) > 1 else pictures
    if form in ("GIF", "MP4"):
        shown = faces if max(pictures[0].shape) > alignment.LONGEST else pictures
        shown = [*shown, *shown[-2:0:-1]]
        if form == "MP4":
            _save_film(shown, out)
            return
        frames = [Image.fromarray(p) for p in shown]
        extra: dict[str, Any] = {"save_all": True, "append_images": frames[1:], "duration": 80, "loop": 0}
        runs.replace_file(out, lambda file: frames[0].save(file, "GIF", **extra))
        return
    picture = np.hstack(faces)
    quality = {"quality": 95, "subsampling": 0} if form == "JPEG" else {"lossless": True} if form == "WEBP" else {}
    image = Image.fromarray(picture)
    try:
        runs.replace_file(out, lambda file: image.save(file, form, icc_profile=profile, **quality))
    except ValueError as error:  # a side over what the format can hold
        raise ConfigError(f"out={out}: {error}; end it in .png") from None


def _save_film(pictures: list[np.ndarray], out: Path) -> None:
    cv2 = alignment.opencv()
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
            raise ConfigError(f"{key} is not set; python -m smilevae.apps.photo ckpt=RUN image=FILE smile=1 out=FILE")
    try:
        given = options.get("smile", "1").split(":")
        low, high, num = float(given[0]), float(given[min(1, len(given) - 1)]), int(given[2]) if given[1:] else 1
        if len(given) not in (1, 3) or not -10 <= low <= 10 or not -10 <= high <= 10 or not 1 <= num <= 100:
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

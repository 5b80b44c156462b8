"""The user's own photo, edited: the difference of two decoded faces is added to it.

Shapes: H, W sides of the photo.
"""

import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from smilevae import runs
from smilevae.apps.model import Model
from smilevae.apps.options import PhotoOptions
from smilevae.data import images
from smilevae.editing import alignment, detector, mesh
from smilevae.editing.alignment import Face
from smilevae.errors import ConfigError, DataError

FORMS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".gif": "GIF", ".mp4": "MP4"}
QUALITY: dict[str, Any] = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}


def main(options: PhotoOptions) -> None:
    model = Model(options.ckpt, options.attribute)
    model.dials.choose(None, options.direction)  # raises for an unknown one
    source, out = (Path(os.path.expanduser(path)) for path in (options.image, options.out))
    if out.resolve() == source.resolve():
        raise ConfigError(f"out={out} is the place of the photo itself; name another")
    if not source.is_dir():
        print(edit_file(model, source, out, options))
        return
    paths, problems = images.list_images(source), []
    if source.resolve() in out.resolve().parents:  # results of an earlier call are not photos
        paths = [path for path in paths if out.resolve() not in path.resolve().parents]
    if not paths:
        raise DataError(f"{source} holds no images; name another folder")
    stems = Counter(path.with_suffix("") for path in paths)
    for path in paths:
        name = path.relative_to(source)
        stem = name.stem if stems[path.with_suffix("")] == 1 else name.name
        try:
            print(edit_file(model, path, out / name.with_name(f"{stem}.png"), options))
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))


def edit_file(model: Model, source: Path, out: Path, options: PhotoOptions) -> str:
    """Edit one photo into another file. Returns a line for the user."""
    try:
        picture = images.read(source.read_bytes())
    except images.Unreadable as reason:
        raise DataError(f"{source}: {reason}; pass another photo") from None
    except OSError as error:
        raise DataError(f"{source}: {error.strerror}; pass image=FILE or image=FOLDER") from None
    photo, (_, dial) = np.asarray(picture), model.dials.choose(None, options.direction)
    photos, name = [photo] * len(options.intensity), model.dials.attribute
    try:
        faces = locate(model, photo, str(source), options.box, options.face)
        for face in faces:
            photos = [edit(model, p, face, {name: i}, dial.name) for p, i in zip(photos, options.intensity)]
        save(photos, out, picture.info.get("icc_profile"), faces[0].matrix, model.vae.image_size)
    except mesh.opencv().error as error:
        raise DataError(f"{source}: {str(error).splitlines()[0]}; pass another photo") from None
    line = f"{source}: {len(faces)} face{'s' * (len(faces) > 1)}, {dial.name}, {runs.shell_path(out)}"
    if not all(dial.low <= intensity <= dial.high for intensity in options.intensity):
        line += f"; beyond {dial.low:+g}..{dial.high:+g} the score does not follow, or the face does not look real"
    return line


@torch.no_grad()
def edit(
    model: Model, photo: np.ndarray, face: Face, amounts: Mapping[str, float], direction: str | None
) -> np.ndarray:
    """The photo (H, W, 3) uint8 with attributes of a face at their intensities."""
    mu = model.encode(alignment.cut(photo, face.matrix, model.vae.image_size)[None])
    before, after = model.decode(torch.cat([mu, model.dials.mix(model.vae, mu, amounts, direction)]))
    return alignment.paste(photo, (after - before).permute(1, 2, 0).numpy(), face)


def locate(model: Model, photo: np.ndarray, name: str, box: Any = None, face: int | str = 1) -> list[Face]:
    """The selected faces. Raises DataError, which calls the photo `name`."""
    least, size = alignment.MIN_FACE, model.vae.image_size
    height, width = photo.shape[:2]
    if box:
        side = min(width, height)
        left, top, side = ((width - side) / 2, (height - side) / 2, side) if box == "frame" else box
        if side < least or min(left, top) < 0 or left + side > width or top + side > height:
            outside = f"box={left:g},{top:g},{side:g} does not lie in its {width}x{height} pixels"
            raise DataError(f"{name}: {outside}, or SIDE is below {least}; move it")
        scale = size / side
        matrix = np.array([[scale, 0, -scale * left], [0, scale, -scale * top]])
        return [Face(matrix, alignment.soft_mask(size))]
    faces = detector.find_faces(photo)
    if not faces:
        remedy = "pass box=LEFT,TOP,SIDE or box=frame, or a photo with a larger, more frontal face"
        raise DataError(f"{name}: no face was detected with certainty; {remedy}")
    if face != "all":
        if int(face) > len(faces):
            raise DataError(f"{name}: face={face}, but only {len(faces)} detected; pass a smaller number or all")
        faces = [faces[int(face) - 1]]
    return [alignment.face_at(marks, size, model.dials.points) for marks in faces]


def save(photos: list[np.ndarray], out: Path, profile: bytes | None, matrix: np.ndarray, side: int) -> None:
    """One photo as it is. Several as a strip of the face, or as an animation forth and back."""
    if not (form := FORMS.get(out.suffix.lower())):
        raise ConfigError(f"out={out} is of no known kind; end it in .png, .jpg, .webp, .gif or .mp4")
    faces = [alignment.cut(p, matrix * 2, 2 * side) for p in photos] if len(photos) > 1 else photos
    frames = faces if max(photos[0].shape) > alignment.LONGEST else photos
    frames = [*frames, *frames[-2:0:-1]]
    if form == "MP4":
        _save_film(frames, out)
        return
    if form == "GIF":
        first, *more = [Image.fromarray(frame) for frame in frames]
        write = partial(first.save, format=form, save_all=True, append_images=more, duration=80, loop=0)
    else:
        strip = Image.fromarray(np.hstack(faces))
        write = partial(strip.save, format=form, icc_profile=profile, **QUALITY.get(form, {}))
    try:
        runs.replace_file(out, write)
    except (ValueError, OSError) as error:
        if getattr(error, "errno", None):  # of the system
            raise
        raise ConfigError(f"out={out}: {error}, as a side is too long for {form}; end it in .png") from None


def _save_film(frames: list[np.ndarray], out: Path) -> None:
    cv2 = mesh.opencv()
    height, width = (n - n % 2 for n in frames[0].shape[:2])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        film = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 12, (width, height))
        for frame in frames:
            film.write(np.ascontiguousarray(frame[:height, :width, ::-1]))
        film.release()
        content = path.read_bytes() if path.exists() else b""
    if not content:
        raise ConfigError(f"out={out}: this OpenCV writes no MP4; use .gif")
    runs.write_bytes(out, content)

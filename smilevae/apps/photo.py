"""The user's own photo, edited: the difference of two decoded faces is added to it.

Shapes: H, W sides of the photo.
"""

import os
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from smilevae import runs
from smilevae.apps.model import Model
from smilevae.apps.options import Box, Common, PhotoOptions
from smilevae.data import images
from smilevae.editing import alignment, detector, mesh
from smilevae.editing.alignment import Face
from smilevae.errors import ConfigError, DataError

FORMS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def main(options: PhotoOptions) -> None:
    """Edit a photo, or every photo of a folder. Raises CheckpointError, ConfigError, DataError."""
    model = colour_model(options)
    source = Path(os.path.expanduser(options.image))
    out = Path(os.path.expanduser(options.out))
    if out.resolve() == source.resolve():
        raise ConfigError(f"out={out} is the place of the photo itself; name another")
    if not source.is_dir():
        print(edit_file(model, source, out, options))
        return

    # The photos of the folder, without results of an earlier call.
    paths = images.list_images(source)
    if source.resolve() in out.resolve().parents:
        paths = [path for path in paths if out.resolve() not in path.resolve().parents]
    if not paths:
        raise DataError(f"{source} holds no images; name another folder")

    # One that fails does not end the others. Names stay apart: a.png and a.jpg.
    problems = []
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


def colour_model(options: Common) -> Model:
    """The model of a command. Raises ConfigError for one of grey images."""
    model = Model(options.ckpt, options.attribute)
    if model.settings.channels != 3:
        raise ConfigError(f"{options.ckpt} is a model of grey images; take one with channels=3")
    return model


def edit_file(model: Model, source: Path, out: Path, options: PhotoOptions) -> str:
    """Edit one photo into another file. Returns a line for the user."""
    try:
        picture = images.read(source.read_bytes())
    except images.Unreadable as reason:
        raise DataError(f"{source}: {reason}; pass another photo") from None
    except OSError as error:
        raise DataError(f"{source}: {error.strerror}; pass image=FILE or image=FOLDER") from None
    attribute = model.edits.main
    photo = np.asarray(picture)
    try:
        faces = locate(model, photo, str(source), options.box, options.face)
        for face in faces:
            photo = edit(model, photo, face, {attribute.name: options.intensity})
    except mesh.opencv().error as error:
        raise DataError(f"{source}: {str(error).splitlines()[0]}; pass another photo") from None
    save(photo, out, picture.info.get("icc_profile"))
    number = f"{len(faces)} face" if len(faces) == 1 else f"{len(faces)} faces"
    line = f"{source}: {number}, {attribute.name} {options.intensity:+g}, {runs.shell_path(out)}"
    if not attribute.low <= options.intensity <= attribute.high:
        line += f"; beyond {attribute.low:+g}..{attribute.high:+g} edits do not follow or look real"
    return line


@torch.no_grad()
def edit(model: Model, photo: np.ndarray, face: Face, amounts: Mapping[str, float]) -> np.ndarray:
    """The photo (H, W, 3) uint8 with attributes of a face at their intensities."""
    crop = alignment.cut(photo, face.matrix, model.vae.image_size)
    mu = model.encode(crop[None])
    before, after = model.decode(torch.cat([mu, model.edits.mix(mu, amounts)]))
    change = (after - before).permute(1, 2, 0).numpy()
    return alignment.paste(photo, change, face)


def locate(
    model: Model, photo: np.ndarray, name: str, box: Box | None = None, face: int | str = 1
) -> list[Face]:
    """The selected faces. Raises DataError, which calls the photo `name`."""
    size = model.vae.image_size
    if box:
        return [boxed(photo, name, box, size)]
    faces = detector.find_faces(photo)
    if not faces:
        remedy = "pass box=LEFT,TOP,SIDE, or a photo with a larger, more frontal face"
        raise DataError(f"{name}: no face was detected with certainty; {remedy}")
    if isinstance(face, int):
        if face > len(faces):
            few = f"face={face}, but only {len(faces)} detected"
            raise DataError(f"{name}: {few}; pass a smaller number or all")
        faces = [faces[face - 1]]
    return [alignment.face_at(marks, size, model.edits.points) for marks in faces]


def boxed(photo: np.ndarray, name: str, box: Box, size: int) -> Face:
    """The face in a square LEFT, TOP, SIDE of a photo. Raises DataError if it does not lie in it."""
    left, top, side = box
    height, width = photo.shape[:2]
    least = alignment.MIN_FACE
    if side < least or min(left, top) < 0 or left + side > width or top + side > height:
        outside = f"box={left:g},{top:g},{side:g} does not lie in its {width}x{height} pixels"
        raise DataError(f"{name}: {outside}, or SIDE is below {least}; move it")
    scale = size / side
    matrix = np.array([[scale, 0, -scale * left], [0, scale, -scale * top]])
    return Face(matrix, alignment.soft_mask(size))


def save(photo: np.ndarray, out: Path, profile: bytes | None) -> None:
    """Write a photo (H, W, 3) with its colour profile. Raises ConfigError for a format that cannot."""
    form = FORMS.get(out.suffix.lower())
    if not form:
        raise ConfigError(f"out={out} is of no known kind; end it in .png, .jpg or .webp")
    image = Image.fromarray(photo)
    # Each format takes the options that it has.
    write = partial(
        image.save, format=form, icc_profile=profile, quality=95, subsampling=0, lossless=True
    )
    try:
        runs.replace_file(out, write)
    except (ValueError, OSError) as error:
        if getattr(error, "errno", None):  # of the system
            raise
        reason = f"{error}, as a side is too long for {form}"
        raise ConfigError(f"out={out}: {reason}; end it in .png") from None

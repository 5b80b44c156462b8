"""Decodes images to 8-bit pixels. Shapes: C channels, S image side."""

import io
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from smilevae.errors import DataError

MAX_PIXELS = 50_000_000  # checked before decoding; Pillow only warns, see console.WARNINGS
EXTENSIONS = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".avif", ".heic", ".heif"),
}
HEIC = (b"ftypheic", b"ftypheix", b"ftypmif1")  # bytes 4 to 12 of an iPhone's photo


class Unreadable(Exception):
    """A file gives no pixels."""


class TooLarge(Unreadable):
    """A file has too many pixels."""


class Decoded(NamedTuple):
    pixels: np.ndarray  # uint8 (S, S, C)
    native: tuple[int, int]  # (width, height) of the file
    note: str | None


def to_rgb8(image: Image.Image) -> Image.Image:
    """Upright 8-bit RGB, alpha over white. Raises Unreadable for pixels of no agreed range."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        wide = np.asarray(image, dtype=np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise Unreadable("32-bit pixels without an agreed range")
        image = Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode == "F":
        raise Unreadable("floating-point pixels without an agreed range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def decode(source: Any, size: int, channels: int) -> Decoded:
    """The image of an Example, cropped to the middle square and resized. Raises Unreadable."""
    if callable(source):
        source = source()
    try:
        image = read(source.read_bytes()) if isinstance(source, Path) else to_rgb8(to_pil(source))
    except OSError as error:
        raise Unreadable(error.strerror or "cannot be read") from None
    square = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    pixels = np.asarray(square if channels == 3 else square.convert("L"))
    return Decoded(pixels.reshape(size, size, channels), image.size, image.info.get("note"))


def to_pil(source: Any) -> Image.Image:
    """A Pillow image, or bytes (H, W) or (H, W, C), or a tensor (C, H, W) in [0, 1]."""
    if isinstance(source, Image.Image):
        return source
    pixels = np.asarray(source)
    if isinstance(source, np.ndarray) and source.dtype != np.uint8:
        remedy = "give bytes (uint8), or a tensor (C, H, W) in [0, 1]"
        raise DataError(f"an image is an array of {source.dtype}; {remedy}")
    if pixels.dtype != np.uint8:
        pixels = (255 * np.clip(pixels, 0, 1)).round().astype(np.uint8)
        pixels = np.moveaxis(pixels, 0, -1)
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1:] == (1,) else pixels)


def read(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An image file's bytes as upright 8-bit RGB, with profile and note in `info`. Raises Unreadable."""
    if not data:
        raise Unreadable("empty file")
    limit = f"over the limit of {max_pixels // 10**6} million"
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > max_pixels:
                raise TooLarge(f"{image.width}x{image.height} pixels, {limit}")
            upright = to_rgb8(image)
            if upright.info.get("icc_profile", b"")[16:20] != b"RGB ":
                upright.info.pop("icc_profile", None)
            animated = getattr(image, "is_animated", False)
            upright.info["note"] = "the first of several frames" if animated else None
            return upright
    except Image.UnidentifiedImageError:
        heic = "HEIC, which Pillow cannot read; convert it to JPEG"
        raise Unreadable(heic if data[4:12] in HEIC else "not an image") from None
    except Image.DecompressionBombError:
        raise TooLarge(f"{limit} pixels") from None
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:  # of decoders
        reason = str(error).split("(")[0].strip() or type(error).__name__
        raise Unreadable(f"damaged: {reason}") from None


def decode_all(images: list[Any], size: int, channels: int) -> Iterator[Decoded | Unreadable]:
    """Decode images in order, on all cores. One that fails gives its Unreadable."""

    def decode_one(image: Any) -> Decoded | Unreadable:
        try:
            return decode(image, size, channels)
        except Unreadable as reason:
            return reason

    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore")  # Pillow's notes on odd metadata
        for start in range(0, len(images), 512):  # a bounded number in memory
            yield from pool.map(decode_one, images[start : start + 512])


def list_images(folder: Path) -> list[Path]:
    """Image files below a folder, sorted, each once. Follows links, skips hidden files."""
    files: dict[str, Path] = {}
    visited: set[str] = set()
    stack = [folder]
    while stack:
        path = stack.pop()
        if path.is_dir() or path == folder:
            real = os.path.realpath(path)
            if real not in visited:  # links may form a loop
                visited.add(real)
                inside = [p for p in path.iterdir() if not p.name.startswith((".", "__MACOSX"))]
                stack += sorted(inside, key=lambda p: p.name, reverse=True)
        elif path.suffix.lower() in EXTENSIONS and (path.is_file() or not path.exists()):
            # No pipes, but broken links. Path.resolve raises where a link names itself.
            files.setdefault(os.path.realpath(path), path)
    return sorted(files.values())

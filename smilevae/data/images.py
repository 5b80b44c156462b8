"""Decodes image files to 8-bit RGB pixels. Shapes: S image side."""

import io
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

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
    pixels: np.ndarray  # uint8 (S, S, 3)
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


def decode(data: bytes, size: int) -> Decoded:
    """An image file's bytes, cropped to the middle square and resized. Raises Unreadable."""
    image = read(data)
    pixels = np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC))
    return Decoded(pixels, image.size, image.info["note"])


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


def decode_all(paths: list[Path], size: int) -> Iterator[Decoded | Unreadable]:
    """Decode files in order, on all cores. A file that fails gives its Unreadable."""

    def decode_file(path: Path) -> Decoded | Unreadable:
        try:
            return decode(path.read_bytes(), size)
        except Unreadable as reason:
            return reason
        except OSError as error:
            return Unreadable(error.strerror or "cannot be read")

    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore")  # Pillow's notes on odd metadata
        for start in range(0, len(paths), 512):  # a bounded number in memory
            yield from pool.map(decode_file, paths[start : start + 512])


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

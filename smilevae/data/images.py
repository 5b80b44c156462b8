"""From a picture file to 8-bit RGB pixels, or a reason why not. Shapes: S image side."""

import io
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 50_000_000  # decoded at 3 bytes each; checked before decoding
EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # MAX_PIXELS says it better
BACKGROUND = (255, 255, 255)  # what transparent pixels show


class Unreadable(Exception):
    """Why a file gives no pixels, in a few words."""


class Decoded(NamedTuple):
    """uint8 (S, S, 3), the file's own (width, height), and what a reader must know of how it was read."""

    pixels: np.ndarray
    native: tuple[int, int]
    note: str | None


def to_rgb8(image: Image.Image) -> Image.Image:
    """Upright 8-bit RGB: EXIF orientation applied, 16 bits scaled, alpha laid over white, palettes resolved.

    Raises Unreadable for pixel types without an agreed range (float, 32-bit integer above 65535).
    """
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
        return Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image).convert("RGB")
    return image.convert("RGB")


def decode(data: bytes, size: int) -> Decoded:
    """A picture centre-cropped to a square and resized with antialiasing. Raises Unreadable with the reason."""
    image = read(data)
    pixels = np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC))
    return Decoded(pixels, image.size, image.info.get("note"))


def read(data: bytes) -> Image.Image:
    """A picture file's bytes as upright 8-bit RGB; its `info` has its colour profile and a note of further frames.

    Raises Unreadable with the reason: empty, not an image, truncated, too large.
    """
    if not data:
        raise Unreadable("empty file")
    try:
        with Image.open(io.BytesIO(data)) as image:
            native = image.size
            if native[0] * native[1] > MAX_PIXELS:
                raise Unreadable(f"{native[0]}x{native[1]} pixels, over the limit of {MAX_PIXELS // 10**6} million")
            animated = getattr(image, "is_animated", False)
            upright = to_rgb8(image)
            if upright.info.get("icc_profile", b"")[16:20] != b"RGB ":  # of another colour space than these pixels
                upright.info.pop("icc_profile", None)
            upright.info["note"] = "the first of several frames" if animated else None
            return upright
    except Image.UnidentifiedImageError:
        raise Unreadable("not an image") from None
    except Image.DecompressionBombError:
        raise Unreadable(f"over the limit of {MAX_PIXELS // 10**6} million pixels") from None
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:  # what Pillow's decoders raise
        raise Unreadable(f"damaged: {str(error).split('(')[0].strip() or type(error).__name__}") from None


def decode_all(paths: list[Path], size: int) -> Iterator[Decoded | Unreadable]:
    """Decode files in order, on all cores, a bounded number ahead; a file that fails yields its Unreadable."""

    def one(path: Path) -> Decoded | Unreadable:
        try:
            return decode(path.read_bytes(), size)
        except Unreadable as reason:
            return reason
        except OSError as error:
            return Unreadable(error.strerror or "cannot be read")

    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore")  # Pillow's notes on odd metadata
        for start in range(0, len(paths), 512):
            yield from pool.map(one, paths[start : start + 512])


def list_images(folder: Path) -> list[Path]:
    """Image files below a folder, sorted; dotfiles and `__MACOSX` skipped, links followed, each file once."""
    files: dict[Path, Path] = {}
    visited = set()

    def walk(directory: Path) -> None:
        real = directory.resolve()
        if real in visited:  # a loop of links
            return
        visited.add(real)
        for entry in sorted(os.scandir(directory), key=lambda e: e.name):
            if entry.name.startswith((".", "__MACOSX")):
                continue
            path = Path(entry.path)
            if path.is_dir():
                walk(path)
            elif path.suffix.lower() in EXTENSIONS and (path.is_file() or not path.exists()):  # no pipes; broken links
                files.setdefault(path.resolve(), path)

    walk(folder)
    return sorted(files.values())

"""Decoding of image files. test_strangers.py has a zoo of every kind of file."""

import io
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smilevae.data import images
from smilevae.data.images import MAX_PIXELS, Unreadable


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decode(data: bytes, size: int) -> images.Decoded:
    """What a file of these bytes gives."""
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(data)
        return images.decode(Path(file.name), size, 3)


def flat(mode: str, colour) -> Image.Image:
    return Image.new(mode, (64, 64), colour)


SIXTEEN = Image.fromarray(np.full((64, 64), 40_000, dtype=np.uint16))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    """The corner that is red upright ends top left, whatever way the camera was held."""
    upright = np.zeros((64, 64, 3), dtype=np.uint8)
    upright[:32, :32, 0] = 255
    turns = [0, 0, 2, 2, 3, 1, 1, 3]  # quarters, by the table of EXIF
    stored = np.rot90(upright, turns[orientation - 1])
    if orientation in (2, 4, 5, 7):
        stored = np.fliplr(stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(stored))
    pixels, _, _ = decode(encoded(stored, "PNG", exif=exif), 64)
    np.testing.assert_array_equal(pixels, upright)


def huge_png(side: int) -> bytes:
    """A header that promises side x side pixels, without the pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        size, check = len(body), zlib.crc32(kind + body)
        return struct.pack(">I", size) + kind + body + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


NOISE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
PHOTO = encoded(Image.fromarray(NOISE), "JPEG")


def test_the_size_limit_is_checked_before_the_pixels_exist(monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(Unreadable):
        decode(huge_png(int(MAX_PIXELS**0.5) + 10), 64)


def test_resize_is_antialiased():
    """Stripes finer than the target's pixels become grey, not a moire of black and white."""
    stripes = np.zeros((256, 256, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    pixels, native, _ = decode(encoded(Image.fromarray(stripes)), 64)
    assert native == (256, 256)
    assert np.abs(pixels.astype(int) - 128).max() < 12


def test_a_picture_that_is_not_square_is_cropped_not_squeezed():
    wide = np.zeros((64, 128, 3), dtype=np.uint8)
    wide[:, 32:96] = 200
    assert decode(encoded(Image.fromarray(wide)), 64)[0].min() > 190

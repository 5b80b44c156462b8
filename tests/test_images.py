"""The image zoo: every kind of file gives the right pixels or a reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from smilevae.data.images import MAX_PIXELS, Unreadable, decode, decode_all, list_images, to_rgb8


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def flat(mode: str, colour) -> Image.Image:
    return Image.new(mode, (64, 64), colour)


SIXTEEN = Image.fromarray(np.full((64, 64), 40_000, dtype=np.uint16))


@pytest.mark.parametrize(
    ("data", "colour"),
    [
        (encoded(flat("RGB", (10, 20, 30))), (10, 20, 30)),
        (encoded(flat("L", 77)), (77, 77, 77)),
        (encoded(flat("1", 1)), (255, 255, 255)),
        (encoded(SIXTEEN), (156, 156, 156)),  # 40000 / 65535 * 255 = 155.6; Pillow's own conversion gives white
        (encoded(SIXTEEN, "TIFF"), (156, 156, 156)),
        (encoded(flat("RGBA", (200, 0, 0, 0))), (255, 255, 255)),  # hidden colour stays hidden
        (encoded(flat("RGBA", (200, 0, 0, 128))), (227, 127, 127)),
        (encoded(flat("LA", (0, 128))), (127, 127, 127)),
        (encoded(flat("RGB", (9, 90, 190)).quantize(4)), (9, 90, 190)),
        (encoded(flat("RGB", (9, 90, 190)).quantize(4), transparency=0), (255, 255, 255)),
        (encoded(flat("CMYK", (0, 255, 255, 0)), "JPEG", quality=100), (254, 0, 0)),
        (encoded(flat("RGB", (50, 60, 70)), "GIF"), (50, 60, 70)),
        (encoded(flat("RGB", (50, 60, 70)), "BMP"), (50, 60, 70)),
        (encoded(flat("RGB", (50, 60, 70)), "WEBP", lossless=True), (50, 60, 70)),
    ],
)
def test_every_pixel_type_gives_its_colour(data, colour):
    pixels, native, note = decode(data, 64)
    assert note is None
    assert pixels.shape == (64, 64, 3)
    assert pixels.dtype == np.uint8
    assert native == (64, 64)
    np.testing.assert_allclose(pixels.reshape(-1, 3).mean(0), colour, atol=1.01)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    """The corner that is red when viewed upright ends top left, whatever way the camera was held."""
    upright = np.zeros((64, 64, 3), dtype=np.uint8)
    upright[:32, :32, 0] = 255
    undo = {
        **{1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud},
        **{5: lambda a: a.transpose(1, 0, 2), 6: np.rot90, 8: lambda a: np.rot90(a, 3)},
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](upright)))
    pixels, _, _ = decode(encoded(stored, "PNG", exif=exif), 64)
    np.testing.assert_array_equal(pixels, upright)


def huge_png(side: int) -> bytes:
    """A header that promises side x side pixels, without the pixels."""
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))  # noqa: E731
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


PHOTO = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)), "JPEG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"just a text, named .jpg", "not an image"),
        (PHOTO[: len(PHOTO) // 2], "damaged"),
        (encoded(flat("RGB", 0))[:-30], "damaged"),
        (huge_png(14_200), "200|201 million|over the limit"),
        (huge_png(7_200), "7200x7200 pixels, over the limit"),
        (encoded(Image.new("F", (64, 64)), "TIFF"), "floating-point"),
    ],
    ids=["empty", "text", "truncated-jpeg", "truncated-png", "200-megapixel", "over-limit", "float"],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_gives_no_pixels_gives_a_reason(data, reason):
    with pytest.raises(Unreadable, match=reason):
        decode(data, 64)


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
    assert abs(int(pixels.max()) - 128) < 12
    assert abs(int(pixels.min()) - 128) < 12


def test_a_picture_that_is_not_square_is_cropped_not_squeezed():
    wide = np.zeros((64, 128, 3), dtype=np.uint8)
    wide[:, 32:96] = 200
    assert decode(encoded(Image.fromarray(wide)), 64)[0].min() > 190


def test_to_rgb8_leaves_rgb_untouched():
    pixels = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(to_rgb8(Image.fromarray(pixels))), pixels)


def test_each_file_is_listed_once_and_clutter_not_at_all(tmp_path):
    for name in ("a.jpg", "B.PNG", "sub/c.jpeg", ".hidden.jpg", "__MACOSX/a.jpg", ".cache/x.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    (tmp_path / "again.jpg").symlink_to(tmp_path / "a.jpg")
    assert [p.name for p in list_images(tmp_path)] == ["B.PNG", "a.jpg", "c.jpeg"]


def test_decode_all_keeps_the_order_and_survives_bad_files(tmp_path):
    paths = []
    for index in range(20):
        paths.append(tmp_path / f"{index}.png")
        paths[-1].write_bytes(b"" if index % 5 == 0 else encoded(flat("L", index * 10)))
    paths.append(tmp_path / "missing.png")
    decoded = list(decode_all(paths, 64))
    assert len(decoded) == 21
    for index, result in enumerate(decoded[:20]):
        assert isinstance(result, Unreadable) if index % 5 == 0 else result.pixels[0, 0, 0] == index * 10
    assert str(decoded[20]) == "No such file or directory"

import os
import struct
import zlib
from contextlib import suppress
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from resnets.data.decode import FORMATS, Unreadable, decode, open_image, oriented_size
from tests._helpers import needs_posix_files

rng = np.random.default_rng(0)
COLOUR = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = rng.integers(0, 256, (5, 7), dtype=np.uint8)


def saved(image, kind="PNG", **options):
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format(kind):
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    smooth = np.tile(np.arange(0, 240, 15, dtype=np.uint8)[:, None, None], (1, 16, 3))
    found = decode(saved(Image.fromarray(smooth), kind, **options), 3)
    assert found.shape == (16, 16, 3)
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - smooth).max() <= (2 if kind == "JPEG" else 0)


# What the camera did to the upright picture, by the value of the tag.
STORED = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: np.rot90(x, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_undone(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](COLOUR)))
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(decode(saved(stored, kind, exif=exif, **options), 3), COLOUR)


def chunk(kind, content):
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


EXIF = b"II*\0\x08\0\0\0" + struct.pack("<HHHIHHI", 1, 0x112, 3, 1, 6, 0, 0)
XMP = b'<rdf:Description tiff:Orientation="6"/>'
LATE = {
    "exif": chunk(b"eXIf", EXIF),
    "xmp": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
    "packed": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP)),
    "profile": chunk(
        b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n26\n" + EXIF.hex().encode())
    ),
}


@pytest.mark.parametrize("kind", LATE)
@pytest.mark.parametrize("place", ["before", "after", "behind"])
def test_size_and_pixels_agree_wherever_a_png_says_its_orientation(kind, place):
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    content = file.getvalue()
    at = {"before": content.index(b"IDAT") - 4, "after": -12, "behind": len(content)}[place]
    content = content[:at] + LATE[kind] + content[at:]
    if place == "behind":  # what stands behind the end of a PNG counts for nothing
        with open_image(content) as picture:
            assert oriented_size(picture) == (4, 6, 1)
        assert np.array_equal(decode(content, 3), pixels)
        return
    with open_image(content) as picture:
        assert oriented_size(picture) == (6, 4, 6)
    assert np.array_equal(decode(content, 3), np.rot90(pixels, -1))


def test_broken_exif_is_an_upright_image():
    data = saved(Image.fromarray(COLOUR), exif=b"Exif\0\0MM\0*broken")
    assert np.array_equal(decode(data, 3), COLOUR)


def luma(rgb):
    return np.rint(rgb.astype(float) @ [0.299, 0.587, 0.114])


def test_grey_colour_palette_and_bilevel():
    assert np.array_equal(decode(saved(Image.fromarray(GREY)), 1)[..., 0], GREY)
    assert np.array_equal(decode(saved(Image.fromarray(GREY)), 3), GREY[..., None].repeat(3, 2))
    found = decode(saved(Image.fromarray(COLOUR)), 1)[..., 0]
    assert np.abs(found - luma(COLOUR)).max() <= 1
    palette = Image.fromarray(COLOUR).quantize(16)
    assert np.array_equal(decode(saved(palette), 3), np.array(palette.convert("RGB")))
    bilevel = Image.fromarray(GREY > 99)
    assert np.array_equal(decode(saved(bilevel), 1)[..., 0], 255 * (GREY > 99))


def test_transparency_is_put_on_white():
    alpha = rng.integers(0, 256, (5, 7, 1), dtype=np.uint8)
    a = alpha / 255
    found = decode(saved(Image.fromarray(np.concatenate([COLOUR, alpha], 2), "RGBA")), 3)
    assert np.abs(found - (COLOUR * a + 255 * (1 - a))).max() <= 1
    found = decode(saved(Image.fromarray(np.dstack([GREY, alpha]), "LA")), 1)
    assert np.abs(found - (GREY[..., None] * a + 255 * (1 - a))).max() <= 1
    palette = Image.fromarray(COLOUR).quantize(16)
    clear = np.array(palette) == 3
    found = decode(saved(palette, transparency=3), 3)
    assert (found[clear] == 255).all()
    assert np.array_equal(found[~clear], np.array(palette.convert("RGB"))[~clear])


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind):
    wide = rng.integers(0, 2**16, (5, 7), dtype=np.uint16)
    wide[0, :3] = 0, 257 * 100, 65535
    found = decode(saved(Image.fromarray(wide), kind), 1)[..., 0]
    assert np.array_equal(found, np.rint(wide / 257))


def test_a_large_image_is_converted_by_strips_like_a_small_one():
    wide = rng.integers(0, 256, (1500, 1500, 4), dtype=np.uint8)
    found = decode(saved(Image.fromarray(wide, "RGBA"), compress_level=1), 3)
    for top in (0, 600, 1400):
        part = saved(Image.fromarray(wide[top : top + 100], "RGBA"))
        assert np.array_equal(decode(part, 3), found[top : top + 100])


def test_cmyk():
    flat = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    for kind in ("JPEG", "TIFF"):
        found = decode(saved(flat, kind), 3).astype(int)
        assert np.abs(found - [255, 0, 0]).max() <= 3


def test_thirty_two_bits_have_no_range():
    with pytest.raises(Unreadable, match="no known white"):
        decode(saved(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), 3)


def test_a_gif_is_its_first_frame():
    frames = [Image.new("P", (4, 4), i) for i in range(3)]
    for frame in frames:
        frame.putpalette([0, 0, 0, 250, 0, 0, 0, 250, 0])
    data = saved(frames[1], "GIF", save_all=True, append_images=[frames[2]])
    assert (decode(data, 3) == [250, 0, 0]).all()


def header_bomb(width, height=None):
    def chunk(kind, body):
        crc = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)

    head = struct.pack(">IIBBBBB", width, width if height is None else height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


PNG = saved(Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)))
JPEG = saved(Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)), "JPEG")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>not found</html>", "not a JPEG"),
        (PNG[: len(PNG) // 2], "."),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (PNG[:20], "."),
        (b"\xff\xd8\xff", "."),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a JPEG"),
        (b"P6 1 1 255 abc", "not a JPEG"),
        (header_bomb(60_000), "pixels"),
        (header_bomb(8_000), "8000 x 8000 is over 50,000,000 pixels"),
        (header_bomb(0), "."),
        (header_bomb(1, 60_000), "1 x 60000 is too elongated"),
    ],
    ids=str,
)
@needs_posix_files
def test_what_is_broken_is_refused_with_file_and_reason(tmp_path, content, reason):
    path = tmp_path / "bad\n\N{SNOWMAN}\N{GRINNING FACE}.jpg"
    path.write_bytes(content)
    with pytest.raises(Unreadable, match=reason) as caught:
        decode(path, 3)
    assert caught.value.name == str(path)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(Unreadable, match=reason):
        decode(content, 3)


@needs_posix_files
def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "dangling.jpg").symlink_to("nowhere.jpg")
    for name, reason in [
        ("pipe.jpg", "not a regular file"),
        ("folder.jpg", "not a regular file"),
        ("loop.jpg", "symbolic links"),
        ("dangling.jpg", "No such file"),
        ("missing.jpg", "No such file"),
    ]:
        with pytest.raises(Unreadable, match=reason):
            decode(tmp_path / name, 3)


def test_flipped_bits_never_raise_anything_else():
    for seed in range(300):
        noise = np.random.default_rng(seed)
        for good in (PNG, JPEG):
            bad = bytearray(good)
            for place in noise.integers(0, len(bad), 8):
                bad[place] = noise.integers(0, 256)
            with suppress(Unreadable):
                assert decode(bytes(bad[: noise.integers(1, 2 * len(bad))]), 3).shape[2] == 3

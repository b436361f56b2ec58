"""Small files that ask for minutes or gigabytes: refused, before they are read."""

import struct
import time
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageFile

from resnets.data import decode as decoding
from resnets.data import limits
from resnets.data.decode import Unreadable, decode, open_image


def saved(image, kind, **options):
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def jpeg(side, scans, **options):
    data = saved(Image.new("L", (side, side), 99), "JPEG", progressive=True, **options)
    last = data[data.rfind(b"\xff\xda") : -2]
    return data[:-2] + last * scans + b"\xff\xd9"


def separate_scans(count):
    """A sequential file that shows one component again and again."""
    data = saved(Image.new("RGB", (64, 64)), "JPEG")
    scan = b"\xff\xda\0\x08\x01\x01\0\0\x3f\0"
    return data[: data.find(b"\xff\xda")] + scan * count + b"\xff\xd9"


def png(*chunks):
    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(20))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunk(*pair) for pair in chunks) + body


def gif(*blocks):
    head = b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0x80, 0, 0) + bytes(6)
    image = saved(Image.new("L", (4, 4)), "GIF")
    return head + b"".join(blocks) + image[image.index(b",\0\0\0\0\4\0\4\0") :]


def tiff(*entries, data=b"", order="<"):
    mark = b"II*\0" if order == "<" else b"MM\0*"
    body = b"".join(struct.pack(order + "HHII", *entry) for entry in entries)
    start = mark + struct.pack(order + "I", 8 + len(data)) + data
    return start + struct.pack(order + "H", len(entries)) + body + bytes(4)


def tiled(side):
    """A TIFF file of 16 x 16 pixels in one tile of black, which a few bytes hold."""
    data = zlib.compress(bytes(side * side))
    sizes = [(256, 4, 1, 16), (257, 4, 1, 16), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1)]
    tile = [(277, 3, 1, 1), (322, 4, 1, side), (323, 4, 1, side), (324, 4, 1, 8)]
    return tiff(*sizes, *tile, (325, 4, 1, len(data)), data=data)


def run_lengths(side):
    data = b"\1\1\0\0" * side + b"\0\1"  # one pixel in each line
    start = 54 + 1024
    head = struct.pack("<IHHI", start + len(data), 0, 0, start)
    sizes = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(data), 0, 0, 256, 0)
    return b"BM" + head + sizes + bytes(1024) + data


SMALL = saved(Image.new("L", (8, 8)), "JPEG")
EXIF = b"\xff\xe1" + struct.pack(">H", 60_008) + b"Exif\0\0" + bytes(60_000)
ATTACKS = {
    "2,000 scans": (lambda: jpeg(1000, 2000), "2,0.. scans of 1000 x 1000, the limit is 500"),
    "scans of a large image": (lambda: jpeg(6000, 40), "scans of 6000 x 6000, the limit is 27"),
    "sequential scans": (lambda: separate_scans(600), "600 scans"),
    "a million comments": (lambda: SMALL[:2] + b"\xff\xfe\0\2" * 10**6 + SMALL[2:], "segments"),
    "megabytes of filling": (lambda: SMALL[:2] + b"\xff" * 10**7 + SMALL[2:], "segments"),
    "megabytes of zeros": (lambda: SMALL[:2] + bytes(10**7) + SMALL[2:], "segments"),
    "ends without an end": (lambda: SMALL[:2] + b"\xff\xd9" * 10**6 + SMALL[2:], "segments"),
    "EXIF again and again": (lambda: SMALL[:2] + EXIF * 300 + SMALL[2:], "bytes of EXIF"),
    "a megabyte of EXIF": (
        lambda: png((b"eXIf", b"MM\0*" + bytes(10**6))),
        "bytes of EXIF, the limit is 262,144",
    ),
    "500,000 chunks": (lambda: png(*[(b"abCd", b"")] * 40_000), "over 30,000 chunks"),
    "an inflated profile": (
        lambda: png((b"iCCP", b"x\0\0" + zlib.compress(bytes(10**7)))),
        "too large",
    ),
    "inflated texts": (
        lambda: png(*[(b"zTXt", b"%d\0\0" % k + zlib.compress(bytes(10**6))) for k in range(70)]),
        "Too much memory",
    ),
    "a long comment": (lambda: gif(b"!\xfe", (b"\xff" + bytes(255)) * 40_000, b"\0"), "blocks"),
    "many comments": (lambda: gif(*[b"!\xfe\1a\0"] * 40_000), "blocks"),
    "rubbish before the image": (lambda: gif(b"x" * 40_000), "blocks"),
    "60,000 tags": (lambda: tiff(*[(k, 1, 99, 0) for k in range(60_000)]), "60,000 tags"),
    "tags from the large end": (
        lambda: tiff(*[(k, 1, 99, 0) for k in range(1500)], order=">"),
        "1,500 tags",
    ),
    "64-bit tags": (
        lambda: b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 10**6) + bytes(10**5),
        "1,000,000 tags",
    ),
    "a large tile": (lambda: tiled(8000), "tiles of 64,000,000 pixels in an image of 256"),
    "run lengths": (lambda: run_lengths(4000), "run lengths of 16,000,000 pixels"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_files_that_ask_for_too_much(name, tmp_path, monkeypatch):
    make, reason = ATTACKS[name]
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("it was decoded"))
    path = tmp_path / "image"
    path.write_bytes(make())
    for image in (path, path.read_bytes()):
        began = time.process_time()
        with pytest.raises(Unreadable, match=reason):
            decode(image, 3)
        assert time.process_time() - began < 1


def test_webp_is_bounded_by_the_memory_that_it_takes(monkeypatch):
    data = saved(Image.new("RGB", (40, 30)), "WEBP")
    monkeypatch.setattr(decoding, "MAX_WEBP", 1199)
    with pytest.raises(Unreadable, match="40 x 30 is over 1,199 pixels"):
        decode(data, 3)
    assert decoding.MAX_WEBP * 18 < 2**29


def test_what_cameras_and_programs_write_is_read():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    for options in ({"progressive": True}, {"progressive": True, "subsampling": 0}, {}):
        assert decode(saved(noise, "JPEG", **options), 3).shape == (64, 64, 3)
    assert decode(jpeg(64, 60), 3).shape == (64, 64, 3)
    assert decode(png(*[(b"tEXt", b"k\0v")] * 500), 3).shape == (4, 4, 3)
    assert decode(gif(b"!\xfe\1a\0", b"!\xff\x0bNETSCAPE2.0\3\1\0\0\0"), 3).shape == (4, 4, 3)
    assert decode(tiled(256), 3).shape == (16, 16, 3)
    assert decode(run_lengths(100), 3).shape == (100, 100, 3)
    assert decode(saved(noise, "TIFF", compression="jpeg"), 3).shape == (64, 64, 3)


def test_scans_are_those_of_the_image_alone(monkeypatch):
    # A thumbnail before it and a film behind it have bytes that look like scans.
    thumbnail = b"\xff\xe2\0\x42" + b"\xff\xda" * 32
    data = SMALL[:2] + thumbnail + SMALL[2:] + b"\xff\xda" * 99
    monkeypatch.setattr(limits, "MAX_SCANS", 1)
    assert decode(data, 3).shape == (8, 8, 3)
    with pytest.raises(Unreadable, match="scans"):
        decode(jpeg(8, 1), 3)


def test_scans_inside_a_tiff_file(monkeypatch):
    data = saved(Image.new("L", (64, 64)), "TIFF", compression="jpeg")
    monkeypatch.setattr(limits, "MAX_SCANNED_PIXELS", 64 * 64 - 1)
    with pytest.raises(Unreadable, match="1 scans of 64 x 64, the limit is 0"):
        decode(data, 3)


def test_the_header_alone_reads_no_more_than_the_header(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(64, 2000))
    with open_image(path) as picture:  # its size is known; only `decode` goes over the scans
        assert picture.size == (64, 64)

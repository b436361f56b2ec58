"""What an image file may cost to read: small files can ask for minutes and gigabytes.

Pillow walks through the parts of a header byte by byte in Python, and libjpeg goes over the whole
image for each scan. Every limit is far above what cameras and programs write.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from io import BufferedReader, BytesIO
from typing import Literal

from PIL.ImageFile import ImageFile

PARTS = 30_000  # chunks, blocks, segments, and bytes between them: 0.2 s
TAGS = 1_000  # of a TIFF file
EXIF = 256 * 2**10  # bytes
MAX_SCANS = 500
MAX_SCANNED_PIXELS = 1_000_000_000  # pixels of an image times its scans: a second of CPU
RUN_LENGTH = 5_000_000  # pixels of a run-length BMP, which Pillow reads in Python: a second
# A marker of a JPEG file: not a stuffed byte, a restart or filling.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")


class TooCostly(Exception):
    """A file whose reading would take more time or memory than its pixels are worth."""


def check_header(file: BytesIO | BufferedReader) -> None:
    """Raise TooCostly for a file of so many parts that reading its header takes long."""
    start = file.read(16)
    if start.startswith(b"\xff\xd8"):
        _check_segments(file)
    elif start.startswith(b"\x89PNG"):
        _check_chunks(file)
    elif start.startswith(b"GIF8"):
        _check_blocks(file, start)
    elif start[:2] in (b"II", b"MM"):
        order: Literal["little", "big"] = "little" if start[:2] == b"II" else "big"
        big = start[2] == 43  # a 64-bit TIFF, as Pillow tells them
        file.seek(int.from_bytes(start[8:16] if big else start[4:8], order))
        if (tags := int.from_bytes(file.read(8 if big else 2), order)) > TAGS:
            raise TooCostly(f"a TIFF header of {tags:,} tags, the limit is {TAGS:,}")


def check_opened(picture: ImageFile) -> None:
    """Raise TooCostly for an image whose header, which has been read, asks for too much."""
    pixels = picture.width * picture.height
    if (size := len(picture.info.get("exif") or "")) > EXIF:
        raise TooCostly(f"{size:,} bytes of EXIF, the limit is {EXIF:,}")
    if picture.format == "BMP" and "bmp_rle" in str(picture.tile) and pixels > RUN_LENGTH:
        raise TooCostly(f"run lengths of {pixels:,} pixels, the limit is {RUN_LENGTH:,}")
    if picture.format == "TIFF" and (tile := _tile(picture)) > 2 * pixels + 2**22:
        raise TooCostly(f"tiles of {tile:,} pixels in an image of {pixels:,}")


def check_scans(picture: ImageFile) -> None:
    """Raise TooCostly for a JPEG image, alone or in a TIFF file, of very many scans."""
    in_tiff = "jpeg" in str(picture.info.get("compression"))
    if picture.format not in ("JPEG", "MPO") and not in_tiff:
        return
    assert picture.fp is not None
    picture.fp.seek(0)
    data = picture.fp.read()
    pixels = max(1, picture.width * picture.height)
    area = min(pixels, _tile(picture) or pixels) if in_tiff else pixels
    limit = MAX_SCANNED_PIXELS // area if in_tiff else min(MAX_SCANS, MAX_SCANNED_PIXELS // pixels)
    if (count := data.count(b"\xff\xda")) <= limit:
        return  # which counts those of thumbnails and films behind the image, too
    if not in_tiff and (count := _scans(data)) <= limit:
        return
    raise TooCostly(f"{count:,} scans of {picture.width} x {picture.height}, the limit is {limit}")


def _scans(data: bytes) -> int:
    """The scans of a JPEG image up to its end."""
    count, position = 0, 2
    while marker := _MARKER.search(data, position):
        if marker[0] == b"\xff\xd9":
            break
        count += marker[0] == b"\xff\xda"
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return count


def _tile(picture: ImageFile) -> int:
    """The pixels of one tile or strip of a TIFF file; 0 where it does not say."""
    tags = getattr(picture, "tag_v2", {})
    rows = min(tags.get(278, picture.height), picture.height)
    return int(tags.get(322, 0) * tags.get(323, 0) or rows * picture.width)


def _check_segments(file: BytesIO | BufferedReader) -> None:
    file.seek(2)
    exif = 0
    for _ in range(PARTS):
        if not (byte := file.read(1)):
            return
        if byte != b"\xff":
            continue
        match file.read(1):
            case b"\xda" | b"":
                return
            case b"\xff":
                file.seek(-1, 1)
            case code if code == b"\0" or b"\xd0" <= code <= b"\xd9":
                continue
            case code:
                size = int.from_bytes(file.read(2), "big") - 2
                position = file.tell()
                # Pillow joins those of one image, copying all of them for each.
                exif += size * (code == b"\xe1" and file.read(4) == b"Exif")
                if exif > EXIF:
                    raise TooCostly(f"over {EXIF:,} bytes of EXIF")
                file.seek(position + max(0, size))
    raise TooCostly(f"a JPEG header of over {PARTS:,} segments")


def _check_chunks(file: BytesIO | BufferedReader) -> None:
    for count, (name, size) in enumerate(png_chunks(file), 1):
        if name == b"IEND":
            return
        if name == b"eXIf" and size > EXIF:  # it may stand behind the pixels
            raise TooCostly(f"{size:,} bytes of EXIF, the limit is {EXIF:,}")
        if count == PARTS:
            raise TooCostly(f"over {PARTS:,} chunks in a PNG file")


def png_chunks(file: BytesIO | BufferedReader) -> Iterator[tuple[bytes, int]]:
    """The name and length of each chunk of a PNG file; contents are skipped."""
    file.seek(8)  # behind the signature
    while len(head := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", head)
        yield name, length
        file.seek(length + 4, os.SEEK_CUR)  # the content and its checksum


def _check_blocks(file: BytesIO | BufferedReader, start: bytes) -> None:
    flags = start[10] if len(start) > 10 else 0
    file.seek(13 + (6 << (flags & 7) if flags & 0x80 else 0))
    block = False  # whether what follows is a block of an extension
    for _ in range(PARTS):
        byte = file.read(1)
        if byte == b"" or (not block and byte in b",;"):
            return
        if block:
            file.seek(byte[0], 1)
            block = byte != b"\0"
        elif byte == b"!":
            file.seek(1, 1)
            block = True
    raise TooCostly(f"over {PARTS:,} blocks before the first image of a GIF file")

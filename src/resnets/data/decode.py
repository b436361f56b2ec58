"""From an image file to pixels, or to the reason why not."""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from resnets.data.limits import TooCostly, check_header, check_opened, check_scans, png_chunks
from resnets.errors import Assumption, DataError, quantify
from resnets.escape import shorten

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
# How the names of images end that are read; a camera's MPO opens as the JPEG that it begins with.
READABLE = {
    *(".jpg", ".jpeg", ".jpe", ".jif", ".jfif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".dib"),
    *(".gif", ".tif", ".tiff"),
}
# And of those that are not, so that each is named with the reason.
IMAGE_SUFFIXES = READABLE | {
    *(".heic", ".heif", ".avif", ".jp2", ".jxl", ".npy", ".dcm", ".exr", ".svg", ".dng", ".cr2"),
    *(".nef", ".arw", ".ppm", ".pgm", ".tga", ".psd", ".ico"),
}
IMAGE_FORMATS = {  # the first bytes of files that are often taken for images, or those after four
    b"\x93NUMPY": "a NumPy array, whose white is not known: save it as PNG of 8 or 16 bits",
    b"II*\0": "a TIFF of pixels that are not read: save it with 8 or 16 bits",
    b"MM\0*": "a TIFF of pixels that are not read: save it with 8 or 16 bits",
    b"ftyp": "HEIF, AVIF or a video: save it as JPEG or PNG",
    b"PK\3\4": "a ZIP archive, as .npz is: unpack it, and save arrays as PNG",
    b"%PDF": "a PDF: save its pages as PNG",
}
MAX_PIXELS = 50_000_000  # half a gigabyte at the peak, with Pillow's four bytes a pixel
MAX_WEBP = 28_000_000  # the same half a gigabyte: libwebp holds the image four times
MAX_ASPECT = 200  # of long side to short: the long one grows when the short one is resized

# Pillow warns of odd tags, which nothing here reads, in lines that the file may choose.
warnings.filterwarnings("ignore", module=r"PIL\.")


class Unreadable(DataError, exit_code=3):
    """An image that cannot be decoded; `reason` says why, without the file's name."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"cannot read {name!r}: {reason}")
        self.name, self.reason = name, reason


def decode(image: str | Path | bytes, channels: int, white: int = 65535) -> NDArray[np.uint8]:
    """The pixels of an image file, or of its bytes: uint8 (H, W, channels).

    JPEG, PNG, WebP, BMP, GIF (first frame) or TIFF (first page), turned upright by its EXIF
    orientation, transparency put on white, 16 bits scaled to 8 so that `white` and more becomes 255
    (0: the greatest value of as many bits as the image uses), in 1 channel (grey, ITU-R 601) or
    3 (red, green, blue). Raises Unreadable, a DataError that names the file and the reason.
    """
    with open_image(image) as picture:
        check_scans(picture)
        picture.load()
        return to_pixels(picture, channels, white)


def to_pixels(picture: Image.Image, channels: int, white: int = 65535) -> NDArray[np.uint8]:
    """The pixels of a loaded picture, as `decode`; the picture itself may be turned upright.

    Raises DataError for pixels that have no known white.
    """
    with suppress(Exception):  # broken EXIF does not make the pixels worse: they are upright
        ImageOps.exif_transpose(picture, in_place=True)
    white = white or white_of(largest_value(picture) or 0)
    pixels = _pixels(picture, "L" if channels == 1 else "RGB", white)
    return pixels.reshape(*pixels.shape[:2], channels)


@contextmanager
def open_image(image: str | Path | bytes) -> Iterator[ImageFile]:
    """The image, its header read. Raises Unreadable, for what is done with it too."""
    name = "the image" if isinstance(image, bytes) else str(image)
    try:
        if not isinstance(image, bytes) and not stat.S_ISREG(os.stat(image).st_mode):
            raise Unreadable(name, "not a regular file")  # opening a pipe would wait for ever
        if not (len(image) if isinstance(image, bytes) else os.path.getsize(image)):
            raise Unreadable(name, "the file is empty")
        with io.BytesIO(image) if isinstance(image, bytes) else open(image, "rb") as head:
            check_header(head)
        file = io.BytesIO(image) if isinstance(image, bytes) else image
        with Image.open(file, "r", FORMATS) as p:
            limit = MAX_WEBP if p.format == "WEBP" else MAX_PIXELS
            if p.width * p.height > limit:
                raise Unreadable(name, f"{p.width} x {p.height} is over {limit:,} pixels")
            check_opened(p)
            if max(p.size) > MAX_ASPECT * min(p.size):
                raise Unreadable(name, f"{p.width} x {p.height} is too elongated for a picture")
            yield p
    except Unreadable:
        raise
    except (TooCostly, DataError) as error:
        raise Unreadable(name, str(error)) from None
    except UnidentifiedImageError:
        raise Unreadable(name, _foreign(image)) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Unreadable(name, f"over {MAX_PIXELS:,} pixels") from None
    except Exception as error:  # Pillow's readers raise anything on broken files
        kind = type(error).__name__
        line = shorten((str(error).splitlines() or [kind])[0])
        reason = error.strerror or line if isinstance(error, OSError) else f"{kind}: {line}"
        raise Unreadable(name, reason) from None


def _foreign(image: str | Path | bytes) -> str:
    """Why a file is none of the FORMATS."""
    head = image[:16] if isinstance(image, bytes) else b""
    if not isinstance(image, bytes):
        with suppress(OSError), Path(image).open("rb") as file:
            head = file.read(16)
    for start, kind in IMAGE_FORMATS.items():
        if head.startswith(start) or head[4:].startswith(start):
            return kind
    return f"not a {', '.join(FORMATS)} image"


def oriented_size(picture: Image.Image) -> tuple[int, int, int]:
    """Height and width of a picture that is turned upright, and its EXIF orientation.

    Unloaded, but for a PNG that may say its orientation after its pixels.
    """
    orientation = 1
    with suppress(Exception):
        if picture.format == "PNG" and _says_more(picture):
            picture.load()
        # PNG's own method decodes a picture that has no EXIF before its pixels.
        orientation = Image.Image.getexif(picture).get(ExifTags.Base.Orientation, 1)
    orientation = orientation if orientation in range(1, 9) else 1
    turned = orientation > 4 and picture.format != "TIFF"  # whose size is the upright one
    return (*(picture.size if turned else picture.size[::-1]), orientation)


def _says_more(picture: Image.Image) -> bool:
    """Whether a PNG has EXIF or texts, which may hold an orientation, after its pixels begin.

    The file is left where it was.
    """
    file = picture.fp  # type: ignore[attr-defined]
    start = file.tell()
    try:
        names = [name for name, _ in png_chunks(file)]
        behind = names[names.index(b"IDAT") :] if b"IDAT" in names else []
        return not {b"eXIf", b"iTXt", b"zTXt", b"tEXt"}.isdisjoint(behind)
    finally:
        file.seek(start)


def largest_value(picture: Image.Image) -> int | None:
    """The greatest value of a loaded picture that is grey with 16 bits; None for others."""
    if not picture.mode.startswith("I;16"):
        return None
    values = np.asarray(picture)
    return int(values.max(where=values != picture.info.get("transparency", -1), initial=0))


def largest_value_of_file(image: str | Path | bytes) -> int | None:
    """The `greatest` value of an image file or its bytes; None for one that cannot be read."""
    with suppress(Unreadable), open_image(image) as picture:
        if picture.mode.startswith("I;16"):
            check_scans(picture)
            picture.load()
            return largest_value(picture)
    return None


def warn_clipped(values: Mapping[Any, int | None], white: int) -> None:
    """Warn once of images of 16 bits whose greatest value is above a model's white."""
    over = [(path, most) for path, most in values.items() if most is not None and most > white]
    if over:
        path, most = over[0]
        noun = f"of {len(values):,} images have values above {white:,}, which is white to the model"
        text = f"{quantify(len(over), noun)}: they become white, first {path} (up to {most:,})"
        warnings.warn(text, Assumption, stacklevel=2)


def white_of(value: int) -> int:
    """The greatest value of as many bits, 8 at least, as this one has: of 4,000 it is 4,095."""
    return max(255, (1 << value.bit_length()) - 1)


def unused_content(picture: Image.Image) -> list[str]:
    """What the pixels that are read from a picture leave out, unloaded."""
    samples = 0
    with suppress(Exception):
        samples = int(picture.tag_v2.get(277, 0))  # type: ignore[attr-defined]
    with suppress(Exception):
        mode, bands = picture.mode, len(picture.getbands())
        wide = picture.format != "BMP" and ";16" in str(picture.tile)  # type: ignore[attr-defined]
        kinds = {
            "have further frames or pages: the first is used": getattr(picture, "is_animated", 0),
            "have transparency: it is put on white": picture.has_transparency_data,
            "have further channels: they are not used": samples > bands,
            "have 16 bits a colour: the upper 8 are used": wide and not mode.startswith("I;16"),
            "are CMYK: made RGB without a colour profile": mode == "CMYK",
            "are LAB: made RGB": mode == "LAB",
        }
        return [kind for kind, has in kinds.items() if has]
    return []


def _pixels(picture: Image.Image, mode: str, white: int) -> NDArray[np.uint8]:
    if picture.mode == mode and not picture.has_transparency_data:
        return np.array(picture)
    width, height = picture.size
    rows = max(1, 2**20 // width)  # by strips, since conversions need several copies
    strips = (
        picture.crop((0, top, width, min(top + rows, height))) for top in range(0, height, rows)
    )
    return np.concatenate([np.asarray(_eight_bits(strip, white).convert(mode)) for strip in strips])


def _eight_bits(picture: Image.Image, white: int) -> Image.Image:
    """Any mode to one that converts to L or RGB without loss of range or of the background."""
    if picture.mode.startswith("I;16"):  # Pillow's own conversion clips at 255
        wide = np.asarray(picture).astype(np.uint32)
        values = (wide.clip(max=white) * 255 + white // 2) // white
        values[wide == picture.info.get("transparency", -1)] = 255
        return Image.fromarray(values.astype(np.uint8))
    if picture.mode in ("I", "F"):
        kind = "floating-point" if picture.mode == "F" else "signed or 32-bit"
        raise DataError(f"{kind} pixels have no known white: save them with 8 or 16 bits")
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return picture

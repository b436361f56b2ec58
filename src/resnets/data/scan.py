"""One look at each image file of a data set: its size, its pixels' statistics, or why not."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from resnets.data.decode import (
    Unreadable,
    decode,
    largest_value,
    open_image,
    oriented_size,
    unused_content,
)
from resnets.errors import DataError

CHECKED = 10_000  # files that are decoded whole before a run; of more, every k-th
_BLOCK = 4096  # bytes that are compared before files of one size are read whole
Item = TypeVar("Item")
Result = TypeVar("Result")


class ImageInfo(NamedTuple):
    """What is known of a readable image file; its size is that of the upright image, in pixels."""

    height: int
    width: int
    orientation: int  # EXIF's, from 1 (upright as it is stored) to 8
    # Means and mean squares of the channels in 0..1, float64 (2, 3), where it was decoded.
    moments: NDArray[np.float64] | None
    unused: tuple[str, ...] = ()  # content that its pixels leave out
    greatest: int | None = None  # value, of grey with 16 bits that was decoded


class ScanResult(NamedTuple):
    """The readable images, and the files that are not, each with the reason."""

    images: dict[Path, ImageInfo]
    unreadable: tuple[tuple[Path, str], ...]


def scan_images(paths: Sequence[Path], max_unreadable: float) -> ScanResult:
    """Scan each file once. Raises DataError where too many of them are unreadable."""
    paths = list(dict.fromkeys(paths))
    images, unreadable = dict[Path, ImageInfo](), list[tuple[Path, str]]()
    for path, info in zip(paths, read_image_info(paths), strict=True):
        if isinstance(info, Unreadable):
            unreadable.append((path, info.reason))
        else:
            images[path] = info
    if len(unreadable) > max_unreadable * len(paths):
        first = "; ".join(f"{path} ({reason})" for path, reason in unreadable[:3])
        raise DataError(
            f"unreadable: {len(unreadable):,} of {len(paths):,} files; the limit is "
            f"{max_unreadable:g} of them.\n{first}\n"
            "Repair or remove them, or allow more: --set max_unreadable=0.1 (train) or "
            "--max-unreadable 0.1 (evaluate)."
        )
    return ScanResult(images, tuple(unreadable))


def read_image_info(paths: Sequence[Path], white: int = 65535) -> list[ImageInfo | Unreadable]:
    """Read every header, and decode up to CHECKED whole images, spread evenly."""
    step = -(-len(paths) // CHECKED)

    def read(job: tuple[int, Path]) -> ImageInfo | Unreadable:
        index, path = job
        try:
            return _read_info(path, white, decoded=index % step == 0)
        except Unreadable as error:
            return error

    return in_threads(read, enumerate(paths))


def _read_info(path: Path, white: int, decoded: bool) -> ImageInfo:
    with open_image(path) as picture:
        unused = tuple(unused_content(picture))
        height, width, orientation = oriented_size(picture)
        if not decoded:
            return ImageInfo(height, width, orientation, None, unused)
        greatest = largest_value(picture) if picture.mode.startswith("I;16") else None
    image = decode(path, 3, white)
    # of a large image some 64 x 64 pixels: their mean and deviation are the image's
    step = max(1, min(image.shape[:2]) // 64)
    pixels = image[::step, ::step].reshape(-1, 3) / 255.0
    moments = np.stack([pixels.mean(0), (pixels**2).mean(0)])
    return ImageInfo(image.shape[0], image.shape[1], orientation, moments, unused, greatest)


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Map over items in threads: Pillow decodes without the interpreter's lock."""
    with ThreadPool(min(8, os.cpu_count() or 1)) as pool:
        return pool.map(function, items, chunksize=16)


def find_copies(paths: Iterable[Path]) -> list[list[Path]]:
    """Groups of files with the same bytes.

    Files of one size are compared by their first bytes, and only those that agree are read whole.
    """
    fingerprints: dict[Path, tuple[object, ...]] = dict.fromkeys(paths, ())
    groups = dict[tuple[object, ...], list[Path]]()
    for fingerprint in (os.path.getsize, _first_block, _sha256):
        groups.clear()
        values = in_threads(fingerprint, list(fingerprints))
        for (path, before), value in zip(fingerprints.items(), values, strict=True):
            groups.setdefault((*before, value), []).append(path)
        fingerprints = {
            path: key for key, group in groups.items() if len(group) > 1 for path in group
        }
    return [group for group in groups.values() if len(group) > 1]


def _first_block(path: Path) -> int:
    with path.open("rb") as file:
        return zlib.crc32(file.read(_BLOCK))


def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()

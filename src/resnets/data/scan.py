"""One look at each image file of a data set: its size, its pixels' statistics, or why not."""

from __future__ import annotations

import hashlib
import os
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
_BLOCK = 2**16  # bytes that are compared before files of one size are read whole
Item = TypeVar("Item")
Result = TypeVar("Result")


class ImageInfo(NamedTuple):
    """What is known of a readable image file; its size is that of the upright image, in pixels."""

    height: int
    width: int
    orientation: int  # EXIF's, from 1 (upright as it is stored) to 8
    # Means and mean squares of the channels in 0..1, float64 (6,), where it was decoded.
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
            f"{len(unreadable):,} of {len(paths):,} files are unreadable; the limit is "
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
    moments = np.array([*pixels.mean(0), *(pixels**2).mean(0)])
    return ImageInfo(image.shape[0], image.shape[1], orientation, moments, unused, greatest)


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Map over items in threads: Pillow decodes without the interpreter's lock."""
    with ThreadPool(min(8, os.cpu_count() or 1)) as pool:
        return pool.map(function, items, chunksize=16)


def find_copies(train: Sequence[Path], other: Sequence[Path]) -> list[tuple[Path, Path]]:
    """(file of `other`, file of `train`) for those with the same bytes.

    Files of one size are compared by their first bytes, and only those that agree are read whole.
    """
    fingerprints: dict[Path, tuple[object, ...]] = dict.fromkeys((*train, *other), ())
    for fingerprint in (_size, _first_block, _sha256):
        values = in_threads(fingerprint, list(fingerprints))
        known = zip(fingerprints.items(), values, strict=True)
        fingerprints = {path: (*before, value) for (path, before), value in known}
        shared = _present(fingerprints, train) & _present(fingerprints, other)
        fingerprints = {path: key for path, key in fingerprints.items() if key in shared}
    original = {fingerprints[path]: path for path in reversed(train) if path in fingerprints}
    copies = [path for path in other if path in fingerprints]
    return [(path, original[fingerprints[path]]) for path in copies]


def _present(
    fingerprints: dict[Path, tuple[object, ...]], paths: Sequence[Path]
) -> set[tuple[object, ...]]:
    return {fingerprints[path] for path in paths if path in fingerprints}


def _size(path: Path) -> object:
    return os.path.getsize(path) if path.exists() else path


def _first_block(path: Path) -> object:
    with path.open("rb") as file:
        return hashlib.sha256(file.read(_BLOCK)).digest()


def _sha256(path: Path) -> object:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()

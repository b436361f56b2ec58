"""From image files to a data set: one look at each file, then splits, statistics and digest."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from resnets.config.recipe import Preprocess
from resnets.data.decode import (
    Unreadable,
    decode,
    largest_value,
    open_image,
    oriented_size,
    unused_content,
    white_of,
)
from resnets.data.issues import Issues
from resnets.data.splits import Source, Split, describe_missing_classes, mean_and_std, split_by_name
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


class ReadOptions(NamedTuple):
    """How the files of a data set are read."""

    seed: int = 0  # of an automatic split
    max_unreadable: float = 0.01  # fraction of the files that may be left out
    training: bool = True  # whether what only training needs is required, as two classes


def make_dataset(
    images: Split,
    split_names: Sequence[str | None],
    *,
    task: str,
    classes: tuple[str, ...],
    scan: ScanResult,
    issues: Issues,
    seed: int,
    digest: str,
) -> Source:
    """The data set of all readable images, with the name of each one's split.

    Where one has no split, all are split 80 : 10 : 10 at random and stratified.
    """
    splits, automatic = split_by_name(images, split_names, seed), None in split_names
    training = _files(splits["train"]) if "train" in splits else []
    greatest = {p: image.greatest for p, image in scan.images.items() if image.greatest is not None}
    info, white = _scale_grey16(scan.images, greatest, training, issues)
    for path, image in info.items():
        for content in image.unused:
            issues.count(f"images {content}", path)
    _note_copies(splits, issues)
    for name, split in splits.items() if automatic else ():
        if text := describe_missing_classes(name, split, images, classes):
            issues.note(f"the random split {text}")
    # ImageNet's statistics where no image was decoded
    mean, std = Preprocess(size=1).mean, Preprocess(size=1).std
    if moments := [m for path in training if (m := info[path].moments) is not None]:
        mean, std = mean_and_std(np.mean(moments, axis=0))
    return Source(
        name=issues.data.name or issues.data.resolve().name,
        classes=classes,
        train=splits.get("train"),
        val=splits.get("val"),
        test=splits.get("test"),
        channels=3,
        size=int(np.median([min(image.height, image.width) for image in info.values()])),
        digest=digest,
        mean=mean,
        std=std,
        white=white,
        greatest=greatest,
        unreadable=scan.unreadable,
        problems=tuple(issues.warnings),
        notes=tuple(issues.notes),
        root=issues.root,
        automatic=automatic,
        task=task,
    )


def _files(split: Split) -> list[Path]:
    return [path for path in split.images if isinstance(path, Path)]


def _scale_grey16(
    info: dict[Path, ImageInfo], greatest: dict[Path, int], training: list[Path], issues: Issues
) -> tuple[dict[Path, ImageInfo], int]:
    """Scale grey of 16 bits by what the training images hold; also the value that is white."""
    if not greatest:
        return info, 65535
    most = max([greatest[path] for path in training if path in greatest] or greatest.values())
    white = white_of(most)
    if white < 65535:
        scaled = zip(greatest, read_image_info(list(greatest), white), strict=True)
        info = info | {path: image for path, image in scaled if isinstance(image, ImageInfo)}
    note = (
        f"{len(greatest):,} decoded images are grey with 16 bits, first {next(iter(greatest))}; "
        f"white is {white:,}, since the greatest value for training is {most:,}"
    )
    over = [path for path, value in greatest.items() if value > white]
    issues.note(note + (f"; {len(over):,} have greater values, first {over[0]}" if over else ""))
    return info, white


def _note_copies(splits: dict[str, Split], issues: Issues) -> None:
    """Note files of the same bytes in train and in val or test, or with different classes."""
    split_of, labels = dict[Path, str](), dict[Path, object]()
    for name, split in splits.items():
        files = _files(split)
        split_of |= dict.fromkeys(files, name)
        if not split.has_spatial_labels:
            labels |= zip(files, split.labels.tolist(), strict=True)
    for group in find_copies(split_of):
        train = next((path for path in group if split_of[path] == "train"), None)
        for path in group:
            if train and split_of[path] != "train":
                text = f"images of {split_of[path]} are in train too, byte for byte, so its figures"
                example = f"{path}, which is {train}; remove one of each"
                issues.count(f"{text} are too good", example)
            if labels.get(path) != labels.get(group[0]):
                text = "images have copies of another class, byte for byte"
                issues.count(text, f"{path}, which is {group[0]}")


def file_entry(path: Path, root: Path) -> list[object]:
    """What a digest holds of a file: its path from the root, and its size in bytes or -1."""
    size = path.stat().st_size if os.path.isfile(path) else -1
    return [Path(os.path.relpath(path, root)).as_posix(), size]


def digest_of_entries(entries: Iterable[Any], separator: str = "") -> str:
    """SHA-256 of values as JSON, one after the other."""
    sha = hashlib.sha256()
    for index, entry in enumerate(entries):
        text = json.dumps(entry, default=bytes.decode)
        sha.update((separator * (index > 0) + text).encode())
    return sha.hexdigest()

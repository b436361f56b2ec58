"""From readable images with labels to a data set: its splits, its statistics, its digest."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resnets.config.recipe import Preprocess
from resnets.data.decode import white_of
from resnets.data.issues import Issues
from resnets.data.scan import ImageInfo, ScanResult, find_copies, read_image_info
from resnets.data.splits import Source, Split, describe_missing_classes, mean_and_std, split_by_name


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

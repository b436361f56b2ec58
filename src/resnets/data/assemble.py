"""From readable images with labels to a data set: its splits, its statistics, its digest."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resnets.config.recipe import Preprocess
from resnets.data.decode import white_of
from resnets.data.issues import Issues
from resnets.data.scan import ImageInfo, ScanResult, find_copies, read_image_info
from resnets.data.splits import Source, Split, describe_missing_classes, split_by_name


def make_dataset(
    origin: Path,
    root: Path,
    *,
    task: str,
    classes: tuple[str, ...],
    images: Split,
    splits: Sequence[str | None],
    scan: ScanResult,
    issues: Issues,
    seed: int,
    digest: str,
) -> Source:
    """The data set of all readable images, of which `splits` has the name of each one's split.

    Where one has no split, all are split 80 : 10 : 10 by chance and stratified.
    """
    parts = split_by_name(images, splits, seed)
    training = _files(parts["train"]) if "train" in parts else []
    info, white = _scale_grey16(origin, scan.images, training, issues)
    _note_unused_content(origin, info, issues)
    _note_copies(origin, parts, issues)
    for name, part in parts.items() if None in splits else ():
        if text := describe_missing_classes(name, part, images, classes):
            issues.notes.append(f"{origin}: the split by chance {text}")
    mean, std = _mean_and_std([info[path] for path in training])
    return Source(
        name=origin.name or origin.resolve().name,
        classes=classes,
        train=parts.get("train"),
        val=parts.get("val"),
        test=parts.get("test"),
        channels=3,
        size=int(np.median([min(image.height, image.width) for image in info.values()])),
        digest=digest,
        mean=mean,
        std=std,
        white=white,
        greatest=_greatest(info),
        unreadable=scan.unreadable,
        problems=tuple(issues.warnings),
        notes=tuple(issues.notes),
        root=root,
        automatic=None in splits,
        task=task,
    )


def _files(split: Split) -> list[Path]:
    return [path for path in split.images if isinstance(path, Path)]


def _greatest(info: dict[Path, ImageInfo]) -> dict[Path, int]:
    """The greatest value of each image of 16 bits that was decoded."""
    return {path: image.greatest for path, image in info.items() if image.greatest is not None}


def _mean_and_std(images: list[ImageInfo]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the channels; ImageNet's where no image was decoded."""
    decoded = [image.moments for image in images if image.moments is not None]
    if not decoded:
        preprocess = Preprocess(size=1)
        return preprocess.mean, preprocess.std
    mean, mean_square = np.mean(decoded, axis=0).reshape(2, 3)
    std = np.sqrt((mean_square - mean**2).clip(255**-2.0))
    return tuple(mean.tolist()), tuple(std.tolist())


def _scale_grey16(
    origin: Path, info: dict[Path, ImageInfo], training: list[Path], issues: Issues
) -> tuple[dict[Path, ImageInfo], int]:
    """Scale grey of 16 bits by what the training images hold; also the value that is white."""
    greatest = _greatest(info)
    if not greatest:
        return info, 65535
    most = max([greatest[path] for path in training if path in greatest] or greatest.values())
    white = white_of(most)
    if white < 65535:
        scaled = zip(greatest, read_image_info(list(greatest), white), strict=True)
        info = info | {path: image for path, image in scaled if isinstance(image, ImageInfo)}
    note = (
        f"{origin}: {len(greatest):,} decoded images are grey with 16 bits, first "
        f"{next(iter(greatest))}; white is {white:,}, since the greatest value for training is "
        f"{most:,}"
    )
    over = [path for path, value in greatest.items() if value > white]
    note += f"; {len(over):,} have greater values, first {over[0]}" if over else ""
    issues.notes.append(note)
    return info, white


def _note_unused_content(origin: Path, info: dict[Path, ImageInfo], issues: Issues) -> None:
    """Note each kind of content that the pixels of images leave out."""
    kinds: dict[str, list[Path]] = {}
    for path, image in info.items():
        for kind in image.unused:
            kinds.setdefault(kind, []).append(path)
    for kind, paths in kinds.items():
        issues.note(f"images {kind}", paths, origin)


def _note_copies(origin: Path, parts: dict[str, Split], issues: Issues) -> None:
    """Note files of the same bytes in train and in val or test, or with different classes."""
    splits, labels = dict[Path, str](), dict[Path, object]()
    for name, part in parts.items():
        files = _files(part)
        splits |= dict.fromkeys(files, name)
        if not part.has_spatial_labels:
            labels |= zip(files, part.labels.tolist(), strict=True)
    leaked: dict[str, list[str]] = {"val": [], "test": []}
    relabelled = list[str]()
    for group in find_copies(splits):
        train = next((path for path in group if splits[path] == "train"), None)
        for path in group:
            if train and splits[path] != "train":
                leaked[splits[path]].append(f"{path}, which is {train}; remove one of each")
            if labels.get(path) != labels.get(group[0]):
                relabelled.append(f"{path}, which is {group[0]}")
    for name, examples in leaked.items():
        what = f"images of {name} are in train too, byte for byte, so its figures are too good"
        issues.note(what, examples, origin)
    issues.note("images have copies of another class, byte for byte", relabelled, origin)


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

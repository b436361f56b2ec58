"""The images that features are taken of: those of a data set, or of any folder."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resnets.data import dataset
from resnets.data.dataset import Source, Split
from resnets.data.paths import is_image_file, visible_files
from resnets.errors import Assumption, DataError, quantify


@dataclass(frozen=True, slots=True, eq=False)
class ImageSet:
    """Images in one order, with what is known of each. Labels of -1 stand for no known class."""

    split: Split
    names: tuple[str, ...]  # paths from the folder of the data; of images in memory SPLIT/NUMBER
    splits: tuple[str, ...]  # the split of each image, or ""
    classes: tuple[str, ...]
    digest: str  # of names, sizes in bytes and times of the last change; of images in memory pixels
    unreadable: tuple[tuple[Path, str], ...] = ()  # files that are left out already
    source: Source | None = None

    def __len__(self) -> int:
        return len(self.split)


def read_image_set(data: Any, *, split: str | None, max_unreadable: float) -> ImageSet:
    """All images of a data set with classes, or those of one split; or a folder without classes.

    A folder with images at its top, or one that is not laid out as classes, is taken as images
    without labels, wherever in it they lie. Raises DataError where there is no image.
    """
    if (folder := plain_folder(data)) is not None:
        if split not in (None, "all"):
            raise DataError(f"{data} holds images without classes and has no {split} split")
        return unlabelled_images(folder)
    try:
        source = dataset.load(data, max_unreadable=max_unreadable, training=False)
    except DataError as error:
        if split not in (None, "all") or not (isinstance(data, str | Path) and Path(data).is_dir()):
            raise
        images = unlabelled_images(Path(data))
        reason = str(error).splitlines()[0]
        text = f"{quantify(len(images), 'images')} of {data} are taken without classes: {reason}"
        warnings.warn(text, Assumption, stacklevel=2)
        return images
    return images_of(source, split)


def plain_folder(data: Any) -> Path | None:
    """The folder that holds images itself, whatever lies below it."""
    if not isinstance(data, str | Path) or not Path(data).is_dir():
        return None
    holds_images = any(path.is_file() and is_image_file(path) for path in Path(data).iterdir())
    return Path(data) if holds_images else None


def images_of(source: Source, split: str | None = None) -> ImageSet:
    """The images of a data set, of all splits or of one. Raises DataError for one it lacks."""
    if split not in (None, "all", *source.splits):
        raise DataError(f"{source.name} has no {split} split; it has: {', '.join(source.splits)}")
    chosen = {n: s for n, s in source.splits.items() if split in (None, "all", n)}
    names = list[str]()
    for name, images in chosen.items():
        if isinstance(images.images, Tensor) or source.root is None:
            names += [f"{name}/{k}" for k in range(len(images))]
        else:
            names += [relative(path, source.root) for path in images.images]
    whole = reduce(Split.concat, chosen.values())
    return ImageSet(
        split=whole,
        names=tuple(names),
        splits=tuple(name for name, images in chosen.items() for _ in range(len(images))),
        classes=source.classes,
        digest=digest_of_images(whole, names, source.digest),
        unreadable=source.unreadable,
        source=source,
    )


def unlabelled_images(folder: Path) -> ImageSet:
    """The images in a folder and below. Raises DataError where there is none."""
    paths = visible_files(folder)
    files = tuple(path for path in paths if is_image_file(path))
    if not files:
        raise DataError(f"{folder} holds no image; its files: {len(paths):,}")
    names = [relative(path, folder) for path in files]
    images = Split(files, torch.full((len(files),), -1))
    return ImageSet(
        split=images,
        names=tuple(names),
        splits=("",) * len(files),
        classes=(),
        digest=digest_of_images(images, names),
    )


def relative(path: Path, root: Path) -> str:
    """A path from a folder on, with / between its parts."""
    return Path(os.path.relpath(path, root)).as_posix()


def digest_of_images(split: Split, names: list[str], content: str = "") -> str:
    """SHA-256 of the names and of what says that a file was not changed, or of `content`."""
    sha = hashlib.sha256(content.encode())
    sha.update(json.dumps(names).encode())
    if not isinstance(split.images, Tensor):
        for path in split.images:
            status = path.stat()
            sha.update(f"{status.st_size} {status.st_mtime_ns};".encode())
    return sha.hexdigest()

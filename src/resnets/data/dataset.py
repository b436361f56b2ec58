"""Where images and labels come from, by name or place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from resnets.config.recipe import Preprocess
from resnets.config.types import NAMED_DATA, TaskName
from resnets.data import download, tables, torch_dataset
from resnets.data.assemble import ReadOptions
from resnets.data.class_folders import read_class_folders
from resnets.data.class_table import read_class_table
from resnets.data.classification import classification_dataset
from resnets.data.decode import Unreadable, open_image, oriented_size
from resnets.data.detection.dataset import detection_dataset
from resnets.data.detection.formats import FORMS, find_reader
from resnets.data.detection.targets import DetectionTargets
from resnets.data.issues import Issues
from resnets.data.mask_folders import find_mask_folders
from resnets.data.segmentation import read_masks
from resnets.data.splits import Source, Split, in_memory
from resnets.errors import DataError, DataErrors, UsageError, nearest

__all__ = ["Source", "Split", "load", "normalization"]


def load(
    data: str | Path | object,
    *,
    seed: int = 0,
    max_unreadable: float = 0.01,
    task: str = "classify",
    training: bool = True,
) -> Source:
    """A data set by its name or path; a file or folder that exists comes before a name.

    To classify it is "digits"; "cifar10" or "cifar100" from the cache; a folder (see
    `class_folders.read_class_folders`); or a CSV file (`class_table.read_class_table`). To detect
    or localize, which is the same here, it is COCO, PASCAL VOC, YOLO or a CSV of boxes (see
    `resnets.data.detection.formats`); to segment a folder of images and masks (see
    `segmentation.read_masks`). Another object is a torch Dataset, or a dictionary of them
    (`torch_dataset.load`). `seed` draws an automatic split, and `max_unreadable` is the fraction of
    files that may be unreadable and left out. What only `training` needs, as two classes, is not
    required of data to test on.

    Raises DataError: there is no such data, or in no known form, or too much is unreadable;
    DataErrors, a DataError, for data that training refuses.
    """
    read = READERS.get(task)
    if not isinstance(data, str | Path):
        if read is not read_classes:
            raise DataError("a Dataset has one class per image: boxes and masks come from files")
        return torch_dataset.load(data, seed=seed, training=training)
    path, data = Path(data), str(data)
    known = data in NAMED_DATA
    if read is None:
        raise DataError(f"no reader for data of the task {task!r}: give a Source")
    if known and not path.exists():
        if read is read_classes:
            return digits() if data == "digits" else download.load_cached(data)
        raise DataError(f"{data} has one class for each image, neither boxes nor masks")
    if not path.exists():
        near = nearest(data, NAMED_DATA)
        raise DataError(f"no data {data!r}, neither a folder nor a known name: {near}")
    note = f"{path} is read from {path.resolve()}, and is not the data set of that name"
    try:
        source = read(path, ReadOptions(seed, max_unreadable, training))
        return replace(source, notes=(note, *source.notes)) if known else source
    except DataError as error:
        if read is read_classes and (other := guess_task(path)) != "classify":
            error.args = (_describe_other_task(path, other),)
        if known and isinstance(error, DataErrors):
            error.noted.append((str(path), note))
        elif known:
            error.args = (f"{error}\n{note}",)
        raise


def _describe_other_task(path: Path, other: str) -> str:
    check = f"`resnets data check {path} --task classify` says why it has no classes"
    return f"{path} is data to {other}: `resnets {other} train {path}`.\n{check}"


def read_classes(path: Path, options: ReadOptions) -> Source:
    """Images with a class each, or several. Raises as `load`."""
    issues, multi_label = Issues(path), False
    if path.is_dir():
        files = read_class_folders(issues, options.training)
    elif path.suffix.lower() in tables.SUFFIXES and path.is_file():
        files, multi_label = read_class_table(issues)
    else:
        raise DataError(f"{path} is neither a folder nor a CSV file; unpack an archive first")
    return classification_dataset(files, multi_label, issues, options)


def read_boxes(path: Path, options: ReadOptions) -> Source:
    """Images with boxes, and masks where there are some. Raises as `load`."""
    read = find_reader(path)
    if read is None:
        raise DataError(f"{path} has no boxes in a known form. Looked for:\n{FORMS}")
    return detection_dataset(read(Issues(path)), options)


READERS = {  # of data in files, by the name of the task
    "classify": read_classes,
    "detect": read_boxes,
    "localize": read_boxes,
    "segment": read_masks,
}


def name_in_recipe(data: object, source: Source) -> str:
    """What a recipe says of its data: a whole path, a name, or the name of a Dataset."""
    if not isinstance(data, str | Path):
        return source.name
    return str(data) if source.root is None else str(Path(data).resolve())


def guess_task(data: str | Path | object) -> TaskName:
    """What the labels of `data` look like: objects before masks, masks before classes."""
    if not isinstance(data, str | Path):
        return "classify"
    path = Path(data)
    if path.exists() and find_reader(path):
        return "detect"
    return "segment" if path.is_dir() and find_mask_folders(path) else "classify"


def digits() -> Source:
    """scikit-learn's 1,797 handwritten digits, grey 8x8 images of 0..16, scaled to 0..255.

    Split into a training half and a test half, stratified, always the same.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images * 255 / 16).round().to(torch.uint8)[:, None]
    split = Split(images, torch.from_numpy(bunch.target).long())
    test, train = split.split_stratified(0, len(split) // 2)
    return in_memory("digits", tuple("0123456789"), train, test)


def normalization(
    normalize: Literal["data", "imagenet", "none"], source: Source | None, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation for a network of `channels` input channels. Raises UsageError."""
    if normalize == "data" and source is None:
        raise UsageError("--normalize data needs the data: --data DATA")
    imagenet = Preprocess(size=1)
    known = source if source and normalize == "data" else imagenet
    mean, std = ((0.0,), (1.0,)) if normalize == "none" else (known.mean, known.std)
    if len(mean) == channels:
        return mean, std
    if 1 not in (len(mean), channels):
        raise UsageError(f"no mean of {len(mean)} channels for a network of {channels}")
    mean, std = ((sum(x) / len(x),) * channels for x in (mean, std))  # grey is the colours' mean
    return mean, std


def unlabelled_split(files: Sequence[object]) -> tuple[Split, list[tuple[Path, str]]]:
    """Images of which nothing is known but their sizes, and the files that are no images."""
    good, sizes, bad = list[Path](), list[tuple[int, int]](), list[tuple[Path, str]]()
    for file in files:
        if not isinstance(file, str | Path):
            raise DataError("pictures are drawn of files only: name them")
        try:
            with open_image(file) as picture:
                height, width, _ = oriented_size(picture)
        except Unreadable as fault:
            bad.append((Path(file), fault.reason))
        else:
            good.append(Path(file))
            sizes.append((height, width))
    return Split(
        tuple(good),
        torch.zeros(len(good), 0),
        sizes=torch.tensor(sizes).view(-1, 2),
        objects=DetectionTargets.empty(len(good), 0),
    ), bad

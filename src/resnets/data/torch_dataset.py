"""A torch Dataset of (image, label) as a data set: read once, kept as uint8, known by a digest."""

from __future__ import annotations

import hashlib
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from resnets.data.inputs import KINDS, read_image
from resnets.data.splits import (
    SPLITS,
    Source,
    Split,
    channel_statistics,
    describe_missing_classes,
    mean_and_std,
    split_by_name,
)
from resnets.errors import DataError, UsageError, quantify
from resnets.files import cache_folder

Pairs: TypeAlias = torch.utils.data.Dataset[Any] | Sequence[tuple[Any, Any]]
Data: TypeAlias = str | Path | Pairs | Mapping[str, Pairs]
PREFIX = "dataset-"  # of the name in a recipe, since a Dataset has no path
MEMORY = 2 * 2**30  # bytes of images that are kept in memory; more of them become files
TWICE = 16  # items that are read twice: a random transform gives another image
REMEDY = (
    "Leave random transforms out: training augments by the recipe (augment.crop, augment.flip)."
)


def load(data: object, *, seed: int = 0, training: bool = True) -> Source:
    """A Dataset, or a dictionary of Datasets called train, val and test, as a Source.

    A Dataset has len() and gives (image, label) for [i]: the image as `inputs.read_image` takes it
    but for uint16, the label an int from 0 on, or a vector of 0 and 1 where an image may have
    several classes. Their names are `.classes` where there is one, else numbers. A single Dataset
    is split 80 : 10 : 10 at random, stratified.

    All items are read, decoded and hashed, here and at every resume. Images of one size stay in
    memory, up to MEMORY bytes; others are read a second time and written into the cache as PNG.

    Raises UsageError for another object; DataError that names the item for what cannot be used, for
    items that differ when they are read again, and, to train, for less than two classes.
    """
    datasets = _datasets_by_split(data)
    items = _read_items(datasets)
    labels = _label_tensor(items.labels)
    classes = _class_names(datasets, labels, items.splits, training)
    if training and len(classes) < 2:
        raise DataError("the Dataset has one class; a classifier needs two")
    name, automatic = f"{PREFIX}{_dataset_name(datasets)}", "" in datasets
    root, images = _store(datasets, items)
    notes = [f"{len(images):,} images of {name} were written into {root}"] if root else []
    whole = Split(images, labels)
    splits = split_by_name(whole, [split or None for split in items.splits], seed)
    empty = [name for name, n in zip(classes, whole.counts(len(classes)), strict=True) if not n]
    if training and empty:
        noun = f"of {len(classes):,} classes have no images, as {empty[0]!r}"
        notes.append(quantify(len(empty), noun))
    train = splits.get("train")
    text = train and describe_missing_classes("train", train, whole, classes)
    if training and automatic and text:
        raise DataError(f"the random split {text}: add images, or give train, val and test")
    mean, std = _statistics((train or whole).images, items)
    return Source(
        name=name,
        classes=classes,
        train=splits.get("train"),
        val=splits.get("val"),
        test=splits.get("test"),
        channels=items.channels,
        size=int(median(map(min, items.sizes))),
        digest=hashlib.sha256(f"{items.digest}{classes}".encode()).hexdigest(),
        mean=mean,
        std=std,
        notes=tuple(notes),
        root=root,
        automatic=automatic,
    )


def _datasets_by_split(data: object) -> dict[str, Any]:
    """The Datasets by the split that each is, "" for a single one. Raises as `load`."""
    datasets: dict[str, Any] = dict(data) if isinstance(data, Mapping) else {"": data}
    if unknown := [name for name in datasets if name not in ("", *SPLITS)]:
        raise UsageError(f"data has {unknown[0]!r}: its Datasets are called {', '.join(SPLITS)}")
    if not datasets:
        raise UsageError("data is an empty dictionary: give Datasets called train, val and test")
    for name, dataset in datasets.items():
        _check_dataset(f"data[{name!r}]" if name else "data", dataset)
        count = min(TWICE, len(dataset))
        for index in np.linspace(0, len(dataset) - 1, count).astype(int).tolist():
            (first, label), (second, other) = (_item(name, dataset, index) for _ in range(2))
            if label != other or not np.array_equal(first, second):
                where = _where(name, index)
                raise DataError(f"{where} changes each time it is read.\n{REMEDY}")
    return datasets


def _check_dataset(argument: str, dataset: Any) -> None:
    """Raise UsageError for what is no map-style Dataset, with the remedy."""
    kind = type(dataset).__name__
    if isinstance(dataset, torch.utils.data.DataLoader):
        raise UsageError(f"{argument} is a DataLoader: give its Dataset, loader.dataset")
    if isinstance(dataset, str | bytes | Path):
        raise UsageError(f"{argument} is a {kind}: each split of a dictionary must be a Dataset")
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise UsageError(
            f"{argument} is a {kind}: give a path, a name, or a Dataset of (image, label) that has"
            "\nlen() and [i]; of an IterableDataset, list(dataset)"
        )


@dataclass
class _Items:
    """What reading all items gave."""

    splits: list[str] = field(default_factory=list)  # the name of each image's split
    labels: list[Any] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)  # height and width
    channels: int = 1
    # (H, W, C) of one size; None where they become files
    images: list[NDArray[np.uint8]] | None = field(default_factory=list)
    # (2, 3) of each training image: means of its values and of their squares
    moments: list[NDArray[np.float64]] = field(default_factory=list)
    digest: str = ""


def _read_items(datasets: Mapping[str, Any]) -> _Items:
    items, sha, size = _Items(), hashlib.sha256(), 0
    for name, pixels, label in _hashed_items(datasets, sha):
        items.splits.append(name)
        items.labels.append(label)
        items.sizes.append((pixels.shape[0], pixels.shape[1]))
        items.channels = max(items.channels, pixels.shape[2])
        size += pixels.nbytes
        if items.images is not None:
            items.images.append(pixels)
        if items.sizes[-1] != items.sizes[0] or size > MEMORY:
            items.images = None
        if name in ("", "train"):
            values = pixels.reshape(-1, pixels.shape[2]).astype(np.float64) / 255
            moments = np.stack([values.mean(0), (values**2).mean(0)])
            items.moments.append(np.broadcast_to(moments, (2, 3)))
    if not items.labels:
        raise DataError("the Dataset is empty")
    items.digest = sha.hexdigest()
    return items


def _hashed_items(
    datasets: Mapping[str, Any], sha: hashlib._Hash
) -> Iterator[tuple[str, NDArray[np.uint8], Any]]:
    """Name of the split, pixels and label of all items, which are hashed."""
    for name, dataset in datasets.items():
        for index in range(len(dataset)):
            pixels, label = _item(name, dataset, index)
            sha.update(f"{name} {pixels.shape} {label};".encode())
            sha.update(pixels.data)
            yield name, pixels, label


def _where(name: str, index: int) -> str:
    return f"item {index} of the {name + ' ' if name else ''}Dataset"


def _item(name: str, dataset: Any, index: int) -> tuple[NDArray[np.uint8], Any]:
    """uint8 (H, W, 1 or 3), and the label: an int, or a tuple of 0 and 1."""
    where, item = _where(name, index), dataset[index]
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise DataError(
            f"{where} is a {type(item).__name__}, not (image, label): give a Dataset whose [i] "
            "is a pair,\nas list(zip(images, labels))"
        )
    image, label = item
    mode = image.mode if isinstance(image, Image.Image) else ""
    wide = mode.startswith("I") or str(getattr(image, "dtype", "")).endswith("uint16")
    if wide or not isinstance(image, str | Path | bytes | Image.Image | np.ndarray | Tensor):
        kind = "16-bit" if wide else type(image).__name__
        raise DataError(f"{where}: its image is {kind}; give {KINDS} of 8 bits, or floats in 0..1")
    try:
        pixels, _ = read_image(image, 0, name=where)
    except DataError as error:
        raise DataError(f"{where}: {error}" if where not in str(error) else str(error)) from None
    return np.ascontiguousarray(pixels), _label(where, label)


def _label(where: str, label: Any) -> int | tuple[int, ...]:
    values = label.tolist() if isinstance(label, Tensor | np.ndarray | np.generic) else label
    if isinstance(values, list | tuple) and values and all(value in (0, 1) for value in values):
        return tuple(int(value) for value in values)
    if isinstance(values, int) and 0 <= values < 10**6:  # as many as a model file has
        return int(values)
    raise DataError(
        f"{where}: its label is {label!r:.60}; give an int in 0..999999, or a vector of 0 and 1"
    )


def _label_tensor(labels: list[Any]) -> Tensor:
    """Labels as in `Split`."""
    lengths = {len(label) if isinstance(label, tuple) else 0 for label in labels}
    if len(lengths) > 1:
        raise DataError("the labels of the Dataset have different lengths")
    return torch.tensor(labels, dtype=torch.float32 if lengths.pop() else torch.int64)


def _class_names(
    datasets: Mapping[str, Any], labels: Tensor, splits: list[str], training: bool
) -> tuple[str, ...]:
    """The names in `.classes`, of a Subset those of its Dataset; numbers where there are none."""
    count = labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1
    namings = set[tuple[str, ...]]()
    for dataset in datasets.values():
        inner = dataset
        while not hasattr(inner, "classes") and hasattr(inner, "dataset"):
            inner = inner.dataset
        if classes := getattr(inner, "classes", None):
            namings.add(tuple(map(str, classes)))
    if len(namings) > 1:
        raise DataError("the Datasets have different .classes: give all of them the same")
    if training and not namings and labels.ndim == 1 and count > len(labels):
        item = int(labels.argmax())
        where = _where(splits[item], item - splits.index(splits[item]))
        raise DataError(
            f"{where}: its label is {count - 1:,}, of {len(labels):,} images: number the classes\n"
            "from 0 on without gaps, or name all of them in .classes"
        )
    names = namings.pop() if namings else tuple(map(str, range(count)))
    if len(set(names)) < len(names):
        raise DataError(f".classes names {max(names, key=names.count)!r} more than once")
    if len(names) < count:
        raise DataError(f".classes names {len(names)} classes, the labels go up to {count - 1}")
    return names


def _dataset_name(datasets: Mapping[str, Any]) -> str:
    """A name for messages and folders: that of the first's class, of a Subset its Dataset's."""
    dataset = next(iter(datasets.values()))
    while isinstance(dataset, torch.utils.data.Subset):
        dataset = dataset.dataset
    return type(dataset).__name__


def _statistics(
    images: Tensor | tuple[Path, ...], items: _Items
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if isinstance(images, Tensor):
        return channel_statistics(images)
    moments = np.mean(items.moments, axis=0) if items.moments else np.full((2, 3), 0.5)
    return mean_and_std(moments[:, : items.channels])


def _store(
    datasets: Mapping[str, Any], items: _Items
) -> tuple[Path | None, Tensor | tuple[Path, ...]]:
    """The images as uint8 (N, C, H, W), or a folder of the cache and PNG files in it.

    Grey ones among images in colour are made so. Files are written once: the digest names the
    folder.
    """
    if items.images is not None:
        shape = (*items.images[0].shape[:2], items.channels)
        stacked = np.stack([np.broadcast_to(x, shape) for x in items.images])
        return None, torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous()
    folder = cache_folder() / "datasets" / items.digest
    files = tuple(folder / f"{k:08}.png" for k in range(len(items.labels)))
    if folder.exists():
        return folder, files
    new = folder.with_name(f".{secrets.token_hex(8)}")
    new.mkdir(parents=True)
    try:
        sha = hashlib.sha256()
        for file, (_, pixels, _) in zip(files, _hashed_items(datasets, sha), strict=True):
            picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
            picture.save(new / file.name, compress_level=1)
        if sha.hexdigest() != items.digest:
            raise DataError(f"the Dataset changes each time it is read.\n{REMEDY}")
        new.rename(folder)
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error}") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return folder, files

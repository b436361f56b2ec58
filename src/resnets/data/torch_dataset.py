"""A torch Dataset of (image, label) as a data set: read once, kept as uint8, known by a digest."""

from __future__ import annotations

import hashlib
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from resnets.data import download
from resnets.data.inputs import KINDS, read_image
from resnets.data.splits import (
    SPLITS,
    Source,
    Split,
    channel_statistics,
    describe_missing_classes,
    split_by_name,
)
from resnets.errors import DataError, UsageError

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
    is split 80 : 10 : 10 by chance, stratified.

    All items are read, decoded and hashed, here and at every resume. Images of one size stay in
    memory, up to MEMORY bytes; others are read a second time and written into the cache as PNG.

    Raises UsageError for another object; DataError that names the item for what cannot be used, for
    items that differ when they are read again, and, to train, for less than two classes.
    """
    parts = _named_parts(data)
    first = next(iter(parts.values()))
    scan = _scan(parts)
    classes = _class_names(parts, scan, training)
    if training and len(classes) < 2:
        raise DataError(f"the Dataset has {len(classes)} classes; it takes two to tell apart")
    name, sides = f"{PREFIX}{_dataset_name(first)}", np.asarray(scan.sizes)
    root, notes = None, list[str]()
    if scan.images is None:
        root, images = _as_files(parts, scan)
        notes = [f"{len(images):,} images of {name} were written into {root}"]
    every = Split(images if root else _stack(scan), scan.labels)
    splits = split_by_name(every, [name or None for name in scan.splits], seed)
    empty = [name for name, n in zip(classes, every.counts(len(classes)), strict=True) if not n]
    if training and empty:
        notes.append(f"{len(empty):,} of {len(classes):,} classes have no images, as {empty[0]!r}")
    train = splits.get("train")
    text = train and describe_missing_classes("train", train, every, classes)
    if training and "" in parts and text:
        raise DataError(f"the split by chance {text}: add images, or give train, val and test")
    mean, std = scan.statistics() if root else _statistics(train or every)
    return Source(
        name=name,
        classes=classes,
        train=train,
        val=splits.get("val"),
        test=splits.get("test"),
        channels=scan.channels,
        size=int(median(sides.min(1).tolist())),
        digest=hashlib.sha256(f"{scan.digest}{classes}".encode()).hexdigest(),
        mean=mean,
        std=std,
        notes=tuple(notes),
        root=root,
        automatic="" in parts,
    )


def _named_parts(data: object) -> dict[str, Any]:
    """The Datasets by the split that each is, "" for a single one. Raises as `load`."""
    parts = {"": data} if not isinstance(data, Mapping) else dict(data)
    if unknown := [name for name in parts if name not in ("", *SPLITS)]:
        raise UsageError(f"data has {unknown[0]!r}: its Datasets are called {', '.join(SPLITS)}")
    if not parts:
        raise UsageError("data is an empty dictionary: give Datasets called train, val and test")
    for name, dataset in parts.items():
        _check_dataset(name, dataset)
        _check_repeatable(name, dataset)
    return parts


@dataclass
class _Scan:
    """What reading all items gave."""

    splits: list[str]  # of each image
    labels: Tensor  # int64 (N,) or float32 (N, K)
    sizes: list[tuple[int, int]]  # height and width
    channels: int
    images: list[NDArray[np.uint8]] | None  # (H, W, C) of one size; None where they become files
    moments: NDArray[np.float64]  # (2, 3): means of the training images' values and their squares
    digest: str

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of each channel, in 0..1."""
        mean, square = self.moments[:, : self.channels]
        std = np.sqrt((square - mean**2).clip(255**-2.0))
        return tuple(mean.tolist()), tuple(std.tolist())


def _scan(parts: Mapping[str, Any]) -> _Scan:
    sha = hashlib.sha256()
    kept: list[NDArray[np.uint8]] | None = []
    splits, labels, sizes, moments = list[str](), list[Any](), list[tuple[int, int]](), list[Any]()
    size, channels = 0, 1
    for name, pixels, label in _items(parts, sha):
        splits.append(name)
        labels.append(label)
        sizes.append((pixels.shape[0], pixels.shape[1]))
        size, channels = size + pixels.nbytes, max(channels, pixels.shape[2])
        if kept is not None:
            kept.append(pixels)
        if sizes[-1] != sizes[0] or size > MEMORY:
            kept = None  # they become files
        if name in ("", "train"):
            values = pixels.reshape(-1, pixels.shape[2]).astype(np.float64) / 255
            both = (values.mean(0), (values**2).mean(0))
            moments.append([np.broadcast_to(x, 3) for x in both])
    if not labels:
        raise DataError("the Dataset is empty")
    mean = np.mean(moments, axis=0) if moments else np.full((2, 3), 0.5)
    return _Scan(splits, _label_tensor(labels), sizes, channels, kept, mean, sha.hexdigest())


def _items(
    parts: Mapping[str, Any], sha: hashlib._Hash
) -> Iterator[tuple[str, NDArray[np.uint8], Any]]:
    """Name of the split, pixels and label of all items, which are hashed."""
    for name, dataset in parts.items():
        for index in range(len(dataset)):
            pixels, label = _item(name, dataset, index)
            sha.update(f"{name} {pixels.shape} {label};".encode())
            sha.update(pixels.data)
            yield name, pixels, label


def _check_dataset(name: str, dataset: Any) -> None:
    """Raise UsageError for what is no map-style Dataset, with the remedy."""
    what = f"data[{name!r}]" if name else "data"
    kind = type(dataset).__name__
    if isinstance(dataset, torch.utils.data.DataLoader):
        raise UsageError(f"{what} is a DataLoader: give its Dataset, loader.dataset")
    if isinstance(dataset, str | bytes | Path):
        raise UsageError(f"{what} is a {kind}: in a dictionary of splits each is a Dataset")
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise UsageError(
            f"{what} is a {kind}: give a path, a name, or a Dataset of (image, label) that has\n"
            "len() and [i]; of an IterableDataset, list(dataset)"
        )


def _check_repeatable(name: str, dataset: Any) -> None:
    """Raise DataError where an item that is read twice is not the same."""
    count = min(TWICE, len(dataset))
    for index in np.linspace(0, len(dataset) - 1, count).astype(int).tolist():
        (first, label), (second, other) = (_item(name, dataset, index) for _ in range(2))
        if label != other or not np.array_equal(first, second):
            raise DataError(f"{_where(name, index)} is another one each time it is read.\n{REMEDY}")


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
    grey = isinstance(image, Image.Image) and image.mode in ("1", "L")
    if isinstance(image, np.ndarray | Tensor):
        channels = image.shape[-1] if isinstance(image, np.ndarray) else image.shape[0]
        grey = image.ndim == 2 or (image.ndim == 3 and channels == 1)
    mode = image.mode if isinstance(image, Image.Image) else ""
    wide = mode.startswith("I") or str(getattr(image, "dtype", "")).endswith("uint16")
    if wide or not isinstance(image, str | Path | bytes | Image.Image | np.ndarray | Tensor):
        kind = "16-bit" if wide else type(image).__name__
        raise DataError(f"{where}: its image is {kind}; give {KINDS} of 8 bits, or floats in 0..1")
    try:
        pixels, _ = read_image(image, 1 if grey else 3, name=where)
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
    kinds = {len(label) if isinstance(label, tuple) else 0 for label in labels}
    if len(kinds) > 1:
        raise DataError("the labels of the Dataset are of different lengths")
    return torch.tensor(labels, dtype=torch.float32 if kinds.pop() else torch.int64)


def _class_names(parts: Mapping[str, Any], scan: _Scan, training: bool) -> tuple[str, ...]:
    """The names in `.classes`, of a Subset those of its Dataset; numbers where there are none."""
    labels = scan.labels
    count = labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1
    names = set[tuple[str, ...]]()
    for dataset in parts.values():
        inner = dataset
        while not hasattr(inner, "classes") and hasattr(inner, "dataset"):
            inner = inner.dataset
        if given := getattr(inner, "classes", None):
            names.add(tuple(map(str, given)))
    if len(names) > 1:
        raise DataError("the Datasets have different .classes: give all of them the same")
    if training and not names and labels.ndim == 1 and count > len(labels):
        item = int(labels.argmax())
        where = _where(scan.splits[item], item - scan.splits.index(scan.splits[item]))
        raise DataError(
            f"{where}: its label is {count - 1:,}, of {len(labels):,} images: number the classes\n"
            "from 0 on without gaps, or name all of them in .classes"
        )
    known = names.pop() if names else tuple(map(str, range(count)))
    if len(known) < count or len(set(known)) < len(known):
        raise DataError(
            f".classes names {len(set(known))} classes, the labels go up to {count - 1}"
        )
    return known


def _dataset_name(dataset: Any) -> str:
    """A name for messages and folders: that of the class, of a Subset that of its Dataset."""
    while isinstance(dataset, torch.utils.data.Subset):
        dataset = dataset.dataset
    return type(dataset).__name__


def _stack(scan: _Scan) -> Tensor:
    """uint8 (N, C, H, W): grey ones among images in colour are made so."""
    images = scan.images or []
    whole = np.stack([np.broadcast_to(x, (*x.shape[:2], scan.channels)) for x in images])
    return torch.from_numpy(np.ascontiguousarray(whole.transpose(0, 3, 1, 2)))


def _statistics(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    assert isinstance(split.images, Tensor)
    return channel_statistics(split.images)


def _as_files(parts: Mapping[str, Any], scan: _Scan) -> tuple[Path, tuple[Path, ...]]:
    """The images as PNG in the cache, in a folder that the digest names; written once."""
    folder = download.cache() / "datasets" / scan.digest
    files = tuple(folder / f"{k:08}.png" for k in range(len(scan.labels)))
    if folder.exists():
        return folder, files
    new = folder.with_name(f".{secrets.token_hex(8)}")
    new.mkdir(parents=True)
    try:
        sha = hashlib.sha256()
        for file, (_, pixels, _) in zip(files, _items(parts, sha), strict=True):
            picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
            picture.save(new / file.name, compress_level=1)
        if sha.hexdigest() != scan.digest:
            raise DataError(f"the Dataset is another one each time it is read.\n{REMEDY}")
        new.rename(folder)
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error}") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return folder, files

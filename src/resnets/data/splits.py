"""Images with labels, and what is known about a whole data set."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from resnets.data.draws import spread
from resnets.data.get import digest
from resnets.errors import UsageError


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Images and their labels.

    Attributes:
        images: uint8 (N, C, H, W) in memory, or N files.
        labels: int64 (N,), indices into the source's classes.
    """

    images: Tensor | tuple[Path, ...]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def plus(self, other: Split) -> Split:
        """These images, then the other's."""
        labels = torch.cat([self.labels, other.labels])
        if isinstance(self.images, Tensor) and isinstance(other.images, Tensor):
            return Split(torch.cat([self.images, other.images]), labels)
        return Split((*self.images, *other.images), labels)

    def take(self, indices: Tensor) -> Split:
        """The images at int64 `indices`, in their order."""
        if isinstance(self.images, Tensor):
            return Split(self.images[indices], self.labels[indices])
        return Split(tuple(self.images[i] for i in indices.tolist()), self.labels[indices])


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Source:
    """A data set.

    Attributes:
        name: "digits", "cifar10", "cifar100", or the name of the folder or CSV file.
        classes: class names; a label is an index into them.
        train, val, test: the splits that there are.
        channels: of the images as they are kept or decoded.
        size: side of the images in memory; of files the median of the shorter sides, in pixels.
        digest: SHA-256 of the whole data set, however it is split: of pixels and labels in memory;
            of relative paths, sizes in bytes and labels for files.
        mean, std: for each channel, in 0..1, of the training images; for files over every k-th
            pixel of those that were decoded, before a part was held out.
        unreadable: files that were left out, each with the reason.
        automatic: the data says no splits, so they were drawn.
        root: the folder that `split_table` counts paths from; None in memory.
    """

    name: str
    classes: tuple[str, ...]
    train: Split | None
    val: Split | None = None
    test: Split | None = None
    channels: int
    size: int
    digest: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    unreadable: tuple[tuple[Path, str], ...] = ()
    root: Path | None = None
    automatic: bool = False

    @property
    def files(self) -> int:
        """Images of all splits, the unreadable ones too."""
        parts = (self.train, self.val, self.test)
        return sum(len(part) for part in parts if part is not None) + len(self.unreadable)

    def split_table(self) -> list[tuple[str, str, str]]:
        """(path from the root, class, split) of every file in use; nothing for data in memory."""
        return [
            (Path(os.path.relpath(path, self.root)).as_posix(), self.classes[label], name)
            for name, split in (("train", self.train), ("val", self.val), ("test", self.test))
            if self.root and split and not isinstance(split.images, Tensor)
            for path, label in zip(split.images, split.labels.tolist(), strict=True)
        ]


def hold_out(source: Source, part: float, seed: int) -> Source:
    """`source` with a stratified part of its training images (from 1 on their number) as `val`."""
    if source.train is None or source.val is not None:
        has = "no training images" if source.train is None else "a validation split already"
        raise UsageError(f"holdout={part:g}: {source.name} has {has}; set holdout=0")
    n = len(source.train)
    count = round(part if part >= 1 else part * n)
    if not 0 < count < n:
        raise UsageError(f"holdout={part:g} would keep {count} of {n} images for validation")
    places = spread(source.train.labels, seed)
    train = source.train.take(places[count:].sort().values)
    val = source.train.take(places[:count].sort().values)
    if isinstance(train.images, Tensor):
        mean, std = moments(train.images)
        return replace(source, train=train, val=val, mean=mean, std=std)
    return replace(source, train=train, val=val)


def in_memory(name: str, classes: tuple[str, ...], train: Split, test: Split) -> Source:
    """A Source of two splits of uint8 tensors."""
    assert isinstance(train.images, Tensor)
    assert isinstance(test.images, Tensor)
    mean, std = moments(train.images)
    return Source(
        name=name,
        classes=classes,
        train=train,
        test=test,
        channels=train.images.shape[1],
        size=train.images.shape[2],
        digest=digest(train.images, train.labels, test.images, test.labels),
        mean=mean,
        std=std,
    )


def moments(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, in 0..1, of uint8 (N, C, H, W); exact sums."""
    first, second = torch.zeros(2, images.shape[1], dtype=torch.int64)
    for part in torch.split(images, 4096):
        x = part.to(torch.int32)
        first += x.sum((0, 2, 3))
        second += (x * x).sum((0, 2, 3))
    count = images.numel() // images.shape[1]
    mean = first.double() / count
    std = (second.double() / count - mean**2).clamp_min(0).sqrt()
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())

"""Images with labels, and what is known about a whole data set."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from resnets.data.draws import spread
from resnets.errors import UsageError


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Images and their labels."""

    images: Tensor | tuple[Path, ...]  # uint8 (N, C, H, W) in memory, or N files
    labels: Tensor  # int64 (N,), indices into the source's classes; of several, (N, K) float32 0, 1

    def __len__(self) -> int:
        return len(self.labels)

    def counts(self, classes: int) -> Tensor:
        """How many images each class has: int64 (classes,)."""
        if self.labels.ndim == 2:
            return self.labels.sum(0, dtype=torch.int64)
        return torch.bincount(self.labels, minlength=classes)

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

    def divided(self, seed: int, *ends: int) -> list[Split]:
        """Stratified samples by chance, from each of `ends` to the next, in the images' order.

        The strata are the classes; an image of several counts for the rarest of them, and those of
        no class are a stratum too.
        """
        strata = self.labels
        if strata.ndim == 2:
            rarity = torch.where(strata > 0, strata.sum(0), torch.inf)
            strata = F.pad(rarity, (0, 1), value=len(self) + 1).argmin(1)
        parts = spread(strata, seed).tensor_split(ends)
        return [self.take(part.sort().values) for part in parts]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Source:
    """A data set, with the splits that there are.

    The digest is the SHA-256 of the whole, however it is split: of pixels and labels in memory; of
    relative paths, sizes in bytes and labels for files. `mean` and `std` are of each channel of the
    training images, in 0..1; for files over every k-th pixel, before a part was held out.
    """

    name: str  # "digits", "cifar10", "cifar100", or the name of the folder or CSV file
    classes: tuple[str, ...]  # names; a label is an index into them
    train: Split | None
    val: Split | None = None
    test: Split | None = None
    channels: int  # of the images as they are kept or decoded
    size: int  # side of the images in memory; of files the median of the shorter sides, in pixels
    digest: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    unreadable: tuple[tuple[Path, str], ...] = ()  # files that were left out, each with the reason
    root: Path | None = None  # the folder that `split_table` counts paths from; None in memory
    automatic: bool = False  # the data says no splits, so they were drawn

    @property
    def splits(self) -> dict[str, Split]:
        """The splits that there are, by name."""
        every = {"train": self.train, "val": self.val, "test": self.test}
        return {name: split for name, split in every.items() if split is not None}

    @property
    def files(self) -> int:
        """Images of all splits, the unreadable ones too."""
        return sum(map(len, self.splits.values())) + len(self.unreadable)

    def split_table(self) -> list[tuple[str, str, str]]:
        """(path from the root, class, split) of every file in use; nothing for data in memory.

        Several classes stand as in the CSV file, joined by `|`.
        """

        def named(label: int | list[float]) -> str:
            if isinstance(label, int):
                return self.classes[label]
            return "|".join(compress(self.classes, label))

        return [
            (Path(os.path.relpath(path, self.root)).as_posix(), named(label), name)
            for name, split in self.splits.items()
            if self.root and not isinstance(split.images, Tensor)
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
    val, train = source.train.divided(seed, count)
    known = source.mean, source.std
    mean, std = moments(train.images) if isinstance(train.images, Tensor) else known
    return replace(source, train=train, val=val, mean=mean, std=std)


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


def digest(*tensors: Tensor) -> str:
    """SHA-256 of tensors' values, little endian, one after the other."""
    sha = hashlib.sha256()
    for tensor in tensors:
        values = tensor.contiguous().numpy()
        sha.update(values.astype(values.dtype.newbyteorder("<"), copy=False).data)
    return sha.hexdigest()


def moments(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, in 0..1, of uint8 (N, C, H, W); exact sums.

    A channel that never varies has a deviation of one level, so that it can be divided by.
    """
    counts = torch.stack([torch.bincount(x.flatten(), minlength=256) for x in images.unbind(1)])
    values, count = torch.arange(256), images.numel() // images.shape[1]
    mean = (counts * values).sum(1).double() / count
    std = ((counts * values**2).sum(1).double() / count - mean**2).clamp_min(1).sqrt()
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())

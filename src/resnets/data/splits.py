"""Images with labels, and what is known about a whole data set."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from resnets.data.detection.targets import DetectionTargets
from resnets.data.rng import stratified_order
from resnets.errors import UsageError

SPLITS = ("train", "val", "test")
Polygon = tuple[float, ...]  # x, y, x, y, ... in pixels
# What draws the mask of an object: polygons, or COCO's run lengths as (height, width, counts).
Shape = tuple[Polygon, ...] | tuple[int, int, bytes]
Masks = tuple[Path, ...] | tuple[tuple[Shape, ...], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Images and what is known of them.

    A label is the class of an image, int64 (N,); or (N, K), what it has of each of K classes: 0 or
    1, as float32 where an image has several labels, as bool whether there is such an object; or
    float32, the share of a segmentation mask. Stratified samples are drawn by the labels.
    """

    images: Tensor | tuple[Path, ...]  # uint8 (N, C, H, W) in memory, or N files
    labels: Tensor
    masks: Masks = ()  # of each image a file of class indices, or the shapes of its objects
    # int64 (N, 2): height and width, upright, of images with objects or masks
    sizes: Tensor | None = None
    objects: DetectionTargets | None = None  # in pixels of the upright image, without masks

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def has_spatial_labels(self) -> bool:
        """Whether the labels are of places in the images, not of whole images."""
        return self.objects is not None or bool(self.masks)

    def counts(self, classes: int) -> Tensor:
        """How many images each class has, as their label or an object: int64 (classes,)."""
        if self.labels.ndim == 1:
            return torch.bincount(self.labels, minlength=classes)
        return class_presence(self.labels, classes).sum(0)

    def concat(self, other: Split) -> Split:
        """These images, then the other's."""
        labels = torch.cat([self.labels, other.labels])
        if isinstance(self.images, Tensor) and isinstance(other.images, Tensor):
            return Split(torch.cat([self.images, other.images]), labels)
        sizes = [split.sizes for split in (self, other) if split.sizes is not None]
        objects = [split.objects for split in (self, other) if split.objects is not None]
        return Split(
            (*self.images, *other.images),
            labels,
            (*self.masks, *other.masks),
            torch.cat(sizes) if sizes else None,
            DetectionTargets.cat(objects) if objects else None,
        )

    def take(self, indices: Tensor) -> Split:
        """The images at int64 `indices`, in their order."""
        images, rows = self.images, indices.tolist()
        if isinstance(images, Tensor):
            chosen: Tensor | tuple[Path, ...] = images.index_select(0, indices.to(images.device))
        else:
            chosen = tuple(images[i] for i in rows)
        return Split(
            chosen,
            self.labels[indices],
            tuple(self.masks[i] for i in rows) if self.masks else (),
            None if self.sizes is None else self.sizes[indices],
            None if self.objects is None else self.objects[indices],
        )

    def split_stratified(self, seed: int, *ends: int) -> list[Split]:
        """Stratified samples by chance, from each of `ends` to the next, in the images' order."""
        samples = self.stratified(seed).tensor_split(ends)
        return [self.take(indices.sort().values) for indices in samples]

    def stratified(self, seed: int) -> Tensor:
        """The images in a random order of which every part is a stratified sample: int64 (N,).

        The strata are the classes; an image of several counts for the rarest of them, and those of
        no class are a stratum too.
        """
        strata = self.labels
        if strata.ndim > 1:
            present = strata > 0
            rarity = torch.where(present, present.sum(0), torch.inf)
            strata = F.pad(rarity, (0, 1), value=len(self) + 1).argmin(1)
        return stratified_order(strata, seed)


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
    white: int = 65535  # of grey with 16 bits: the value that is white
    # Of those images that were decoded: the greatest value.
    greatest: Mapping[Path, int] = field(default_factory=dict)
    unreadable: tuple[tuple[Path, str], ...] = ()  # files that were left out, each with the reason
    problems: tuple[tuple[str, str], ...] = ()  # in annotations that are used, as (place, reason)
    # Of the whole: what was skipped, assumed, renamed or left out, with a count and an example.
    notes: tuple[str, ...] = ()
    root: Path | None = None  # the folder that `split_table` counts paths from; None in memory
    automatic: bool = False  # the data says no splits, so they were drawn
    task: str = "classify"  # what the labels are for: as `dataset.guess_task`

    @property
    def splits(self) -> dict[str, Split]:
        """The splits that there are, by name."""
        splits = {"train": self.train, "val": self.val, "test": self.test}
        return {name: split for name, split in splits.items() if split is not None}

    @property
    def files(self) -> int:
        """Images of all splits, the unreadable ones too."""
        return sum(map(len, self.splits.values())) + len(self.unreadable)

    def split_table(self) -> list[tuple[str, str, str]]:
        """(path from the root, class, split) of every file in use; nothing for data in memory.

        Several classes stand as in the CSV file, joined by `|`.
        """
        rows = []
        for name, split in self.splits.items() if self.root else ():
            presence = class_presence(split.labels, len(self.classes)).tolist()
            for path, has_class in zip(split.images, presence, strict=True):
                relative = Path(os.path.relpath(str(path), self.root)).as_posix()
                rows.append((relative, "|".join(compress(self.classes, has_class)), name))
        return rows


def class_presence(labels: Tensor, classes: int) -> Tensor:
    """Which classes an image has: labels as in `Split` -> bool (N, classes)."""
    if labels.ndim == 2:
        return labels > 0
    return labels[:, None] == torch.arange(classes, device=labels.device)


def split_by_name(images: Split, names: Sequence[str | None], seed: int) -> dict[str, Split]:
    """The images of train, val and test, of which `names` has one for each; those that have any.

    Where an image has no name, all are split 80 : 10 : 10 at random and stratified.
    """
    if None in names:
        tenth = round(len(images) / 10)
        test, val, train = images.split_stratified(seed, tenth, 2 * tenth)
        splits = {"train": train, "val": val, "test": test}
    else:
        rows = {name: [k for k, other in enumerate(names) if other == name] for name in SPLITS}
        splits = {name: images.take(torch.tensor(k).long()) for name, k in rows.items()}
    return {name: split for name, split in splits.items() if len(split)}


def apply_holdout(
    source: Source, trainval: bool, val_fraction: float, seed: int, folds: int = 0, fold: int = 0
) -> Source:
    """`source` with the training and validation images that the fields of a recipe ask for.

    Raises UsageError where its splits do not allow that.
    """
    source = merge_val_into_train(source) if trainval else source
    if folds:
        return hold_out_fold(source, folds, fold, seed)
    return hold_out(source, val_fraction, seed) if val_fraction else source


def merge_val_into_train(source: Source) -> Source:
    """`source` with its validation images among those of the training."""
    if source.train is None or source.val is None:
        raise UsageError(f"trainval: {source.name} has no validation images; leave it out")
    return replace(source, train=source.train.concat(source.val), val=None)


def describe_missing_classes(
    name: str, split: Split, whole: Split, classes: tuple[str, ...]
) -> str:
    """Which classes that have images in the whole a random split has none of; "" for none."""
    lacks = (split.counts(len(classes)) == 0) & (whole.counts(len(classes)) > 0)
    missing = list(compress(classes, lacks.tolist()))
    text = f"leaves {name} without {len(missing):,} of {len(classes):,} classes, first "
    return f"{text}{missing[0]!r}" if missing else ""


def hold_out(source: Source, fraction: float, seed: int) -> Source:
    """`source` with a stratified part of its training images (from 1 on their number) as `val`.

    Classes that `val` then lacks are noted, as those of scenes that training lacks; raises
    UsageError for others that are left without training images.
    """
    if source.train is None or source.val is not None:
        has = "no training images" if source.train is None else "a validation split already"
        raise UsageError(f"val_fraction={fraction:g}: {source.name} has {has}; set val_fraction=0")
    n = len(source.train)
    count = round(fraction if fraction >= 1 else fraction * n)
    if not 0 < count < n:
        raise UsageError(f"val_fraction={fraction:g}: too few images ({n}); set val_fraction=0")
    val, train = source.train.split_stratified(seed, count)
    return with_held_out(source, train, val, f"val_fraction={fraction:g}")


def hold_out_fold(source: Source, folds: int, fold: int, seed: int) -> Source:
    """`source` with one of so many stratified parts of its training images as `val`.

    The parts have no image in common and make up the whole. Raises UsageError as `hold_out`, and
    where there is no such part.
    """
    if source.train is None or source.val is not None:
        remedy = "set folds=0" if source.train is None else "set trainval=true or folds=0"
        has = "no training images" if source.train is None else "a validation split already"
        raise UsageError(f"folds={folds}: {source.name} has {has}; {remedy}")
    n = len(source.train)
    if not fold < folds <= n or folds < 2:
        raise UsageError(
            f"fold={fold} of folds={folds} with {n:,} images: there must be two folds or more, "
            "numbered from 0, with an image each"
        )
    parts = list(source.train.stratified(seed).tensor_split(folds))
    val = source.train.take(parts.pop(fold).sort().values)
    train = source.train.take(torch.cat(parts).sort().values)
    return with_held_out(source, train, val, f"folds={folds}")


def with_held_out(source: Source, train: Split, val: Split, setting: str) -> Source:
    """`source` with these parts of its training images, which a setting of the recipe asks for."""
    assert source.train is not None
    lost = describe_missing_classes("train", train, source.train, source.classes)
    if lost and not train.has_spatial_labels:
        raise UsageError(
            f"{setting} {lost}: add images, hold out fewer, or set {setting.partition('=')[0]}=0"
        )
    texts = lost, describe_missing_classes("val", val, source.train, source.classes)
    notes = (*source.notes, *(f"{setting} {text}" for text in texts if text))
    mean, std = source.mean, source.std
    if isinstance(train.images, Tensor):
        mean, std = channel_statistics(train.images)
    return replace(source, train=train, val=val, mean=mean, std=std, notes=notes)


def in_memory(name: str, classes: tuple[str, ...], train: Split, test: Split) -> Source:
    """A Source of two splits of uint8 tensors."""
    assert isinstance(train.images, Tensor)
    assert isinstance(test.images, Tensor)
    mean, std = channel_statistics(train.images)
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


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, in 0..1, of uint8 (N, C, H, W); exact sums.

    A channel that never varies has a deviation of one level, so that it can be divided by.
    """
    counts = torch.stack([torch.bincount(x.flatten(), minlength=256) for x in images.unbind(1)])
    values, count = torch.arange(256), images.numel() // images.shape[1]
    mean = (counts * values).sum(1).double() / count
    std = ((counts * values**2).sum(1).double() / count - mean**2).clamp_min(1).sqrt()
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


def mean_and_std(
    moments: NDArray[np.float64],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """As `channel_statistics`, from the means of values in 0..1 and of their squares: (2, C)."""
    mean, mean_square = moments
    std = np.sqrt((mean_square - mean**2).clip(255**-2.0))
    return tuple(mean.tolist()), tuple(std.tolist())

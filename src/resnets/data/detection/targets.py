"""The objects of images as tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import torch
from torch import Tensor
from torch.nn import functional as F

MASK_SIZE = 56  # cells of an object's mask, across its box and down


class Kind(IntEnum):
    """What a row of `DetectionTargets` is."""

    PADDING = 0  # nothing: images have the same number of rows
    OBJECT = 1
    IGNORED = 2  # neither object nor background, as a crowd or a difficult one


@dataclass(frozen=True, slots=True, eq=False)
class DetectionTargets:
    """Objects of B images, M rows for each: the shapes say (*, M), which is (B, M) or (M,).

    118,000 images of up to 93 objects take 274 MB without masks.
    """

    boxes: Tensor  # float32 (*, M, 4): x1, y1, x2, y2 in pixels, x2 and y2 exclusive
    classes: Tensor  # int64 (*, M)
    kind: Tensor  # uint8 (*, M), values of `Kind`
    # float32 (*, M, MASK_SIZE, MASK_SIZE): how much of each cell of its box an object covers, 0..1
    masks: Tensor | None = None

    @classmethod
    def empty(cls, *shape: int) -> DetectionTargets:
        """Padding alone, without masks: `shape` is (B, M) or (M,)."""
        classes = torch.zeros(shape, dtype=torch.int64)
        return cls(torch.zeros(*shape, 4), classes, classes.byte())

    @classmethod
    def cat(cls, batches: Sequence[DetectionTargets]) -> DetectionTargets:
        """The images of all batches, padded to the longest; with masks if all batches have them."""
        rows = max(targets.boxes.shape[1] for targets in batches)
        padded = [targets.pad(rows) for targets in batches]
        masks = [targets.masks for targets in padded if targets.masks is not None]
        return cls(
            torch.cat([targets.boxes for targets in padded]),
            torch.cat([targets.classes for targets in padded]),
            torch.cat([targets.kind for targets in padded]),
            torch.cat(masks) if len(masks) == len(padded) else None,
        )

    @classmethod
    def stack(cls, images: Sequence[DetectionTargets]) -> DetectionTargets:
        """The rows (M,) of images one after the other as (B, M)."""
        return cls.cat([image[None] for image in images])

    def __len__(self) -> int:
        return len(self.kind)

    def __getitem__(self, index: int | slice | Tensor | None) -> DetectionTargets:
        """As of a tensor: some of the images, or with bool (*, M) some of the rows, (n,)."""
        return self._map(lambda x: x[index])

    @property
    def is_object(self) -> Tensor:
        """bool (*, M)."""
        return self.kind == Kind.OBJECT

    @property
    def is_ignored(self) -> Tensor:
        """bool (*, M)."""
        return self.kind == Kind.IGNORED

    @property
    def is_padding(self) -> Tensor:
        """bool (*, M)."""
        return self.kind == Kind.PADDING

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> DetectionTargets:
        """The same on a device."""
        return self._map(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> DetectionTargets:
        """The same in pinned memory; a `DataLoader` calls this."""
        return self._map(Tensor.pin_memory)

    def tensor_split(self, sections: int) -> list[DetectionTargets]:
        """As `torch.tensor_split`: the images in so many parts."""
        columns = [x.tensor_split(sections) for x in (self.boxes, self.classes, self.kind)]
        masks = [None] * sections if self.masks is None else self.masks.tensor_split(sections)
        return [DetectionTargets(*fields) for fields in zip(*columns, masks, strict=True)]

    def pad(self, rows: int) -> DetectionTargets:
        """With padding up to `rows` rows for each image, if it has fewer."""
        axis = self.kind.ndim - 1
        missing = max(0, rows - self.kind.shape[axis])
        return self._map(lambda x: F.pad(x, (*(0, 0) * (x.ndim - axis - 1), 0, missing)))

    def ignore(self, rows: Tensor) -> DetectionTargets:
        """With the `rows`, bool (*, M), ignored."""
        return replace(self, kind=self.kind.masked_fill(rows, Kind.IGNORED))

    def multi_hot(self, classes: int) -> Tensor:
        """Whether an image has an object of a class: bool (B, classes)."""
        # One more for padding and ignored objects, that is cut off again.
        labels = torch.zeros(len(self), classes + 1, dtype=torch.bool)
        return labels.scatter_(1, self.classes.where(self.is_object, classes), True)[:, :classes]

    def count_classes(self, classes: int) -> Tensor:
        """How many objects of each class there are: int64 (classes,)."""
        return self.classes[self.is_object].bincount(minlength=classes)

    def _map(self, change: Callable[[Tensor], Tensor]) -> DetectionTargets:
        masks = None if self.masks is None else change(self.masks)
        return DetectionTargets(change(self.boxes), change(self.classes), change(self.kind), masks)

"""Detections of a split: their record, its file, masks as run lengths, and matching by overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from resnets.data.splits import Shape
from resnets.errors import MissingPackage
from resnets.evaluation.scores import advice, read_metadata, reading_metadata
from resnets.models.detection.boxes import BatchDetections, iou
from resnets.tensor_files import check_range, check_tensor, load_tensors, save_tensors

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Rle = tuple[int, int, bytes]  # height, width and COCO's compressed run lengths of a mask


@dataclass(frozen=True, slots=True, eq=False)
class SplitDetections:
    """All detections of a split, image after image, on the CPU."""

    images: Tensor  # int64 (D,): indices in the split, ascending
    classes: Tensor  # int64 (D,)
    scores: Tensor  # float32 (D,)
    boxes: Tensor  # float32 (D, 4): x1, y1, x2, y2 in pixels of the upright image
    masks: tuple[Rle, ...] | None  # at the image's size; None where the network draws none
    indices: Tensor  # int64 (N,): the images that were read, ascending
    unreadable: tuple[tuple[Path, str], ...] = ()
    seconds: float = 0.0  # of reading and computing

    def take(self, rows: Tensor) -> SplitDetections:
        """The detections at int64 (n,) `rows`, or where bool (D,) `rows` is true."""
        numbers = torch.arange(len(self.scores))[rows].tolist()
        return replace(
            self,
            **{name: getattr(self, name)[rows] for name in _COLUMNS},
            masks=self.masks and tuple(self.masks[k] for k in numbers),
        )


_COLUMNS = ("images", "classes", "scores", "boxes")  # a row for each detection
_NONE = torch.empty(0, dtype=torch.int64)
NO_DETECTIONS = SplitDetections(_NONE, _NONE, torch.empty(0), torch.empty(0, 4), None, _NONE)


def concatenate(shares: Sequence[SplitDetections]) -> SplitDetections:
    """The detections of all shares of a split, as of the ranks, in the split's order."""
    masks = [share.masks for share in shares if share.masks is not None]
    joined = SplitDetections(
        **{name: torch.cat([getattr(share, name) for share in shares]) for name in _COLUMNS},
        masks=tuple(chain(*masks)) if masks else None,
        indices=torch.cat([share.indices for share in shares]).sort().values,
        unreadable=tuple(chain.from_iterable(share.unreadable for share in shares)),
        seconds=max(share.seconds for share in shares),
    )
    return joined.take(joined.images.argsort(stable=True))


def save(path: str | Path, detections: SplitDetections) -> None:
    """One safetensors file, replaced in one step. Raises DiskError."""
    masks = detections.masks or ()
    shapes = [(height, width, len(counts)) for height, width, counts in masks]
    counts = np.frombuffer(b"".join(counts for *_, counts in masks), np.uint8)
    tensors = {name: getattr(detections, name) for name in (*_COLUMNS, "indices")} | {
        "shapes": torch.tensor(shapes, dtype=torch.int64).view(-1, 3),
        "counts": torch.from_numpy(counts.copy()),
    }
    reading = reading_metadata(detections.unreadable, detections.seconds)
    has_masks = detections.masks is not None
    save_tensors(path, tensors, "detections", reading | {"drawn": has_masks})


def load(path: str | Path) -> SplitDetections:
    """What `save` wrote. Raises as `load_tensors`."""
    return load_tensors(path, "detections", _from_tensors, advice(path))


def _from_tensors(tensors: dict[str, Any], metadata: dict[str, Any]) -> SplitDetections:
    count, has_masks = len(tensors["scores"]), metadata["drawn"]
    for name, dtype, shape in (
        ("images", torch.int64, (count,)),
        ("classes", torch.int64, (count,)),
        ("scores", torch.float32, (count,)),
        ("boxes", torch.float32, (count, 4)),
        ("indices", torch.int64, (tensors["indices"].numel(),)),
        ("shapes", torch.int64, (count if has_masks else 0, 3)),
        ("counts", torch.uint8, (tensors["counts"].numel(),)),
    ):
        check_tensor(tensors[name], dtype, shape, name)
    for name in ("shapes", "classes", "images"):
        check_range(tensors[name], 2**31, name)
    if not all(torch.isfinite(tensors[name]).all() for name in ("scores", "boxes")):
        raise ValueError("scores or boxes are not finite")
    shapes = tensors.pop("shapes").tolist()
    counts = torch.split(tensors.pop("counts"), [length for *_, length in shapes])
    masks = [(h, w, bytes(c.numpy())) for (h, w, _), c in zip(shapes, counts, strict=True)]
    fields = {**tensors, "masks": tuple(masks) if has_masks else None, **read_metadata(metadata)}
    return SplitDetections(**fields)


class Detect(Protocol):
    """A detector, or a procedure that is used like one."""

    def __call__(self, images: Tensor, *, sizes: Tensor) -> BatchDetections: ...


def import_coco() -> Any:
    """The package for COCO's metrics and masks. Raises MissingPackage."""
    try:
        import faster_coco_eval
    except ImportError:
        raise MissingPackage(
            'figures and masks of objects need faster-coco-eval: pip install "resnets[detect]"'
        ) from None
    return faster_coco_eval


def to_rle(shape: Shape, height: int = 0, width: int = 0) -> dict[str, Any]:
    """A mask as COCO's package has it; polygons need the sides of their image."""
    if isinstance(shape[0], int):
        return {"size": shape[:2], "counts": shape[2]}
    mask = import_coco().mask
    merged: dict[str, Any] = mask.merge(mask.frPyObjects(list(map(list, shape)), height, width))
    return merged


def decode_mask(mask: Rle) -> Tensor:
    """The pixels of a mask: bool (H, W). Raises MissingPackage."""
    return torch.from_numpy(import_coco().mask.decode(to_rle(mask))).bool()


def paste_mask(mask: Tensor, box: Tensor, height: int, width: int) -> Rle:
    """Where a mask (28, 28), 0..1 inside its box (4,), is above 0.5 in an image.

    The pixels are those of torchvision's `paste_masks_in_image`. Raises MissingPackage.
    """
    side = mask.shape[0]
    half = (box[2:] - box[:2]) * 0.5 * ((side + 2) / side)
    center = (box[2:] + box[:2]) * 0.5
    x1, y1, x2, y2 = torch.cat([center - half, center + half]).long().tolist()
    padded, sides = F.pad(mask, (1, 1, 1, 1))[None, None], (y2 - y1 + 1, x2 - x1 + 1)
    enlarged = F.interpolate(padded, sides, mode="bilinear", align_corners=False)[0, 0]
    left, top = max(0, x1), max(0, y1)
    inside = enlarged[top - y1 : height - y1, left - x1 : width - x1] > 0.5
    # Run lengths go down the image's columns; only pixels inside of the box are counted.
    x, y = inside.T.numpy().nonzero()
    positions = (left + x) * height + top + y
    ends = np.flatnonzero(np.diff(positions, prepend=-2, append=height * width + 1) != 1)
    runs = np.stack([positions[ends[:-1]], positions[ends[1:] - 1] + 1], 1).ravel()
    counts = np.trim_zeros(np.diff(runs, prepend=0, append=height * width), "b").tolist()
    encoded = import_coco().mask.frPyObjects(
        {"counts": counts, "size": [height, width]}, height, width
    )
    return height, width, encoded["counts"]


def pairs_of_equal_keys(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """All pairs of equal values: int64 (A,) and (B,) -> indices (P,) into the one and the other."""
    keys, order = second.sort()
    start, end = (torch.searchsorted(keys, first, right=right) for right in (False, True))
    counts = end - start
    i = torch.arange(len(first)).repeat_interleave(counts)
    j = order[torch.arange(len(i)) - (counts.cumsum(0) - counts - start)[i]]
    return i, j


def overlapping_pairs(
    keys: Tensor, boxes: Tensor, other_keys: Tensor, other_boxes: Tensor, least_iou: float = 0.5
) -> tuple[Ints, Ints, Floats]:
    """The pairs of equal keys whose boxes overlap by `least_iou`, those that do most first.

    int64 (A,) and (A, 4), int64 (B,) and (B, 4) -> indices (P,) into the one and the other, IoU.
    """
    i, j = pairs_of_equal_keys(keys, other_keys)
    overlap = iou(boxes.double()[i, None], other_boxes.double()[j, None]).flatten()
    order = overlap.argsort(descending=True, stable=True)
    order = order[overlap[order] >= least_iou]
    return i[order].numpy(), j[order].numpy(), overlap[order].numpy()

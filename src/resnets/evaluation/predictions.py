"""The detections of a split as a record, below all that computes figures of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

Rle = tuple[int, int, bytes]  # height, width and COCO's compressed run lengths of a mask


@dataclass(frozen=True, slots=True, eq=False)
class DetectionPredictions:
    """All detections of a split, image after image, on the CPU."""

    images: Tensor  # int64 (D,): indices in the split, ascending
    classes: Tensor  # int64 (D,)
    scores: Tensor  # float32 (D,)
    boxes: Tensor  # float32 (D, 4): x1, y1, x2, y2 in pixels of the upright image
    masks: tuple[Rle, ...] | None  # at the image's size; None where the network draws none
    indices: Tensor  # int64 (N,): the images that were looked at, ascending
    unreadable: tuple[tuple[Path, str], ...] = ()
    seconds: float = 0.0  # of reading and computing

"""Which boxes of one set overlap which of another, for all images at once."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnets.models.detection.boxes import iou

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


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

"""PASCAL VOC's average precision at an IoU of 0.5, and how sure it is.

A detection claims the object of its class and image that it overlaps most; of those that claim an
object the surest is right, the others are wrong (Everingham et al. 2010, section 4.2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from resnets.data.splits import Split
from resnets.evaluation.box_matching import Floats, Ints, overlapping_pairs
from resnets.evaluation.predictions import DetectionPredictions

DRAWS = 200


@dataclass(frozen=True, slots=True, eq=False)
class Flags:
    """The detections that count, the surest first; those on an ignored object do not."""

    rows: Ints  # (D,): of the images that were looked at
    classes: Ints  # (D,)
    right: NDArray[np.bool_]  # (D,)
    objects: Floats  # (N, K): how many objects of a class are in an image


def flags(found: DetectionPredictions, split: Split, kinds: int) -> Flags:
    """What is right of what was found on a split of `kinds` classes."""
    assert split.objects is not None
    targets = split.objects[found.indices]
    at, objects = (~targets.is_padding).nonzero()[:, 0], targets[~targets.is_padding]
    kind = objects.classes
    surest = found.scores.argsort(descending=True, stable=True)
    rows = torch.searchsorted(found.indices, found.images)[surest]
    given, boxes = found.classes[surest], found.boxes[surest]
    stride = max([kinds - 1, *given.tolist()]) + 1
    i, j, _ = overlapping_pairs(rows * stride + given, boxes, at * stride + kind, objects.boxes)
    claiming, best = np.unique(i, return_index=True)  # the first pair of each, which overlaps most
    claimed = j[best]
    right, counted = np.zeros(len(rows), bool), np.ones(len(rows), bool)
    right[claiming[np.unique(claimed, return_index=True)[1]]] = True
    counted[claiming[objects.is_ignored.numpy()[claimed]]] = False
    each = np.zeros((len(targets), kinds))
    np.add.at(each, (at.numpy(), kind.numpy()), objects.is_object.numpy())
    return Flags(rows.numpy()[counted], given.numpy()[counted], right[counted], each)


def precision(flags: Flags, kind: int, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """At each right detection of a class: the most precise that is still to come, and its weight.

    Images count as often as `weights` (R, N) say: (R, H), (R, H), and the weight of all objects
    (R,), which is nan where there are none.
    """
    mine = flags.classes == kind
    right, weight = flags.right[mine], weights[:, flags.rows[mine]]
    every, hits = weight.cumsum(1)[:, right], weight[:, right]
    share = hits.cumsum(1) / np.maximum(every, 1)
    objects = weights @ flags.objects[:, kind]
    objects[objects == 0] = np.nan
    return np.maximum.accumulate(share[:, ::-1], 1)[:, ::-1], hits, objects


def all_points(flags: Flags) -> float:
    """Mean over the classes that occur of the area under precision over recall (VOC 2010)."""
    return float(weighted(flags, np.ones((1, len(flags.objects))))[0])


def weighted(flags: Flags, weights: Floats) -> Floats:
    """`all_points` of images that count as often as the weights say: (R, N) -> (R,)."""
    each = np.empty((len(weights), flags.objects.shape[1]))
    for kind in range(each.shape[1]):
        best, hits, objects = precision(flags, kind, weights)
        each[:, kind] = (best * hits).sum(1) / objects
    means: Floats = np.nansum(each, 1) / np.maximum((~np.isnan(each)).sum(1), 1)
    return means


def eleven_points(flags: Flags) -> float:
    """Mean over the classes that occur of the precision at a recall of 0, 0.1, ... 1 (VOC 2007)."""
    each = []
    for kind in np.flatnonzero(flags.objects.sum(0)).tolist():
        (best,), (hits,), (objects,) = precision(flags, kind, np.ones((1, len(flags.objects))))
        at = np.searchsorted(hits.cumsum() / objects, np.arange(11) / 10)
        each.append(np.append(best, 0.0)[at].mean())
    return float(np.mean(each)) if each else 0.0


def resampled(flags: Flags) -> Floats:
    """`all_points` of `DRAWS` samples of the images with replacement, always the same: (DRAWS,)."""
    images = len(flags.objects)
    if not images:
        return np.zeros(DRAWS)
    drawn = np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), DRAWS)
    parts = np.array_split(drawn.astype(np.float64), 8)  # a few at a time stay in the cache
    return np.concatenate([weighted(flags, part) for part in parts])


def interval(values: Floats) -> tuple[float, float]:
    """The 95 % percentile interval (Efron 1979)."""
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)

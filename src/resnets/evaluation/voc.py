"""PASCAL VOC's average precision at an IoU of 0.5, and its bootstrap interval over the images.

A detection is matched to the object of its class and image that it overlaps most; of those matched
to one object the most confident is right, the others are wrong (Everingham et al. 2010, section
4.2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from resnets.data.splits import Split
from resnets.evaluation.detections import Floats, Ints, SplitDetections, overlapping_pairs

DRAWS = 200


@dataclass(frozen=True, slots=True, eq=False)
class Flags:
    """The detections that count, most confident first; those on an ignored object do not."""

    rows: Ints  # (D,): which of the evaluated images
    classes: Ints  # (D,)
    correct: NDArray[np.bool_]  # (D,)
    objects: Floats  # (N, K): how many objects of a class are in an image


def flags(detections: SplitDetections, split: Split, num_classes: int) -> Flags:
    """Which detections on a split of `num_classes` classes are correct."""
    assert split.objects is not None
    targets = split.objects[detections.indices]
    image_rows, objects = (~targets.is_padding).nonzero()[:, 0], targets[~targets.is_padding]
    order = detections.scores.argsort(descending=True, stable=True)
    rows = torch.searchsorted(detections.indices, detections.images)[order]
    classes, boxes = detections.classes[order], detections.boxes[order]
    # Pairs of the same image and class.
    stride = max([num_classes - 1, *classes.tolist()]) + 1
    keys, object_keys = rows * stride + classes, image_rows * stride + objects.classes
    i, j, _ = overlapping_pairs(keys, boxes, object_keys, objects.boxes)
    matched, first_pair = np.unique(i, return_index=True)  # each's first pair overlaps most
    matched_objects = j[first_pair]
    correct, counted = np.zeros(len(rows), bool), np.ones(len(rows), bool)
    correct[matched[np.unique(matched_objects, return_index=True)[1]]] = True
    counted[matched[objects.is_ignored.numpy()[matched_objects]]] = False
    counts = np.zeros((len(targets), num_classes))
    np.add.at(counts, (image_rows.numpy(), objects.classes.numpy()), objects.is_object.numpy())
    return Flags(rows.numpy()[counted], classes.numpy()[counted], correct[counted], counts)


def interpolated_precision(
    flags: Flags, class_index: int, weights: Floats
) -> tuple[Floats, Floats, Floats]:
    """At each correct detection of a class, the best precision from there on, and its weight.

    Images count as often as `weights` (R, N) say: (R, H), (R, H), and the weight of all objects
    (R,), which is nan where there are none.
    """
    of_class = flags.classes == class_index
    correct, weight = flags.correct[of_class], weights[:, flags.rows[of_class]]
    detections, hits = weight.cumsum(1)[:, correct], weight[:, correct]
    precision = hits.cumsum(1) / np.maximum(detections, 1)
    objects = weights @ flags.objects[:, class_index]
    objects[objects == 0] = np.nan
    return np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1], hits, objects


def all_points(flags: Flags) -> float:
    """Mean over the classes that occur of the area under precision over recall (VOC 2010)."""
    return float(weighted_map(flags, np.ones((1, len(flags.objects))))[0])


def weighted_map(flags: Flags, weights: Floats) -> Floats:
    """`all_points` of images that count as often as the weights say: (R, N) -> (R,)."""
    ap = np.empty((len(weights), flags.objects.shape[1]))
    for k in range(ap.shape[1]):
        precision, hits, objects = interpolated_precision(flags, k, weights)
        ap[:, k] = (precision * hits).sum(1) / objects
    means: Floats = np.nansum(ap, 1) / np.maximum((~np.isnan(ap)).sum(1), 1)
    return means


def eleven_points(flags: Flags) -> float:
    """Mean over the classes that occur of the precision at a recall of 0, 0.1, ... 1 (VOC 2007)."""
    ap, weights = [], np.ones((1, len(flags.objects)))
    for k in np.flatnonzero(flags.objects.sum(0)).tolist():
        (precision,), (hits,), (objects,) = interpolated_precision(flags, k, weights)
        points = np.searchsorted(hits.cumsum() / objects, np.arange(11) / 10)
        ap.append(np.append(precision, 0.0)[points].mean())
    return float(np.mean(ap)) if ap else 0.0


def bootstrap_map(flags: Flags) -> Floats:
    """`all_points` of `DRAWS` samples of the images with replacement, always the same: (DRAWS,)."""
    images = len(flags.objects)
    if not images:
        return np.zeros(DRAWS)
    samples = np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), DRAWS)
    chunks = np.array_split(samples.astype(np.float64), 8)  # a few at a time stay in the cache
    return np.concatenate([weighted_map(flags, chunk) for chunk in chunks])

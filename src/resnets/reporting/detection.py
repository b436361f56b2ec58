"""The report of a detector: precision over recall, what it misses, and pictures of that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnets.analysis import drawing
from resnets.data.detection.targets import DetectionTargets
from resnets.data.splits import Shape, Split
from resnets.errors import CheckpointError
from resnets.evaluation.coco import coco_metrics
from resnets.evaluation.detections import (
    Floats,
    Ints,
    SplitDetections,
    decode_mask,
    load,
    overlapping_pairs,
    pairs_of_equal_keys,
    to_rle,
)
from resnets.models.detection.boxes import area, intersection_area
from resnets.reporting import plots
from resnets.reporting.dense import SHOWN, build_page, crop_uri, limit_size, spread, whole_uri
from resnets.reporting.facts import percent
from resnets.reporting.page import Gallery, ImageName, Page, PageInputs, Picture, picture

WORST = 9  # misses that are shown
NEAR = 320  # pixels of the longer side of a part of an image
# The kinds of errors of Bolya et al. 2020, 2008.08115.
MISSED, POORLY_PLACED = "objects that are not found", "boxes poorly placed (IoU 0.1 to 0.5)"
WRONG_CLASS, DUPLICATE = "boxes of the wrong class", "double boxes"
BACKGROUND = "boxes on background"
PRECISION = "How many of the boxes are right, at IoU 0.5, where so many of the objects are found."


@dataclass(frozen=True, slots=True)
class Miss:
    """An object that is not found, or a detection that is wrong."""

    kind: str
    image: int
    row: int  # of the image's objects; of the detections
    box: Tensor  # (4,)
    weight: float  # what makes it bad: the object's pixels, the detection's score
    text: str


def page(inputs: PageInputs) -> Page:
    """Precision over recall, and what as many detections as objects find and miss."""
    facts, tested, name = inputs.facts, inputs.tested, inputs.name
    path, classes = facts.run.path / "detections.safetensors", facts.classes
    if not tested or not facts.ended["images"] or not path.exists():
        return build_page(inputs)
    predictions, total = load(path), facts.ended["objects"]
    for numbers, count in ((predictions.classes, len(classes)), (predictions.images, len(tested))):
        if len(numbers) and int(numbers.max()) >= count:
            raise CheckpointError(f"{path} is of other classes or images than those of the run")
    precisions = coco_metrics(predictions, tested, "bbox", len(classes)).precision
    curves = {kind: curve for kind, curve in zip(classes, precisions, strict=True) if curve}
    # As many as there are objects: there precision equals recall.
    best = predictions.scores.sort(descending=True).values[:total]
    least = float(best[-1]) if len(best) else 2.0
    predictions = predictions.take(predictions.scores >= least)
    right, wrong = misses(predictions, tested, classes)
    kinds = [
        f"{kind} {count:,} ({percent(count / len(wrong))})"
        for kind, count in Counter(miss.kind for miss in wrong).most_common()
    ]
    notes = [
        f"The {len(predictions.scores):,} most confident boxes (score {least:.2f} and above) find "
        f"{right:,} of {total:,} objects; resnets detect predict --score {least:.2f} draws such "
        "ones.",
        f"What is wrong with them: {'; '.join(kinds) or 'nothing'}.",
    ]
    chart = ("precision", plots.svg(plots.precision(curves), "precision"), PRECISION)
    close = [zoom(miss, predictions, tested, classes, name) for miss in worst(wrong)]
    galleries: list[Gallery] = [
        ("True and found objects", "columns wide", gallery(predictions, tested, classes, name)),
        ("Worst misses", "columns", limit_size(close)),
    ]
    galleries = [titled for titled in galleries if titled[2]]
    return build_page(inputs, notes=notes, chart=chart if total else None, pictures=galleries)


def misses(
    predictions: SplitDetections, split: Split, names: Sequence[str]
) -> tuple[int, list[Miss]]:
    """How many detections are right, and what is wrong, image by image.

    An object that a wrong detection explains is not missed. Detections of which half is on an
    ignored object do not count.
    """
    assert split.objects is not None
    targets = split.objects[predictions.indices]  # (N, M)
    order = predictions.scores.argsort(descending=True, stable=True)
    at = torch.searchsorted(predictions.indices, predictions.images)[order]
    boxes, classes = predictions.boxes[order], predictions.classes[order]
    cells, objects = targets.is_object.nonzero(), targets[targets.is_object]  # (A, 2), (A,)

    i, j, overlap = overlapping_pairs(at, boxes, cells[:, 0], objects.boxes, 0.1)
    same = classes.numpy()[i] == objects.classes.numpy()[j]
    nearest, iou = most_overlapping(i[same], j[same], overlap[same], len(order))
    other, other_iou = most_overlapping(i[~same], j[~same], overlap[~same], len(order))

    # The most confident of those that claim an object is right; detections are in this order.
    right = np.zeros(len(order), bool)
    claiming = np.flatnonzero(iou >= 0.5)
    right[claiming[np.unique(nearest[claiming], return_index=True)[1]]] = True
    conditions = [iou >= 0.5, other_iou >= 0.5, iou > 0]
    kinds = np.select(conditions, [DUPLICATE, WRONG_CLASS, POORLY_PLACED], BACKGROUND)

    explained, wrong = set(nearest[right].tolist()), list[Miss]()
    for k in np.flatnonzero(~right & ~mostly_ignored(at, boxes, targets)).tolist():
        kind, row, end = str(kinds[k]), int(order[k]), ""
        if kind == WRONG_CLASS:
            end = f", marked as “{names[int(objects.classes[other[k]])]}”"
            explained.add(int(other[k]))
        elif kind == POORLY_PLACED:
            explained.add(int(nearest[k]))
        elif kind == BACKGROUND:
            end = ", where none is marked"
        score, image = float(predictions.scores[row]), int(predictions.images[row])
        text = f"“{names[int(classes[k])]}” with {score:.2f}{end}"
        wrong.append(Miss(kind, image, row, boxes[k], score, text))
    for k in sorted(set(range(len(objects))) - explained):
        image, column = cells[k].tolist()
        row = int((~targets.is_padding[image, :column]).sum())  # as `labelled_objects` counts
        width, height = (objects.boxes[k, 2:] - objects.boxes[k, :2]).tolist()
        text = f"“{names[int(objects.classes[k])]}” of {width:.0f} x {height:.0f} pixels"
        image, text = int(predictions.indices[image]), f"{text} is not found"
        wrong.append(Miss(MISSED, image, row, objects.boxes[k], width * height, text))
    return int(right.sum()), sorted(wrong, key=lambda miss: miss.image)


def most_overlapping(i: Ints, j: Ints, overlap: Floats, count: int) -> tuple[Ints, Floats]:
    """Of pairs, those that overlap most first: for each of `count` i its best j and their IoU.

    -1 and 0 where an i has no pair.
    """
    best, most = np.full(count, -1), np.zeros(count)
    paired, first = np.unique(i, return_index=True)
    best[paired], most[paired] = j[first], overlap[first]
    return best, most


def mostly_ignored(at: Tensor, boxes: Tensor, targets: DetectionTargets) -> NDArray[np.bool_]:
    """Of which boxes more than half is on an ignored object of their image: bool (D,)."""
    ignored = targets.boxes[targets.is_ignored]
    i, j = pairs_of_equal_keys(at, targets.is_ignored.nonzero()[:, 0])
    both = intersection_area(boxes[i, None], ignored[j, None]).flatten()
    result = np.zeros(len(boxes), bool)
    result[i[both > area(boxes[i]) / 2].numpy()] = True
    return result


def worst(wrong: Sequence[Miss]) -> list[Miss]:
    """The largest missed objects, then the most confident boxes of another class or nothing."""
    heavy = sorted(wrong, key=lambda miss: -miss.weight)
    large = [miss for miss in heavy if miss.kind == MISSED][: WORST // 2 + 1]
    return [*large, *(miss for miss in heavy if miss.kind in (WRONG_CLASS, BACKGROUND))][:WORST]


def labelled_objects(split: Split, index: int) -> DetectionTargets:
    """Those of an image, ignored ones too: (n,)."""
    assert split.objects is not None
    targets = split.objects[index]
    return targets[~targets.is_padding]


def draw_objects(
    split: Split, index: int, names: Sequence[str], only: slice = slice(None)
) -> Tensor:
    """An image with its objects, or `only` some: uint8 (3, H, W)."""
    assert split.sizes is not None
    rows, (height, width) = labelled_objects(split, index)[only], split.sizes[index].tolist()
    kinds = rows.classes.tolist()
    shapes = cast(tuple[Shape, ...], split.masks[index] if split.masks else ())[only]
    masks = None
    if shapes:
        runs = [to_rle(shape, height, width)["counts"] for shape in shapes]
        masks = torch.stack([decode_mask((height, width, run)) for run in runs])
    image = drawing.read_picture(split, index)
    return drawing.draw_boxes(image, rows.boxes, kinds, [names[k] for k in kinds], masks)


def count_names(classes: Tensor, names: Sequence[str]) -> str:
    """How many there are of each class, the most frequent first."""
    counts = Counter(names[k] for k in classes.tolist()).most_common()
    return ", ".join(f"{count} {name}" for name, count in counts) or "nothing"


def draw_both(
    predictions: SplitDetections,
    split: Split,
    index: int,
    names: Sequence[str],
    only: slice = slice(None),
) -> tuple[Tensor, Tensor]:
    """An image with its objects, or `only` some, and with what was found on it."""
    objects = draw_objects(split, index, names, only)
    return objects, drawing.draw_prediction(split, index, predictions, names, 0)


def gallery(
    predictions: SplitDetections, split: Split, names: Sequence[str], name: ImageName
) -> list[Picture]:
    """Whole images, with their objects and with what was found."""
    pictures = list[Picture]()
    for index in spread(predictions.indices, SHOWN).tolist():
        classes = predictions.classes[predictions.images == index]
        texts = (
            f"True: {count_names(labelled_objects(split, index).classes, names)}",
            f"Found: {count_names(classes, names)}",
        )
        both = map(whole_uri, draw_both(predictions, split, index, names))
        pictures.append(picture(name(index), ". ".join(texts), zip(both, texts, strict=True)))
    return limit_size(pictures)


def zoom(
    miss: Miss,
    predictions: SplitDetections,
    split: Split,
    names: Sequence[str],
    name: ImageName,
) -> Picture:
    """Around a miss: the object alone and all that was found, or all objects and the box."""
    if miss.kind == MISSED:
        only, alts = slice(miss.row, miss.row + 1), ("The object", "What was found")
    else:
        only, alts = slice(None), ("The objects", "The box")
        predictions = predictions.take(torch.tensor([miss.row]))
    both = draw_both(predictions, split, miss.image, names, only)
    limits = torch.tensor(both[0].shape[:0:-1])  # width and height
    corner, end = miss.box.view(2, 2)
    sides = (2 * (end - corner).amax()).clamp(min=80).minimum(limits)
    start = ((corner + end - sides) / 2).clamp(min=0).minimum(limits - sides)
    window = torch.cat([start, start + sides]).int().tolist()
    addresses = [crop_uri(image, window, NEAR) for image in both]
    return picture(name(miss.image), miss.text, zip(addresses, alts, strict=True))

"""What the reports of detection, localisation and segmentation share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.functional import resize, to_pil_image

from resnets.data.detection.targets import DetectionTargets
from resnets.models.detection.boxes import area
from resnets.reporting import plots
from resnets.reporting.facts import RunFacts, figures, percent
from resnets.reporting.page import (
    Chart,
    Gallery,
    ImageName,
    Page,
    PageInputs,
    Picture,
    loss_curve,
)

SHOWN = 6  # images of a gallery
WIDE = 512  # pixels of the longer side of a whole image
MAX_LETTERS = 800_000  # of a gallery's pictures
CONFUSION_CLASSES = 20  # at most, of a confusion matrix
HEADS = {"ap": "AP", "ap50": "AP50", "mask_ap": "mask AP", "mask_ap50": "mask AP50", "iou": "IoU"}


def findings(facts: RunFacts, name: ImageName) -> Iterator[str]:
    """Which classes, and which sizes of objects, are found worst."""
    for figure, key, average in (("AP at IoU 0.5", "ap50", "map50"), ("IoU", "iou", "mean_iou")):
        rows = [row for row in facts.ended.get("per_class", ()) if key in row]
        known = [(row[key], row["class"]) for row in rows if row[key] is not None]
        if missing := len(rows) - len(known):
            yield f"{missing:,} of {len(rows):,} classes are not in these images."
        worst, kind = min(known, default=(1.0, ""))
        if worst < (facts.figure(average) or 0) - 0.1:
            yield f"The weakest class is “{kind}”: its {figure} is {percent(worst)}."
    small, large = facts.figure("map_small"), facts.figure("map_large")
    if small is not None and small < (large or 0) / 2:
        side = facts.source["preprocess"]["size"]
        yield (
            f"Small objects, less than 32 x 32 pixels, are found much worse than large ones: mAP "
            f"{percent(small)} and {percent(large or 0)}; an input of more than {side} pixels "
            f"(--set size={2 * side}) may help."
        )


def build_page(
    inputs: PageInputs,
    *,
    notes: Sequence[str] = (),
    chart: Chart | None = None,
    pictures: Sequence[Gallery] = (),
) -> Page:
    """The page around a task's own chart and pictures: classes, confusion and curves."""
    facts, ended, kinds = inputs.facts, inputs.facts.ended, len(inputs.facts.classes)
    columns, counts, notes = dict[str, list[Any]](), list[int](), list(notes)
    if train := inputs.splits.get("train"):
        columns["train images"] = train.counts(kinds).tolist()
        if train.objects is not None:
            counts = train.objects.count_classes(kinds).tolist()
            columns["train objects"] = counts
            notes.append(describe_sizes(train.objects))
    rows = ended.get("per_class") or [{}]
    for key in [key for key in rows[0] if key != "class"]:
        columns[HEADS.get(key, f"{facts.split} {key}")] = [row[key] for row in rows]
    confusion = ended.get("confusion", ()) if kinds <= CONFUSION_CLASSES else ()
    return Page(
        figures=figures(facts),
        notes=notes,
        chart=chart,
        columns=columns,
        counts=counts,
        confusion=[[round(100 * n / max(1, sum(row))) for n in row] for row in confusion],
        matrix="Rows are the true classes, columns the predicted ones, in % of a class's pixels",
        pictures=pictures,
        curves=[loss_curve(facts), *validation_curves(facts)],
    )


def describe_sizes(objects: DetectionTargets) -> str:
    """How many of the training objects are small and large as COCO counts."""
    areas = area(objects.boxes[objects.is_object])
    small, large = int((areas < 32**2).sum()), int((areas > 96**2).sum())
    return (
        f"Of {len(areas):,} training objects {small:,} are small, under 32 x 32 pixels, "
        f"and {large:,} large, over 96 x 96."
    )


def validation_curves(facts: RunFacts) -> list[Chart]:
    """The task's figures of the monitored images by epoch, where there are some."""
    split, text = facts.recipe.monitor, facts.text
    labels = {f"{split}_{key}": text.figures[key][0] for key in text.metrics.values()}
    if not facts.rows or not labels.keys() & facts.rows[-1].keys():
        return []
    svg = plots.history("monitored", facts.rows, labels, "%")
    return [("monitored", svg, f"Figures of {split} images by epoch.")]


def spread(indices: Tensor, count: int) -> Tensor:
    """At most that many of them, evenly spread: int64 (n,)."""
    return indices[torch.linspace(0, len(indices) - 1, min(count, len(indices))).long()]


def crop_uri(picture: Tensor, window: Sequence[int], side: int) -> str:
    """What x1, y1, x2, y2 hold of a picture, the longer side made `side` pixels, as an address."""
    x1, y1, x2, y2 = window
    sides = [max(1, side * n // max(x2 - x1, y2 - y1)) for n in (y2 - y1, x2 - x1)]
    return plots.image_uri(to_pil_image(resize(picture[:, y1:y2, x1:x2], sides, antialias=True)))


def whole_uri(picture: Tensor) -> str:
    """A whole picture as an address."""
    return crop_uri(picture, (0, 0, picture.shape[2], picture.shape[1]), WIDE)


def limit_size(pictures: Iterable[Picture]) -> list[Picture]:
    """As many of them, from the first on, as keep the page small."""
    pictures = list(pictures)
    letters = accumulate(sum(len(uri) for uri, _ in entry["images"]) for entry in pictures)
    return [entry for entry, end in zip(pictures, letters, strict=True) if end <= MAX_LETTERS]

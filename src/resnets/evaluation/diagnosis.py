"""Why next to nothing that a detector finds is right, in plain words."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from resnets.data.splits import Split
from resnets.evaluation.detections import SplitDetections, overlapping_pairs

MANY = 0.3  # fraction of the objects that makes a reason
LOW = 0.05  # score that detectors leave out


# Boxes (P, 4) that are written in another way, and the width and height of their images, twice,
# (P, 4) -> x1, y1, x2, y2.
READINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "x, y, width and height": lambda b, _: torch.cat([b[:, :2], b[:, :2] + b[:, 2:]], 1),
    "centre, width and height": lambda b, _: torch.cat(
        [b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2], 1
    ),
    "y before x": lambda b, _: b[:, [1, 0, 3, 2]],
    "parts of the image's width and height": lambda b, sides: b * sides,
}


def diagnose(detections: SplitDetections, split: Split, classes: tuple[str, ...]) -> str:
    """The first reason that the detections themselves show, as a sentence or two."""
    assert split.objects is not None
    assert split.sizes is not None
    targets, sides = split.objects[detections.indices], split.sizes.flip(1).repeat(1, 2)
    objects, rows = targets[targets.is_object], targets.is_object.nonzero()[:, 0]
    images, truths, boxes = detections.indices[rows], objects.boxes, detections.boxes
    if not len(objects):
        return "These images have no objects, so there is nothing to find."
    if not len(detections.scores):
        return (
            "Nothing was detected: no score is above the network's threshold, so it is not "
            "trained, or not nearly long enough."
        )
    i, j, _ = overlapping_pairs(detections.images, boxes, images, truths)
    hit = len(np.unique(j)) / len(objects)
    for name, read in READINGS.items():
        reread, reread_truths = read(boxes, sides[detections.images]), read(truths, sides[images])
        pairs = {"detections": (reread, truths), "data": (boxes, reread_truths)}
        for whose, (first, second) in pairs.items():
            _, fit, _ = overlapping_pairs(detections.images, first, images, second)
            if (fraction := len(np.unique(fit)) / len(objects)) > hit + MANY:
                return (
                    f"The boxes of the {whose} seem to be written in another way: read as {name} "
                    f"they fit {fraction:.0%} of the objects, as x1, y1, x2, y2 {hit:.0%}."
                )
    surest = np.argsort(-detections.scores.numpy()[i], kind="stable")
    best = surest[np.unique(j[surest], return_index=True)[1]]  # the surest pair of each object
    predicted, true = detections.classes.numpy()[i[best]], objects.classes.numpy()[j[best]]
    if hit > MANY and (predicted == true).mean() < 0.1:
        shifts, counts = np.unique(predicted - true, return_counts=True)
        shift = int(shifts[counts.argmax()])
        numbered = "their classes seem to be numbered in another order"
        if counts.max() > len(best) / 2:
            example = classes[true[predicted - true == shift][0]]
            numbered = (
                f"their class is {shift:+d} from the true one (as of “{example}”), as where one "
                "side counts background as class 0"
            )
        return f"The boxes fit {hit:.0%} of the objects, but {numbered}."
    if (most := float(detections.scores.max())) < LOW:
        return (
            f"No score is above {LOW}, the highest is {most:.3f}: it was not trained long enough."
        )
    return (
        f"The boxes fit {hit:.0%} of the objects, and no other reason shows: it was not trained "
        "long enough, or with a wrong rate."
    )

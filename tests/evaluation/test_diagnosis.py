"""Why next to nothing that a detector finds is right."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from resnets.evaluation.detection import (
    evaluate_predictions,
)
from resnets.evaluation.detections import SplitDetections
from resnets.evaluation.diagnosis import diagnose

from ._helpers import found_of, split_of

pytest.importorskip("faster_coco_eval", reason="detection figures need resnets[detect]")


CLASSES = ("cat", "dog", "cow", "hen")


def scenes(images=20):
    """Objects that are neither square nor in the middle."""
    rng = np.random.default_rng(1)
    x, y = rng.integers(40, 90, (images, 3)), rng.integers(2, 30, (images, 3))
    w, h = rng.integers(30, 90, (images, 3)), rng.integers(20, 60, (images, 3))
    boxes = np.stack([x, y, x + w, y + h], 2).clip(0, [200, 100, 200, 100])
    k = rng.integers(0, 3, (images, 3, 1))
    return split_of(np.concatenate([boxes, k, np.ones_like(k)], 2).tolist())


def reason(change, classes=lambda k: k, score=0.9):
    """`why` of detections that are the objects, changed."""
    split = scenes()
    boxes, kinds = split.objects.boxes.flatten(0, 1), split.objects.classes.flatten()
    images = torch.arange(20).repeat_interleave(3)
    scores = torch.full((60,), score)
    given = SplitDetections(
        images, classes(kinds.long()), scores, change(boxes), None, torch.arange(20)
    )
    result = evaluate_predictions(given, split, CLASSES)
    if result.map50 >= 0.01:
        assert result.why == ""
    return result.why


def test_nothing_to_explain():
    assert reason(lambda b: b) == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda b: torch.cat([b[:, :2], b[:, 2:] - b[:, :2]], 1), "read as x, y, width and height"),
        (
            lambda b: torch.cat([(b[:, :2] + b[:, 2:]) / 2, b[:, 2:] - b[:, :2]], 1),
            "read as centre, width and height",
        ),
        (lambda b: b[:, [1, 0, 3, 2]], "read as y before x"),
        (lambda b: b / torch.tensor([200, 100, 200, 100]), "parts of the image's width and height"),
    ],
)
def test_boxes_in_another_format_are_named(change, said):
    why = reason(change)
    assert said in why
    assert "detections" in why


def test_annotations_in_another_format_are_named():
    split = scenes()
    boxes, sides = split.objects.boxes.flatten(0, 1), split.objects.boxes.clone()
    sides[..., 2:] -= sides[..., :2]
    images, kinds = torch.arange(20).repeat_interleave(3), split.objects.classes.flatten()
    found = SplitDetections(images, kinds, torch.full((60,), 0.9), boxes, None, torch.arange(20))
    said = diagnose(found, replace(split, objects=replace(split.objects, boxes=sides)), CLASSES)
    assert "boxes of the data" in said
    assert "x, y, width and height" in said


def test_shifted_classes_are_named():
    assert "class is +1 from the true one" in reason(lambda b: b, lambda k: k + 1)
    assert "class is -1 from the true one" in reason(lambda b: b, lambda k: k - 1)
    assert "in another order" in reason(lambda b: b, lambda k: torch.tensor([3, 2, 0])[k])


def test_low_scores_nothing_and_the_rest():
    far = lambda b: torch.rand(b.shape) * 5 + torch.tensor([0, 90, 5, 95])  # noqa: E731
    assert "No score is above 0.05, the highest is 0.030" in reason(far, score=0.03)
    assert "not trained" in reason(far)
    assert "Nothing was detected" in diagnose(found_of([], 20), scenes(), CLASSES)
    assert "no objects" in diagnose(found_of([]), split_of([[(0, 0, 9, 9, 0, 2)]]), CLASSES)
    for said in (reason(far), reason(far, score=0.03), reason(lambda b: b, lambda k: k + 1)):
        assert len(said) < 250

"""Scores and detections for tests."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from resnets.evaluation.detections import SplitDetections
from resnets.evaluation.scores import Scores
from tests.data._helpers import split_of_rows


def scores(logits, labels, **rest):
    logits = torch.as_tensor(logits, dtype=torch.float32)
    names = tuple(f"class{k}" for k in range(logits.shape[1]))
    rest = {"indices": torch.arange(len(logits)), "classes": names} | rest
    return Scores(logits, torch.as_tensor(labels), **rest)


def drawn(n=500, k=7, seed=0, multi_label=False, classes=None):
    """Of a classifier that is often right; `classes`: how many of the k occur."""
    g = torch.Generator().manual_seed(seed)
    if multi_label:
        labels = (torch.rand(n, k, generator=g) < 0.3).float()
        logits = 2 * torch.randn(n, k, generator=g) + 2 * labels - 1
        return scores(logits, labels)
    labels = torch.randint(classes or k, (n,), generator=g)
    logits = 2 * torch.randn(n, k, generator=g)
    logits[torch.arange(n), labels] += 2
    return scores(logits, labels)


def close(value):
    return pytest.approx(value, rel=1e-12, abs=1e-12)


def split_of(labels, height=100, width=200, masks=()):
    """Images of one size with objects: a list of lists of (x1, y1, x2, y2, class, kind)."""
    most = max(map(len, labels))
    rows = [F.pad(torch.tensor(r).float().view(-1, 6), (0, 0, 0, most - len(r))) for r in labels]
    files = tuple(Path(f"{k}.jpg") for k in range(len(labels)))
    sizes = torch.tensor([[height, width]] * len(labels))
    return split_of_rows(files, torch.stack(rows), masks, sizes)


def found_of(rows, images=1, masks=None):
    """Rows of image, class, score, x1, y1, x2, y2."""
    rows = torch.tensor(rows, dtype=torch.float64).view(-1, 7)
    columns = rows[:, 0].long(), rows[:, 1].long(), rows[:, 2].float(), rows[:, 3:].float()
    return SplitDetections(*columns, masks, torch.arange(images))


def boxes_in(rng, count, height, width):
    """Whole numbers, so that areas and overlaps have ties."""
    x, y = rng.integers(0, width - 8, count), rng.integers(0, height - 8, count)
    w, h = rng.integers(4, width // 2, count), rng.integers(4, height // 2, count)
    return np.stack([x, y, np.minimum(x + w, width), np.minimum(y + h, height)], 1).astype(float)


def polygon(box, rng):
    """A closed curve about a box."""
    x1, y1, x2, y2 = box
    angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
    x = (x1 + x2) / 2 + (x2 - x1) / 2 * np.cos(angles)
    y = (y1 + y2) / 2 + (y2 - y1) / 2 * np.sin(angles)
    return tuple(np.stack([x, y], 1).ravel().tolist())


def drawn_detections(seed=0, images=40, kinds=6, height=240, width=320, masks=False):
    """A split and detections on it: objects shaken, others by chance, crowds, empty images.

    The last class never occurs, the one before has crowds only, one is never detected.
    """
    from faster_coco_eval.core import mask as coding

    rng = np.random.default_rng(seed)
    labels, shapes, rows, rles = [], [], [], []
    for image in range(images):
        count = 0 if image % 7 == 0 else int(rng.integers(1, 9))
        boxes = boxes_in(rng, count, height, width)
        classes = rng.integers(0, kinds - 1, count)
        state = np.where((classes == kinds - 2) | (rng.random(count) < 0.1), 2, 1)
        labels.append(np.concatenate([boxes, classes[:, None], state[:, None]], 1).tolist())
        drawings = [coding.frPyObjects([list(polygon(box, rng))], height, width) for box in boxes]
        crowds = [(height, width, coded["counts"]) for (coded,) in drawings]
        polygons = [(polygon(box, rng),) for box in boxes]
        pairs = zip(state, crowds, polygons, strict=True)
        shapes.append(tuple(crowd if s == 2 else plain for s, crowd, plain in pairs))
        near = np.repeat(boxes, 3, 0) + rng.integers(-12, 12, (3 * count, 4))
        given = np.concatenate([near, boxes_in(rng, int(rng.integers(0, 20)), height, width)])
        given = np.clip(given, 0, [width, height, width, height])
        given[:, 2:] = np.maximum(given[:, 2:], given[:, :2] + 1)
        which = np.concatenate([np.repeat(classes, 3), rng.integers(0, kinds, len(given))])
        for box, k in zip(given, which[: len(given)], strict=True):
            if k == 1 or image % 11 == 0:
                continue
            rows.append([image, k, np.round(rng.random(), 2), *box])
            if not masks:
                continue
            shape = [list(polygon(box, rng))]
            coded = coding.merge(coding.frPyObjects(shape, height, width))
            rles.append((height, width, coded["counts"]))
    split = split_of(labels, height, width, tuple(shapes) if masks else ())
    return split, found_of(rows, images, tuple(rles) if masks else None)

"""Figures of class maps: equal to scikit-learn's, at the size of the view and of the file."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score
from torch import nn
from torch.nn import functional as F

from resnets.config.recipe import Preprocess
from resnets.data.splits import Split
from resnets.evaluation.loader import LoaderOptions
from resnets.evaluation.segmentation import (
    SegmentationMetrics,
    confusion,
    evaluate,
    evaluate_split,
    predict_class_maps,
)

CLASSES = ("sky", "sea", "sand", "ship")
SEE = Preprocess(size=64, mean=(0.0,) * 3, std=(1.0,) * 3)
LOADER = LoaderOptions(preprocess=SEE, device="cpu", batch=2)
SIZES = [(40, 90), (120, 61), (64, 64), (150, 100), (33, 32)]


class Red(nn.Module):
    """Logits of classes by the red of a pixel: 0, 50, 100, 150; or wrong by one."""

    def __init__(self, shift=0):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(float(shift)))

    def forward(self, images):
        # autocast changes nothing here
        values = torch.arange(4).float().view(1, 4, 1, 1) * 50 / 255
        return -((images[:, :1] - values).abs()).roll(int(self.shift), 1)


@pytest.fixture
def split(tmp_path):
    """Images whose red says the class, in blocks; 255 here and there."""
    rng, files, masks = np.random.default_rng(0), [], []
    for k, (height, width) in enumerate(SIZES):
        blocks = rng.integers(0, 3, (-(-height // 16), -(-width // 16))).astype(np.uint8)
        mask = blocks.repeat(16, 0).repeat(16, 1)[:height, :width]
        image = np.zeros((height, width, 3), np.uint8)
        image[..., 0] = mask * 50
        mask = np.where(rng.random(mask.shape) < 0.05, 255, mask).astype(np.uint8)
        files.append(tmp_path / f"{k}.png")
        masks.append(tmp_path / f"{k}_mask.png")
        Image.fromarray(image).save(files[-1])
        Image.fromarray(mask).save(masks[-1])
    return Split(tuple(files), torch.zeros(5, 4), tuple(masks), torch.tensor(SIZES))


def test_confusion_is_scikit_learns():
    rng = np.random.default_rng(0)
    truth, given = rng.integers(0, 5, (3, 20, 30)), rng.integers(0, 6, (3, 20, 30))
    truth[rng.random(truth.shape) < 0.2] = 255
    found = confusion(torch.from_numpy(truth.astype(np.uint8)), torch.from_numpy(given), 6)
    known = truth != 255
    expected = confusion_matrix(truth[known], given[known], labels=range(6))
    assert found.dtype == torch.int64
    assert (found.numpy() == expected).all()

    names = tuple("abcdefg")
    rows = tuple(tuple(row) for row in np.pad(expected, (0, 1)).tolist())
    result = SegmentationMetrics(3, rows, names, (), "test")
    each = jaccard_score(truth[known], given[known], labels=range(6), average=None)
    assert [row["iou"] for row in result.per_class()[:6]] == pytest.approx(each.tolist())
    assert each[5] == 0  # given and never true: it counts
    assert result.per_class()[6]["iou"] is None  # neither: it does not
    assert result.mean_iou == pytest.approx(each.mean())
    assert result.pixel_accuracy == pytest.approx(accuracy_score(truth[known], given[known]))
    assert result.error == 1 - result.mean_iou
    said = json.loads(json.dumps(result.summary(), allow_nan=False))
    assert said["per_class"][6] == {"class": "g", "pixels": 0, "answers": 0, "iou": None}
    assert said["mean_iou"] == round(result.mean_iou, 6)


def test_confusion_counts_the_last_class_and_no_other_value():
    truth = torch.tensor([[[0, 1, 2], [2, 2, 255]]], dtype=torch.uint8)
    given = torch.tensor([[[0, 2, 2], [1, 2, 2]]])
    assert confusion(truth, given, 3).tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 2]]


def test_no_pixel_has_a_class():
    result = SegmentationMetrics(0, ((0, 0), (0, 0)), ("a", "b"), (), "test")
    assert (result.mean_iou, result.pixel_accuracy) == (0.0, 0.0)


def test_at_the_size_of_the_view(split):
    seen = list(LOADER.batches(split))
    result = evaluate(Red(), seen, CLASSES)
    truth = torch.cat([batch.labels.flatten() for batch in seen])
    given = torch.cat([Red()(batch.images).argmax(1).flatten() for batch in seen])
    known = truth != 255
    expected = confusion_matrix(truth[known], given[known], labels=range(4))
    assert result.confusion == tuple(map(tuple, expected.tolist()))
    assert result.images == 5
    assert result.mean_iou > 0.7
    assert evaluate(Red(1), seen, CLASSES).mean_iou < 0.1


def test_at_the_size_of_the_file(split):
    result = evaluate_split(Red(), split, CLASSES, LOADER)
    truth = np.concatenate([np.asarray(Image.open(path)).ravel() for path in split.masks])
    assert sum(map(sum, result.confusion)) == (truth != 255).sum()
    assert (result.images, result.split) == (5, "test")
    assert 0.8 < result.mean_iou < 1
    large = replace(LOADER, preprocess=replace(SEE, size=256), batch=1)
    sharp = evaluate_split(Red(), split, CLASSES, large)
    assert sharp.mean_iou > result.mean_iou


def test_maps_are_the_logits_enlarged_and_cut(split):
    (only,) = (
        maps for batch, maps in predict_class_maps(Red(), split.take(torch.tensor([0])), LOADER)
    )
    (batch,) = LOADER.batches(split.take(torch.tensor([0])))
    assert batch.images.shape == (1, 3, 64, 128)
    # 40 x 90 is seen as 47 x 106: the longer side is at most 5/3 of 64
    logits = Red()(batch.images)[:, :, :47, :106]
    expected = F.interpolate(logits, (40, 90), mode="bilinear", align_corners=False).argmax(1)
    assert torch.equal(only[0], expected[0])


def test_ranks_add_up(split):
    whole = evaluate_split(Red(), split, CLASSES, LOADER)
    sums = []
    for rank in range(2):
        part = replace(LOADER, rank=rank, ranks=2)
        evaluate_split(Red(), split, CLASSES, part, total=lambda x: sums.append(x) or x)
    part = replace(LOADER, rank=0, ranks=2)
    both = evaluate_split(Red(), split, CLASSES, part, total=lambda _: sum(sums))
    assert both == whole
    sums = []
    for rank in range(2):
        part = replace(LOADER, rank=rank, ranks=2).batches(split)
        evaluate(Red(), part, CLASSES, total=lambda x: sums.append(x) or x)
    both = evaluate(Red(), [], CLASSES, total=lambda _: sum(sums))
    assert both == evaluate(Red(), LOADER.batches(split), CLASSES)


def test_a_broken_mask_is_named(split, tmp_path):
    Path(split.masks[2]).write_bytes(b"")
    result = evaluate_split(Red(), split, CLASSES, LOADER)
    assert result.images == 4
    assert [path.name for path, _ in result.unreadable] == ["2_mask.png"]


def test_a_confusion_by_hand_counts_the_last_class_both_ways():
    target = torch.tensor([[0, 3, 3, 255], [3, 1, 255, 3]], dtype=torch.uint8)
    predicted = torch.tensor([[3, 3, 0, 1], [3, 1, 3, 2]])
    expected = [[0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 1, 2]]
    assert confusion(target, predicted, 4).tolist() == expected
    rows = SegmentationMetrics(2, tuple(map(tuple, expected)), CLASSES, (), "test").per_class()
    assert rows[3] == {"class": "ship", "pixels": 4, "answers": 3, "iou": 2 / 5}


def test_the_last_class_of_a_split_counts(tmp_path):
    """Every pixel is of the last class, and half of them are predicted so."""
    red = np.zeros((64, 64, 3), np.uint8)
    red[:32, :, 0] = 150
    Image.fromarray(red).save(tmp_path / "image.png")
    Image.fromarray(np.full((64, 64), 3, np.uint8)).save(tmp_path / "mask.png")
    split = Split(
        images=(tmp_path / "image.png",),
        labels=torch.ones(1, 4),
        masks=(tmp_path / "mask.png",),
        sizes=torch.tensor([[64, 64]]),
    )
    result = evaluate_split(Red(), split, CLASSES, LOADER)
    assert result.confusion == ((0,) * 4, (0,) * 4, (0,) * 4, (2048, 0, 0, 2048))
    assert result.pixel_accuracy == 0.5

"""Localisation errors, counted by hand."""

import json

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from resnets.config.recipe import Preprocess
from resnets.evaluation.loader import LoaderOptions
from resnets.evaluation.localization import evaluate
from resnets.models.detection.boxes import BatchDetections
from tests.data._helpers import split_of_rows

LOADER = LoaderOptions(preprocess=Preprocess(size=64), device="cpu", batch=2)
K = 8


class Told:
    """Classes 0, 1, ... in their order; each one's box is the left half of the image, 7's none."""

    def __call__(self, images, *, sizes):
        classes = torch.arange(K).expand(len(images), K)
        boxes, scores = self.best(images, classes, sizes)
        return BatchDetections(boxes, scores, classes, None)

    def best(self, images, classes, sizes):
        left = F.pad(torch.stack([sizes[:, 1] / 2, sizes[:, 0]], 1), (2, 0))[:, None]
        return left * (classes != 7)[..., None], torch.ones(classes.shape)


@pytest.fixture
def split(tmp_path):
    """Images of 60 x 100 with objects on the left, on the right, none, or of class 7."""
    left, wide, right = (0, 0, 50, 60), (0, 0, 100, 60), (50, 0, 100, 60)
    rows = [
        [(*left, 0, 1)],  # found both ways
        [(*wide, 4, 1)],  # an IoU of exactly one half
        [(*left, 6, 1)],  # found given the class, which is not among the five
        [(*right, 1, 1), (*left, 1, 1)],  # one of two of the class will do
        [(*right, 1, 1), (*left, 2, 1)],  # the class is the first object's
        [(*left, 3, 2), (*left, 7, 1)],  # ignored ones say no class
        [],  # does not count
    ]
    labels = torch.stack(
        [F.pad(torch.tensor(r).float().view(-1, 6), (0, 0, 0, 2 - len(r))) for r in rows]
    )
    files = tuple(tmp_path / f"{k}.png" for k in range(len(rows)))
    for path in files:
        Image.new("RGB", (100, 60)).save(path)
    return split_of_rows(files, labels, (), torch.tensor([[60, 100]] * len(rows)))


def test_errors_by_hand(split):
    result = evaluate(Told(), split, LOADER)
    assert result.images == 6
    assert result.error == pytest.approx(2 / 6)
    assert result.top5_error == pytest.approx(3 / 6)
    assert result.error_interval[0] < 2 / 6 < result.error_interval[1]
    assert json.loads(json.dumps(result.summary()))["top5_error"] == 0.5


def test_a_classifier_says_the_classes(split):
    predicted = torch.tensor([[6, 1, 2, 3, 5]] * 7)
    result = evaluate(Told(), split, LOADER, predicted=predicted)
    assert result.error == pytest.approx(2 / 6)
    assert result.top5_error == pytest.approx(4 / 6)  # only of images 2 and 3


def test_nothing_to_locate(split):
    result = evaluate(Told(), split.take(torch.tensor([6])), LOADER)
    assert (result.images, result.error, result.error_interval) == (0, 1.0, (0.0, 1.0))


def test_the_network_is_a_localiser(split):
    from resnets.models import create

    network = create("localizer_tiny", classes=K).eval()
    result = evaluate(network, split, LOADER, bfloat16=True)
    assert result.images == 6

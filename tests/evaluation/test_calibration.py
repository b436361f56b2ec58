import math

import numpy as np
import pytest
import torch
import torchmetrics.functional.classification as tm

from resnets.evaluation.calibration import (
    calibration_error,
    fit_temperature,
    reliability,
    selective_accuracy,
)
from resnets.evaluation.classification import classification_metrics
from resnets.evaluation.scores import confidences

from ._helpers import close, drawn, scores


def test_the_calibration_error_is_torchmetrics():
    said = drawn(2000)
    found = calibration_error(said)
    expected = tm.multiclass_calibration_error(said.probabilities, said.labels, 7, n_bins=15)
    assert found == pytest.approx(float(expected), rel=1e-6)  # theirs is of float32
    counts, sure, hits = zip(*reliability(said), strict=True)
    assert sum(counts) == 2000
    assert np.dot(counts, hits) == close(2000 * classification_metrics(said).top1)
    for k, (count, mean) in enumerate(zip(counts, sure, strict=True)):
        assert k / 15 <= mean <= (k + 1) / 15 or not count
    said = drawn(multi_label=True)
    p = said.probabilities.flatten()
    sure, hits = torch.maximum(p, 1 - p), (p > 0.5) == said.labels.flatten()
    binary = tm.binary_calibration_error(sure, hits.long(), n_bins=15)
    assert classification_metrics(said).ece == pytest.approx(float(binary), rel=1e-6)


def test_certain_answers_are_in_the_last_bin():
    rows = reliability(scores([[800.0, 0.0], [800.0, 0.0]], [0, 1]))
    assert rows[-1] == (2, 1.0, 0.5)


def test_the_temperature_is_found_again():
    g = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 5, generator=g)
    labels = logits.softmax(1).multinomial(1, generator=g)[:, 0]
    said = scores(3 * logits, labels)
    assert fit_temperature(said) == pytest.approx(3, rel=0.03)
    several = (torch.rand(20_000, 5, generator=g) < logits.sigmoid()).float()
    assert fit_temperature(scores(logits / 2, several)) == pytest.approx(0.5, rel=0.03)


def test_few_easy_images_say_little_of_the_temperature():
    said = scores(torch.tensor([[4.0, 0.0]]).expand(30, 2), [0] * 30)
    # The derivative of 30 log(1 + exp(-4 / t)) + log(t)^2 / 2 by log t is 0.
    t = fit_temperature(said)
    assert 0.4 < t < 1
    slope = 30 * 4 / t / (1 + math.exp(4 / t)) + math.log(t)
    assert slope == pytest.approx(0, abs=0.01)
    assert fit_temperature(said.take(torch.arange(0))) == pytest.approx(1, abs=1e-3)


def test_abstention_by_hand():
    # confidences .9 right, .8 right, .8 wrong, .7 right, .6 wrong
    p = torch.tensor([0.9, 0.8, 0.8, 0.7, 0.6]).double()
    said = scores(torch.stack([p, 1 - p], 1).log(), [0, 0, 1, 0, 1])
    assert selective_accuracy(said, 1.0) == (pytest.approx(0.9), 0.2)
    assert selective_accuracy(said, 0.7) == (pytest.approx(0.7), 0.8)
    assert selective_accuracy(said, 0.6) == (pytest.approx(0.6), 1)
    assert selective_accuracy(scores([[0.0, 1.0]], [0]), 0.5) == (math.inf, 0)


def test_answers_above_the_threshold_have_the_precision():
    said = drawn(1000)
    threshold, coverage = selective_accuracy(said, 0.9)
    confidence, right = confidences(said)
    kept = confidence >= threshold
    assert float(right[kept].double().mean()) >= 0.9 > classification_metrics(said).top1
    assert coverage == float(kept.double().mean())


def test_a_confidence_at_the_edge_of_two_bins_is_in_the_upper():
    rows = reliability(scores([[0.0, 0.0, 0.0]], [0]))  # 1/3, where the sixth of 15 bins begins
    assert [k for k, (count, _, _) in enumerate(rows) if count] == [5]
    assert rows[5] == (1, close(1 / 3), 1)

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import sklearn.metrics as theirs
import torch
import torchmetrics.functional.classification as tm

from resnets.evaluation import metrics
from resnets.evaluation.metrics import classification_metrics, compare

from ._helpers import drawn, scores


def close(value):
    return pytest.approx(value, rel=1e-12, abs=1e-12)


def test_every_figure_by_hand():
    # probabilities 3/4 1/4, 1/4 3/4, 1/4 3/4 of images of class 0, 0, 1
    three = math.log(3)
    figures = classification_metrics(scores([[three, 0], [0, three], [0, three]], [0, 0, 1]))
    assert (figures.images, figures.top1, figures.top5) == (3, close(2 / 3), 1)
    assert figures.error == close(1 / 3)
    assert figures.loss == pytest.approx(-(2 * math.log(3 / 4) + math.log(1 / 4)) / 3)
    assert figures.confusion == ((1, 1), (0, 1))
    assert figures.counts == ((2, 1), (1, 2))
    zero, one = figures.per_class()
    assert (zero["precision"], zero["recall"], zero["f1"]) == (1, 0.5, close(2 / 3))
    assert (one["precision"], one["recall"], one["f1"]) == (0.5, 1, close(2 / 3))
    assert figures.balanced_accuracy == 0.75
    assert figures.macro_f1 == close(2 / 3)
    assert figures.ece == pytest.approx(3 / 4 - 2 / 3)  # all are in one bin
    assert figures.mean_average_precision is None


def test_every_figure_of_several_labels_by_hand():
    figures = classification_metrics(
        scores([[1.0, -1, 2], [-1, 3, -2], [1, 1, -1]], [[1.0, 0, 1], [1, 1, 0], [0, 0, 0]])
    )
    assert figures.top1 == close(1 / 3)  # the first alone is exact
    assert figures.top5 == close(2 / 3)  # the last has no label
    # [has][was wrongly given], and the right ones: no wrong class beside a label of one of them
    assert figures.confusion == ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    assert figures.counts == ((2, 2), (1, 2), (1, 1))
    assert [row["recall"] for row in figures.per_class()] == [0.5, 1, 1]
    # by falling logits the first class is had 1, 0, 1 times (a tie at 1: half), the second 1, the
    # third 1
    assert figures.average_precision == (close(0.5 * 1 / 2 + 0.5 * 2 / 3), 1, 1)
    assert figures.mean_average_precision == close((7 / 12 + 2) / 3)


def test_nothing_is_no_division():
    for several in (False, True):
        none = drawn(3, several=several).take(torch.tensor([], dtype=torch.int64))
        figures = classification_metrics(none)
        assert (figures.images, figures.top1, figures.ece) == (0, 0, 0)
        assert (figures.balanced_accuracy, figures.macro_f1) == (0, 0)
        assert figures.interval == (0, 1)


@pytest.mark.parametrize("classes", [7, 4])
def test_figures_of_one_label_are_scikit_learns(classes):
    said = drawn(classes=classes)
    figures, true = classification_metrics(said), said.labels.numpy()
    p = said.probabilities.numpy()
    given = p.argmax(1)
    assert figures.top1 == close(theirs.accuracy_score(true, given))
    assert figures.loss == close(theirs.log_loss(true, p, labels=range(7)))
    assert figures.top5 == close(theirs.top_k_accuracy_score(true, p, k=5, labels=range(7)))
    matrix = theirs.confusion_matrix(true, given, labels=range(7))
    assert np.array_equal(figures.confusion, matrix)
    each = theirs.precision_recall_fscore_support(true, given, labels=range(7), zero_division=0)
    for name, expected in zip(("precision", "recall", "f1", "images"), each, strict=True):
        counted = name == "images"
        expected = [x if counted or n else None for x, n in zip(expected, each[3], strict=True)]
        assert [row[name] for row in figures.per_class()] == pytest.approx(expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # answers of classes that do not occur
        assert figures.balanced_accuracy == close(theirs.balanced_accuracy_score(true, given))
    f1 = theirs.f1_score(true, given, average="macro", zero_division=0)
    assert figures.macro_f1 == close(f1)


def test_figures_of_several_labels_are_scikit_learns():
    said = drawn(several=True)
    figures, true = classification_metrics(said), said.labels.numpy()
    given = said.logits.numpy() > 0
    assert figures.top1 == close(theirs.accuracy_score(true, given))
    each = theirs.precision_recall_fscore_support(true, given)
    for name, expected in zip(("precision", "recall", "f1", "images"), each, strict=True):
        assert [row[name] for row in figures.per_class()] == close(expected)
    p = torch.from_numpy(theirs.average_precision_score(true, said.logits, average=None))
    assert figures.average_precision == close(p.tolist())
    torch.testing.assert_close(
        torch.tensor(figures.average_precision),
        tm.multilabel_average_precision(said.logits, said.labels.long(), 7, average=None),
    )
    losses = [theirs.log_loss(y, q) for y, q in zip(true.T, said.probabilities.T, strict=True)]
    assert figures.loss == close(np.mean(losses))


def test_the_calibration_error_is_torchmetrics():
    said = drawn(2000)
    found = metrics.calibration_error(said)
    expected = tm.multiclass_calibration_error(said.probabilities, said.labels, 7, n_bins=15)
    assert found == pytest.approx(float(expected), rel=1e-6)  # theirs is of float32
    counts, sure, hits = zip(*metrics.reliability(said), strict=True)
    assert sum(counts) == 2000
    assert np.dot(counts, hits) == close(2000 * classification_metrics(said).top1)
    for k, (count, mean) in enumerate(zip(counts, sure, strict=True)):
        assert k / 15 <= mean <= (k + 1) / 15 or not count
    said = drawn(several=True)
    p = said.probabilities.flatten()
    sure, hits = torch.maximum(p, 1 - p), (p > 0.5) == said.labels.flatten()
    binary = tm.binary_calibration_error(sure, hits.long(), n_bins=15)
    assert classification_metrics(said).ece == pytest.approx(float(binary), rel=1e-6)


def test_certain_answers_are_in_the_last_bin():
    rows = metrics.reliability(scores([[800.0, 0.0], [800.0, 0.0]], [0, 1]))
    assert rows[-1] == (2, 1.0, 0.5)


def test_the_interval_is_the_bootstraps():
    right = torch.arange(1000) < 900
    generator = np.random.default_rng(1)
    means = [generator.choice(right.numpy(), 1000).mean() for _ in range(4000)]
    low, high = np.quantile(means, (0.025, 0.975))
    assert metrics.bootstrap(right) == pytest.approx((low, high), abs=0.003)
    assert metrics.bootstrap(right) == metrics.bootstrap(right)
    losses = torch.rand(500, generator=torch.Generator().manual_seed(0)).double()
    low, high = metrics.bootstrap(losses)
    half = 1.96 * float(losses.std()) / math.sqrt(500)
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)


@pytest.mark.parametrize(
    ("hits", "images", "low", "high"),
    [
        # Newcombe 1998, Table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval(hits: int, images: int, low: float, high: float):
    found = metrics.interval(torch.arange(images) < hits)
    assert found == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@pytest.mark.parametrize("images", [898, 200])
def test_the_interval_covers_the_truth_as_often_as_it_says(images: int):
    """Exact: each number of hits with its binomial probability, for accuracies of 0.9 to 0.999."""
    hits = torch.arange(images + 1)
    low, high = zip(*(metrics.interval(torch.arange(images) < k) for k in hits), strict=True)
    truths = torch.linspace(0.9, 0.999, 100, dtype=torch.float64)
    chance = torch.distributions.Binomial(images, truths[:, None]).log_prob(hits.double()).exp()
    inside = (torch.tensor(low) <= truths[:, None]) & (truths[:, None] <= torch.tensor(high))
    assert 0.94 <= float((chance * inside).sum(1).mean()) <= 0.97


def test_all_right_is_not_certain():
    # Wilson's: 1 / (1 + z^2 / n)
    low, high = metrics.interval(torch.ones(20, dtype=torch.bool))
    assert (low, high) == (pytest.approx(1 / (1 + 1.959964**2 / 20)), 1)


def test_the_temperature_is_found_again():
    g = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 5, generator=g)
    labels = logits.softmax(1).multinomial(1, generator=g)[:, 0]
    said = scores(3 * logits, labels)
    assert metrics.fit_temperature(said) == pytest.approx(3, rel=0.03)
    several = (torch.rand(20_000, 5, generator=g) < logits.sigmoid()).float()
    assert metrics.fit_temperature(scores(logits / 2, several)) == pytest.approx(0.5, rel=0.03)


def test_few_easy_images_say_little_of_the_temperature():
    said = scores(torch.tensor([[4.0, 0.0]]).expand(30, 2), [0] * 30)
    # The derivative of 30 log(1 + exp(-4 / t)) + log(t)^2 / 2 by log t is 0.
    t = metrics.fit_temperature(said)
    assert 0.4 < t < 1
    slope = 30 * 4 / t / (1 + math.exp(4 / t)) + math.log(t)
    assert slope == pytest.approx(0, abs=0.01)
    assert metrics.fit_temperature(said.take(torch.arange(0))) == pytest.approx(1, abs=1e-3)


def test_abstention_by_hand():
    # confidences .9 right, .8 right, .8 wrong, .7 right, .6 wrong
    p = torch.tensor([0.9, 0.8, 0.8, 0.7, 0.6]).double()
    said = scores(torch.stack([p, 1 - p], 1).log(), [0, 0, 1, 0, 1])
    assert metrics.selective_accuracy(said, 1.0) == (pytest.approx(0.9), 0.2)
    assert metrics.selective_accuracy(said, 0.7) == (pytest.approx(0.7), 0.8)
    assert metrics.selective_accuracy(said, 0.6) == (pytest.approx(0.6), 1)
    assert metrics.selective_accuracy(scores([[0.0, 1.0]], [0]), 0.5) == (math.inf, 0)


def test_answers_above_the_threshold_have_the_precision():
    said = drawn(1000)
    threshold, coverage = metrics.selective_accuracy(said, 0.9)
    confidence, right = metrics.decisions(said)
    kept = confidence >= threshold
    assert float(right[kept].double().mean()) >= 0.9 > classification_metrics(said).top1
    assert coverage == float(kept.double().mean())


def test_what_is_unknown_is_less_certain():
    said = drawn(200)
    other = scores(said.logits[:50] / 3, said.labels[:50])
    p = torch.cat([said.probabilities, other.probabilities]).amax(1)
    expected = theirs.roc_auc_score([1] * 200 + [0] * 50, p)
    assert metrics.ood_auroc(said, other) == close(expected)
    assert metrics.ood_auroc(said, said) == 0.5


def test_a_comparison_by_hand():
    good, bad = [2.0, 0.0], [0.0, 2.0]
    first = scores([good] * 6 + [bad] * 4, [0] * 10)
    second = scores([good] * 5 + [bad] + [good] * 4, [0] * 10)
    found = compare(first, second)
    assert (found.images, found.fixed, found.broken) == (10, (6, 7, 8, 9), (5,))
    assert found.difference == close(0.3)
    assert found.p == close(2 * (1 + 5) / 2**5)  # at most one of five, either way
    low, high = found.interval
    assert low < 0.3 < high
    assert compare(first, first).p == 1
    assert compare(first, first).interval == (0, 0)
    # an image that one could not read does not count
    part = compare(first, second.take(torch.arange(8)))
    assert (part.images, part.fixed) == (8, (6, 7))


def test_a_class_without_images_has_no_figures_and_few_classes_no_top_5():
    said = drawn(classes=4)
    rows, said_so = classification_metrics(said).per_class(), classification_metrics(said).summary()
    assert [[row[name] for name in ("precision", "recall", "f1")] for row in rows[4:]] == [
        [None] * 3
    ] * 3
    assert said_so["per_class"][6]["recall"] is None
    assert "top5" in said_so
    few = replace(said, logits=said.logits[:, :4], classes=said.classes[:4])
    assert "top5" not in classification_metrics(few).summary()

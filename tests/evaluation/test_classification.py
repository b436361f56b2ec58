import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import sklearn.metrics as theirs
import torch
import torchmetrics.functional.classification as tm

from resnets.evaluation.classification import (
    classification_metrics,
    compare_scores,
    confusion_matrix,
    ood_auroc,
)

from ._helpers import close, drawn, scores


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
    for multi_label in (False, True):
        none = drawn(3, multi_label=multi_label).take(torch.tensor([], dtype=torch.int64))
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
    said = drawn(multi_label=True)
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


def test_what_is_unknown_is_less_certain():
    said = drawn(200)
    other = scores(said.logits[:50] / 3, said.labels[:50])
    p = torch.cat([said.probabilities, other.probabilities]).amax(1)
    expected = theirs.roc_auc_score([1] * 200 + [0] * 50, p)
    assert ood_auroc(said, other) == close(expected)
    assert ood_auroc(said, said) == 0.5


def test_a_comparison_by_hand():
    good, bad = [2.0, 0.0], [0.0, 2.0]
    first = scores([good] * 6 + [bad] * 4, [0] * 10)
    second = scores([good] * 5 + [bad] + [good] * 4, [0] * 10)
    found = compare_scores(first, second)
    assert (found.images, found.fixed, found.broken) == (10, (6, 7, 8, 9), (5,))
    assert found.difference == close(0.3)
    assert found.p == close(2 * (1 + 5) / 2**5)  # at most one of five, either way
    low, high = found.interval
    assert low < 0.3 < high
    assert compare_scores(first, first).p == 1
    assert compare_scores(first, first).interval == (0, 0)
    # an image that one could not read does not count
    part = compare_scores(first, second.take(torch.arange(8)))
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


def test_a_confusion_matrix_by_hand():
    target, predicted = torch.tensor([2, 2, 0, 1, 2]), torch.tensor([2, 0, 0, 2, 2])
    expected = [[1, 0, 0], [0, 0, 1], [1, 0, 2]]
    assert confusion_matrix(target, predicted, 3).tolist() == expected
    assert confusion_matrix(target[:0], predicted[:0], 2).tolist() == [[0, 0], [0, 0]]


def test_the_fifth_class_is_among_five_and_the_sixth_is_not():
    logits = torch.tensor([[6.0, 5, 4, 3, 2, 1]])
    assert [classification_metrics(scores(logits, [k])).top5 for k in (0, 4, 5)] == [1, 1, 0]


def test_a_probability_of_one_half_is_not_above_it():
    metrics = classification_metrics(scores([[0.0, 1.0]], [[0.0, 1.0]]))
    assert (metrics.top1, metrics.counts) == (1, ((0, 0), (1, 1)))


def test_a_class_that_no_image_has_counts_in_no_mean():
    metrics = classification_metrics(scores([[1.0, -1, 1], [-1, -1, -1]], [[1.0, 0, 0], [0, 0, 0]]))
    assert metrics.average_precision[0] == 1
    assert all(math.isnan(x) for x in metrics.average_precision[1:])
    assert metrics.mean_average_precision == 1
    assert metrics.balanced_accuracy == 1
    assert metrics.macro_f1 == 0.5  # of the third class, which is predicted only, it is 0

import math

import pytest
import torch
from timm.loss import BinaryCrossEntropy
from torch.nn import functional as F

from resnets.training.losses import (
    class_weights,
    classification_loss,
    count_errors,
    distillation_loss,
    to_one_hot,
)

LABELS = torch.tensor([2, 0, 1, 2, 2, 1])
WEIGHTS = torch.tensor([0.5, 2.0, 1.25])


def logits(seed=0, rows=6, classes=3):
    return 3 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))


def test_indices_become_one_hot_and_shares_pass():
    assert to_one_hot(torch.tensor([1, 0]), 3).tolist() == [[0, 1, 0], [1, 0, 0]]
    several = torch.tensor([[1, 0, 1], [0, 0, 0]])
    assert to_one_hot(several, 3).tolist() == [[1, 0, 1], [0, 0, 0]]
    assert to_one_hot(several, 3).dtype == torch.float32


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_cross_entropy_is_torchs_of_indices(smoothing, weights):
    ours = logits().requires_grad_()
    theirs = logits().requires_grad_()
    loss = classification_loss(
        ours, to_one_hot(LABELS, 3), kind="cross-entropy", smoothing=smoothing, weights=weights
    )
    expected = F.cross_entropy(theirs, LABELS, weights, label_smoothing=smoothing)
    if weights is not None:  # torch's mean is over the weights
        expected = expected * weights[LABELS].mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(loss, ours), torch.autograd.grad(expected, theirs)
    )


def test_cross_entropy_of_a_mixed_image_is_mixed_by_share():
    # 0.25 * -ln(1/2) + 0.75 * -ln(1/4) for probabilities 1/2, 1/4, 1/4
    x = torch.tensor([[2.0, 1.0, 1.0]]).log()
    loss = classification_loss(x, torch.tensor([[0.25, 0.75, 0.0]]), kind="cross-entropy")
    assert loss.item() == pytest.approx(0.25 * math.log(2) + 0.75 * math.log(4))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_binary_cross_entropy_is_timms_of_indices(smoothing, weights):
    loss = classification_loss(
        logits(), to_one_hot(LABELS, 3), kind="bce", smoothing=smoothing, weights=weights
    )
    expected = BinaryCrossEntropy(smoothing=smoothing, weight=weights)(logits(), LABELS)
    torch.testing.assert_close(loss, expected)


def test_binary_cross_entropy_of_mixed_images_is_timms():
    share = torch.tensor([0.9, 0.5, 0.3, 0.1, 0.75, 1.0]).unsqueeze(1)
    mixed = share * to_one_hot(LABELS, 3) + (1 - share) * to_one_hot(LABELS.flip(0), 3)
    expected = BinaryCrossEntropy(smoothing=0, target_threshold=0.2)(logits(), mixed)
    torch.testing.assert_close(classification_loss(logits(), mixed, kind="bce"), expected)


def test_binary_cross_entropy_by_hand():
    # Both classes of the mixed image are present: -(ln s(0) + ln s(0) + ln(1 - s(ln 3))) / 3
    x = torch.tensor([[0.0, 0.0, math.log(3)]])
    loss = classification_loss(x, torch.tensor([[0.4, 0.6, 0.0]]), kind="bce")
    assert loss.item() == pytest.approx((2 * math.log(2) + math.log(4)) / 3)


def test_smoothing_survives_the_threshold():
    x = torch.zeros(1, 4)
    x[0, 0] = 2.0
    hard = classification_loss(x, to_one_hot(torch.tensor([0]), 4), kind="bce")
    smooth = classification_loss(x, to_one_hot(torch.tensor([0]), 4), kind="bce", smoothing=0.1)
    # the loss is linear in the targets, with slope -x: (0.1 - 0.1 / 4) * 2 on one of 4 classes
    assert (smooth - hard).item() == pytest.approx(0.075 * 2 / 4)


def test_balanced_weights():
    labels = torch.tensor([0, 0, 0, 1])
    assert class_weights(labels, 2).tolist() == pytest.approx([2 / 3, 2.0])
    assert class_weights(labels, 2)[labels].mean().item() == pytest.approx(1)
    assert class_weights(labels, 3).tolist() == pytest.approx([2 / 3, 2.0, 1.0])
    assert class_weights(to_one_hot(labels, 3), 3).tolist() == pytest.approx([2 / 3, 2.0, 1.0])


def test_with_balanced_weights_every_class_counts_the_same():
    labels = torch.tensor([0, 0, 0, 1])
    x = torch.tensor([[2.0, 0.0]] * 3 + [[1.0, 0.0]])
    loss = classification_loss(
        x, to_one_hot(labels, 2), kind="cross-entropy", weights=class_weights(labels, 2)
    )
    each = F.cross_entropy(x, labels, reduction="none")
    assert loss.item() == pytest.approx((each[0] + each[3]).item() / 2)


def test_distillation_by_hand():
    # T = 2: the teacher's probabilities are 3/4 and 1/4, the student's 1/2 and 1/2
    teacher = torch.tensor([[2 * math.log(3), 0.0]])
    kl = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert distillation_loss(torch.zeros(1, 2), teacher, 2.0).item() == pytest.approx(4 * kl)
    assert distillation_loss(teacher, teacher, 3.0).item() == pytest.approx(0, abs=1e-7)


def test_distillation_at_one_degree_has_the_gradient_of_cross_entropy():
    student = logits(1).requires_grad_()
    (slope,) = torch.autograd.grad(distillation_loss(student, logits(2), 1.0), student)
    wanted = (student.softmax(1) - logits(2).softmax(1)) / len(student)
    torch.testing.assert_close(slope, wanted)


def test_what_counts_as_wrong():
    logits = torch.tensor([[2.0, 1.0, -1.0], [-1.0, 0.5, -2.0], [-3.0, -2.0, -1.0]])
    one = torch.eye(3)
    assert int(count_errors(logits, one, multi_label=False)) == 0
    assert int(count_errors(logits, one.flip(1), multi_label=False)) == 2
    labels = torch.tensor([[1.0, 1, 0], [0, 1, 0], [0, 0, 1]])  # the third is given no label
    assert int(count_errors(logits, labels, multi_label=True)) == 1
    assert int(count_errors(logits, labels * 0.6 + labels.flip(0) * 0.4, multi_label=True)) == 1

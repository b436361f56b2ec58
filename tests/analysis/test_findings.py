"""Which images are picked, against values computed by hand."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resnets.analysis.findings import (
    class_names,
    confusions,
    image_name,
    label_errors,
    most_uncertain,
    most_wrong,
)
from resnets.data.splits import Split
from resnets.evaluation.scores import Scores

ABC = ("a", "b", "c")


def scores(probabilities, labels, classes=ABC):
    p = torch.tensor(probabilities, dtype=torch.float64)
    several = isinstance(labels[0], list)
    logits = (p.logit() if several else p.log()).float()
    given = torch.tensor(labels, dtype=torch.float32 if several else torch.int64)
    return Scores(logits, given, torch.arange(len(labels)), classes)


def test_most_wrong_are_the_errors_of_largest_loss():
    said = scores(
        [[0.4, 0.5, 0.1], [0.9, 0.05, 0.05], [0.4, 0.35, 0.25], [0.05, 0.9, 0.05], [0.2, 0.7, 0.1]],
        [0, 0, 2, 0, 1],
    )
    assert most_wrong(said, 10).tolist() == [3, 2, 0]  # -log of 0.05, 0.25, 0.4
    assert most_wrong(said, 2).tolist() == [3, 2]
    assert most_wrong(scores([[0.9, 0.1, 0]], [0]), 5).tolist() == []


def test_most_wrong_of_several_labels():
    said = scores([[0.9, 0.2], [0.4, 0.9], [0.1, 0.1]], [[1.0, 0], [1, 1], [0, 1]], ("a", "b"))
    assert most_wrong(said, 3).tolist() == [2, 1]  # 0 is right


def test_most_unsure_by_entropy():
    said = scores([[0.98, 0.01, 0.01], [0.5, 0.5, 0.0], [0.4, 0.3, 0.3]], [0, 0, 0])
    assert most_uncertain(said, 2).tolist() == [2, 1]
    # Of [0.9, 0.9] one is as sure as of [0.1, 0.1], unlike a sum over present labels alone.
    several = scores([[0.9, 0.9], [0.5, 0.1], [0.1, 0.1]], [[1.0, 0], [1, 1], [0, 1]], ("a", "b"))
    assert most_uncertain(several, 3).tolist()[0] == 1


@pytest.mark.parametrize("logit", [0.3, 1.7, 2.9, 5.1, 8.0, 30.0])
@pytest.mark.parametrize("count", [3, 7, 10, 49, 1000])
def test_a_mean_of_equal_numbers_counts_for_each_of_them(logit, count):
    """The mean of equal floats rounds above or below them, by how many and how they are added."""
    labels = torch.arange(2).repeat_interleave(count)
    logits = logit * torch.eye(2)[labels]
    labels[0] = 1  # the one that is answered otherwise than it is labelled
    logits[1:count] -= torch.rand(count - 1, 1, generator=torch.Generator().manual_seed(count))
    said = Scores(logits, labels, torch.arange(2 * count), ABC[:2])
    assert label_errors(said).tolist() == [0]


def test_confident_learning_by_hand():
    said = scores(
        [
            [0.9, 0.05, 0.05],  # a; the threshold of a is (0.9 + 0.6 + 0.1 + 0.4) / 4 = 0.5
            [0.6, 0.3, 0.1],
            [0.1, 0.85, 0.05],  # labelled a, and b is over its threshold of 0.8: suspect
            [0.4, 0.55, 0.05],  # labelled a, answered b, but below 0.8: unsure and not wrong
            [0.05, 0.9, 0.05],  # b; (0.9 + 0.7) / 2 = 0.8
            [0.2, 0.7, 0.1],
            [0.1, 0.0, 0.9],  # c; (0.9 + 0.3) / 2 = 0.6
            [0.6, 0.1, 0.3],  # labelled c, and a is over 0.5: suspect, by a smaller margin
        ],
        [0, 0, 0, 0, 1, 1, 2, 2],
    )
    assert label_errors(said).tolist() == [2, 7]  # margins 0.1 - 0.85 and 0.3 - 0.6


def test_a_class_that_no_image_has_is_never_the_better_label():
    said = scores([[0.1, 0.1, 0.8], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1]], [0, 0, 1])
    assert label_errors(said).tolist() == []


def test_an_answer_that_is_the_label_is_not_suspected():
    # b counts from 0.3 on, a only from 0.85; still a is what the first image is taken for.
    said = scores([[0.6, 0.4], [0.9, 0.1], [1.0, 0.0], [0.7, 0.3]], [0, 0, 0, 1], ("a", "b"))
    assert 0 not in label_errors(said).tolist()


def test_of_several_labels_each_is_a_question():
    yes, no = [1.0, 0.0], [0.0, 0.0]
    p = [[0.9, 0.1], [0.8, 0.1], [0.1, 0.2], [0.1, 0.1], [0.95, 0.1]]
    said = scores(p, [yes, yes, no, no, no], ("a", "b"))
    assert label_errors(said).tolist() == [4]


@settings(max_examples=20, derandomize=True)
@given(seed=st.integers(0, 10_000), classes=st.integers(2, 8))
def test_most_of_the_flipped_labels_are_found(seed, classes):
    torch.manual_seed(seed)
    n = 1000
    true = torch.randint(classes, (n,))
    logits = torch.randn(n, classes)
    logits[torch.arange(n), true] += 6
    flipped = torch.randperm(n)[: n // 20]
    labels = true.clone()
    labels[flipped] = (true[flipped] + torch.randint(1, classes, (len(flipped),))) % classes
    names = tuple(map(str, range(classes)))
    found = set(label_errors(Scores(logits, labels, torch.arange(n), names)).tolist())
    right = len(found & set(flipped.tolist()))
    assert right >= 0.75 * len(flipped)
    assert right >= 0.75 * len(found)


def test_confusions_count_both_ways():
    one_hot = torch.eye(3).clamp_min(1e-6).tolist()
    pairs = [(0, 1)] * 2 + [(1, 0)] * 3 + [(2, 1)] * 4 + [(1, 1)] * 9 + [(0, 2)]
    said = scores([one_hot[answer] for _, answer in pairs], [label for label, _ in pairs])
    assert confusions(said) == [("b", "a", 5), ("c", "b", 4), ("a", "c", 1)]
    assert confusions(scores([[0.9, 0.1]], [[0.0, 1.0]], ("a", "b"))) == []


def test_classes_and_images_in_words():
    has = torch.tensor([[True, False, True], [False, True, False], [False] * 3])
    assert [class_names(row, ABC) for row in has] == ["a and c", "b", "no class"]
    labels, file = torch.zeros(2).long(), Path("cat") / "1.png"
    assert image_name(Split((file, file), labels), 1) == str(file)
    assert image_name(Split(torch.zeros(2, 1, 4, 4).byte(), labels), 1) == "image 1"
    assert image_name(None, 7) == "image 7"

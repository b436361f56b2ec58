import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from resnets.data.loader import Batch
from resnets.errors import CheckpointError, UsageError
from resnets.evaluation.classification import running_means, running_sums
from resnets.evaluation.scores import ensemble, load, mean_logits, predict_scores, save

from ._helpers import drawn, scores


def test_scores_have_every_batch_and_the_last_is_smaller():
    """Each image has two crops; the logits are the means of their probabilities."""

    def batch(*indices):
        rows = torch.tensor(indices).repeat_interleave(2)
        images = rows[:, None].float() + torch.tensor([0.0, 0.5]).repeat(len(indices))[:, None]
        return Batch(images, rows % 3, rows)

    batches = [batch(0, 1, 2), batch(3, 4, 5), batch(6)]
    found = predict_scores(lambda x: torch.cat([x, 0 * x, -x], 1), batches, ("a", "b", "c"))
    assert found.indices.tolist() == list(range(7))
    assert found.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    views = torch.tensor([[[6.0, 0, -6]], [[6.5, 0, -6.5]]])
    expected = views.softmax(2).mean(0)[0]
    torch.testing.assert_close(found.probabilities[6], expected.double(), rtol=1e-6, atol=1e-9)
    assert running_means(running_sums(found)).images == 7


def test_the_mean_is_of_probabilities():
    # softmax: 1/2 1/2 and 1/4 3/4; their mean 3/8 5/8
    two = torch.tensor([[[0.0, 0.0]], [[0.0, math.log(3)]]])
    assert mean_logits(two, multi_label=False).softmax(1)[0].tolist() == pytest.approx(
        [3 / 8, 5 / 8]
    )
    assert mean_logits(two, multi_label=True).sigmoid()[0].tolist() == pytest.approx([1 / 2, 5 / 8])


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_mean_of_one_view_is_its_logits(multi_label):
    x = 50 * torch.randn(1, 20, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mean_logits(x, multi_label), x[0])


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_mean_keeps_probabilities_beyond_what_they_could_hold(multi_label):
    x = torch.tensor([[[0.0, -900.0]], [[0.0, -901.0]]])
    found = mean_logits(x, multi_label)[0]
    expected = -900 + math.log((1 + math.exp(-1)) / 2)
    assert float(found[1] - (0 if multi_label else found[0])) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("multi_label", [False, True])
def test_an_ensemble_averages_the_images_that_all_could_read(multi_label):
    a, b, c = (drawn(10, seed=k, multi_label=multi_label) for k in range(3))
    labels = a.labels
    b, c = (replace(each, labels=labels) for each in (b, c))
    expected = torch.stack([s.probabilities for s in (a, b, c)]).mean(0)
    torch.testing.assert_close(ensemble([a, b, c]).probabilities, expected, rtol=1e-6, atol=1e-9)

    keep = torch.tensor([0, 1, 2, 4, 5, 6, 7, 8, 9])
    bad = ((Path("x.png"), "empty file"),)
    found = ensemble([replace(a, seconds=1.0), replace(b.take(keep), unreadable=bad, seconds=2.0)])
    expected = torch.stack([a.probabilities, b.probabilities]).mean(0)[keep]
    torch.testing.assert_close(found.probabilities, expected, rtol=1e-6, atol=1e-9)
    assert found.indices.tolist() == keep.tolist()
    assert torch.equal(found.labels, labels[keep])
    assert (found.unreadable, found.seconds) == (bad, 3.0)
    assert ensemble([a]) is a


def test_an_ensemble_of_many_images_is_the_mean_in_their_order():
    a, b = drawn(9000), drawn(9000, seed=1)
    found = ensemble([a, replace(b, labels=a.labels)])
    assert torch.equal(
        found.logits, mean_logits(torch.stack([a.logits, b.logits]), multi_label=False)
    )


def test_what_does_not_fit_is_refused():
    a = drawn(10)
    other = replace(a, classes=("cat", *a.classes[1:]))
    with pytest.raises(CheckpointError, match="class0 in one, cat in another"):
        ensemble([a, other])
    with pytest.raises(CheckpointError, match="class6 in one, None in another"):
        ensemble([a, drawn(10, k=6)])
    with pytest.raises(UsageError, match="different images"):
        ensemble([a, replace(a, labels=(a.labels + 1) % 7)])
    with pytest.raises(UsageError, match="at least one"):
        ensemble([])


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_file_holds_everything(tmp_path, multi_label):
    path = tmp_path / "scores.safetensors"
    there = replace(drawn(5, multi_label=multi_label), unreadable=((Path("ä.png"), "cut short"),))
    there = replace(there, classes=('"<ä>|', *there.classes[1:]), seconds=1.5)
    save(path, there)
    back = load(path)
    for name in ("logits", "labels", "indices"):
        assert torch.equal(getattr(back, name), getattr(there, name))
    assert (back.classes, back.unreadable, back.seconds) == (
        there.classes,
        there.unreadable,
        there.seconds,
    )


def test_a_broken_file_is_named(tmp_path):
    path = tmp_path / "scores.safetensors"
    with pytest.raises(CheckpointError, match=r"scores\.safetensors"):
        load(path)
    save(path, scores([[1.0, 0.0]], [0]))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="Delete it"):
        load(path)

import math

import pytest
import torch
import torch.nn.functional as F

from resnets.data.draws import draws_of_step
from resnets.data.mix import cutmix, mix
from resnets.recipe import Augment


def batch(rows=4, height=8, width=6):
    images = torch.arange(rows).float().view(-1, 1, 1, 1).expand(-1, 3, height, width)
    return images, F.one_hot(torch.arange(rows), rows).float()


def test_nothing_is_mixed_without_an_alpha():
    images, targets = batch()
    found = mix(images, targets, Augment(), torch.rand(4))
    assert found[0] is images
    assert found[1] is targets


def test_mixup_by_hand():
    images, targets = batch()
    # Beta(1, 1) is uniform: the draw itself is the share that is kept
    x, y = mix(images, targets, Augment(mixup=1.0), torch.tensor([0.9, 0.75, 0.0, 0.0]))
    assert x[:, 0, 0, 0].tolist() == [0.75, 1.25, 1.75, 2.25]
    assert y.tolist() == [
        [0.75, 0, 0, 0.25],
        [0, 0.75, 0.25, 0],
        [0, 0.25, 0.75, 0],
        [0.25, 0, 0, 0.75],
    ]


def test_cutmix_by_hand():
    images, targets = batch()
    # sides are half of the image's: 4 x 2 around row 4, column 3
    x, y = mix(images, targets, Augment(cutmix=1.0), torch.tensor([0.1, 0.75, 0.5, 0.5]))
    expected = torch.zeros(8, 6)
    expected[2:6, 2:4] = 3
    assert torch.equal(x[0], expected.expand(3, 8, 6))
    assert torch.equal(x[3], 3 - expected.expand(3, 8, 6))
    assert y[0].tolist() == pytest.approx([40 / 48, 0, 0, 8 / 48])
    assert torch.equal(images[0], torch.zeros(3, 8, 6))  # the arguments are left alone


@pytest.mark.parametrize(
    ("y", "x", "area"),
    [(0.5, 0.5, 4 * 2), (0.0, 0.0, 2 * 1), (0.99, 0.5, 3 * 2), (0.5, 0.99, 4 * 2)],
)
def test_targets_have_the_area_that_is_left_at_the_border(y, x, area):
    images, targets = batch()
    found, mixed = cutmix(images, targets, 0.75, y, x)
    assert (found[0, 0] == 3).sum().item() == area
    assert mixed[0, 3].item() == pytest.approx(area / 48)
    assert mixed.sum(1).tolist() == pytest.approx([1.0] * 4)


@pytest.mark.parametrize(("keep", "area"), [(1.0, 0), (0.0, 48)])
def test_all_or_nothing(keep, area):
    found, mixed = cutmix(*batch(), keep, 0.5, 0.5)
    assert (found[0, 0] == 3).sum().item() == area
    assert mixed[0, 3].item() == area / 48


def test_with_both_either_at_half_the_chance():
    images, targets = batch()
    cut = 0
    for step in range(2000):
        x, _ = mix(images, targets, Augment(mixup=1.0, cutmix=1.0), draws_of_step(3, step, 0, 4))
        cut += bool((x == x.round()).all())
    assert cut / 2000 == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 8.0])
def test_shares_are_beta(alpha):
    targets = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    shares = []
    for step in range(4000):
        draws = draws_of_step(1, step, 0, 4)
        shares.append(mix(torch.zeros(2, 1, 1, 1), targets, Augment(mixup=alpha), draws)[1][0, 0])
    share = torch.stack(shares).double()
    assert share.min() >= 0
    assert share.max() <= 1
    variance = 1 / (4 * (2 * alpha + 1))
    assert share.mean().item() == pytest.approx(0.5, abs=5 * math.sqrt(variance / 4000))
    assert share.var().item() == pytest.approx(variance, rel=0.1)
    fourth = 3 / (16 * (2 * alpha + 1) * (2 * alpha + 3))  # of the symmetric distribution
    assert ((share - 0.5) ** 4).mean().item() == pytest.approx(fourth, rel=0.15)

import math

import pytest
import torch
import torch.nn.functional as F

from resnets.config.recipe import Augment
from resnets.data.mixup import mix_batch


def batch(rows=4, height=8, width=6):
    images = torch.arange(rows).float().view(-1, 1, 1, 1).expand(-1, 3, height, width)
    return images, F.one_hot(torch.arange(rows), rows).float()


def test_nothing_is_mixed_without_an_alpha():
    images, targets = batch()
    mixed = mix_batch(images, targets, Augment())
    assert mixed[0] is images
    assert mixed[1] is targets


def test_images_and_targets_are_mixed_in_one_proportion():
    images, targets = batch()
    torch.manual_seed(3)
    x, y = mix_batch(images, targets, Augment(mixup=1.0))
    keep = y[0, 0].item()
    assert 0 < keep < 1
    torch.testing.assert_close(y, keep * targets + (1 - keep) * targets.roll(1, 0))
    torch.testing.assert_close(x, keep * images + (1 - keep) * images.roll(1, 0))
    assert torch.equal(images, batch()[0])  # the arguments are left alone


def test_targets_have_the_area_of_the_rectangle():
    images, targets = batch()
    areas = set()
    for seed in range(20):
        torch.manual_seed(seed)
        x, y = mix_batch(images, targets, Augment(cutmix=1.0))
        area = (x[0, 0] == 3).sum().item()
        assert ((x[0, 0] == 0) | (x[0, 0] == 3)).all()
        assert y[0].tolist() == pytest.approx([1 - area / 48, 0, 0, area / 48], abs=1e-6)
        areas.add(area)
    assert len(areas) > 3


def test_the_same_seed_gives_the_same_batch():
    images, targets = batch()
    pairs = []
    for _ in range(2):
        torch.manual_seed(7)
        pairs.append(mix_batch(images, targets, Augment(mixup=0.2, cutmix=1.0)))
    assert torch.equal(pairs[0][0], pairs[1][0])
    assert torch.equal(pairs[0][1], pairs[1][1])


def test_the_layout_in_memory_stays():
    images = torch.rand(4, 3, 8, 8).to(memory_format=torch.channels_last)
    x, _ = mix_batch(images, batch()[1], Augment(mixup=1.0))
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_with_both_either_at_half_the_chance():
    torch.manual_seed(0)
    images, targets = batch()
    mixed = [mix_batch(images, targets, Augment(mixup=1.0, cutmix=1.0))[0] for _ in range(1000)]
    cut = sum(bool((x == x.round()).all()) for x in mixed)
    assert cut / 1000 == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_shares_are_beta(alpha):
    torch.manual_seed(1)
    targets, images = torch.eye(2), torch.zeros(2, 1, 1, 1)
    shares = [mix_batch(images, targets, Augment(mixup=alpha))[1][0, 0] for _ in range(2000)]
    share = torch.stack(shares).double()
    variance = 1 / (4 * (2 * alpha + 1))
    assert share.mean().item() == pytest.approx(0.5, abs=5 * math.sqrt(variance / 2000))
    assert share.var().item() == pytest.approx(variance, rel=0.1)

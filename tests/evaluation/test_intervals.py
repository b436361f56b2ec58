import math

import numpy as np
import pytest
import torch

from resnets.evaluation.intervals import bootstrap_interval, wilson_interval


def test_the_interval_is_the_bootstraps():
    right = torch.arange(1000) < 900
    generator = np.random.default_rng(1)
    means = [generator.choice(right.numpy(), 1000).mean() for _ in range(4000)]
    low, high = np.quantile(means, (0.025, 0.975))
    assert bootstrap_interval(right) == pytest.approx((low, high), abs=0.003)
    assert bootstrap_interval(right) == bootstrap_interval(right)
    losses = torch.rand(500, generator=torch.Generator().manual_seed(0)).double()
    low, high = bootstrap_interval(losses)
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
    found = wilson_interval(torch.arange(images) < hits)
    assert found == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@pytest.mark.parametrize("images", [898, 200])
def test_the_interval_covers_the_truth_as_often_as_it_says(images: int):
    """Exact: each number of hits with its binomial probability, for accuracies of 0.9 to 0.999."""
    hits = torch.arange(images + 1)
    low, high = zip(*(wilson_interval(torch.arange(images) < k) for k in hits), strict=True)
    truths = torch.linspace(0.9, 0.999, 100, dtype=torch.float64)
    chance = torch.distributions.Binomial(images, truths[:, None]).log_prob(hits.double()).exp()
    inside = (torch.tensor(low) <= truths[:, None]) & (truths[:, None] <= torch.tensor(high))
    assert 0.94 <= float((chance * inside).sum(1).mean()) <= 0.97


def test_all_right_is_not_certain():
    # Wilson's: 1 / (1 + z^2 / n)
    low, high = wilson_interval(torch.ones(20, dtype=torch.bool))
    assert (low, high) == (pytest.approx(1 / (1 + 1.959964**2 / 20)), 1)

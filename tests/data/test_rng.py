import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from resnets.data.rng import bits, draw_for_step, order, stratified_order, uniform

seeds = st.integers(-(2**70), 2**70)


def splitmix64(x):
    mask = 2**64 - 1
    x = (x + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


@given(seeds, st.integers(0, 2**40), st.integers(0, 2**40), st.integers(0, 100))
def test_a_draw_is_four_rounds_of_splitmix64(seed, epoch, index, draw):
    expected = splitmix64((splitmix64((splitmix64(seed % 2**64) + epoch)) + index) % 2**64)
    expected = splitmix64((expected + draw) % 2**64)
    found = bits(seed, torch.tensor(epoch), torch.tensor([index]), range(draw, draw + 1))
    assert found.item() % 2**64 == expected


@given(seeds, st.integers(1, 300), st.integers(0, 50))
def test_an_image_draws_the_same_in_any_company(seed, n, epoch):
    indices = torch.arange(n)
    together = uniform(seed, torch.tensor(epoch), indices, 5)
    some = indices[:: max(1, n // 3)].flip(0)
    apart = uniform(seed, torch.full_like(some, epoch), some, 3)
    assert torch.equal(together[some, :3], apart)
    assert together.min() >= 0
    assert together.max() < 1


def test_draws_are_even_and_independent():
    u = uniform(7, torch.tensor(3), torch.arange(50_000), 8).double()
    u = torch.cat([u, uniform(7, torch.tensor(4), torch.arange(50_000), 8).double()], 1)
    u = torch.cat([u, uniform(8, torch.tensor(3), torch.arange(50_000), 8).double()], 1)
    assert (u.mean(0) - 0.5).abs().max() < 5 * (1 / 12 / 50_000) ** 0.5
    correlation = torch.corrcoef(u.T) - torch.eye(24)
    assert correlation.abs().max() < 5 / 50_000**0.5
    neighbours = torch.corrcoef(torch.stack([u[:-1, 0], u[1:, 0]]))[0, 1]
    assert abs(neighbours) < 5 / 50_000**0.5


@given(st.integers(1, 2000))
def test_scaling_a_draw_never_reaches_the_end(n):
    last = torch.tensor(1 - 2.0**-24)
    assert int((last * n).long()) == n - 1
    assert int(last.item() * n) == n - 1


@given(seeds, st.integers(0, 100), st.integers(0, 500))
def test_order_is_a_permutation_that_changes_with_the_epoch(seed, epoch, n):
    first = order(seed, epoch, n)
    assert torch.equal(first.sort().values, torch.arange(n))
    assert torch.equal(first, order(seed, epoch, n))
    if n > 20:
        assert not torch.equal(first, order(seed, epoch + 1, n))
        assert not torch.equal(first, order(seed + 1, epoch, n))


def test_a_step_draws_what_nothing_else_does():
    assert draw_for_step(7, 30) == uniform(7, torch.tensor(-2), torch.tensor([30]), 1).item()
    steps = torch.tensor([draw_for_step(seed, step) for seed in (7, 8) for step in range(60)])
    images = uniform(7, torch.tensor(0), torch.arange(20), 1).flatten()
    assert len(torch.cat([steps, images]).unique()) == 140


def test_the_draws_of_today_are_for_ever():
    found = uniform(5, torch.tensor(2), torch.tensor([11]), 3)[0] * 2**24
    assert found.tolist() == [1298948, 398045, 1231247]


def test_order_is_for_ever():
    assert order(0, 0, 10).tolist() == [8, 4, 2, 0, 9, 7, 5, 6, 1, 3]
    assert order(1, 5, 10).tolist() == [8, 3, 5, 1, 0, 2, 6, 9, 7, 4]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=200), seeds)
def test_every_prefix_of_spread_is_stratified(labels, seed):
    places = stratified_order(torch.tensor(labels), seed)
    assert sorted(places.tolist()) == list(range(len(labels)))
    shuffled = np.array(labels)[places.numpy()]
    for end in range(len(labels) + 1):
        for label in set(labels):
            share = end * labels.count(label) / len(labels)
            assert abs((shuffled[:end] == label).sum() - share) <= len(set(labels)) / 2 + 1

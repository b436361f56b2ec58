from collections import Counter

import torch
from hypothesis import given
from hypothesis import strategies as st

from resnets.data.rng import order, shuffled
from resnets.data.sampling import balanced_sampler

LABELS = torch.tensor([0] * 7 + [3] * 2 + [1] * 3)  # none of class 2


def rows(sample, start, stop):
    indices, views = sample(torch.arange(start, stop))
    return list(zip(indices.tolist(), views.tolist(), strict=True))


def test_every_class_comes_once_in_a_round_and_every_image_once_in_a_pass():
    drawn = rows(balanced_sampler(5, LABELS, 1), 0, 3 * 42)  # 42 rounds: 6, 21 and 14 passes
    classes = [int(LABELS[index]) for index, _ in drawn]
    places = {tuple(classes[k : k + 3]) for k in range(0, len(classes), 3)}
    assert len(places) == 6  # all orders of the three classes
    assert all(sorted(place) == [0, 1, 3] for place in places)
    expected = {0: 6, 3: 21, 1: 14}
    counts = Counter(index for index, _ in drawn)
    assert counts == {i: expected[int(label)] for i, label in enumerate(LABELS)}
    assert len(set(drawn)) == len(drawn)  # each time with other draws
    for label, (start, stop) in {0: (0, 7), 3: (7, 9), 1: (9, 12)}.items():
        found = [row for row in drawn if LABELS[row[0]] == label]
        members = torch.arange(start, stop)
        assert found == [
            (index, epoch)
            for epoch in range(expected[label])
            for index in shuffled(5, epoch, members).tolist()
        ]


@given(st.integers(0, 200), st.integers(1, 40), st.integers(1, 3))
def test_a_position_has_its_image_wherever_the_stream_begins(start, count, repeats):
    whole = rows(balanced_sampler(1, LABELS, repeats), 0, start + count)
    assert rows(balanced_sampler(1, LABELS, repeats), start, start + count) == whole[start:]


def test_repeated_images_are_other_views():
    once = rows(balanced_sampler(2, LABELS, 1), 0, 10)
    twice = rows(balanced_sampler(2, LABELS, 2), 0, 20)
    assert twice == [(index, view + c * 2**32) for index, view in once for c in (0, 1)]


def test_some_images_keep_the_order_of_all():
    some = torch.tensor([8, 1, 5, 11])
    among_all = [i for i in order(4, 6, 12).tolist() if i in some]
    assert shuffled(4, 6, some).tolist() == among_all

"""kill -9: the run goes on bit for bit, and there is always a checkpoint to go on from."""

import random

import pytest

from faults.kills import POINTS, chain, differences, fault


@pytest.mark.parametrize("point", ["in the middle of the write", "in a step beside the writer"])
def test_a_kill_changes_nothing(driver, whole, tmp_path, point):
    assert chain(driver, tmp_path / "run", [fault(random.Random(0), point)]) == 1
    assert differences(tmp_path / "run", whole) == []


@pytest.mark.slow
def test_each_point_and_any_time_up_to_five_in_a_row(driver, whole, tmp_path):
    rng = random.Random(1)
    names = [*POINTS, *[""] * len(POINTS)]
    rng.shuffle(names)
    killed = number = 0
    while names:
        some = [names.pop() for _ in range(min(len(names), rng.randint(1, 5)))]
        run = tmp_path / f"run-{number}"
        killed += chain(driver, run, [fault(rng, name) for name in some])
        assert differences(run, whole) == [], some
        number += 1
    assert killed >= 20

"""kill -9: the run goes on bit for bit, and there is always a checkpoint to go on from."""

import pytest

from tests.training.faults.kills import POINTS, kill


def test_a_kill_changes_nothing(driver, whole, tmp_path):
    kill(driver, whole, tmp_path, ["in the middle of the write", "in a step beside the writer"], 0)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_each_point_and_any_time_up_to_five_in_a_row(driver, whole, tmp_path):
    kill(driver, whole, tmp_path, [*POINTS, *[""] * len(POINTS)], 1)

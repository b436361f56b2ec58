"""When a run is evaluated, and what a new error on the held-out images decides."""

import pytest

from resnets.training.monitor import evaluation_due, update_best
from resnets.training.run import Run
from resnets.training.state import TrainProgress

from .test_loop import small_plan


@pytest.mark.parametrize(
    ("step", "logged", "due"),
    [
        (0, 0, False),  # nothing was trained yet
        (10, 0, True),
        (10, 10, False),  # a resumed run has its row
        (11, 10, False),
        (20, 10, True),
        (30, 20, False),  # the end, two steps later, has a row of its own
        (32, 20, True),
        (32, 32, False),
    ],
)
def test_rows_are_at_intervals_and_at_the_end_but_not_twice_near_it(step, logged, due):
    progress = TrainProgress(step=step, steps=32, last_logged_step=logged)
    assert evaluation_due(progress, 10) == due


def errors(plan, tmp_path, *values):
    """The progress after evaluations with these errors."""
    progress = TrainProgress(step=5, steps=99)
    network = plan.start().average
    for value in values:
        update_best(Run(tmp_path), plan, progress, network, {"error": value, "loss": 1.0})
    return progress


def test_a_plateau_drops_the_rate_and_counts_anew(tmp_path):
    plan = small_plan(schedule="plateau", patience=2, warmup=0)
    progress = errors(plan, tmp_path, 0.5, 0.4, 0.4, 0.6, 0.7, 0.8, 0.9)
    assert (progress.best_figure, progress.lr_drops) == (0.4, 2)
    assert (progress.evals_since_best, progress.evals_since_drop) == (5, 1)
    assert progress.steps == 99


def test_patience_ends_the_run_at_this_step(tmp_path):
    plan = small_plan(early_stop_patience=2)
    assert not errors(plan, tmp_path, 0.5, 0.6).done
    assert errors(plan, tmp_path, 0.5, 0.6, 0.5).done
    assert not errors(plan, tmp_path, 0.5, 0.6, 0.4, 0.4).done


def test_the_best_state_is_written_when_it_is_the_best(tmp_path):
    plan, run = small_plan(select="best"), Run(tmp_path)
    assert not run.best.exists()
    errors(plan, tmp_path, 0.5)
    written = run.best.stat().st_mtime_ns
    errors(small_plan(), tmp_path, 0.5, 0.4)  # a recipe that takes the last state
    assert run.best.stat().st_mtime_ns == written

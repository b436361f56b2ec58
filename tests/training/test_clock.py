"""By a clock that the test moves."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from resnets.training import clock
from resnets.training.clock import Clock, estimate_duration
from resnets.training.state import TrainProgress
from resnets.training.step import Step

from .test_loop import small_plan


@pytest.fixture
def now(monkeypatch):
    """A list of the one time that both of Python's clocks show."""
    seconds = [100.0]
    fake = SimpleNamespace(monotonic=lambda: seconds[0], perf_counter=lambda: seconds[0])
    monkeypatch.setattr(clock, "time", fake)
    return seconds


def advance(timer, now, steps, seconds):
    timer.progress.step += steps
    now[0] += seconds
    timer.tick()


def test_speed_and_what_remains_are_since_the_clock_was_made(now):
    plan = small_plan(steps=24)  # of 32 images
    timer = Clock(replace(plan, began=90.0), TrainProgress(step=4, steps=24))
    advance(timer, now, 10, 5.0)
    report = timer.report()
    assert report.images_per_second == pytest.approx(64)
    assert report.remaining_seconds == pytest.approx(5.0)  # 10 steps, two a second
    assert report.epoch == pytest.approx(14 * 32 / len(plan.train))
    assert timer.progress.seconds == 15.0  # since the plan began


def test_a_report_is_due_half_a_second_after_the_last(now):
    timer = Clock(small_plan(), TrainProgress(steps=24))
    advance(timer, now, 1, 0.5)
    assert not timer.report_due
    advance(timer, now, 1, 0.1)
    assert timer.report_due
    timer.last_report = timer.now
    assert not timer.report_due


def test_a_budget_has_as_many_steps_as_fit_before_the_test_of_the_result(now):
    plan = replace(small_plan(budget=100.0), began=now[0])
    timer = Clock(plan, TrainProgress(steps=24))
    timer.tick()
    assert timer.budget_steps() == 0  # nothing is measured yet
    advance(timer, now, 10, 2.0)
    assert timer.budget_steps() == 0  # not more than fifty times in a run
    advance(timer, now, 10, 2.0)
    timer.seconds_per_test_image = 0.01
    tail = plan.tail_seconds(0.2 / 32 / 3, 0.01)  # a forward pass is about a third of a step
    assert timer.budget_steps() == 20 + round((100 - 4 - tail) / 0.2)
    assert timer.budget_steps() == 0
    timer.tick()
    now[0] += 1.0
    timer.record_evaluation(100)
    assert timer.seconds_per_eval_image == pytest.approx(0.01)
    advance(timer, now, 10, 2.0)
    tail = plan.tail_seconds(0.01, 0.01)
    assert timer.budget_steps() == 30 + round((100 - 7 - tail) / (7 / 30))


def test_a_budget_that_is_spent_leaves_one_step_and_none_is_no_budget(now):
    spent = Clock(replace(small_plan(budget=3.0), began=now[0]), TrainProgress(steps=24))
    advance(spent, now, 5, 9.0)
    assert spent.budget_steps() == 6
    endless = Clock(small_plan(), TrainProgress(steps=24))
    advance(endless, now, 5, 9.0)
    assert endless.budget_steps() == 0


def test_an_estimate_is_of_the_median_step_without_the_first(now, monkeypatch):
    seconds = iter([9.0, 0.5, 0.7, 0.6, 5.0])

    def step(self, batch):
        now[0] += next(seconds)

    monkeypatch.setattr(Step, "update", step)
    assert estimate_duration(small_plan(steps=24)) == pytest.approx(24 * 0.6)

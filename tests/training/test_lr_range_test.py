from dataclasses import replace

import pytest
import torch

from resnets.config.recipes import digits
from resnets.data import dataset
from resnets.errors import UsageError
from resnets.training import resolve as plans
from resnets.training.lr_range_test import lr_range_test
from resnets.training.step import Step


def a_plan(**changes):
    recipe = replace(digits(), model="resnet8", size=8, steps=12, batch=32, precision="float32")
    recipe = replace(recipe, **changes)
    return plans.resolve(recipe, dataset.load("digits"), torch.device("cpu"), 0)


def test_the_steps_are_those_of_a_run_at_that_rate():
    plan = a_plan(lr=0.05, schedule="step", warmup=0, micro_batch=16, ema=0.9)
    state = plan.start()
    step, losses = Step(plan, state), []
    for batch in plan.batches(state.progress):
        step.update(batch)
        losses.append(float(state.totals[0] / state.totals[2]))
        state.totals.zero_()
    rates, averages, _ = lr_range_test(plan, 0.05, 0.05 * (1 + 1e-12), 12)
    assert rates == pytest.approx([0.05] * 12, rel=1e-9)
    # By hand: the weights 0.9^0, 0.9^1, ... of the last, the one before, ...
    for k, average in enumerate(averages):
        weights = [0.9 ** (k - i) for i in range(k + 1)]
        by_hand = sum(w * x for w, x in zip(weights, losses, strict=False)) / sum(weights)
        assert average == pytest.approx(by_hand, rel=1e-6)


def test_rates_grow_exponentially_and_the_tenth_of_the_best_is_suggested():
    rates, losses, suggestion = lr_range_test(a_plan(), 1e-4, 1.0, 9)
    assert rates == pytest.approx([10 ** (k / 2 - 4) for k in range(9)])
    assert suggestion == rates[losses.index(min(losses))] / 10


def test_it_ends_where_the_loss_explodes():
    rates, losses, suggestion = lr_range_test(a_plan(momentum=0.99), 1e-3, 1e4, 60)
    assert len(rates) == len(losses) < 60
    assert all(loss <= 4 * min(losses[: k + 1]) for k, loss in enumerate(losses[:-1]))
    assert suggestion < 1


def test_warmup_frozen_layers_a_budget_and_the_schedule_play_no_part():
    changes = {
        "warmup": 0.5,
        "freeze_backbone_epochs": 1.0,
        "budget": 60.0,
        "schedule": "one-cycle",
        "lr": 3.0,
    }
    assert lr_range_test(a_plan(**changes), steps=5) == lr_range_test(a_plan(), steps=5)


@pytest.mark.parametrize("wrong", [(0.0, 1.0, 10), (1.0, 0.1, 10), (0.1, 1.0, 1)])
def test_a_range_has_two_ends(wrong):
    with pytest.raises(UsageError, match="not a range of rates"):
        lr_range_test(a_plan(), *wrong)

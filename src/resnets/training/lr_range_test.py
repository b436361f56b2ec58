"""The learning-rate range test: 1506.01186, section 3.3."""

from __future__ import annotations

from dataclasses import replace

from resnets.errors import UsageError
from resnets.training.plan import Plan
from resnets.training.step import Step

LOSS_DECAY = 0.9  # of the average loss
STOP_RATIO = 4.0  # the test ends where the average loss is so many times its best


def lr_range_test(
    plan: Plan, low: float = 1e-5, high: float = 10.0, steps: int = 100
) -> tuple[list[float], list[float], float]:
    """Rates that grow exponentially, the average loss after a step at each, and a suggestion.

    A new network is trained with the plan's steps, without warmup, frozen layers and growing
    images, and thrown away. The test ends early when a step is not finite or the average loss is
    four times its best. Suggested is a tenth of the rate where the loss is lowest, and not the one
    where it falls fastest: from step to step that is noise, and the average lags behind.

    Raises UsageError: not 0 < low < high, fewer than 2 steps, or no finite loss at all.
    """
    if not 0 < low < high or steps < 2:
        raise UsageError(f"not a range of rates: {steps} steps from {low:g} to {high:g}")
    recipe = replace(
        plan.recipe, steps=steps, budget=0.0, freeze_backbone_epochs=0.0, progressive_from=0
    )
    recipe = replace(recipe, lr=1.0, lr_batch=0, schedule="step", milestones=(), warmup=0.0)
    plan = replace(plan, recipe=recipe)
    step, average = Step(plan, state := plan.start()), 0.0
    rates, losses = list[float](), list[float]()
    for k, batch in enumerate(plan.batches(state.progress)):
        rate = state.progress.lr_scale = low * (high / low) ** (k / (steps - 1))
        if step.update(batch) != "done":
            break
        loss, _, images = state.totals.tolist()
        state.totals.zero_()
        average = LOSS_DECAY * average + (1 - LOSS_DECAY) * loss / images
        rates.append(rate)
        losses.append(average / (1 - LOSS_DECAY ** (k + 1)))  # corrected for its start at zero
        if losses[-1] > STOP_RATIO * min(losses):
            break
    if not losses:
        raise UsageError(f"the loss is not finite at the first rate, {low:g}; try a lower one")
    return rates, losses, rates[losses.index(min(losses))] / 10

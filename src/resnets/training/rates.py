"""The learning-rate range test: 1506.01186, section 3.3."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from resnets.errors import UsageError
from resnets.training.fit import batches
from resnets.training.plan import Plan
from resnets.training.state import Course, State
from resnets.training.step import Step

MEMORY = 0.9  # decay of the average loss
WORSE = 4.0  # times the best average loss, where the test ends


@dataclass(frozen=True)
class RangeTest:
    """Rates, the average loss after a step at each, and what follows."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def suggestion(self) -> float:
        """A tenth of the rate where the loss is lowest.

        Not where it falls fastest: from step to step that is noise, and the average lags behind.
        """
        return self.rates[self.losses.index(min(self.losses))] / 10


def find_rate(plan: Plan, low: float = 1e-5, high: float = 10.0, steps: int = 100) -> RangeTest:
    """Train a fresh network, which is thrown away, at a rate that grows exponentially.

    Each step is the plan's own (precision, micro-batches, averaging); warmup, frozen layers and
    growing images are left out. It ends after `steps`, or when the average loss is four times its
    best or no longer finite.

    Raises:
        UsageError: not 0 < low < high, fewer than 2 steps, or a first step that is not finite.
    """
    if not 0 < low < high or steps < 2:
        raise UsageError(f"no range of rates: {steps} steps from {low:g} to {high:g}")
    length = replace(plan.recipe, steps=steps, budget=0.0, frozen=0.0, grow_from=0)
    constant = replace(length, lr=1.0, lr_batch=0, schedule="step", drops=(), warmup=0.0)
    plan = replace(plan, recipe=constant)
    state = State.start(plan.recipe, plan.arch, plan.device)
    plan.initialise(state.network, state.average)
    state.course = Course(steps=steps, micro=plan.micro)
    step, stream = Step.of(plan, state), batches(plan, state.course)
    rates: list[float] = []
    losses: list[float] = []
    average = 0.0
    for k in range(steps):
        state.course.factor = low * (high / low) ** (k / (steps - 1))
        if step.update(next(stream)) != "done":
            break
        loss, _, images = state.totals.tolist()
        state.totals.zero_()
        average = MEMORY * average + (1 - MEMORY) * loss / images
        losses.append(average / (1 - MEMORY ** (k + 1)))  # without the zero that it began at
        rates.append(state.course.factor)
        if not math.isfinite(average) or losses[-1] > WORSE * min(losses):
            break
    if not losses:
        raise UsageError(f"the loss is not finite at the rate {low:g} already; try a lower one")
    return RangeTest(tuple(rates), tuple(losses))

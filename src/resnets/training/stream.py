"""The training stream of a plan."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from resnets.data.loader import Batch, train_batches
from resnets.training.plan import Plan
from resnets.training.state import TrainProgress


def batches(plan: Plan, progress: TrainProgress) -> Iterator[Batch]:
    """This rank's batches from the step of `progress` on; under a budget they never end."""
    return train_batches(
        plan.train,
        preprocess=plan.preprocess,
        augment=plan.recipe.augment,
        batch=plan.recipe.batch,
        seed=plan.recipe.seed,
        start=progress.step,
        stop=sys.maxsize if plan.recipe.budget else progress.steps,
        device=plan.device,
        workers=plan.workers,
        rank=plan.world.rank,
        ranks=plan.world.size,
        sides=lambda step: plan.side(step, progress.steps),
    )

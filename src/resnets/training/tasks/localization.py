"""Localisation: the box of the one object of an image, its class given or predicted."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from resnets.config.tasks import LOCALIZE
from resnets.data.dataset import Split
from resnets.evaluation import localization
from resnets.evaluation.evaluate import evaluate
from resnets.evaluation.localization import LocalizationMetrics
from resnets.evaluation.predictor import Model
from resnets.models import Network
from resnets.training.plan import Plan, Stopped
from resnets.training.tasks import dense


def validate(plan: Plan, network: Network, split: Split, stopped: Stopped) -> dict[str, float]:
    """Both errors: those of each rank's images, weighted by their number."""
    loader = plan.loader_options(plan.world, stopped)
    mine = localization.evaluate(cast(Any, network), split, loader, bfloat16=plan.bfloat16)
    counts = [mine.images, mine.error * mine.images, mine.top5_error * mine.images]
    sums = torch.tensor(counts, dtype=torch.float64, device=plan.world.device)
    images, wrong, wrong_top5 = plan.world.all_reduce_sum(sums).tolist()
    return {"error": wrong / max(1, images), "top5_error": wrong_top5 / max(1, images)}


def test(folder: Path, plan: Plan, model: Model, split: Split, name: str) -> LocalizationMetrics:
    """The top-1 and top-5 errors of a result."""
    options = plan.loader_options()
    return localization.evaluate(cast(Any, model.network), split, options, name=name)


LOCALIZATION = dense.dense_task(
    text=LOCALIZE,
    default_recipe=partial(dense.default_recipe, "localize", "localizer_resnet50"),
    validate=validate,
    test=test,
    evaluate=partial(evaluate, "localize"),
)

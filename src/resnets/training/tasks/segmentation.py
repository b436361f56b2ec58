"""Semantic segmentation: a class for each pixel."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from resnets.config.tasks import SEGMENT
from resnets.data.dataset import Split
from resnets.evaluation import segmentation
from resnets.evaluation.evaluate import evaluate
from resnets.evaluation.predictor import Model
from resnets.evaluation.segmentation import SegmentationMetrics
from resnets.models import Network
from resnets.training.plan import Plan, Stopped, example_images
from resnets.training.tasks import dense


def example_pixels(plan: Plan, count: int, side: int) -> tuple[Tensor, ...]:
    """Images with a class for each pixel: uint8 (count, side, side)."""
    classes = torch.zeros(count, side, side, dtype=torch.uint8, device=plan.device)
    return (*example_images(plan, count, side), classes)


def validate(plan: Plan, network: Network, split: Split, stopped: Stopped) -> dict[str, float]:
    """Mean IoU at the size of the views."""
    batches = plan.loader_options(plan.world, stopped).batches(split)
    classes, total = plan.source.classes, plan.world.all_reduce_sum
    figures = segmentation.evaluate(network, batches, classes, bfloat16=plan.bfloat16, total=total)
    return {"error": figures.error, "mean_iou": figures.mean_iou}


def test(folder: Path, plan: Plan, model: Model, split: Split, name: str) -> SegmentationMetrics:
    """Mean IoU at the size of the masks."""
    classes, options = plan.source.classes, plan.loader_options()
    return segmentation.evaluate_split(model.network, split, classes, options, name=name)


SEGMENTATION = dense.dense_task(
    text=SEGMENT,
    # The networks may normalise an image that is pooled to one value, so it takes two of them.
    default_recipe=partial(dense.default_recipe, "segment", "deeplabv3_resnet50", least_batch=2),
    example_inputs=example_pixels,
    validate=validate,
    test=test,
    evaluate=partial(evaluate, "segment"),
)

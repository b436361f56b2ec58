"""What detection, localisation and segmentation share: networks that compute their own losses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from resnets.config.recipe import Recipe
from resnets.config.recipes import RECIPES
from resnets.data.dataset import Source, Split
from resnets.data.detection.targets import MASK_SIZE, DetectionTargets, Kind
from resnets.training.plan import LossFunction, Plan, Task, example_images


def default_recipe(
    name: str,
    gpu_model: str,
    source: Source,
    train: Split,
    device: torch.device,
    least_batch: int = 1,
) -> Recipe:
    """The published recipe of that name with epochs and a batch that suit the number of images.

    On a GPU it is for `gpu_model`, at the size of that network.
    """
    recipe = RECIPES[name]()
    if device.type == "cuda":
        recipe = replace(recipe, model=gpu_model, size=0)
    epochs = min(100.0, max(12.0, 30_000 / len(train)))
    batch = max(least_batch, 2 ** max(0, (len(train) // 4).bit_length() - 1))
    return replace(recipe, data=source.name, epochs=epochs, batch=min(recipe.batch, batch))


def contradictions(plan: Plan) -> Iterator[str]:
    """Fields of a recipe that only classification has."""
    usual = Recipe(model=plan.recipe.model)
    for name in ("loss", "class_weights", "label_smoothing", "teacher", "precise_bn", "head"):
        if getattr(plan.recipe, name) != getattr(usual, name):
            yield f"{name} is for classification: --set {name}={getattr(usual, name)}"
    if plan.recipe.select == "lowest-loss":
        yield "select=lowest-loss is for classification: --set select=best"


def make_loss(plan: Plan) -> LossFunction:
    """The sum of the losses that a network computes itself, and its share of wrong decisions."""

    def loss(network: nn.Module, images: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=plan.bfloat16):
            losses = network(images, targets)  # (k,): the losses, and the share of wrong decisions
        return losses[:-1].sum(), losses[-1].detach() * len(images)

    return loss


def example_objects(plan: Plan, count: int, side: int) -> tuple[Tensor | DetectionTargets, ...]:
    """Images with an object each, and its mask where the data has masks."""
    targets = DetectionTargets(
        torch.tensor([0, 0, side / 2, side / 2]).repeat(count, 1, 1),
        torch.zeros(count, 1, dtype=torch.int64),
        torch.full((count, 1), Kind.OBJECT, dtype=torch.uint8),
        torch.zeros(count, 1, MASK_SIZE, MASK_SIZE) if plan.train.masks else None,
    )
    return (*example_images(plan, count, side), targets.to(plan.device))


dense_task = partial(
    Task,
    contradictions=contradictions,
    make_loss=make_loss,
    example_inputs=example_objects,
    whole_images=True,
)

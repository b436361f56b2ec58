"""What differs between the tasks in training: the loop does not ask which one it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from resnets.config import arch as archs
from resnets.data.joint_transforms import MASK_SIZE
from resnets.data.mixup import mix_batch
from resnets.data.splits import Split
from resnets.evaluation import classification, detection, localization, metrics, segmentation
from resnets.evaluation import scores as scores_room
from resnets.evaluation.detection import DetectionMetrics
from resnets.evaluation.loading import LoaderOptions
from resnets.evaluation.localization import LocalizationMetrics
from resnets.evaluation.metrics import ClassificationMetrics
from resnets.evaluation.predictor import Model
from resnets.evaluation.segmentation import SegmentationMetrics
from resnets.models import Network
from resnets.training.distributed import SINGLE_PROCESS, World
from resnets.training.losses import (
    class_weights,
    classification_loss,
    count_errors,
    distillation_loss,
    to_one_hot,
)
from resnets.training.plan import Plan
from resnets.training.run import Run

SCORES, DETECTIONS = "scores.safetensors", "detections.safetensors"
Tested: TypeAlias = (
    ClassificationMetrics | DetectionMetrics | LocalizationMetrics | SegmentationMetrics
)
Stopped = Callable[[], bool]
# Network, images and labels of a micro-batch -> mean loss, and number of wrong images: () each.
LossFunction = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Task:
    """How networks of a task learn, are watched while they do, and are tested at the end."""

    # What training lowers.
    loss: Callable[[Plan], LossFunction]
    # Figures of a split that the ranks look at together, "error" among them; of no account once
    # a signal has stopped it.
    watch: Callable[[Plan, Network, Split, Stopped], dict[str, float]]
    # The temperature of a result (1706.04599), from the validation images.
    temperature: Callable[[Plan, Model], float | None]
    # The figures of the result, whose details are kept in the run's folder.
    test: Callable[[Run, Plan, Model, Split, str], Tested]
    # What a training step calls the network with, of that many images and that side, all zeros.
    inputs: Callable[[Plan, int, int], tuple[Tensor, ...]]
    kept: str = ""  # the file of details that `test` leaves


def task_of_plan(plan: Plan) -> Task:
    """The task of a plan's network."""
    return TASKS[archs.task(plan.arch)]


def reading(plan: Plan, world: World) -> LoaderOptions:
    """How this rank reads its part of a split."""
    return LoaderOptions(
        preprocess=plan.preprocess,
        device=plan.device,
        batch=plan.micro,
        workers=plan.workers,
        rank=world.rank,
        ranks=world.size,
    )


def images(plan: Plan, count: int, side: int) -> tuple[Tensor, ...]:
    """A classifier takes images alone."""
    zeros = torch.zeros(count, plan.preprocess.channels, side, side, device=plan.device)
    return (zeros.contiguous(memory_format=torch.channels_last),)


def recipe_loss(plan: Plan) -> LossFunction:
    """The recipe's loss of mixed images, with the teacher's share if there is one."""
    recipe, arch, bfloat16 = plan.recipe, plan.arch, plan.bfloat16
    teacher = plan.teacher.network.to(plan.device).eval() if plan.teacher else None
    weights: Tensor | None = None
    if recipe.class_weights == "balanced":
        weights = class_weights(plan.train.labels, arch.classes).to(plan.device)

    def loss(network: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        images, targets = mix_batch(images, to_one_hot(labels, arch.classes), recipe.augment)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bfloat16):
            logits = network(images).float()
        mean = classification_loss(
            logits, targets, kind=recipe.loss, smoothing=recipe.label_smoothing, weights=weights
        )
        if teacher is not None:
            answers = classification.predict_batch(teacher, images, bfloat16=bfloat16)
            taught = distillation_loss(logits, answers, recipe.temperature)
            mean = (1 - recipe.distill_weight) * mean + recipe.distill_weight * taught
        return mean, count_errors(logits, targets, several=labels.ndim == 2)

    return loss


def watch_classes(plan: Plan, network: Network, split: Split, stopped: Stopped) -> dict[str, float]:
    """Error and loss."""
    batches = takewhile(lambda _: not stopped(), reading(plan, plan.world).batches(split))
    names, total = plan.source.classes, plan.world.all_reduce_sum
    means = classification.evaluate(network, batches, names, bfloat16=plan.bfloat16, total=total)
    return {"error": means.error, "loss": means.loss}


def fit_temperature(plan: Plan, model: Model) -> float | None:
    """That which makes the probabilities true of the validation images."""
    if plan.source.val is None:
        return None
    scores = model.scores(plan.source.val, batch=plan.micro, workers=plan.workers)
    return metrics.fit_temperature(scores)


def test_classes(
    run: Run, plan: Plan, model: Model, split: Split, name: str
) -> ClassificationMetrics:
    """Every figure of the scores, which are kept."""
    scores = model.scores(split, batch=plan.micro, workers=plan.workers)
    scores_room.save(run.path / SCORES, scores)
    return metrics.classification_metrics(scores, name)


def network_loss(plan: Plan) -> LossFunction:
    """The sum of the losses that a dense network computes itself, and its wrong decisions."""

    def loss(network: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=plan.bfloat16):
            losses = network(images, labels)  # (k,): losses, and the share of wrong decisions
        return losses[:-1].sum(), losses[-1].detach() * len(images)

    return loss


def objects(plan: Plan, count: int, side: int) -> tuple[Tensor, ...]:
    """Images with an object each, and its mask where there are masks."""
    cells = MASK_SIZE**2 if plan.train.masks else 0
    rows = torch.zeros(count, 1, 6 + cells, device=plan.device)
    rows[..., 2:4], rows[..., 5] = side / 2, 1
    return (*images(plan, count, side), rows)


def pixels(plan: Plan, count: int, side: int) -> tuple[Tensor, ...]:
    """Images with a class for each pixel."""
    classes = torch.zeros(count, side, side, dtype=torch.uint8, device=plan.device)
    return (*images(plan, count, side), classes)


def watch_objects(plan: Plan, network: Any, split: Split, stopped: Stopped) -> dict[str, float]:
    """COCO's averages of what all ranks find; one that has no meaning is left out."""
    here = reading(plan, plan.world)
    part = detection.detect(network, split, here, bfloat16=plan.bfloat16, stopped=stopped)
    found = detection.concatenate(plan.world.gather(part))
    if stopped():
        return {"error": 1.0}
    figures = detection.evaluate_predictions(found, split, plan.source.classes)
    means = {"map": figures.map, "map50": figures.map50}
    if figures.masks:
        means["mask_map"] = figures.masks.map
    known = {name: value for name, value in means.items() if value is not None}
    return {"error": figures.error, **known}


def test_objects(run: Run, plan: Plan, model: Model, split: Split, name: str) -> DetectionMetrics:
    """COCO's figures and VOC's of what is found, which is kept."""
    found = detection.detect(cast(Any, model.network), split, reading(plan, SINGLE_PROCESS))
    detection.save(run.path / DETECTIONS, found)
    return detection.evaluate_predictions(found, split, plan.source.classes, name)


def watch_places(plan: Plan, network: Any, split: Split, stopped: Stopped) -> dict[str, float]:
    """The errors of this rank's images, weighted by their number."""
    here = reading(plan, plan.world)
    part = localization.evaluate(network, split, here, bfloat16=plan.bfloat16, stopped=stopped)
    sums = torch.tensor([part.images, part.error * part.images, part.top5_error * part.images])
    images, given, five = plan.world.all_reduce_sum(sums.double().to(plan.world.device)).tolist()
    return {"error": given / max(1, images), "top5_error": five / max(1, images)}


def test_places(run: Run, plan: Plan, model: Model, split: Split, name: str) -> LocalizationMetrics:
    """Both errors."""
    return localization.evaluate(
        cast(Any, model.network), split, reading(plan, SINGLE_PROCESS), name=name
    )


def watch_pixels(plan: Plan, network: Network, split: Split, stopped: Stopped) -> dict[str, float]:
    """Mean IoU at the size of the views."""
    batches = takewhile(lambda _: not stopped(), reading(plan, plan.world).batches(split))
    names, total = plan.source.classes, plan.world.all_reduce_sum
    figures = segmentation.evaluate(network, batches, names, bfloat16=plan.bfloat16, total=total)
    return {"error": figures.error, "mean_iou": figures.mean_iou}


def test_pixels(run: Run, plan: Plan, model: Model, split: Split, name: str) -> SegmentationMetrics:
    """Mean IoU at the size of the masks."""
    return segmentation.evaluate_split(
        model.network, split, plan.source.classes, reading(plan, SINGLE_PROCESS), name=name
    )


def no_temperature(plan: Plan, model: Model) -> None:
    """Scores of scenes stay as they are."""


TASKS = {
    "classify": Task(recipe_loss, watch_classes, fit_temperature, test_classes, images, SCORES),
    "detect": Task(network_loss, watch_objects, no_temperature, test_objects, objects, DETECTIONS),
    "localize": Task(network_loss, watch_places, no_temperature, test_places, objects),
    "segment": Task(network_loss, watch_pixels, no_temperature, test_pixels, pixels),
}

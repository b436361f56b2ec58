"""What differs between the tasks in training: the loop does not ask which one it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import Tensor

from resnets.config import arch as archs
from resnets.data.joint_transforms import MASK
from resnets.data.loader import test_batches
from resnets.data.mixup import mix
from resnets.data.splits import Split
from resnets.evaluation import classification, detection, localization, metrics, segmentation
from resnets.evaluation import scores as scores_room
from resnets.evaluation.detection import Detected
from resnets.evaluation.localization import Localized
from resnets.evaluation.metrics import Result
from resnets.evaluation.predictor import Model
from resnets.evaluation.scenes import Reading
from resnets.evaluation.segmentation import Segmented
from resnets.models import Network
from resnets.training.distributed import ALONE, World
from resnets.training.losses import dense, missed
from resnets.training.plan import Plan
from resnets.training.run import Run

if TYPE_CHECKING:
    from resnets.training.step import Step

SCORES, DETECTIONS = "scores.safetensors", "detections.safetensors"
Tested: TypeAlias = Result | Detected | Localized | Segmented
Stopped = Callable[[], bool]


@dataclass(frozen=True)
class Task:
    """How networks of a task learn, are watched while they do, and are tested at the end."""

    # Images and labels of a micro-batch -> the mean loss, and wrong answers in images.
    learn: Callable[[Step, Tensor, Tensor], tuple[Tensor, Tensor]]
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


def of(plan: Plan) -> Task:
    """The task of a plan's network."""
    return TASKS[archs.task(plan.arch)]


def reading(plan: Plan, world: World) -> Reading:
    """How this rank reads its part of a split."""
    return Reading(
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


def classified(step: Step, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The recipe's loss of mixed images, and the wrong answers."""
    plan = step.plan
    images, targets = mix(images, dense(labels, plan.arch.classes), plan.recipe.augment)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=plan.bfloat16):
        logits = step.replica(images).float()
    loss = step.loss(images, logits, targets)
    return loss, missed(logits, targets, several=labels.ndim == 2)


def watch_classes(plan: Plan, network: Network, split: Split, stopped: Stopped) -> dict[str, float]:
    """Error and loss."""
    batches = takewhile(lambda _: not stopped(), test_batches(split, **reading(plan, plan.world)))
    names, total = plan.source.classes, plan.world.sum
    means = classification.evaluate(network, batches, names, bfloat16=plan.bfloat16, total=total)
    return {"error": means.error, "loss": means.loss}


def fit_temperature(plan: Plan, model: Model) -> float | None:
    """That which makes the probabilities true of the validation images."""
    if plan.source.val is None:
        return None
    scores = model.scores(plan.source.val, batch=plan.micro, workers=plan.workers)
    return metrics.fit_temperature(scores)


def test_classes(run: Run, plan: Plan, model: Model, split: Split, name: str) -> Result:
    """Every figure of the scores, which are kept."""
    scores = model.scores(split, batch=plan.micro, workers=plan.workers)
    scores_room.save(run.path / SCORES, scores)
    return metrics.result(scores, name)


def seen(step: Step, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of a scene network's losses, and its share of wrong decisions."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=step.plan.bfloat16):
        parts = step.replica(images, labels)
    return parts[:-1].sum(), parts[-1].detach() * len(images)


def objects(plan: Plan, count: int, side: int) -> tuple[Tensor, ...]:
    """Images with an object each, and its mask where there are masks."""
    cells = MASK**2 if plan.train.masks else 0
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
    part = detection.find(network, split, bfloat16=plan.bfloat16, stopped=stopped, **here)
    found = detection.join(plan.world.gather(part))
    if stopped():
        return {"error": 1.0}
    figures = detection.measure(found, split, plan.source.classes)
    means = {"map": figures.map, "map50": figures.map50}
    if figures.masks:
        means["mask_map"] = figures.masks.map
    known = {name: value for name, value in means.items() if value is not None}
    return {"error": figures.error, **known}


def test_objects(run: Run, plan: Plan, model: Model, split: Split, name: str) -> Detected:
    """COCO's figures and VOC's of what is found, which is kept."""
    found = detection.find(cast(Any, model.network), split, **reading(plan, ALONE))
    detection.save(run.path / DETECTIONS, found)
    return detection.measure(found, split, plan.source.classes, name)


def watch_places(plan: Plan, network: Any, split: Split, stopped: Stopped) -> dict[str, float]:
    """The errors of this rank's images, weighted by their number."""
    here = reading(plan, plan.world)
    part = localization.localization(
        network, split, bfloat16=plan.bfloat16, stopped=stopped, **here
    )
    sums = torch.tensor([part.images, part.error * part.images, part.top5_error * part.images])
    images, given, five = plan.world.sum(sums.double().to(plan.world.device)).tolist()
    return {"error": given / max(1, images), "top5_error": five / max(1, images)}


def test_places(run: Run, plan: Plan, model: Model, split: Split, name: str) -> Localized:
    """Both errors."""
    return localization.localization(
        cast(Any, model.network), split, name=name, **reading(plan, ALONE)
    )


def watch_pixels(plan: Plan, network: Network, split: Split, stopped: Stopped) -> dict[str, float]:
    """Mean IoU at the size of the views."""
    batches = takewhile(lambda _: not stopped(), test_batches(split, **reading(plan, plan.world)))
    names, total = plan.source.classes, plan.world.sum
    figures = segmentation.evaluate(network, batches, names, bfloat16=plan.bfloat16, total=total)
    return {"error": figures.error, "mean_iou": figures.mean_iou}


def test_pixels(run: Run, plan: Plan, model: Model, split: Split, name: str) -> Segmented:
    """Mean IoU at the size of the masks."""
    return segmentation.segment(
        model.network, split, plan.source.classes, name=name, **reading(plan, ALONE)
    )


def no_temperature(plan: Plan, model: Model) -> None:
    """Scores of scenes stay as they are."""


TASKS = {
    "classify": Task(classified, watch_classes, fit_temperature, test_classes, images, SCORES),
    "detect": Task(seen, watch_objects, no_temperature, test_objects, objects, DETECTIONS),
    "localize": Task(seen, watch_places, no_temperature, test_places, objects),
    "segment": Task(seen, watch_pixels, no_temperature, test_pixels, pixels),
}

"""Localisation: the box of an image's object, and the error of ILSVRC.

It is whether a box is on the object, given its class or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from resnets.config.types import EvaluateOptions
from resnets.data.splits import Split
from resnets.errors import CheckpointError, quantify
from resnets.evaluation.detection import find_boxes, prepare_detector
from resnets.evaluation.intervals import wilson_interval
from resnets.evaluation.loader import LoaderOptions
from resnets.models.detection.boxes import BatchDetections, iou

if TYPE_CHECKING:  # these modules import this one
    from resnets.evaluation.evaluate import EvalSetup
    from resnets.evaluation.predictor import Model


class Locate(Protocol):
    """A localiser: boxes of its best classes, the best first; or the best of given classes."""

    def __call__(self, images: Tensor, *, sizes: Tensor) -> BatchDetections: ...

    def best(self, images: Tensor, classes: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """int64 (B, k), (B, 2) -> boxes (B, k, 4), scores (B, k)."""


@dataclass(frozen=True)
class LocalizationMetrics:
    """Fractions of the images whose object is missed: no box has an IoU of 0.5 with one."""

    images: int
    error: float  # of the box of the true class
    error_interval: tuple[float, float]  # 95 %
    top5_error: float  # of the boxes of five classes, which have to include the true one
    top5_interval: tuple[float, float]  # 95 %
    unreadable: tuple[tuple[Path, str], ...]
    split: str

    @property
    def accuracy(self) -> float:
        """1 - `error`."""
        return 1 - self.error

    @property
    def top5_accuracy(self) -> float:
        """1 - `top5_error`."""
        return 1 - self.top5_error

    def headline(self) -> str:
        """Both errors in a line."""
        (low, high), (low5, high5) = self.error_interval, self.top5_interval
        return (
            f"{self.split} localisation error {100 * self.error:.2f} % given the class "
            f"({100 * low:.2f} to {100 * high:.2f} at 95 % by Wilson), by five classes "
            f"{100 * self.top5_error:.2f} % ({100 * low5:.2f} to {100 * high5:.2f}), "
            + quantify(self.images, "images")
        )

    def per_class(self) -> list[dict[str, Any]]:
        """Nothing: the errors are of images."""
        return []

    def summary(self) -> dict[str, Any]:
        """The stable JSON form."""
        return {
            "split": self.split,
            "images": self.images,
            "error": round(self.error, 6),
            "error_interval_95": [round(x, 6) for x in self.error_interval],
            "top5_error": round(self.top5_error, 6),
            "top5_interval_95": [round(x, 6) for x in self.top5_interval],
            "unreadable": [str(path) for path, _ in self.unreadable],
        }


@torch.inference_mode()
def evaluate(
    network: Locate,
    split: Split,
    loader: LoaderOptions,
    *,
    predicted: Tensor | None = None,
    name: str = "test",
    bfloat16: bool = False,
) -> LocalizationMetrics:
    """Both errors (1512.03385, Table 13) of a network in evaluation mode.

    The class of an image is that of its first object; images without objects do not count.
    `predicted` are five classes of each image of the split by a classifier, int64 (N, 5); without
    it the network's own are taken. Raises as `test_batches`.
    """
    hits, unreadable = [torch.empty(0, 2, dtype=torch.bool)], list[tuple[Path, str]]()
    for batch, sizes, _ in loader.sized_batches(split):
        unreadable += batch.unreadable
        images, objects = batch.images, batch.objects
        if objects is None or not objects.kind.numel():
            continue
        first = objects.is_object.byte().argmax(1, keepdim=True)
        label = objects.classes.gather(1, first)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bfloat16):
            if predicted is None:
                output = network(images, sizes=sizes)
                classes = output.classes[:, :5]
                true_class_box, _ = network.best(images, label, sizes)
                boxes = torch.cat([true_class_box, output.boxes[:, :5]], 1)
            else:
                classes = predicted[batch.indices].to(images.device)
                boxes, _ = network.best(images, torch.cat([label, classes], 1), sizes)
        of_class = objects.is_object & (objects.classes == label)
        is_near = (iou(boxes.float(), objects.boxes) * of_class[:, None]).amax(2) >= 0.5
        in_top5 = (is_near[:, 1:] & (classes == label)).any(1)
        hits.append(torch.stack([is_near[:, 0], in_top5], 1)[objects.is_object.any(1)].cpu())
    top1, top5 = torch.cat(hits).unbind(1)
    return LocalizationMetrics(
        len(top1), *error_interval(top1), *error_interval(top5), tuple(unreadable), name
    )


def error_interval(hits: Tensor) -> tuple[float, tuple[float, float]]:
    """The fraction of bool (N,) that is false, and its 95 % interval by Wilson."""
    low, high = wilson_interval(hits)
    return float((~hits).double().mean()) if len(hits) else 1.0, (1 - high, 1 - low)


@dataclass(frozen=True)
class LocalizationPrediction:
    """The class of one image and the box of its object; or the `problem` of an unreadable one."""

    file: str
    label: str = ""  # the name of the class
    box: tuple[float, ...] = ()  # x1, y1, x2, y2 in pixels of the image
    score: float = 0.0  # in 0..1
    problem: str | None = None


def predict(
    model: Model, files: Sequence[str], images: Sequence[Tensor], top: int, score: float
) -> list[LocalizationPrediction]:
    """The best class of each image, uint8 (C, H, W), and the box of its object."""
    predictions = []
    for file, image in zip(files, images, strict=True):
        output, boxes = find_boxes(model, image)
        label = model.metadata.classes[int(output.classes[0, 0])]
        box, best = tuple(boxes[0].tolist()), float(output.scores[0, 0])
        predictions.append(LocalizationPrediction(file, label, box, best))
    return predictions


def evaluate_localizer(
    setups: Sequence[EvalSetup], options: EvaluateOptions
) -> tuple[LocalizationMetrics, list[float]]:
    """Both errors, with the classes of another model where one is given."""
    (setup,) = setups
    model, predicted = setup.model.fold_norms(), None
    if options.classifier is not None:
        predicted = predict_five_classes(options.classifier, setup)
    network: Any = prepare_detector([model], options)
    metrics = evaluate(
        network,
        setup.split,
        model.loader_options(options.images_per_batch(4), options.workers),
        predicted=predicted,
        name=setup.split_name,
        bfloat16=model.bfloat16,
    )
    setup.check_unreadable(metrics.unreadable)
    return metrics, [metrics.error]


def predict_five_classes(model: Model, setup: EvalSetup) -> Tensor:
    """The classes that a classifier predicts: int64 (N, 5 or all), the best first.

    Raises CheckpointError where its classes are not those of the setup's localiser.
    """
    names = setup.model.metadata.classes
    if set(model.metadata.classes) != set(names):
        raise CheckpointError(f"{model.path} has other classes than the localiser")
    assert isinstance(setup.split.images, tuple)
    count, batch = min(5, len(names)), setup.options.images_per_batch(4)
    predictions = model.predict(setup.split.images, top=count, batch=batch)
    # An image that cannot be read is left out of the figures later.
    rows = [[names.index(name) for name in x.classes] or [0] * count for x in predictions]
    return torch.tensor(rows).view(-1, count)

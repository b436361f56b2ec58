"""Segmentation: classes of pixels, and every figure of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnets.config.arch import IGNORE_INDEX
from resnets.config.types import EvaluateOptions
from resnets.data.joint_transforms import class_map
from resnets.data.loader import Batch
from resnets.data.splits import Split
from resnets.errors import quantify
from resnets.evaluation.classification import confusion_matrix
from resnets.evaluation.loader import LoaderOptions, split_of_image
from resnets.evaluation.scores import predict_batch
from resnets.models.layers import check_finite

if TYPE_CHECKING:  # these modules import this one
    from resnets.evaluation.evaluate import EvalSetup
    from resnets.evaluation.predictor import Model


@dataclass(frozen=True)
class SegmentationMetrics:
    """Figures of a segmenter on one split, of all its pixels that have a class."""

    images: int
    confusion: Sequence[Sequence[int]]  # pixels, [true class][predicted class]
    classes: tuple[str, ...]
    unreadable: tuple[tuple[Path, str], ...]
    split: str

    @property
    def mean_iou(self) -> float:
        """Mean over the classes that occur in masks or predictions; 0 without any."""
        return fmean([row["iou"] for row in self.per_class() if row["iou"] is not None] or [0.0])

    @property
    def pixel_accuracy(self) -> float:
        """Fraction of the pixels whose class is predicted."""
        correct = sum(row[k] for k, row in enumerate(self.confusion))
        return correct / max(1, sum(map(sum, self.confusion)))

    @property
    def error(self) -> float:
        """1 - mean IoU."""
        return 1 - self.mean_iou

    def per_class(self) -> list[dict[str, Any]]:
        """Pixels, predicted pixels and IoU of each class; None where it does not occur."""
        rows = []
        for k, name in enumerate(self.classes):
            true, predicted = sum(self.confusion[k]), sum(row[k] for row in self.confusion)
            both = self.confusion[k][k]
            iou = both / (true + predicted - both) if true + predicted else None
            rows.append({"class": name, "pixels": true, "answers": predicted, "iou": iou})
        return rows

    def headline(self) -> str:
        """The figures in a line."""
        return (
            f"{self.split} mean IoU {self.mean_iou:.4f}, pixel accuracy {self.pixel_accuracy:.4f}, "
            + quantify(self.images, "images")
        )

    def summary(self) -> dict[str, Any]:
        """The stable JSON form."""
        return {
            "split": self.split,
            "images": self.images,
            **{k: round(getattr(self, k), 6) for k in ("error", "mean_iou", "pixel_accuracy")},
            "unreadable": [str(path) for path, _ in self.unreadable],
            "per_class": self.per_class(),
            "confusion": self.confusion,
        }


def confusion(target: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Pixels of each true and each predicted class, int64 (K, K); 255 is ignored in `target`."""
    labelled = target != IGNORE_INDEX
    return confusion_matrix(target[labelled], predicted[labelled], classes)


def evaluate(
    network: nn.Module,
    batches: Iterable[Batch],
    classes: tuple[str, ...],
    *,
    bfloat16: bool = False,
    total: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> SegmentationMetrics:
    """Figures at the size of the views, of a network in evaluation mode.

    Where each rank has a share of the images, `total` adds up their sums, int64 (K * K + 1,).
    """

    def results() -> Iterator[Compared]:
        for batch in batches:
            pairs = list[tuple[Tensor, Tensor]]()
            if len(batch.indices):
                logits = predict_batch(network, batch.images, bfloat16=bfloat16)
                pairs.append((batch.labels, logits.argmax(1)))
            yield batch, pairs

    return count_pixels(results(), classes, next(network.parameters()).device, "val", total)


def evaluate_split(
    network: nn.Module,
    split: Split,
    classes: tuple[str, ...],
    loader: LoaderOptions,
    *,
    name: str = "test",
    bfloat16: bool = False,
    total: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> SegmentationMetrics:
    """Figures at the size of the mask files, of a network in evaluation mode; as `evaluate`."""

    def results() -> Iterator[Compared]:
        for batch, maps in predict_class_maps(network, split, loader, bfloat16=bfloat16):
            targets = (true_classes(split, i, m) for i, m in zip(batch.indices, maps, strict=True))
            yield batch, zip(targets, maps, strict=True)

    return count_pixels(results(), classes, next(network.parameters()).device, name, total)


def true_classes(split: Split, index: int | Tensor, predicted: Tensor) -> Tensor:
    """The class of each pixel by an image's mask, of the shape and on the device of `predicted`."""
    file = split.masks[int(index)]
    assert isinstance(file, Path)
    return torch.from_numpy(class_map(file, *predicted.shape)).to(predicted.device)


# A batch, and true beside predicted classes of the pixels of its images.
Compared = tuple[Batch, Iterable[tuple[Tensor, Tensor]]]


def count_pixels(
    results: Iterable[Compared],
    classes: tuple[str, ...],
    device: torch.device,
    name: str,
    total: Callable[[Tensor], Tensor],
) -> SegmentationMetrics:
    """The figures of all batches; `total` as for `evaluate`."""
    k, unreadable = len(classes), list[tuple[Path, str]]()
    sums = torch.zeros(k * k + 1, dtype=torch.int64, device=device)
    for batch, pairs in results:
        unreadable += batch.unreadable
        sums[-1] += len(batch.indices)
        for target, predicted in pairs:
            sums[:-1] += confusion(target, predicted, k).flatten()
    *pixels, images = total(sums).tolist()
    rows = tuple(tuple(pixels[i : i + k]) for i in range(0, k * k, k))
    return SegmentationMetrics(images, rows, classes, tuple(unreadable), name)


@torch.inference_mode()
def predict_class_maps(
    network: nn.Module, split: Split, loader: LoaderOptions, *, bfloat16: bool = False
) -> Iterator[tuple[Batch, list[Tensor]]]:
    """Each batch, and the class of each pixel of its images at their own size: int64 (H, W).

    The logits are enlarged, not the classes. The network must be in evaluation mode. Raises as
    `test_batches`.
    """
    for batch, view_sizes, file_sizes in loader.sized_batches(split):
        maps, logits = [], tuple[Tensor, ...]()
        if len(file_sizes):
            logits = predict_batch(network, batch.images, bfloat16=bfloat16).unbind()
        sizes = zip(view_sizes.tolist(), file_sizes.tolist(), strict=True)
        for image_logits, ((h, w), size) in zip(logits, sizes, strict=True):
            view = check_finite(image_logits)[None, :, :h, :w]
            enlarged = F.interpolate(view, size, mode="bilinear", align_corners=False)
            maps.append(enlarged[0].argmax(0))
        yield batch, maps


@dataclass(frozen=True, eq=False)
class SegmentationPrediction:
    """The class of each pixel of one image; or the `problem` of an unreadable one."""

    file: str
    # int64 (H, W), indices of `classes`
    class_map: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.int64))
    classes: tuple[str, ...] = ()  # names
    problem: str | None = None

    @property
    def shares(self) -> dict[str, float]:
        """The share of the image's pixels of each class that it has, the largest first."""
        counts = torch.bincount(self.class_map.flatten(), minlength=len(self.classes))
        order = counts.argsort(descending=True, stable=True).tolist()
        total = max(1, self.class_map.numel())
        return {self.classes[k]: int(counts[k]) / total for k in order if counts[k]}


def predict(
    model: Model, files: Sequence[str], images: Sequence[Tensor], top: int, score: float
) -> list[SegmentationPrediction]:
    """The class of each pixel of images, uint8 (C, H, W)."""
    loader, names, predictions = model.loader_options(1), model.metadata.classes, []
    for file, image in zip(files, images, strict=True):
        split = split_of_image(image)
        maps = predict_class_maps(model.network, split, loader, bfloat16=model.bfloat16)
        ((_, (classes,)),) = maps
        predictions.append(SegmentationPrediction(file, classes.cpu(), names))
    return predictions


def evaluate_segmenter(
    setups: Sequence[EvalSetup], options: EvaluateOptions
) -> tuple[SegmentationMetrics, list[float]]:
    """Mean IoU."""
    (setup,) = setups
    model = setup.model.fold_norms()
    metrics = evaluate_split(
        model.network,
        setup.split,
        model.metadata.classes,
        model.loader_options(options.images_per_batch(4), options.workers),
        name=setup.split_name,
        bfloat16=model.bfloat16,
    )
    setup.check_unreadable(metrics.unreadable)
    return metrics, [metrics.error]

"""What a segmenter says of each pixel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnets.config.arch import IGNORE_INDEX
from resnets.data.joint_transforms import class_map
from resnets.data.loader import Batch
from resnets.data.splits import Split
from resnets.evaluation.classification import predict_batch
from resnets.evaluation.loading import LoaderOptions, sized_batches
from resnets.models.layers import check_finite


@dataclass(frozen=True)
class SegmentationMetrics:
    """Figures of a segmenter on one split, of all its pixels that have a class."""

    images: int
    confusion: tuple[tuple[int, ...], ...]  # pixels, [true class][class given]
    classes: tuple[str, ...]
    unreadable: tuple[tuple[Path, str], ...]
    split: str

    @property
    def mean_iou(self) -> float:
        """Mean over the classes that occur in masks or answers; 0 without any."""
        return fmean([row["iou"] for row in self.per_class() if row["iou"] is not None] or [0.0])

    @property
    def pixel_accuracy(self) -> float:
        """The part of the pixels that are given their class."""
        right = sum(row[k] for k, row in enumerate(self.confusion))
        return right / max(1, sum(map(sum, self.confusion)))

    @property
    def error(self) -> float:
        """1 - mean IoU."""
        return 1 - self.mean_iou

    def per_class(self) -> list[dict[str, Any]]:
        """Pixels, pixels given, and IoU of each class; None where it does not occur."""
        rows = []
        for k, name in enumerate(self.classes):
            own, given = sum(self.confusion[k]), sum(row[k] for row in self.confusion)
            both = self.confusion[k][k]
            share = both / (own + given - both) if own + given else None
            rows.append({"class": name, "pixels": own, "answers": given, "iou": share})
        return rows

    def headline(self) -> str:
        """The figures in a line."""
        return (
            f"{self.split} mean IoU {self.mean_iou:.4f}, pixel accuracy {self.pixel_accuracy:.4f}, "
            f"{self.images:,} images"
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


def confusion(truth: Tensor, given: Tensor, classes: int) -> Tensor:
    """Pixels of each true and each given class, int64 (K, K); 255 is no true class."""
    known = truth != IGNORE_INDEX
    pairs = truth[known].long() * classes + given[known]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def evaluate(
    network: nn.Module,
    batches: Iterable[Batch],
    classes: tuple[str, ...],
    *,
    bfloat16: bool = False,
    total: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> SegmentationMetrics:
    """Figures at the size of the views, of a network in evaluation mode.

    Where several ranks have a part of the images each, `total` adds up their sums, int64
    (K * K + 1,).
    """
    sums, bad = empty_mask(network, classes), list[tuple[Path, str]]()
    for batch in batches:
        bad += batch.unreadable
        if len(batch.indices):
            given = predict_batch(network, batch.images, bfloat16=bfloat16).argmax(1)
            sums[1:] += confusion(batch.labels, given, len(classes)).flatten()
            sums[0] += len(given)
    return segmentation_metrics(total(sums), classes, bad)


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
    sums, bad = empty_mask(network, classes), list[tuple[Path, str]]()
    for batch, maps in class_maps(network, split, loader, bfloat16=bfloat16):
        bad += batch.unreadable
        for index, given in zip(batch.indices.tolist(), maps, strict=True):
            file = split.masks[index]
            assert isinstance(file, Path)
            truth = torch.from_numpy(class_map(file, *given.shape)).to(given.device)
            sums[1:] += confusion(truth, given, len(classes)).flatten()
            sums[0] += 1
    return segmentation_metrics(total(sums), classes, bad, name)


@torch.inference_mode()
def class_maps(
    network: nn.Module, split: Split, loader: LoaderOptions, *, bfloat16: bool = False
) -> Iterator[tuple[Batch, list[Tensor]]]:
    """Each batch, and the class of each pixel of its images at their own size: int64 (H, W).

    It is the logits that are enlarged. The network must be in evaluation mode. Raises as
    `test_batches`.
    """
    for batch, sizes, own in sized_batches(split, loader):
        maps = []
        logits = predict_batch(network, batch.images, bfloat16=bfloat16) if len(own) else ()
        for row, (h, w), size in zip(
            map(check_finite, logits), sizes.tolist(), own.tolist(), strict=True
        ):
            whole = F.interpolate(row[None, :, :h, :w], size, mode="bilinear", align_corners=False)
            maps.append(whole[0].argmax(0))
        yield batch, maps


def empty_mask(network: nn.Module, classes: tuple[str, ...]) -> Tensor:
    """No image yet, and no pixel of K x K kinds: int64 (K * K + 1,) where the network is."""
    device = next(network.parameters()).device
    return torch.zeros(len(classes) ** 2 + 1, dtype=torch.int64, device=device)


def segmentation_metrics(
    sums: Tensor, classes: tuple[str, ...], bad: Sequence[tuple[Path, str]], name: str = "val"
) -> SegmentationMetrics:
    """What the sums of all images say."""
    images, *pixels = sums.tolist()
    k = len(classes)
    rows = tuple(tuple(pixels[first : first + k]) for first in range(0, k * k, k))
    return SegmentationMetrics(images, rows, classes, tuple(bad), name)

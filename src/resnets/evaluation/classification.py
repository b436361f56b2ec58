"""Classification: scores of a network over batches, and every figure of them.

Each image counts once. Errors and accuracies are fractions in 0..1.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from resnets.data.loader import Batch
from resnets.data.splits import class_presence
from resnets.errors import quantify
from resnets.evaluation.calibration import calibration_error
from resnets.evaluation.intervals import bootstrap_interval, wilson_interval
from resnets.evaluation.scores import (
    Scores,
    intersect,
    is_correct,
    losses,
    mean_logits,
    predicted_classes,
)
from resnets.models.modes import evaluation_mode

Forward = Callable[[Tensor], Tensor]  # images (N, C, H, W) -> logits (N, K)


@torch.inference_mode()
def predict_batch(network: Forward, images: Tensor, *, bfloat16: bool = False) -> Tensor:
    """Logits in float32: (N, C, H, W) -> (N, classes). The network must be in evaluation mode."""
    images = images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bfloat16):
        logits = network(images)
    return logits.float()


def predict_scores(
    network: Forward,
    batches: Iterable[Batch],
    classes: tuple[str, ...],
    *,
    mirrored: bool = False,
    temperature: float = 1.0,
    bfloat16: bool = False,
) -> Scores:
    """Logits of each image: the mean over the rows that it has in a batch, as of its crops.

    With `mirrored` each row counts as it is and as its mirror image. The network must be in
    evaluation mode.
    """
    start, unreadable = time.monotonic(), list[tuple[Path, str]]()
    empty = torch.empty(0, dtype=torch.int64)
    logits, labels, indices = [torch.empty(0, len(classes))], [empty], [empty]
    for batch in batches:
        unreadable += batch.unreadable
        if not len(batch.labels):
            continue
        crops = len(batch.indices) // len(set(batch.indices.tolist()))
        sides = (batch.images, batch.images.flip(-1)) if mirrored else (batch.images,)
        outputs = [predict_batch(network, images, bfloat16=bfloat16) for images in sides]
        views = torch.stack(outputs).view(len(sides), -1, crops, len(classes))
        views = views.transpose(1, 2).flatten(0, 1) / temperature  # (V, N, K)
        logits.append(mean_logits(views, multi_label=batch.labels.ndim == 2).cpu())
        labels.append(batch.labels[::crops].cpu())
        indices.append(batch.indices[::crops])
    return Scores(
        logits=torch.cat(logits),
        labels=torch.cat(labels),
        indices=torch.cat(indices),
        classes=classes,
        unreadable=tuple(unreadable),
        seconds=time.monotonic() - start,
    )


def evaluate(
    network: nn.Module,
    batches: Iterable[Batch],
    classes: tuple[str, ...],
    *,
    bfloat16: bool = False,
    total: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> RunningMeans:
    """Run `network` over `batches` in evaluation mode; the modes of its layers are restored.

    Where each rank has a share of the images, `total` adds up their sums, float64 (4,).
    """
    with evaluation_mode(network):
        scores = predict_scores(network, batches, classes, bfloat16=bfloat16)
    device = next(network.parameters()).device  # that of messages between ranks
    return running_means(total(running_sums(scores).to(device)))


@dataclass(frozen=True)
class RunningMeans:
    """The figures that training asks for at each evaluation.

    With multiple labels top1 counts the images of which exactly the labels have a probability above
    0.5, and the loss is the classes' mean binary cross-entropy.
    """

    images: int
    loss: float  # mean cross-entropy, nats
    top1: float
    top5: float  # of images with a label among the five most probable classes

    @property
    def error(self) -> float:
        """Top-1 error."""
        return 1 - self.top1


def running_sums(scores: Scores) -> Tensor:
    """Images, loss, top-1 and top-5 hits, to add up over ranks: float64 (4,)."""
    top5 = scores.logits.topk(min(5, len(scores.classes)), dim=1).indices
    in_top5 = class_presence(scores.labels, len(scores.classes)).gather(1, top5).any(1)
    columns = (torch.ones(len(top5)), losses(scores), is_correct(scores), in_top5)
    return torch.stack([column.double().sum() for column in columns])


def running_means(sums: Tensor) -> RunningMeans:
    """The means of the `running_sums` of all images."""
    images, *totals = sums.tolist()
    return RunningMeans(round(images), *(total / max(1, images) for total in totals))


@dataclass(frozen=True)
class ClassificationMetrics(RunningMeans):
    """All figures of a classifier on one split."""

    interval: tuple[float, float]  # of top1, 95 % by Wilson
    # [class][wrong prediction], with the right predictions on the diagonal
    confusion: tuple[tuple[int, ...], ...]
    counts: tuple[tuple[int, int], ...]  # of each class: images that have it, predictions of it
    classes: tuple[str, ...]
    ece: float  # expected calibration error, in 15 bins
    # of each class with multiple labels; nan where no image has the class
    average_precision: tuple[float, ...] = ()
    unreadable: tuple[tuple[Path, str], ...] = ()
    split: str = "test"
    # where they were asked for:
    comparison: Comparison | None = None  # with another model
    abstention: tuple[float, float] | None = None  # of `selective_accuracy`
    ood_auroc: float | None = None  # area under the ROC curve against other data
    corruptions: tuple[tuple[str, int, float], ...] = ()  # kind, strength (1 to 5), error

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes that occur."""
        return fmean([row["recall"] for row in self.per_class() if row["images"]] or [0.0])

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that occur or are predicted."""
        rows = [row for row in self.per_class() if row["images"] or row["answers"]]
        return fmean([row["f1"] or 0.0 for row in rows] or [0.0])

    @property
    def mean_average_precision(self) -> float | None:
        """Mean over the classes that occur; None where an image has one label."""
        if not self.average_precision:
            return None
        return fmean([x for x in self.average_precision if not math.isnan(x)] or [0.0])

    def per_class(self) -> list[dict[str, Any]]:
        """Precision, recall and F1 of each class; None for one without images."""
        rows = []
        for k, (images, predictions) in enumerate(self.counts):
            row: dict[str, Any] = {"class": self.classes[k], "images": images}
            row |= {"answers": predictions, "precision": None, "recall": None, "f1": None}
            if images:
                correct = self.confusion[k][k]
                row["precision"] = correct / max(1, predictions)
                row["recall"] = correct / images
                row["f1"] = 2 * correct / (images + predictions)
            rows.append(row)
        return rows

    def headline(self) -> str:
        """The figures in one line."""
        low, high = (f"{100 * (1 - x):.2f}" for x in reversed(self.interval))
        more = f", top-5 error {100 * (1 - self.top5):.2f} %" if len(self.classes) > 5 else ""
        if self.mean_average_precision is not None:
            more = f", mean average precision {100 * self.mean_average_precision:.2f} %"
        return (
            f"{self.split} error {100 * self.error:.2f} % ({low} to {high} at 95 % by Wilson)"
            f"{more}, loss {self.loss:.4f}, calibration error {100 * self.ece:.2f} %, "
            + quantify(self.images, "images")
        )

    def summary(self) -> dict[str, Any]:
        """The stable JSON form; what was not asked for, or does not apply, is left out."""
        names = ["error", "top1", "top5", "loss", "balanced_accuracy", "macro_f1", "ece"]
        if len(self.classes) <= 5:  # then every class is among the first five
            names.remove("top5")
        threshold, coverage = self.abstention or (math.inf, None)
        reached = threshold if math.isfinite(threshold) else None
        keys = ("kind", "strength", "error")
        corruptions = [dict(zip(keys, row, strict=True)) for row in self.corruptions]
        optional = {
            "mean_average_precision": self.mean_average_precision,
            "comparison": self.comparison and asdict(self.comparison),
            "abstention": self.abstention and {"threshold": reached, "coverage": coverage},
            "ood_auroc": self.ood_auroc,
            "corruptions": corruptions or None,
        }
        return {
            "split": self.split,
            "images": self.images,
            **{name: round(getattr(self, name), 6) for name in names},
            "top1_interval_95": [round(x, 6) for x in self.interval],
            "interval": "Wilson",
            **{name: value for name, value in optional.items() if value is not None},
            "unreadable": [str(path) for path, _ in self.unreadable],
            "per_class": self.per_class(),
            "confusion": self.confusion,
        }


def classification_metrics(scores: Scores, split: str = "test") -> ClassificationMetrics:
    """All figures of a split."""
    classes = len(scores.classes)
    target, predicted = class_presence(scores.labels, classes), predicted_classes(scores)
    if scores.multi_label:
        # Counted in float32, which is exact up to 2**24 images and many times faster than int64.
        right, wrong = target & predicted, (predicted & ~target).float()
        confusion = (target.float().to_sparse().T @ wrong).long() + right.sum(0).diag()
    else:
        confusion = confusion_matrix(scores.labels, scores.logits.argmax(1), classes)
    return ClassificationMetrics(
        **asdict(running_means(running_sums(scores))),
        interval=wilson_interval(is_correct(scores)),
        confusion=tuple(map(tuple, confusion.tolist())),
        counts=tuple(zip(target.sum(0).tolist(), predicted.sum(0).tolist(), strict=True)),
        classes=scores.classes,
        ece=calibration_error(scores),
        average_precision=average_precision(scores) if scores.multi_label else (),
        unreadable=scores.unreadable,
        split=split,
    )


def confusion_matrix(target: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """How often each true class is predicted as each class: integers (N,) each -> int64 (K, K)."""
    pairs = target.long() * classes + predicted
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def average_precision(scores: Scores) -> tuple[float, ...]:
    """Area under precision over recall of each class; nan where no image has it."""
    from sklearn.metrics import average_precision_score  # here, since it takes 1 s to import

    columns = zip(scores.labels.numpy().T, scores.logits.numpy().T, strict=True)
    return tuple(
        float(average_precision_score(labels, logits)) if labels.any() else math.nan
        for labels, logits in columns
    )


def ood_auroc(scores: Scores, others: Scores) -> float:
    """Area under the ROC curve of the maximum probability, images of the split against others.

    The baseline of Hendrycks and Gimpel 2017 (1610.02136) for images out of the distribution.
    """
    from scipy.stats import mannwhitneyu

    inside, outside = scores.probabilities.amax(1), others.probabilities.amax(1)
    return float(mannwhitneyu(inside, outside).statistic) / (len(inside) * len(outside))


@dataclass(frozen=True)
class Calibration:
    """A temperature, and the figures before and after on the images that it was fitted on."""

    temperature: float  # that divides the logits; stored in the model file
    before: ClassificationMetrics  # as the model was
    after: ClassificationMetrics  # with the temperature


@dataclass(frozen=True)
class Comparison:
    """A second model against a first on the same images."""

    images: int
    difference: float  # of the accuracies, second minus first
    interval: tuple[float, float]  # of it, 95 %, images drawn in pairs
    p: float  # exact McNemar test: the chance of so uneven a change if both are as good
    # the images that only the second has right, as indices of the split or by name
    fixed: tuple[int | str, ...]
    broken: tuple[int | str, ...]  # those that only the first has right


def compare_scores(first: Scores, second: Scores) -> Comparison:
    """Which images changed, and whether that is more than chance. Raises as `intersect`."""
    from scipy.stats import binomtest

    first, second = intersect([first, second])
    change = is_correct(second).long() - is_correct(first).long()
    fixed, broken = (tuple(first.indices[change == sign].tolist()) for sign in (1, -1))
    changed = len(fixed) + len(broken)
    return Comparison(
        images=len(change),
        difference=float(change.double().mean()) if len(change) else 0.0,
        interval=bootstrap_interval(change),
        p=float(binomtest(len(fixed), changed).pvalue) if changed else 1.0,
        fixed=fixed,
        broken=broken,
    )

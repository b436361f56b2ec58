"""Classification: every figure of a network's scores, and its classes for images.

Each image counts once. Errors and accuracies are fractions in 0..1.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from resnets.config.types import EvaluateOptions
from resnets.data import dataset
from resnets.data.loader import Batch
from resnets.data.splits import Split, class_presence
from resnets.data.transforms import normalize, statistics
from resnets.errors import quantify
from resnets.evaluation.calibration import calibration_error, selective_accuracy
from resnets.evaluation.intervals import bootstrap_interval, wilson_interval
from resnets.evaluation.scores import (
    Scores,
    ensemble,
    error_rate,
    intersect,
    is_correct,
    losses,
    predict_batch,
    predict_scores,
    predicted_classes,
)
from resnets.models.layers import check_finite
from resnets.models.modes import evaluation_mode

if TYPE_CHECKING:  # these modules import this one
    from resnets.evaluation.evaluate import EvalSetup
    from resnets.evaluation.predictor import Model


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


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image, best first; or the `problem` of an unreadable one."""

    file: str  # "input K" of an image that is no file
    classes: tuple[str, ...] = ()  # names
    probabilities: tuple[float, ...] = ()  # of these classes
    problem: str | None = None


def predict(
    model: Model, files: Sequence[str], images: Sequence[Tensor], top: int, score: float
) -> list[Prediction]:
    """The `top` classes of images, of which these are the test-time views: uint8 (C, size, size).

    Raises NotFinite.
    """
    names = model.metadata.classes
    batch = torch.stack([*images]).to(model.device)
    x = normalize(batch, *statistics(model.metadata.preprocess, model.device))
    logits = predict_batch(model.classifier, x, bfloat16=model.bfloat16)
    logits = check_finite(logits / (model.metadata.temperature or 1.0))
    probabilities = logits.sigmoid() if model.multi_label else logits.softmax(1)
    best = probabilities.topk(min(top, probabilities.shape[1]), dim=1)
    rows = zip(files, best.values.tolist(), best.indices.tolist(), strict=True)
    return [Prediction(file, tuple(names[k] for k in ks), tuple(ps)) for file, ps, ks in rows]


def evaluate_classifiers(
    setups: Sequence[EvalSetup], options: EvaluateOptions
) -> tuple[ClassificationMetrics, list[float]]:
    """Every metric of the mean of classifiers; or of the second, compared with the first."""
    first, scores = setups[0], [setup.scores() for setup in setups]
    combined = scores[-1] if options.compare else ensemble(scores)
    first.check_unreadable(combined.unreadable)
    metrics = classification_metrics(combined, first.split_name)
    if options.compare:
        comparison = compare_scores(*scores)
        if isinstance(first.split.images, tuple):
            names = functools.partial(map, lambda k: str(first.split.images[int(k)]))
            fixed, broken = tuple(names(comparison.fixed)), tuple(names(comparison.broken))
            comparison = replace(comparison, fixed=fixed, broken=broken)
        metrics = replace(metrics, comparison=comparison)
    if options.at_precision is not None:
        abstention = selective_accuracy(combined, options.at_precision)
        metrics = replace(metrics, abstention=abstention)
    if options.ood is not None:
        others = dataset.load(options.ood, max_unreadable=options.max_unreadable, training=False)
        ood = functools.reduce(Split.concat, others.splits.values())
        labels = combined.labels  # placeholders of the same shape
        ood = replace(ood, labels=labels.new_zeros(len(ood), *labels.shape[1:]))
        ood_scores = ensemble([replace(setup, split=ood).scores() for setup in setups])
        metrics = replace(metrics, ood_auroc=ood_auroc(combined, ood_scores))
    if options.corruptions:
        from resnets.evaluation.corruptions import robustness  # here: torchvision delays a start

        rows = robustness(first.scores, first.model.metadata.arch.channels)
        metrics = replace(metrics, corruptions=tuple(rows))
    return metrics, [error_rate(one_model) for one_model in scores]

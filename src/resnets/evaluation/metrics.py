"""Figures of scores; each image counts once. Errors and accuracies are fractions in 0..1."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import NormalDist, fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from resnets.evaluation.scores import Scores, intersect

BINS = 15  # of probability


@dataclass(frozen=True)
class RunningMeans:
    """What training asks for at each evaluation.

    Where an image has several labels, top1 counts the images of which exactly the labels have a
    probability above 0.5, and the loss is the classes' mean binary cross-entropy.
    """

    images: int
    loss: float  # mean cross-entropy, nats
    top1: float
    top5: float  # of images with a label among the five most probable classes

    @property
    def error(self) -> float:
        """Top-1 error."""
        return 1 - self.top1


@dataclass(frozen=True)
class ClassificationMetrics:
    """Figures of a classifier on one split; `loss`, `top1` and `top5` as in `RunningMeans`."""

    images: int
    loss: float
    top1: float
    top5: float
    interval: tuple[float, float]  # of top1, 95 % by Wilson
    # [class][wrong answer], with the right answers on the diagonal
    confusion: tuple[tuple[int, ...], ...]
    counts: tuple[tuple[int, int], ...]  # of each class: images that have it, that were given it
    classes: tuple[str, ...]
    ece: float  # expected calibration error, in 15 bins
    # of each class where images have several labels; nan where no image has the class
    average_precision: tuple[float, ...] = ()
    unreadable: tuple[tuple[Path, str], ...] = ()
    split: str = "test"
    # where they were asked for:
    comparison: Comparison | None = None  # against another model
    abstention: tuple[float, float] | None = None  # see `abstention`
    familiarity: float | None = None  # see `ood`
    corruptions: tuple[tuple[str, int, float], ...] = ()  # kind, strength (1 to 5), error

    @property
    def error(self) -> float:
        """Top-1 error."""
        return 1 - self.top1

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes that occur."""
        return fmean([row["recall"] for row in self.per_class() if row["images"]] or [0.0])

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that occur or are answered."""
        rows = self.per_class()
        each = [row["f1"] or 0.0 for row in rows if row["images"] or row["answers"]]
        return fmean(each or [0.0])

    @property
    def mean_average_precision(self) -> float | None:
        """Mean over the classes that occur; None where an image has one label."""
        each = self.average_precision
        return fmean([x for x in each if not math.isnan(x)] or [0.0]) if each else None

    def per_class(self) -> list[dict[str, Any]]:
        """Precision, recall and F1 of each class; None for one without images."""
        rows = []
        for k, (images, answers) in enumerate(self.counts):
            hits = self.confusion[k][k]
            row = {"class": self.classes[k], "images": images, "answers": answers}
            ratios = (
                hits / max(1, answers),
                hits / max(1, images),
                2 * hits / (images + answers or 1),
            )
            names = ("precision", "recall", "f1")
            rows.append(row | dict(zip(names, ratios if images else [None] * 3, strict=True)))
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
            f"{self.images:,} images"
        )

    def summary(self) -> dict[str, Any]:
        """The stable JSON form; what was not asked for, or does not apply, is left out."""
        names = ["error", "top1", "top5", "loss", "balanced_accuracy", "macro_f1", "ece"]
        if len(self.classes) <= 5:  # then every answer is among the first five
            names.remove("top5")
        threshold, coverage = self.abstention or (math.inf, None)
        least = threshold if math.isfinite(threshold) else None
        rows = [{"kind": k, "strength": s, "error": e} for k, s, e in self.corruptions]
        more = {
            "mean_average_precision": self.mean_average_precision,
            "comparison": self.comparison and asdict(self.comparison),
            "abstention": self.abstention and {"threshold": least, "coverage": coverage},
            "ood_auroc": self.familiarity,
            "corruptions": rows or None,
        }
        return {
            "split": self.split,
            "images": self.images,
            **{name: round(getattr(self, name), 6) for name in names},
            "top1_interval_95": [round(x, 6) for x in self.interval],
            "interval": "Wilson",
            **{name: value for name, value in more.items() if value is not None},
            "unreadable": [str(path) for path, _ in self.unreadable],
            "per_class": self.per_class(),
            "confusion": self.confusion,
        }


def target_probabilities(labels: Tensor, classes: int) -> Tensor:
    """The classes that an image has: labels as in `Scores` -> bool (N, classes)."""
    if labels.ndim == 2:
        return labels.bool()
    return labels[:, None] == torch.arange(classes, device=labels.device)


def predicted_classes(scores: Scores) -> Tensor:
    """The most probable class, or those above 0.5 where there may be several: bool (N, K)."""
    x = scores.logits
    return x > 0 if scores.several else target_probabilities(x.argmax(1), x.shape[1])


def agreement(scores: Scores) -> Tensor:
    """Whether a class is answered exactly where the image has it: bool (N, K)."""
    return predicted_classes(scores) == target_probabilities(scores.labels, len(scores.classes))


def is_correct(scores: Scores) -> Tensor:
    """Whether an image is given its labels and no other: bool (N,)."""
    return agreement(scores).all(1)


def decisions(scores: Scores) -> tuple[Tensor, Tensor]:
    """Each answer's probability, float64 (M,), and whether it is right, bool (M,).

    M is N, and N * K where an image has several labels: each class is a yes or no of its own.
    """
    p = scores.probabilities
    if scores.several:
        return torch.maximum(p, 1 - p).flatten(), agreement(scores).flatten()
    return p.amax(1), is_correct(scores)


def loss(scores: Scores) -> Tensor:
    """Cross-entropy of each image, nats, or the mean over classes of binary ones: float64 (N,)."""
    x, labels = scores.logits.double(), scores.labels
    if scores.several:
        return F.binary_cross_entropy_with_logits(x, labels.double(), reduction="none").mean(1)
    return F.cross_entropy(x, labels, reduction="none")


def sums(scores: Scores) -> Tensor:
    """Images, loss, top-1 and top-5 answers, to add up over ranks: float64 (4,)."""
    best = scores.logits.topk(min(5, len(scores.classes)), dim=1).indices
    among = target_probabilities(scores.labels, len(scores.classes)).gather(1, best).any(1)
    each = (torch.ones(len(best)), loss(scores), is_correct(scores), among)
    return torch.stack([values.double().sum() for values in each])


def means(sums: Tensor) -> RunningMeans:
    """What the `sums` of all images say."""
    images, *rest = sums.tolist()
    return RunningMeans(round(images), *(x / max(1, images) for x in rest))


def classification_metrics(scores: Scores, split: str = "test") -> ClassificationMetrics:
    """All figures of a split."""
    # Counted in float32, which is exact up to 2**24 images and many times faster than int64.
    has, given = (
        target_probabilities(scores.labels, len(scores.classes)).float(),
        predicted_classes(scores).float(),
    )
    both = has * given
    confusion = (has.to_sparse().T @ (given - both) + both.sum(0).diag()).long()
    return ClassificationMetrics(
        **asdict(means(sums(scores))),
        interval=interval(is_correct(scores)),
        confusion=tuple(map(tuple, confusion.tolist())),
        counts=tuple(zip(*(x.sum(0).long().tolist() for x in (has, given)), strict=True)),
        classes=scores.classes,
        ece=calibration_error(scores),
        average_precision=average_precision(scores) if scores.several else (),
        unreadable=scores.unreadable,
        split=split,
    )


def interval(correct: Tensor) -> tuple[float, float]:
    """The 95 % interval of an accuracy, from bool (N,): the score interval (Wilson 1927).

    A bootstrap covers the truth too seldom near 0 and 1, in 91 of 100 samples.
    """
    hits, images, z = int(correct.sum()), len(correct), NormalDist().inv_cdf(0.975)
    if not images:
        return 0.0, 1.0
    centre = (hits + z * z / 2) / (images + z * z)
    half = z / (images + z * z) * math.sqrt(hits * (images - hits) / images + z * z / 4)
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap(values: Tensor) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of (N,) values, one an image (Efron 1979).

    It is of 1,000 draws, always the same. Images with equal values are interchangeable, so it is
    drawn how often each value comes.
    """
    kinds, counts = np.unique(values.double().numpy(), return_counts=True)
    if not len(values):
        return 0.0, 1.0
    drawn = np.random.default_rng(0).multinomial(len(values), counts / len(values), 1000)
    low, high = np.quantile(drawn @ kinds / len(values), (0.025, 0.975))
    return float(low), float(high)


def reliability(scores: Scores) -> list[tuple[int, float, float]]:
    """(answers, their mean probability, the part that is right) of 15 equal bins of probability."""
    confidence, correct = decisions(scores)
    edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64)
    which = (torch.bucketize(confidence, edges, right=True) - 1).clamp(max=BINS - 1)
    count, sure, hits = (
        torch.bincount(which, weights, BINS) for weights in (None, confidence, correct.double())
    )
    below = count.clamp(min=1)
    return list(zip(count.tolist(), (sure / below).tolist(), (hits / below).tolist(), strict=True))


def calibration_error(scores: Scores) -> float:
    """Expected calibration error: the mean distance of confidence and accuracy (1706.04599, 3)."""
    rows = np.array(reliability(scores))
    return float(rows[:, 0] @ abs(rows[:, 1] - rows[:, 2]) / max(1, rows[:, 0].sum()))


def average_precision(scores: Scores) -> tuple[float, ...]:
    """Area under precision over recall of each class; nan where no image has it."""
    from sklearn.metrics import average_precision_score  # here, since it takes 1 s to import

    columns = zip(scores.labels.numpy().T, scores.logits.numpy().T, strict=True)
    return tuple(
        float(average_precision_score(has, logits)) if has.any() else math.nan
        for has, logits in columns
    )


def fit_temperature(scores: Scores) -> float:
    """What to divide the logits by for the lowest loss on these images (1706.04599, section 4.2).

    It multiplies the temperature that the scores have already. A log-normal prior of deviation 1
    counts as much as one image, since of easy images alone no temperature is low enough; without
    images it gives 1.
    """
    from scipy.optimize import minimize_scalar

    def at(log_t: float) -> float:
        losses = loss(replace(scores, logits=scores.logits / math.exp(log_t)))
        return (float(losses.sum()) + log_t**2 / 2) / max(1, len(losses))

    best = minimize_scalar(at, bounds=(-4, 4), method="bounded", options={"xatol": 1e-3})
    return math.exp(best.x)


def selective_accuracy(scores: Scores, precision: float) -> tuple[float, float]:
    """(threshold, coverage): the least probability from which on answers reach that precision.

    Coverage is the part of the answers that is given; (inf, 0) where no threshold will do.
    """
    confidence, correct = decisions(scores)
    confidence, order = confidence.sort(descending=True)
    answered = torch.arange(1, len(order) + 1)
    reached = correct[order].double().cumsum(0) / answered >= precision
    reached[:-1] &= confidence[:-1] > confidence[1:]  # equal ones are answered together
    if not reached.any():
        return math.inf, 0.0
    last = int(reached.nonzero()[-1])
    return float(confidence[last]), (last + 1) / len(order)


def ood_auroc(scores: Scores, others: Scores) -> float:
    """The chance that an image of the split looks more familiar than one of another kind.

    Familiar is a great maximum probability (1610.02136): the area under the ROC curve.
    """
    from scipy.stats import mannwhitneyu

    known, unknown = (each.probabilities.amax(1) for each in (scores, others))
    return float(mannwhitneyu(known, unknown).statistic) / (len(known) * len(unknown))


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


def compare(first: Scores, second: Scores) -> Comparison:
    """Which images changed, and whether that is more than chance. Raises as `scores.common`."""
    from scipy.stats import binomtest

    first, second = intersect([first, second])
    change = is_correct(second).long() - is_correct(first).long()
    fixed, broken = (tuple(first.indices[change == sign].tolist()) for sign in (1, -1))
    changed = len(fixed) + len(broken)
    return Comparison(
        images=len(change),
        difference=float(change.double().mean()) if len(change) else 0.0,
        interval=bootstrap(change),
        p=float(binomtest(len(fixed), changed).pvalue) if changed else 1.0,
        fixed=fixed,
        broken=broken,
    )

"""What `api.probe` does: a linear probe, nearest neighbours and episodes on one set of features."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from resnets.data.splits import Source
from resnets.errors import DataError, quantify
from resnets.evaluation.classification import ClassificationMetrics, classification_metrics
from resnets.evaluation.feature_store import FeatureOptions, Watch, cached_features
from resnets.evaluation.features import Features
from resnets.evaluation.few_shot import (
    NEIGHBOURS,
    draw_labelled,
    few_shot_episodes,
    knn_logits,
)
from resnets.evaluation.image_set import images_of
from resnets.evaluation.probe import (
    LinearProbe,
    check_labels,
    concat,
    fit_probe,
    probe_scores,
)

if TYPE_CHECKING:
    from resnets.evaluation.predictor import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeOptions:
    """What is done with the features."""

    standardize: bool = True
    refit: bool = True
    knn: bool = False
    episodes: int = 0
    way: int = 5
    shots: int | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeScore:
    """The accuracy of one method."""

    method: str  # logistic, knn; centroid and logistic of episodes
    setting: str  # C, the number of neighbours, or the form of the episodes
    accuracy: float
    interval: tuple[float, float]  # 95 %: by Wilson; of episodes by Student's t
    images: int  # that were classified; of episodes how many there were
    metrics: ClassificationMetrics | None = None  # all figures; none of episodes


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """What was measured with the features of a network, and on what."""

    level: str
    dimensions: int
    split: str  # that was tested on
    trained_on: str  # the images with labels
    chosen_by: str  # how the strength of the regularisation was chosen; "" without one
    scores: tuple[ProbeScore, ...]
    tried: tuple[tuple[float, float, float], ...]  # C, accuracy and cross-entropy of the choice
    seconds: float  # in all, the features included where they were not in the cache
    unreadable: tuple[tuple[Path, str], ...] = ()
    file: Path | None = None  # the model file that was written

    def summary(self) -> dict[str, Any]:
        """The stable JSON form."""
        rows = []
        for score in self.scores:
            row: dict[str, Any] = {"method": score.method, "setting": score.setting}
            row |= {"accuracy": round(score.accuracy, 6)}
            row |= {"interval_95": [round(x, 6) for x in score.interval], "images": score.images}
            if score.metrics:
                row["metrics"] = score.metrics.summary()
            rows.append(row)
        names = ("C", "accuracy", "loss")
        return {
            "level": self.level,
            "dimensions": self.dimensions,
            "split": self.split,
            "trained_on": self.trained_on,
            "chosen_by": self.chosen_by,
            "scores": rows,
            "tried": [dict(zip(names, row, strict=True)) for row in self.tried],
            "seconds": round(self.seconds, 1),
            "unreadable": [str(path) for path, _ in self.unreadable],
            "file": None if self.file is None else str(self.file),
        }


def run_probe(
    model: Model,
    source: Source,
    computed: FeatureOptions,
    options: ProbeOptions,
    watch: Watch | None = None,
) -> tuple[ProbeResult, LinearProbe | None]:
    """Measure what features of a data set know of its classes; the probe, where one was fitted.

    It is tested on the test images, or on those of validation where there are none. Raises
    UsageError for images with several labels each, and DataError for data without training images
    or without any to test on.
    """
    began = time.monotonic()
    if source.train is None:
        raise DataError(f"{source.name} has no training images: a probe learns from them")
    tested = next((name for name in ("test", "val") if name in source.splits), "")
    if not tested:
        raise DataError(f"{source.name} has no images to test on: give it a test or val folder")
    features = cached_features(model, images_of(source), computed, watch)
    train, test = features.in_splits("train"), features.in_splits(tested)
    check_labels(train)
    val = features.in_splits("val") if tested == "test" else None
    if options.shots and not options.episodes:  # few labels are all that there are
        train, val = draw_labelled(train, options.shots, options.seed), None
    probe, chosen_by = None, ""
    known = concat(train, val) if options.refit and val is not None else train
    trained_on = quantify(len(known), "images")
    if options.episodes:
        trained_on = quantify(options.shots or 1, "images of each class in an episode")
        learned = model.metadata.provenance.get("digest") == source.digest
        tested = tested if learned else "all"
        scores = measure_episodes(test if learned else features, options)
    elif options.knn:
        counts = sorted({min(count, len(known)) for count in NEIGHBOURS})
        scores = [measure_knn(known, test, count, tested) for count in counts]
    else:
        probe = fit_probe(train, val, standardize=options.standardize, refit=options.refit)
        chosen_by = probe.chosen_by
        logits = probe.logits(test.vectors)
        scores = [as_score("logistic", f"C={probe.strength:.3g}", logits, test, tested)]
    return ProbeResult(
        level=features.level,
        dimensions=features.vectors.shape[1],
        split=tested,
        trained_on=trained_on,
        chosen_by=chosen_by,
        scores=tuple(scores),
        tried=probe.tried if probe else (),
        seconds=time.monotonic() - began,
        unreadable=(*source.unreadable, *features.unreadable),
    ), probe


def measure_knn(known: Features, test: Features, count: int, split: str) -> ProbeScore:
    """The accuracy of the votes of the nearest images."""
    return as_score("knn", f"k={count}", knn_logits(known, test, count), test, split)


def measure_episodes(test: Features, options: ProbeOptions) -> list[ProbeScore]:
    """The mean accuracy of few-shot episodes by both methods."""
    shots = options.shots or 1
    return [
        ProbeScore(
            method=f"{row.method} of episodes",
            setting=f"{options.way}-way {shots}-shot",
            accuracy=row.accuracy,
            interval=row.interval,
            images=options.episodes,
        )
        for row in few_shot_episodes(
            test, episodes=options.episodes, way=options.way, shots=shots, seed=options.seed
        )
    ]


def as_score(method: str, setting: str, logits: Tensor, test: Features, split: str) -> ProbeScore:
    """All figures of logits (N, K) for the tested images."""
    metrics = classification_metrics(probe_scores(logits, test), split)
    return ProbeScore(
        method=method,
        setting=setting,
        accuracy=metrics.top1,
        interval=metrics.interval,
        images=metrics.images,
        metrics=metrics,
    )

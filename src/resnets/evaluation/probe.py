"""A linear probe: logistic regression on features, alone or as the head of their network."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnets.config.arch import ExternalArch
from resnets.data.splits import Source
from resnets.errors import UsageError
from resnets.evaluation.features import Features
from resnets.evaluation.scores import Scores, is_correct, losses
from resnets.models import Classifier, build
from resnets.models.heads import classifier_layer, head_parameters
from resnets.models.io.model_file import save

if TYPE_CHECKING:
    from resnets.evaluation.predictor import Model

Vectors = NDArray[np.floating[Any]]
# C of scikit-learn, on features of variance 1: half decades, from the strongest regularisation.
STRENGTHS = tuple(10.0 ** (k / 2) for k in range(-9, 5))
FOLDS = 5
FEW = 10**-1.5  # C where a class has a single image, so that nothing can be compared


@dataclass(frozen=True, slots=True, eq=False)
class LinearProbe:
    """A logistic regression on features, and how strongly it was regularised."""

    weight: Vectors  # float64 (K, D), of the features as they are
    bias: Vectors  # float64 (K,)
    strength: float  # C: the smaller, the stronger the regularisation
    # (C, accuracy, cross-entropy) on the images, or folds, that C was chosen by
    tried: tuple[tuple[float, float, float], ...] = ()
    chosen_by: str = ""

    def logits(self, vectors: Vectors) -> Tensor:
        """(N, D) -> float32 (N, K)."""
        return torch.from_numpy(vectors.astype(np.float64) @ self.weight.T + self.bias).float()


def fit_probe(
    train: Features,
    val: Features | None = None,
    *,
    standardize: bool = True,
    refit: bool = True,
    strengths: Sequence[float] = STRENGTHS,
) -> LinearProbe:
    """A logistic regression with L2 regularisation, whose strength is chosen on other images.

    It is chosen by the cross-entropy on `val`, which varies less than the accuracy of so few;
    without those by stratified cross-validation on `train`, in as many folds as the rarest class
    allows, five at the most. With `refit` the chosen one is fitted to the images of both, as in
    Kornblith et al. 2018 (1805.08974). `standardize` divides each feature by its deviation,
    otherwise all are divided by one number.

    Raises UsageError for images with several labels each, and for a single class.
    """
    check_labels(train)
    if val is not None and len(val):
        tried, chosen_by = [], f"{len(val):,} validation images"
        for strength, probe in regularisation_path(train, strengths, standardize):
            tried.append((strength, *accuracy_and_loss(probe.logits(val.vectors), val)))
    else:
        tried, chosen_by = cross_validate(train, strengths, standardize)
    strength = min(tried, key=lambda row: row[2])[0]
    whole = concat(train, val) if refit and val is not None and len(val) else train
    ((_, chosen),) = regularisation_path(whole, [strength], standardize)
    return replace(chosen, tried=tuple(tried), chosen_by=chosen_by)


def check_labels(features: Features) -> None:
    """Raise UsageError for images that have not one known class each, or all have the same."""
    if features.labels.ndim != 1:
        raise UsageError("a probe is for images with one class each; these have several labels")
    if not len(features) or int(features.labels.min()) < 0:
        raise UsageError("a probe needs images with classes: a folder of class folders, or a CSV")
    if len(torch.unique(features.labels)) < 2:
        raise UsageError("all images of the probe are of one class; it takes two to tell apart")


def regularisation_path(
    train: Features, strengths: Sequence[float], standardize: bool
) -> Iterator[tuple[float, LinearProbe]]:
    """A probe for each strength, each fitted from where the one before ended."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    x, labels = train.vectors.astype(np.float64), train.labels.numpy()
    mean, scale = feature_scale(x, standardize)
    model = LogisticRegression(max_iter=1000, warm_start=True)
    x = (x - mean) / scale
    for strength in strengths:
        with warnings.catch_warnings():  # of hardly regularised ones, which validation turns down
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.set_params(C=strength).fit(x, labels)
        weight, bias = model.coef_ / scale, model.intercept_ - model.coef_ @ (mean / scale)
        weight, bias = spread_over_classes(weight, bias, model.classes_, len(train.classes))
        yield strength, LinearProbe(weight, bias, strength)


def feature_scale(x: Vectors, standardize: bool) -> tuple[Vectors, Vectors]:
    """The mean of each feature, and its deviation or the root of the mean variance: (D,) each."""
    mean, variance = x.mean(0), x.var(0)
    if not standardize:
        variance = np.full_like(variance, variance.mean())
    return mean, np.sqrt(np.where(variance > 0, variance, 1.0))


def spread_over_classes(
    weight: Vectors, bias: Vectors, known: NDArray[np.int64], classes: int
) -> tuple[Vectors, Vectors]:
    """The coefficients as those of a softmax over all classes.

    Of two classes scikit-learn has one row, d: the logits are -d / 2 and d / 2. A class without
    training images is given the probability 0, as nearly as float32 can say it.
    """
    if len(weight) == 1:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    whole = np.zeros((classes, weight.shape[1])), np.full(classes, bias.min() - 1e4)
    whole[0][known], whole[1][known] = weight, bias
    return whole


def cross_validate(
    train: Features, strengths: Sequence[float], standardize: bool
) -> tuple[list[tuple[float, float, float]], str]:
    """(C, accuracy, cross-entropy) over stratified folds, and what they are in words."""
    from sklearn.model_selection import StratifiedKFold

    counts = torch.bincount(train.labels)
    folds = min(FOLDS, int(counts[counts > 0].min()))
    if folds < 2:
        return [(FEW, float("nan"), 0.0)], "default, since a class has a single image"
    logits = torch.zeros(len(strengths), len(train), len(train.classes))
    splitter = StratifiedKFold(folds, shuffle=True, random_state=0)
    labels = train.labels.numpy()
    for inner, outer in splitter.split(labels, labels):
        fitted, held_out = (train.take(torch.from_numpy(rows)) for rows in (inner, outer))
        for row, (_, probe) in zip(
            logits, regularisation_path(fitted, strengths, standardize), strict=True
        ):
            row[torch.from_numpy(outer)] = probe.logits(held_out.vectors)
    tried = [
        (strength, *accuracy_and_loss(row, train))
        for strength, row in zip(strengths, logits, strict=True)
    ]
    return tried, f"{folds}-fold cross-validation of {len(train):,} images"


def accuracy_and_loss(logits: Tensor, features: Features) -> tuple[float, float]:
    """Accuracy and mean cross-entropy, nats, of logits (N, K)."""
    scores = probe_scores(logits, features)
    return float(is_correct(scores).double().mean()), float(losses(scores).mean())


def probe_scores(logits: Tensor, features: Features) -> Scores:
    """Logits (N, K) for the images as `Scores`, of which every metric is a function."""
    return Scores(logits, features.labels, features.indices, features.classes, features.unreadable)


def concat(first: Features, second: Features) -> Features:
    """The images of both."""
    return replace(
        first,
        vectors=np.concatenate([first.vectors, second.vectors]),
        labels=torch.cat([first.labels, second.labels]),
        indices=torch.cat([first.indices, second.indices]),
        names=first.names + second.names,
        splits=first.splits + second.splits,
        unreadable=first.unreadable + second.unreadable,
    )


def with_head(model: Model, probe: LinearProbe, classes: tuple[str, ...]) -> Classifier:
    """The model's network with the probe as its last layer.

    Its logits are the probe's for the pre-logits. Raises UsageError for a custom
    network, whose last layer is not known.
    """
    network = model.classifier
    if isinstance(network.arch, ExternalArch):
        raise UsageError(f"{network.arch.builder} is a custom network: its last layer is not known")
    probed = build(replace(network.arch, classes=len(classes)))
    head = head_parameters(network)
    rest = {name: x for name, x in network.state_dict().items() if name not in head}
    probed.load_state_dict(rest, strict=False)
    layer = classifier_layer(probed)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(probe.weight))
        layer.bias.copy_(torch.from_numpy(probe.bias))
    return probed.to(model.device).eval()


def save_with_head(
    path: Path, model: Model, probe: LinearProbe, source: Source, *, refit: bool
) -> None:
    """Write a model file of the network with the probe as its last layer; errors as `save`.

    It says which data, and which images of it, the probe learned from, so that `evaluate` takes the
    others.
    """
    network = with_head(model, probe, source.classes)
    metadata = replace(
        model.metadata,
        arch=network.arch,
        classes=source.classes,
        temperature=None,
        provenance={
            "data": source.name,
            "digest": source.digest,
            "recipe": json.dumps({"trainval": refit and source.val is not None}),
            "labels": "one",
            "backbone": str(model.path),
            "head": f"logistic regression, C={probe.strength:.3g}, chosen by {probe.chosen_by}",
        },
    )
    save(path, network, metadata)

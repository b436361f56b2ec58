"""Few labels: nearest neighbours by cosine, and few-shot episodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from resnets.errors import UsageError, quantify
from resnets.evaluation.features import Features
from resnets.evaluation.probe import check_labels, regularisation_path

TEMPERATURE = 0.07  # of the votes of neighbours: Wu et al. 2018 (1805.01978), section 3.4
NEIGHBOURS = (20, 200)  # the numbers that are usual
FEW_SHOT = 1.0  # C of their logistic regression, on features of variance 1
QUERIES = 15  # images of each class that an episode classifies, where there are so many


def knn_logits(
    bank: Features, queries: Features, neighbours: int, *, temperature: float = TEMPERATURE
) -> Tensor:
    """Log of the weighted votes of the nearest images by cosine: float32 (N, K).

    Each of the `neighbours` votes for its class with exp(cosine / temperature): Wu et al. 2018
    (1805.01978), as in the evaluation of self-supervised networks. A class without votes has the
    logit of one that is e**-60 of the least that a neighbour can give.
    """
    classes = len(bank.classes)
    known = F.normalize(torch.from_numpy(np.asarray(bank.vectors)))
    votes = list[Tensor]()
    for chunk in torch.split(torch.from_numpy(np.asarray(queries.vectors)), 1024):
        cosines = F.normalize(chunk) @ known.T
        nearest = cosines.topk(min(neighbours, len(known)))
        weights = ((nearest.values - 1) / temperature).double().exp()
        sums = torch.zeros(len(chunk), classes, dtype=torch.float64)
        votes.append(sums.scatter_add_(1, bank.labels[nearest.indices], weights))
    return torch.cat(votes).clamp_min(np.exp(-60 - 2 / temperature)).log().float()


def draw_labelled(features: Features, shots: int, seed: int) -> Features:
    """At most `shots` images of each class, drawn by chance, in the images' order."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(features), generator=generator)
    labels = features.labels[order]
    rows = [order[labels == k][:shots] for k in torch.unique(labels)]
    return features.take(torch.cat(rows).sort().values)


@dataclass(frozen=True, slots=True)
class Episodes:
    """The accuracy of few-shot episodes by one method: its mean and 95 % interval."""

    method: str  # centroid or logistic
    accuracy: float
    interval: tuple[float, float]


def few_shot_episodes(
    features: Features, *, episodes: int, way: int, shots: int, seed: int = 0
) -> list[Episodes]:
    """The accuracy of `episodes` tasks of `way` classes with `shots` labelled images of each.

    An episode draws its classes, their labelled images and up to QUERIES others of each to classify
    (Vinyals et al. 2016, 1606.04080). By nearest centroid, of vectors less the mean of the labelled
    ones and of length 1 (SimpleShot, 1911.04623), and by logistic regression. The interval is
    that of a mean of independent episodes, by Student's t.

    Raises UsageError where too few classes have more than `shots` images.
    """
    check_labels(features)
    groups = [torch.nonzero(features.labels == k)[:, 0] for k in range(len(features.classes))]
    usable = [group for group in groups if len(group) > shots]
    if len(usable) < way:
        raise UsageError(
            f"{quantify(len(usable), 'classes')} have more than {shots} images, an episode needs "
            f"{way}: lower --way or --shots"
        )
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.from_numpy(np.asarray(features.vectors))
    accuracies: dict[str, list[float]] = {"centroid": [], "logistic": []}
    for _ in range(episodes):
        chosen = torch.randperm(len(usable), generator=generator)[:way].tolist()
        drawn = [usable[k][torch.randperm(len(usable[k]), generator=generator)] for k in chosen]
        queries = [group[shots : shots + QUERIES] for group in drawn]
        support = vectors[torch.cat([group[:shots] for group in drawn])]
        labels = torch.arange(way).repeat_interleave(shots)
        truth = torch.cat([torch.full((len(q),), k) for k, q in enumerate(queries)])
        mean = support.mean(0)
        support = F.normalize(support - mean)
        query = F.normalize(vectors[torch.cat(queries)] - mean)
        for method, predict in (("centroid", nearest_centroid), ("logistic", few_shot_logistic)):
            right = predict(support, labels, query) == truth
            accuracies[method].append(float(right.double().mean()))
    return [Episodes(name, *mean_interval(values)) for name, values in accuracies.items()]


def nearest_centroid(support: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
    """The class whose mean vector is nearest: (S, D), int64 (S,), (Q, D) -> int64 (Q,)."""
    centroids = [support[labels == k].mean(0) for k in range(int(labels.max()) + 1)]
    return torch.cdist(queries, torch.stack(centroids)).argmin(1)


def few_shot_logistic(support: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
    """The class that a logistic regression predicts: (S, D), int64 (S,), (Q, D) -> int64 (Q,)."""
    names = tuple(map(str, range(int(labels.max()) + 1)))
    known = Features(support.numpy(), labels, torch.arange(len(labels)), "", classes=names)
    ((_, probe),) = regularisation_path(known, [FEW_SHOT], standardize=False)
    return probe.logits(queries.numpy()).argmax(1)


def mean_interval(values: list[float]) -> tuple[float, tuple[float, float]]:
    """A mean, and its 95 % interval by Student's t; of one value from 0 to 1."""
    from scipy.stats import t  # here, since it takes 0.6 s to import

    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, (0.0, 1.0)
    half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return mean, (max(0.0, mean - half), min(1.0, mean + half))

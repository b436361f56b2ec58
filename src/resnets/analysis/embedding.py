"""Embeddings of images: neighbours, a map of a data set, near-duplicates."""

from __future__ import annotations

from typing import NamedTuple

import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor
from torch.nn import functional as F

from resnets.config.recipe import Preprocess
from resnets.data.loader import test_batches
from resnets.data.splits import Split
from resnets.errors import UsageError
from resnets.evaluation.features import extract, feature_function, feature_rows
from resnets.evaluation.predictor import Model

GREY = Preprocess(size=32, channels=1, mean=(0.0,), std=(1.0,), white=0)
# Measured on CIFAR-10, whose test images have near-duplicates in the training set: up to 10 bits of
# difference all pairs that correlate are right; a shift by one pixel of 32 makes 6 to 16 bits, and
# there the network has to agree.
NEAR, FAR, CORRELATION, COSINE = 10, 16, 0.9, 0.95


def embedding(model: Model, images: Tensor) -> Tensor:
    """The mean of the last level's map, as a direction.

    Shapes: normalised (N, C, H, W) -> float32 (N, D) on the CPU, of norm 1.
    """
    forward = feature_function(model, last_level(model))
    return F.normalize(feature_rows(model, forward, images))


def embeddings(
    model: Model, split: Split, *, batch: int = 250, workers: int = 0
) -> tuple[Tensor, Tensor]:
    """The `embedding` of each readable image, and which images these are.

    Returns float32 (N, D) and int64 (N,), on the CPU.
    """
    features = extract(model, split, level=last_level(model), batch=batch, workers=workers)
    return F.normalize(torch.from_numpy(features.vectors)), features.indices


def last_level(model: Model) -> str:
    """The name of the last level. Raises UsageError for a network without maps."""
    if not model.classifier.levels:
        raise UsageError("the network has no feature map (N, C, H, W) to compare images by")
    return next(reversed(model.classifier.levels))


def project(points: Tensor) -> dict[str, Tensor]:
    """(N, D) -> (N, 2) by name: principal components, and t-SNE (van der Maaten and Hinton).

    There is no map of fewer than three points.
    """
    x = PCA(min(50, *points.shape), random_state=0).fit_transform(points.double().numpy())
    placed = TSNE(perplexity=min(30, (len(x) - 1) / 3), random_state=0).fit_transform(x)
    return {"PCA": torch.from_numpy(x[:, :2]), "t-SNE": torch.from_numpy(placed)}


def nearest_neighbours(points: Tensor, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Cosines and rows of the `count` points nearest to each query, nearest first.

    Shapes: (N, D), (Q, D), both of norm 1 -> float (Q, n), int64 (Q, n); n = min(count, N).
    """
    nearest = (queries @ points.T).topk(min(count, len(points)))
    return nearest.values, nearest.indices


class DuplicatePair(NamedTuple):
    """Nearly the same picture: image `first` of one split and image `second` of the other."""

    first: int
    second: int
    distance: int  # bits of 64
    correlation: float


class PerceptualHashes(NamedTuple):
    """Hashes that hardly change if an image is shifted, compressed again or made brighter."""

    bits: Tensor  # float32 (N, 64) of -1 and 1: is a cell of 8 x 9 darker than the next?
    thumbnails: Tensor  # float32 (N, 288): 16 x 18 in grey, of mean 0 and norm 1
    rows: Tensor  # int64 (N,): which images of the split


def perceptual_hashes(split: Split, *, workers: int = 0) -> PerceptualHashes:
    """Of the central square of each readable image."""
    batches = list(test_batches(split, preprocess=GREY, batch=500, device="cpu", workers=workers))
    cells = torch.cat([F.adaptive_avg_pool2d(b.images, (16, 18)) for b in batches])
    coarse, flat = F.avg_pool2d(cells, 2), cells.flatten(1)
    bits = torch.where(coarse.diff(dim=3) > 0, 1.0, -1.0).flatten(1)
    # What varies by less than a grey level is of one colour.
    thumbnails = F.normalize(flat - flat.mean(1, keepdim=True), eps=0.01)
    return PerceptualHashes(bits, thumbnails, torch.cat([b.indices for b in batches]))


def duplicates(
    first: Split, second: Split, *, model: Model | None = None, batch: int = 250, workers: int = 0
) -> list[DuplicatePair]:
    """Near-duplicates across two splits, the most similar first.

    Their difference hashes are nearly the same and their thumbnails correlate; with a `model` also
    those whose hashes are less near and whose embeddings agree. Images of one colour are left out.
    """
    a = perceptual_hashes(first, workers=workers)
    b = a if second is first else perceptual_hashes(second, workers=workers)
    candidates = []
    for rows in torch.split(torch.arange(len(a.rows)), 128):
        distance = 32 - a.bits[rows] @ b.bits.T / 2
        correlation = a.thumbnails[rows] @ b.thumbnails.T
        near = (distance <= (FAR if model else NEAR)) & (correlation >= CORRELATION)
        i, j = near.nonzero(as_tuple=True)
        candidates.append(
            torch.stack([a.rows[rows[i]], b.rows[j], distance[near], correlation[near].double()])
        )
    i, j, distance, correlation = torch.cat(candidates, 1)
    certain = distance <= NEAR
    if model and not certain.all():
        x, y = (
            embeddings(model, split.take(images[~certain].long()), batch=batch, workers=workers)[0]
            for split, images in ((first, i), (second, j))
        )
        certain[~certain] = (x * y).sum(1) >= COSINE
    order = correlation[certain].argsort(descending=True)
    pairs = torch.stack([i, j, distance, correlation])[:, certain][:, order].T.tolist()
    return [DuplicatePair(int(i), int(j), int(bits), float(c)) for i, j, bits, c in pairs]

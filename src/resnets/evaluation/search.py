"""The images that are most alike: exact search by cosine, in pieces; faiss where there are more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from resnets.errors import DataError, MissingPackage, UsageError
from resnets.evaluation.features import Features

Vectors = NDArray[np.float32]
EXACT = 1_000_000  # vectors that are searched one by one
PIECE = 2**24  # numbers that are compared at once
QUERIES = 256  # with so many queries


class Nearest(NamedTuple):
    """The vectors most alike to each query, the most alike first."""

    cosines: Tensor  # float32 (Q, n)
    rows: Tensor  # int64 (Q, n)


def nearest(vectors: Vectors, queries: Vectors, count: int) -> Nearest:
    """The `count` vectors of the greatest cosine with each query; of equal ones any.

    Shapes: (N, D), (Q, D) -> (Q, min(count, N)) each. The vectors are read in pieces, so they may
    be mapped from a file that is larger than memory; a vector of zeros is alike to nothing.
    """
    wanted = min(count, len(vectors))
    found = list[Nearest]()
    for group in torch.split(F.normalize(torch.from_numpy(np.asarray(queries))), QUERIES):
        best = Nearest(torch.empty(len(group), 0), torch.empty(len(group), 0, dtype=torch.int64))
        for first, piece in pieces(vectors):
            lengths = torch.linalg.vector_norm(piece, dim=1).clamp_min(1e-12)
            top = (group @ piece.T / lengths).topk(min(wanted, len(piece)))
            cosines = torch.cat([best.cosines, top.values], 1)
            rows = torch.cat([best.rows, top.indices + first], 1)
            order = cosines.topk(min(wanted, cosines.shape[1]))
            best = Nearest(order.values, rows.gather(1, order.indices))
        found.append(best)
    cosines, rows = (torch.cat(column) for column in zip(*found, strict=True))
    return Nearest(cosines.clamp(-1, 1), rows)


def pieces(vectors: Vectors) -> Iterator[tuple[int, Tensor]]:
    """The rows in pieces that fit into memory, and the number of the first of each."""
    step = max(1, PIECE // vectors.shape[1])
    for first in range(0, len(vectors), step):
        yield first, torch.from_numpy(vectors[first : first + step])


def nearest_others(vectors: Vectors, count: int) -> Nearest:
    """The `nearest` other vectors of each, itself left out: (N, min(count, N - 1)) each."""
    near = nearest(vectors, vectors, count + 1)
    itself = near.rows == torch.arange(len(near.rows))[:, None]
    itself[~itself.any(1), -1] = True  # among more copies than were asked for: the last goes
    shape = len(near.rows), near.rows.shape[1] - 1
    return Nearest(near.cosines[~itself].view(shape), near.rows[~itself].view(shape))


def approximate(vectors: Vectors, queries: Vectors, count: int) -> Nearest:
    """As `nearest`, by an inverted file of faiss, which overlooks some.

    It has 4 sqrt(N) lists, of which 32 are looked through. Raises MissingPackage without faiss.
    """
    faiss = import_faiss()
    lists = max(1, round(4 * len(vectors) ** 0.5))
    index = faiss.IndexIVFFlat(
        faiss.IndexFlatIP(vectors.shape[1]), vectors.shape[1], lists, faiss.METRIC_INNER_PRODUCT
    )
    sample = np.linspace(0, len(vectors) - 1, min(len(vectors), 64 * lists)).astype(np.int64)
    index.train(F.normalize(torch.from_numpy(vectors[sample])).numpy())
    for _, piece in pieces(vectors):
        index.add(F.normalize(piece).numpy())
    index.nprobe = 32
    cosines, rows = index.search(
        F.normalize(torch.from_numpy(queries)).numpy(), min(count, len(vectors))
    )
    return Nearest(torch.from_numpy(cosines), torch.from_numpy(rows))


def import_faiss() -> Any:
    """The package. Raises MissingPackage with the line that installs it."""
    try:
        import faiss
    except ImportError:
        raise MissingPackage(
            f"more than {EXACT:,} vectors are searched by faiss: pip install 'resnets[faiss]'\n"
            "--index exact searches them one by one, which takes longer"
        ) from None
    return faiss


class Retrieval(NamedTuple):
    """How often images of the same class are found, one value an image that has a class mate."""

    recall: dict[int, Tensor]  # by k: whether one is among the k nearest, float32 (Q,)
    precision: Tensor  # average precision at R, float64 (Q,)
    without: int  # images that are alone in their class, and are no queries


def retrieval(features: Features, counts: tuple[int, ...] = (1, 5, 10)) -> Retrieval:
    """Recall@k and mAP@R of the images against each other.

    mAP@R is Musgrave et al. 2020 (2003.08505), section 3.2: R is the number of other images of the
    class, and of the R nearest the precision at each right one is summed and divided by R. Recall@k
    is whether any of the k nearest is right. Raises UsageError where no class has two images.
    """
    labels = features.labels
    if labels.ndim != 1 or int(labels.min()) < 0:
        raise UsageError("--evaluate is for images with one class each")
    others = torch.bincount(labels)[labels] - 1  # R of each image
    asked = others > 0
    if not asked.any():
        raise UsageError("no class has two images, so that none could be found by another")
    near = nearest_others(features.vectors, max(int(others.max()), *counts))
    right = (labels[near.rows] == labels[:, None])[asked].double()
    ranks = torch.arange(1, right.shape[1] + 1)
    inside = ranks <= others[asked][:, None]
    precision = right.cumsum(1) / ranks
    average = (precision * right * inside).sum(1) / others[asked]
    recall = {k: right[:, :k].any(1).float() for k in counts}
    return Retrieval(recall, average, int((~asked).sum()))


class Outliers(NamedTuple):
    """How far images are from the others."""

    distances: Tensor  # float32 (N,): 1 - the cosine with the k-th nearest other image
    threshold: float  # above it lie the `FRACTION` farthest of the reference
    neighbours: int


NEIGHBOURS = 10  # k of the k-th nearest
FRACTION = 0.05  # of the reference that is beyond the threshold


def outliers(reference: Vectors, queries: Vectors | None = None) -> Outliers:
    """The distance to the k-th nearest image, Sun et al. 2022 (2204.06507).

    Of the reference itself, each image against the others; or of `queries` against the reference,
    whose 95th percentile is the threshold in either case. Raises DataError for a single image.
    """
    if len(reference) < 2:
        raise DataError("--outliers compares images with each other, and there is a single one")
    count = min(NEIGHBOURS, len(reference) - 1)
    distances = 1 - nearest_others(reference, count).cosines[:, -1]
    threshold = float(distances.double().quantile(1 - FRACTION))
    if queries is None:
        return Outliers(distances, threshold, count)
    return Outliers(1 - nearest(reference, queries, count).cosines[:, -1], threshold, count)

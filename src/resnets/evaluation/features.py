"""Features of images: what a network computes below its classifier, a vector or a map each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnets.data.splits import Split
from resnets.errors import UsageError, nearest
from resnets.evaluation.scores import Forward, predict_batch
from resnets.models import Classifier
from resnets.models.external import ExternalNetwork
from resnets.models.heads import classifier_layer
from resnets.models.layers import check_finite, global_mean

if TYPE_CHECKING:
    from resnets.evaluation.predictor import Model

PRE_LOGITS = "pre_logits"  # what the layer that gives the logits gets, as timm calls it
Unreadable = tuple[tuple[Path, str], ...]  # files that could not be read, each with the reason


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """Features of the readable images of a data set, with what is known of each image."""

    # float32 (N, D), or (N, C, H, W) of maps; in memory, or mapped from a file
    vectors: NDArray[np.float32]
    labels: Tensor  # as those of a `Split`; -1 where the class is not known
    indices: Tensor  # int64 (N,): which images of the data the rows are
    level: str
    names: tuple[str, ...] = ()  # paths from the folder of the data; of images in memory numbers
    splits: tuple[str, ...] = ()  # the split that each image is in, or ""
    classes: tuple[str, ...] = ()
    unreadable: Unreadable = ()

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor) -> Features:
        """The rows at int64 (n,) `rows`, in memory."""
        numbers = rows.tolist()
        return replace(
            self,
            vectors=self.vectors[rows.numpy()],
            labels=self.labels[rows],
            indices=self.indices[rows],
            names=tuple(self.names[k] for k in numbers) if self.names else (),
            splits=tuple(self.splits[k] for k in numbers) if self.splits else (),
        )

    def in_splits(self, *names: str) -> Features:
        """The images of these splits, in memory."""
        rows = [k for k, name in enumerate(self.splits) if name in names]
        return self.take(torch.tensor(rows, dtype=torch.int64))


def extract(
    model: Model,
    split: Split,
    *,
    level: str | None = None,
    pooled: bool = True,
    mirrored: bool = False,
    batch: int = 64,
    workers: int = 0,
) -> Features:
    """The features of each readable image of a split, in the model's preprocessing.

    `level` is one of the network's levels; without it the vectors are what the classifier's last
    layer gets. With `pooled` a map is averaged over its positions; with `mirrored` a vector is the
    mean of those of the image and of its mirror image. See `feature_batches` for errors.
    """
    forward = feature_function(model, level, pooled=pooled, mirrored=mirrored)
    vectors, indices = list[NDArray[np.float32]](), list[Tensor]()
    unreadable = list[tuple[Path, str]]()
    for rows, numbers, bad in feature_batches(model, split, forward, batch, workers):
        vectors.append(rows)
        indices.append(numbers)
        unreadable += bad
    order = torch.cat(indices) if indices else torch.empty(0, dtype=torch.int64)
    return Features(
        vectors=np.concatenate(vectors) if vectors else np.empty((0, 0), np.float32),
        labels=split.labels.cpu()[order],
        indices=order,
        level=level or default_level(model.classifier, pooled=pooled),
        unreadable=tuple(unreadable),
    )


def feature_batches(
    model: Model, split: Split, forward: Forward, batch: int = 64, workers: int = 0
) -> Iterator[tuple[NDArray[np.float32], Tensor, Unreadable]]:
    """Features of a split's images in its order, their int64 indices, and files that were left out.

    Raises NotFinite for features that are NaN or infinite, and DataError where a worker died.
    """
    from resnets.evaluation.predictor import name_model_in_errors

    for loaded in model.loader_options(batch, workers).batches(split):
        rows = np.empty((0, 0), np.float32)
        if len(loaded.indices):
            with name_model_in_errors(model.path):
                rows = check_finite(feature_rows(model, forward, loaded.images)).numpy()
        yield rows, loaded.indices, loaded.unreadable


def feature_rows(model: Model, forward: Forward, images: Tensor) -> Tensor:
    """Features of normalised images, float32 on the CPU: (N, C, H, W) -> (N, D) or maps."""
    return predict_batch(forward, images, bfloat16=model.bfloat16).cpu().contiguous()


def feature_function(
    model: Model, level: str | None = None, *, pooled: bool = True, mirrored: bool = False
) -> Forward:
    """The function from normalised images (N, C, H, W) to features (N, D), or maps (N, C', H', W').

    Raises UsageError for a model of another task, and for a level that its network does not have.
    """
    network = model.classifier
    name = level or default_level(network, pooled=pooled)
    check_level(network, name, pooled=pooled)

    def features(images: Tensor) -> Tensor:
        if name == PRE_LOGITS:
            return pre_logits(network, images)
        maps = network.features(images)[name]
        return global_mean(maps) if pooled and maps.ndim > 2 else maps

    def mean_of_both(images: Tensor) -> Tensor:
        both = features(torch.cat([images, images.flip(-1)]))
        return both.view(2, len(images), *both.shape[1:]).mean(0)

    if mirrored and not pooled:
        raise UsageError("the mean with the mirror image is of vectors: maps would be mixed up")
    return mean_of_both if mirrored else features


def pre_logits(network: Classifier, images: Tensor) -> Tensor:
    """What the layer that gives the logits gets: (N, C, H, W) -> (N, D)."""
    inputs = list[Tensor]()
    handle = classifier_layer(network).register_forward_pre_hook(
        lambda _, arguments: inputs.append(arguments[0])
    )
    try:
        network(images)
    finally:
        handle.remove()
    return inputs[0].flatten(1)


def default_level(network: Classifier, *, pooled: bool = True) -> str:
    """The level without a wish for another: of maps the last one."""
    if pooled and not isinstance(network, ExternalNetwork):
        return PRE_LOGITS
    return next(reversed(network.levels), "")


def check_level(network: Classifier, level: str, *, pooled: bool = True) -> None:
    """Raise UsageError that names the levels for one that the network does not have."""
    known: Sequence[str] = [*network.levels]
    if pooled and not isinstance(network, ExternalNetwork):
        known = [*known, PRE_LOGITS]
    if not known:
        raise UsageError("the network has no map (N, C, H, W) to take features from")
    if level == PRE_LOGITS and level not in known:
        raise UsageError(f"level {level!r} has no maps: one of {', '.join(known) or 'none'}")
    if level not in known:
        raise UsageError(f"no level {level!r}: {nearest(level, known)} Levels: {', '.join(known)}")

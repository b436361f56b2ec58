"""Batches on the device: training as one endless stream, testing as one pass."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from resnets.data.draws import order, uniform
from resnets.data.sources import Split
from resnets.data.transforms import (
    DRAWS,
    centre,
    cut,
    geometry,
    normalize,
    recolour,
    statistics,
)
from resnets.data.transforms import (
    augment as augmented,
)
from resnets.recipe import Augment, Preprocess


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What a step works on.

    Attributes:
        images: float32 (B, C, S, S), normalised, on the device.
        labels: int64 (B,), on the device.
        indices: int64 (B,), on the CPU: which images of the split these are.
        unreadable: files that belong here and could not be read, each with the reason; they have no
            row in the other three.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    unreadable: tuple[tuple[Path, str], ...] = ()


def stream(seed: int, n: int, batch: int, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(indices, epochs), int64 (batch,) each, of the steps `start` to `stop` - 1.

    Step s holds the positions s * batch to (s + 1) * batch, and position p is image
    order(seed, p // n)[p % n]. A batch may end one epoch and begin the next.
    """
    permutation = functools.lru_cache(maxsize=2)(lambda epoch: order(seed, epoch, n))
    for step in range(start, stop):
        places = torch.arange(step * batch, (step + 1) * batch)
        epochs = places // n
        parts = range(step * batch // n, (step * batch + batch - 1) // n + 1)
        yield torch.cat([permutation(e)[places[epochs == e] % n] for e in parts]), epochs


def train_batches(
    split: Split,
    *,
    preprocess: Preprocess,
    augment: Augment,
    batch: int,
    seed: int,
    start: int,
    stop: int,
    device: torch.device | str,
    workers: int = 0,
) -> Iterator[Batch]:
    """The batches of the training steps `start` to `stop` - 1.

    Args:
        split: the training images; those in memory are moved to the device once.
        preprocess: the input's side, channels, mean and deviation.
        augment: what happens to each image.
        batch: images in a step, always as many.
        seed: of order and augmentation.
        start: 0, or the step at which a run goes on.
        stop: number of the run's steps.
        device: of images and labels.
        workers: processes that decode files; the batches do not depend on it.
    """
    assert isinstance(split.images, Tensor)
    mean, std = statistics(preprocess, device)
    images = recolour(split.images.to(device), preprocess.channels)
    labels = split.labels.to(device)
    for indices, epochs in stream(seed, len(split), batch, start, stop):
        here = indices.to(device)
        draws = uniform(seed, epochs.to(device), here, DRAWS)
        views = _views(images[here], preprocess, augment, draws)
        yield Batch(augmented(views, augment, mean, std, draws), labels[here], indices)


def _views(images: Tensor, preprocess: Preprocess, augment: Augment, draws: Tensor) -> Tensor:
    height, width = images.shape[2:]
    if augment.crop in ("none", "pad"):
        return cut(images, centre(height, width, preprocess), preprocess.size)
    places = [geometry(height, width, preprocess, augment, row) for row in draws.tolist()]
    return torch.cat(
        [cut(images[i : i + 1], place, preprocess.size) for i, place in enumerate(places)]
    )


def test_batches(
    split: Split,
    *,
    preprocess: Preprocess,
    batch: int,
    device: torch.device | str,
    workers: int = 0,  # noqa: PT028
) -> Iterator[Batch]:
    """Every image once, in the split's order, as the network sees it at test time.

    The arguments are those of `train_batches`; the last batch may be smaller.
    """
    assert isinstance(split.images, Tensor)
    mean, std = statistics(preprocess, device)
    height, width = split.images.shape[2:]
    where = centre(height, width, preprocess)
    for indices in torch.split(torch.arange(len(split)), batch):
        images = recolour(split.images[indices].to(device), preprocess.channels)
        views = cut(images, where, preprocess.size)
        yield Batch(normalize(views, mean, std), split.labels[indices].to(device), indices)

"""Batches on the device: training as one endless stream, testing as one pass."""

from __future__ import annotations

import functools
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from resnets.data.decode import Unreadable, decode
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
from resnets.errors import DataError, UsageError
from resnets.recipe import Augment, Preprocess

PATIENCE = 60  # seconds without a batch after which the workers count as hung
_LOOK = 5  # seconds after which one looks whether they are alive


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

    Raises:
        UsageError: the augmentation cannot be done on such images.
        DataError: not one file of a batch can be read, or a worker died or hung.
    """
    check(preprocess, augment)
    mean, std = statistics(preprocess, device)
    steps = stream(seed, len(split), batch, start, stop)
    if isinstance(split.images, Tensor):
        images = recolour(split.images.to(device), preprocess.channels)
        labels = split.labels.to(device)
        for indices, epochs in steps:
            here = indices.to(device)
            draws = uniform(seed, epochs.to(device), here, DRAWS)
            views = _views(images.index_select(0, here), preprocess, augment, draws)
            yield Batch(augmented(views, augment, mean, std, draws), labels[here], indices)
        return
    drawn = ((indices, uniform(seed, epochs, indices, DRAWS)) for indices, epochs in steps)
    job = Decode(preprocess, augment)
    for views, rest, draws, bad in _decoded(split.images, job, drawn, workers, mean.is_cuda):
        if not len(rest):
            raise DataError(f"not one image of a batch can be read: {bad[0][0]} ({bad[0][1]}), ...")
        x = augmented(_to(views, device), augment, mean, std, _to(draws, device))
        yield Batch(x, _to(split.labels[rest], device), rest, bad)


def check(preprocess: Preprocess, augment: Augment) -> None:
    """Raise UsageError if the augmentation cannot be done on this input."""
    if augment.colour != "none" and preprocess.channels != 3:
        raise UsageError(f"augment.colour={augment.colour} is for colour images, not for grey ones")
    if augment.crop == "scale" and not preprocess.size <= augment.scale[0] <= augment.scale[1]:
        raise UsageError(f"augment.scale={augment.scale} has to begin at {preprocess.size} or more")
    if augment.crop == "pad" and augment.reflect and augment.pad >= preprocess.size:
        raise UsageError(f"augment.pad={augment.pad} is too much to reflect of {preprocess.size}")


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
    mean, std = statistics(preprocess, device)
    steps = torch.split(torch.arange(len(split)), batch)
    if isinstance(split.images, Tensor):
        where = centre(split.images.shape[2], split.images.shape[3], preprocess)
        for indices in steps:
            images = recolour(split.images[indices].to(device), preprocess.channels)
            views = cut(images, where, preprocess.size)
            yield Batch(normalize(views, mean, std), split.labels[indices].to(device), indices)
        return
    drawn = ((indices, torch.zeros(len(indices), DRAWS)) for indices in steps)
    job = Decode(preprocess, Augment())
    for views, rest, _, bad in _decoded(split.images, job, drawn, workers, mean.is_cuda):
        x = normalize(_to(views, device), mean, std)
        yield Batch(x, _to(split.labels[rest], device), rest, bad)


Request = tuple[tuple[str, ...], NDArray[np.float32]]
Answer = tuple[Tensor, list[int], list[tuple[str, str]]]


@dataclass(frozen=True, slots=True)
class Decode(Dataset[Answer]):
    """What a worker does: files and their draws -> (uint8 views, which rows they are, bad files).

    The request comes with all it needs, so a worker holds no list of files that forking copies.
    """

    preprocess: Preprocess
    augment: Augment

    def __getitem__(self, request: Request) -> Answer:
        size, channels = self.preprocess.size, self.preprocess.channels
        views, rows, bad = [torch.empty(0, channels, size, size, dtype=torch.uint8)], [], []
        for row, (path, draws) in enumerate(zip(*request, strict=True)):
            try:
                image = torch.from_numpy(decode(path, channels)).permute(2, 0, 1)[None]
            except Unreadable as fault:
                bad.append((path, fault.reason))
                continue
            height, width = image.shape[2:]
            where = geometry(height, width, self.preprocess, self.augment, draws.tolist())
            views.append(cut(image, where, size))
            rows.append(row)
        return torch.cat(views), rows, bad


def _decoded(
    files: tuple[Path, ...],
    job: Decode,
    steps: Iterable[tuple[Tensor, Tensor]],
    workers: int,
    pin: bool,
) -> Iterator[tuple[Tensor, Tensor, Tensor, tuple[tuple[Path, str], ...]]]:
    """(uint8 views, indices, draws, unreadable files) of steps of (indices, draws), in order."""
    asked = deque[tuple[Tensor, Tensor]]()

    def requests() -> Iterator[Request]:
        for indices, draws in steps:
            asked.append((indices, draws))
            yield tuple(str(files[i]) for i in indices.tolist()), draws.numpy()

    loader = DataLoader(
        job,
        batch_size=None,  # a request is a whole batch
        sampler=requests(),
        num_workers=workers,
        pin_memory=pin,
        timeout=_LOOK if workers else 0,
        worker_init_fn=_ignore_interrupt,
    )
    answers = _quiet_iter(loader)
    waited = 0
    while True:
        try:
            views, rows, bad = next(answers)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:
            # the last two: a worker died with a batch that it had offered and not handed over
            waited += _LOOK
            if "DataLoader timed out" in str(error) and waited < PATIENCE:
                continue
            if isinstance(error, RuntimeError) and "DataLoader" not in str(error):
                raise
            batch = asked[0][0].tolist()
            raise DataError(
                f"a process that decodes images died or hung: {error}\n"
                f"It had a batch from {files[batch[0]]} to {files[batch[-1]]}.\n"
                "If memory or /dev/shm is short, use fewer workers, or none: --workers 0"
            ) from None
        waited = 0
        indices, draws = asked.popleft()
        yield views, indices[rows], draws[rows], tuple((Path(path), why) for path, why in bad)


def _ignore_interrupt(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the training process decides when to stop


def _quiet_iter(loader: DataLoader[Answer]) -> Iterator[Answer]:
    """iter(loader), without torch's SIGCHLD handler.

    When a worker dies, that handler raises wherever the training process is, as in the middle of an
    update; without it, asking for the next batch raises, `_LOOK` seconds later.
    """
    if threading.current_thread() is not threading.main_thread():
        return iter(loader)
    before = signal.getsignal(signal.SIGCHLD)
    answers = iter(loader)
    signal.signal(signal.SIGCHLD, before)
    return answers


def _to(tensor: Tensor, device: torch.device | str) -> Tensor:
    return tensor.to(device, non_blocking=True)

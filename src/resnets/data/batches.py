"""Batches on the device: training as one endless stream, testing as one pass."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from resnets.data import transforms
from resnets.data.decode import Unreadable, decode
from resnets.data.draws import order, uniform
from resnets.data.sources import Split
from resnets.data.transforms import DRAWS, Crops
from resnets.errors import DataError, UsageError
from resnets.recipe import Augment, Preprocess

# What is done to uint8 (B, C, H, W) views, given their int64 (B,) indices.
Change = Callable[[Tensor, Tensor], Tensor]

PATIENCE = 55  # seconds without a batch after which the workers count as hung
_LOOK = 5  # seconds after which one looks whether they are alive


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What a step works on; files that could not be read have no row in the tensors."""

    images: Tensor  # float32 (B, C, S, S), normalised, on the device
    labels: Tensor  # as the split's: int64 (B,) or float32 (B, K), on the device
    indices: Tensor  # int64 (B,), on the CPU: which images of the split these are
    unreadable: tuple[tuple[Path, str], ...] = ()  # files that belong here, each with the reason


def stream(
    seed: int, n: int, batch: int, start: int, stop: int, repeats: int, rank: int, ranks: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """(indices, views), int64 (batch / ranks,) each, of the steps `start` to `stop` - 1.

    Step s holds the positions s * batch to (s + 1) * batch, of which each rank takes its part in
    turn, and position p = e * n + q is image order(seed, e)[q // repeats] in view
    e + 2**32 * (q % repeats), by which its draws are hashed. A batch may end one epoch and begin
    the next.
    """
    permutation = functools.lru_cache(maxsize=2)(lambda epoch: order(seed, epoch, n))
    share = batch // ranks
    for step in range(start, stop):
        first = step * batch + rank * share
        places = torch.arange(first, first + share)
        epochs, within = places // n, places % n
        parts = range(first // n, (first + share - 1) // n + 1)
        indices = [permutation(e)[within[epochs == e] // repeats] for e in parts]
        yield torch.cat(indices), epochs + (within % repeats << 32)


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
    rank: int = 0,
    ranks: int = 1,
    sides: Callable[[int], int] | None = None,
) -> Iterator[Batch]:
    """The batches of the training steps `start` to `stop` - 1.

    A step has `batch` images over all `ranks`, of which the part of `rank` is read here. Images in
    memory are moved to the device once; `workers` processes decode files, and the batches do not
    depend on them. `sides` gives a step's input side; without it `preprocess.size` is that of all.

    Raises UsageError if the augmentation cannot be done on such images, and DataError if not one
    file of a batch can be read, or a worker died or hung.
    """
    side = sides or (lambda _: preprocess.size)
    check(preprocess, augment, batch, ranks, side(start))
    mean, std = transforms.statistics(preprocess, device)
    rows = stream(seed, len(split), batch, start, stop, augment.repeats, rank, ranks)
    steps = (
        (indices, uniform(seed, views, indices, DRAWS), side(step))
        for step, (indices, views) in enumerate(rows, start)
    )
    see = functools.partial(transforms.views, preprocess=preprocess, augment=augment)
    for x, indices, draws, bad in _read(split, see, preprocess.channels, steps, device, workers):
        if not len(indices):
            raise DataError(f"not one image of a batch can be read: {bad[0][0]} ({bad[0][1]}), ...")
        _, change = transforms.at_side(preprocess, augment, x.shape[3])
        x = transforms.augment(x, change, mean, std, draws.to(device, non_blocking=True))
        yield Batch(x, split.labels[indices].to(device, non_blocking=True), indices, bad)


def check(preprocess: Preprocess, augment: Augment, batch: int, ranks: int, side: int) -> None:
    """Raise UsageError if such batches cannot be made; `side` is the first step's."""
    size = preprocess.size
    if batch % ranks:
        raise UsageError(f"batch={batch} cannot be divided among {ranks} processes; set another")
    if side != size and len(preprocess.mean) != preprocess.channels:
        raise UsageError(f"normalize=pixel is of {size} pixels, not {side}: set normalize=data")
    if augment.colour != "none" and preprocess.channels != 3:
        raise UsageError(f"augment.colour={augment.colour} is for colour images, not for grey ones")
    if augment.crop == "scale" and not size <= augment.scale[0] <= augment.scale[1]:
        raise UsageError(f"augment.scale={augment.scale} has to begin at {size} or more")
    if augment.crop == "pad" and augment.reflect and augment.pad >= size:
        raise UsageError(f"augment.pad={augment.pad} is too much to reflect of {size}")


def test_batches(
    split: Split,
    *,
    preprocess: Preprocess,
    batch: int,
    device: torch.device | str,
    workers: int = 0,  # noqa: PT028
    rank: int = 0,  # noqa: PT028
    ranks: int = 1,  # noqa: PT028
    crops: Crops = "center",  # noqa: PT028
    change: Change | None = None,  # noqa: PT028
) -> Iterator[Batch]:
    """Every image once, in the split's order, as the network sees it at test time.

    The arguments are those of `train_batches`, but that `batch` is of one process. A rank has the
    images rank, rank + ranks, ...; its last batch may be smaller, and it may have none at all.

    `crops` says what is seen of an image (see `transforms.shown`): "corners" are five rows, with
    labels and indices five times; of files, which differ in shape, a "whole" image is a batch.
    `change` is done to the views on the device, given their indices, before they are normalised.

    Raises UsageError if `preprocess` has a mean for each pixel and a "whole" image another shape,
    and DataError if a worker died or hung.
    """
    mean, std = transforms.statistics(preprocess, device)
    each = 1 if crops == "whole" and not isinstance(split.images, Tensor) else batch
    parts = torch.split(torch.arange(rank, len(split), ranks), each)
    steps = ((indices, torch.zeros(len(indices), 0), preprocess.size) for indices in parts)
    see = functools.partial(transforms.shown, preprocess=preprocess, crops=crops)
    for x, read, _, bad in _read(split, see, preprocess.channels, steps, device, workers):
        if mean.shape[1:] not in ((1, 1), x.shape[2:]):
            height, width = x.shape[2:]
            raise UsageError(
                f"normalize=pixel is of {preprocess.size} x {preprocess.size} pixels and fits no "
                f"whole image of {height} x {width}: take crops of the centre or the corners"
            )
        indices = read.repeat_interleave(len(x) // max(1, len(read)))
        x = transforms.normalize(change(x, indices) if change else x, mean, std)
        yield Batch(x, split.labels[indices].to(device, non_blocking=True), indices, bad)


# What is seen of uint8 (B, C, H, W) images, given (B, DRAWS) and the input's side.
See = Callable[[Tensor, Tensor, int], Tensor]
# Indices, draws, side of the input, files; a tensor would take a file descriptor to each worker.
Request = tuple[NDArray[np.int64], NDArray[np.float32], int, tuple[str, ...]]
# The views, and indices and draws of the images that could be read; the files that could not be.
Answer = tuple[Tensor, Tensor, Tensor, tuple[tuple[Path, str], ...]]


@dataclass(frozen=True, slots=True)
class Decode(Dataset[Answer]):
    """What a worker does with a request.

    The request comes with all it needs, so a worker holds no list of files that forking copies.
    `hands` is shared with the training process: int64 (workers, 2) of the worker's process and the
    index of the file that it is reading, or -1 - that of the last that it read.
    """

    see: See
    channels: int
    hands: Tensor

    def __getitem__(self, request: Request) -> Answer:
        indices, draws = (torch.from_numpy(x) for x in request[:2])
        side, files = request[2:]
        hand = self.hands[worker.id if (worker := get_worker_info()) else 0]
        views, rows, bad = [], [], []
        for row, (index, path) in enumerate(zip(indices.tolist(), files, strict=True)):
            hand.copy_(torch.tensor([os.getpid(), index]))
            try:
                image = torch.from_numpy(decode(path, self.channels)).permute(2, 0, 1)[None]
            except Unreadable as fault:
                bad.append((Path(path), fault.reason))
            else:
                views.append(self.see(image, draws[row : row + 1], side))
                rows.append(row)
            hand[1] = -1 - index
        none = torch.empty(0, self.channels, side, side, dtype=torch.uint8)
        return torch.cat(views or [none]), indices[rows], draws[rows], tuple(bad)


def _read(
    split: Split,
    see: See,
    channels: int,
    steps: Iterable[tuple[Tensor, Tensor, int]],
    device: torch.device | str,
    workers: int,
) -> Iterator[Answer]:
    """What is seen, on the device, in each of the steps (indices, draws, side of the input)."""
    if isinstance(split.images, Tensor):
        images = split.images.to(device)
        for indices, draws, side in steps:
            yield see(images.index_select(0, indices.to(device)), draws, side), indices, draws, ()
        return
    files = split.images
    hands = torch.full((max(1, workers), 2), -1)
    if workers:
        hands.share_memory_()  # type: ignore[no-untyped-call]
    loader = DataLoader(
        Decode(see, channels, hands),
        batch_size=None,  # a request is a whole batch
        sampler=(
            (indices.numpy(), draws.numpy(), side, tuple(str(files[i]) for i in indices.tolist()))
            for indices, draws, side in steps
        ),
        num_workers=workers,
        pin_memory=torch.device(device).type == "cuda",
        timeout=_LOOK if workers else 0,
        worker_init_fn=_ignore_interrupt,
    )
    answers = _quiet_iter(loader)
    waited = 0
    while True:
        try:
            views, indices, draws, bad = next(answers)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:
            # the last two: a worker died with a batch that it had offered and not handed over
            waited += _LOOK
            if "DataLoader timed out" in str(error) and waited < PATIENCE:
                continue
            if isinstance(error, RuntimeError) and "DataLoader" not in str(error):
                raise
            raise DataError(
                f"a process that decodes images died or hung: {error}\n{_in_hand(files, hands)}\n"
                "If memory or /dev/shm is short, use fewer workers, or none: --workers 0"
            ) from None
        waited = 0
        views = views.to(device, non_blocking=True)
        # what is pinned comes as lists
        yield views, indices, draws, tuple((path, why) for path, why in bad)


def _in_hand(files: tuple[Path, ...], hands: Tensor) -> str:
    """What a dead worker was reading, or else what a living one is, as a sentence."""
    children = multiprocessing.active_children()
    # a process that ends loses its connections first, and is a child for some time after
    ended = wait([child.sentinel for child in children], timeout=1)
    alive = {child.pid for child in children if child.sentinel not in ended}
    begun = [(pid, index) for pid, index in hands.tolist() if pid > 0]
    dead = [index for pid, index in begun if pid not in alive]
    reading = [index for index in dead or (i for _, i in begun) if index >= 0]
    if reading:
        return f"It was reading {files[reading[0]]}."
    return f"The last that it read is {files[-1 - dead[0]]}." if dead else "It had read nothing."


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

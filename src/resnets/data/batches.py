"""Batches on the device: training as one endless stream, testing as one pass."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
from collections import deque
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
from resnets.data.transforms import DRAWS
from resnets.errors import DataError, UsageError
from resnets.recipe import Augment, Preprocess

PATIENCE = 55  # seconds without a batch after which the workers count as hung
_LOOK = 5  # seconds after which one looks whether they are alive


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What a step works on; files that could not be read have no row in the tensors."""

    images: Tensor  # float32 (B, C, S, S), normalised, on the device
    labels: Tensor  # int64 (B,), on the device
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

    Raises:
        UsageError: the augmentation cannot be done on such images.
        DataError: not one file of a batch can be read, or a worker died or hung.
    """
    side = sides or (lambda _: preprocess.size)
    check(preprocess, augment, batch, ranks, side(start))
    mean, std = transforms.statistics(preprocess, device)
    rows = stream(seed, len(split), batch, start, stop, augment.repeats, rank, ranks)
    steps = ((indices, views, side(step)) for step, (indices, views) in enumerate(rows, start))
    if isinstance(split.images, Tensor):
        images = transforms.recolour(split.images.to(device), preprocess.channels)
        labels = split.labels.to(device)
        for indices, views, length in steps:
            here = indices.to(device)
            draws = uniform(seed, views.to(device), here, DRAWS)
            size, change = transforms.at_side(preprocess, augment, length)
            x = _views(images.index_select(0, here), size, change, draws)
            yield Batch(transforms.augment(x, change, mean, std, draws), labels[here], indices)
        return
    drawn = ((i, uniform(seed, views, i, DRAWS), length) for i, views, length in steps)
    for x, rest, draws, bad in _decoded(
        split.images, preprocess, augment, drawn, workers, mean.is_cuda
    ):
        if not len(rest):
            raise DataError(f"not one image of a batch can be read: {bad[0][0]} ({bad[0][1]}), ...")
        _, change = transforms.at_side(preprocess, augment, x.shape[3])
        x = transforms.augment(_to(x, device), change, mean, std, _to(draws, device))
        yield Batch(x, _to(split.labels[rest], device), rest, bad)


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


def _views(images: Tensor, preprocess: Preprocess, augment: Augment, draws: Tensor) -> Tensor:
    if augment.crop in ("none", "pad") and augment.policy == "none":
        height, width = images.shape[2:]
        return transforms.cut(images, transforms.centre(height, width, preprocess), preprocess.size)
    rows = zip(torch.split(images, 1), draws.tolist(), strict=True)
    return torch.cat([transforms.view(image, preprocess, augment, row) for image, row in rows])


def test_batches(
    split: Split,
    *,
    preprocess: Preprocess,
    batch: int,
    device: torch.device | str,
    workers: int = 0,  # noqa: PT028
    rank: int = 0,  # noqa: PT028
    ranks: int = 1,  # noqa: PT028
) -> Iterator[Batch]:
    """Every image once, in the split's order, as the network sees it at test time.

    The arguments are those of `train_batches`, but that `batch` is of one process. A rank has the
    images rank, rank + ranks, ...; its last batch may be smaller, and it may have none at all.
    """
    mean, std = transforms.statistics(preprocess, device)
    steps = torch.split(torch.arange(rank, len(split), ranks), batch)
    if isinstance(split.images, Tensor):
        where = transforms.centre(split.images.shape[2], split.images.shape[3], preprocess)
        for indices in steps:
            images = transforms.recolour(split.images[indices].to(device), preprocess.channels)
            views = transforms.cut(images, where, preprocess.size)
            x = transforms.normalize(views, mean, std)
            yield Batch(x, split.labels[indices].to(device), indices)
        return
    drawn = ((indices, torch.zeros(len(indices), DRAWS), preprocess.size) for indices in steps)
    for views, rest, _, bad in _decoded(
        split.images, preprocess, Augment(), drawn, workers, mean.is_cuda
    ):
        x = transforms.normalize(_to(views, device), mean, std)
        yield Batch(x, _to(split.labels[rest], device), rest, bad)


Request = tuple[int, tuple[str, ...], NDArray[np.float32], int]  # number, files, draws, side
Answer = tuple[Tensor, list[int], list[tuple[str, str]]]


@dataclass(frozen=True, slots=True)
class Decode(Dataset[Answer]):
    """What a worker does: files and their draws -> (uint8 views, which rows they are, bad files).

    The request comes with all it needs, so a worker holds no list of files that forking copies.
    `hands` is shared with the training process: int64 (workers, 3) of the worker's process, the
    request that it works on, and the row that it is reading (-1: none).
    """

    preprocess: Preprocess
    augment: Augment
    hands: Tensor

    def __getitem__(self, request: Request) -> Answer:
        number, paths, draws, side = request
        preprocess, augment = transforms.at_side(self.preprocess, self.augment, side)
        channels = preprocess.channels
        worker = get_worker_info()
        hand = self.hands[0 if worker is None else worker.id]
        views, rows, bad = [torch.empty(0, channels, side, side, dtype=torch.uint8)], [], []
        for row, (path, numbers) in enumerate(zip(paths, draws.tolist(), strict=True)):
            hand.copy_(torch.tensor([os.getpid(), number, row]))
            try:
                image = torch.from_numpy(decode(path, channels)).permute(2, 0, 1)[None]
            except Unreadable as fault:
                bad.append((path, fault.reason))
                continue
            views.append(transforms.view(image, preprocess, augment, numbers))
            rows.append(row)
        hand[2] = -1
        return torch.cat(views), rows, bad


def _decoded(
    files: tuple[Path, ...],
    preprocess: Preprocess,
    augment: Augment,
    steps: Iterable[tuple[Tensor, Tensor, int]],
    workers: int,
    pin: bool,
) -> Iterator[tuple[Tensor, Tensor, Tensor, tuple[tuple[Path, str], ...]]]:
    """(uint8 views, indices, draws, unreadable files) of steps of (indices, draws, side)."""
    asked = deque[tuple[Tensor, Tensor]]()
    done = 0
    hands = torch.full((max(1, workers), 3), -1)
    if workers:
        hands.share_memory_()  # type: ignore[no-untyped-call]

    def requests() -> Iterator[Request]:
        for number, (indices, draws, side) in enumerate(steps):
            asked.append((indices, draws))
            yield number, tuple(str(files[i]) for i in indices.tolist()), draws.numpy(), side

    loader = DataLoader(
        Decode(preprocess, augment, hands),
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
            raise DataError(
                f"a process that decodes images died or hung: {error}\n"
                f"{_in_hand(files, [indices for indices, _ in asked], hands, done)}\n"
                "If memory or /dev/shm is short, use fewer workers, or none: --workers 0"
            ) from None
        waited = 0
        done += 1
        indices, draws = asked.popleft()
        yield views, indices[rows], draws[rows], tuple((Path(path), why) for path, why in bad)


def _in_hand(files: tuple[Path, ...], asked: list[Tensor], hands: Tensor, done: int) -> str:
    """What a dead worker was reading, or else what is being waited for, as a sentence.

    `asked` are the requests from number `done` on, the first that has no answer yet.
    """
    children = multiprocessing.active_children()
    # a process that ends loses its connections first, and is a child for some time after
    ended = wait([child.sentinel for child in children], timeout=1)
    alive = {child.pid for child in children if child.sentinel not in ended}
    begun = [hand for hand in hands.tolist() if hand[0] > 0]
    dead = [hand for hand in begun if hand[0] not in alive]
    for _, number, row in dead or [hand for hand in begun if hand[1] == done]:
        if row >= 0:
            return f"It was reading {files[asked[number - done][row]]}."
    return f"It had a batch from {files[asked[0][0]]} to {files[asked[0][-1]]}."


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

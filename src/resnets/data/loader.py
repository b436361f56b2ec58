"""Batches on the device: training as one endless stream, testing as one pass."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from resnets.config.recipe import Augment, Preprocess
from resnets.data import joint_transforms, transforms
from resnets.data.dataset import Split
from resnets.data.decode import Unreadable, decode
from resnets.data.detection.targets import DetectionTargets
from resnets.data.joint_transforms import View
from resnets.data.rng import uniform
from resnets.data.sampling import Sampler, balanced_sampler, uniform_sampler
from resnets.data.transforms import Crops
from resnets.errors import DataError, UsageError

# What is done to uint8 (B, C, H, W) views, given their int64 (B,) indices.
ImageOp = Callable[[Tensor, Tensor], Tensor]

PATIENCE = 55  # seconds without a batch after which the workers count as hung
_LOOK = 5  # seconds between looks whether the workers are alive: DataLoader's timeout


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What a step works on; files that could not be read have no row in the tensors."""

    # float32 (B, C, S, S), with objects or masks (B, C, H, W), normalised, on the device
    images: Tensor
    labels: Tensor  # as the split's; of a segmentation uint8 (B, H, W), on the device
    indices: Tensor  # int64 (B,), on the CPU: which images of the split these are
    unreadable: tuple[tuple[Path, str], ...] = ()  # files that belong here, each with the reason
    objects: DetectionTargets | None = None  # in pixels of these images, on the device

    @property
    def targets(self) -> Tensor | DetectionTargets:
        """What a network learns from: the objects if there are any in the data, else the labels."""
        return self.labels if self.objects is None else self.objects


def stream(
    sample: Sampler, batch: int, start: int, stop: int, rank: int, ranks: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """(indices, views), int64 (batch / ranks,) each, of the steps `start` to `stop` - 1.

    Step s holds the positions s * batch to (s + 1) * batch, of which each rank takes its part in
    turn. A batch may end one epoch and begin the next.
    """
    local_batch = batch // ranks
    for step in range(start, stop):
        first = step * batch + rank * local_batch
        yield sample(torch.arange(first, first + local_batch))


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
    sampler: Literal["uniform", "balanced"] = "uniform",
) -> Iterator[Batch]:
    """The batches of the training steps `start` to `stop` - 1.

    A step has `batch` images over all `ranks`, of which the part of `rank` is read here. Images in
    memory are moved to the device once; `workers` processes decode files, and the batches do not
    depend on them. `sides` gives a step's input side; without it `preprocess.size` is that of all.
    `sampler` "balanced" draws each class equally often; labels are int64 (N,).

    Raises UsageError if the augmentation cannot be done on such images, and DataError if not one
    file of a batch can be read, or a worker died or hung.
    """
    side = sides or (lambda _: preprocess.size)
    check_batching(preprocess, augment, batch, ranks, side(start))
    mean, std = transforms.statistics(preprocess, device)
    repeats = augment.repeated_aug
    sample = (
        balanced_sampler(seed, split.labels.cpu(), repeats)
        if sampler == "balanced"
        else uniform_sampler(seed, len(split), repeats)
    )
    rows = stream(sample, batch, start, stop, rank, ranks)
    count = transforms.draw_count(augment)
    steps = (
        (indices, uniform(seed, views, indices, count), side(step))
        for step, (indices, views) in enumerate(rows, start)
    )
    view_fn: ViewFn
    if split.has_spatial_labels:
        joint_transforms.check_augmentation(preprocess, augment)
        view_fn = partial(joint_transforms.augment_views, preprocess=preprocess, augment=augment)
        augment = replace(augment, flip=False)  # boxes are mirrored with their images
    else:
        transforms.check_crop(preprocess, augment)
        image_views = partial(transforms.views, preprocess=preprocess, augment=augment)
        view_fn = partial(_labelled, image_views)
    decoded = _read(split, view_fn, preprocess, steps, device, workers)
    for view, indices, draws, unreadable in decoded:
        if not len(indices):
            first = "{} ({})".format(*unreadable[0])
            raise DataError(f"no image of a batch can be read: {first}, ...")
        _, scaled = transforms.scale_to_side(preprocess, augment, view.images.shape[3])
        draws = draws.to(device, non_blocking=True)
        images = transforms.augment(view.images, scaled, mean, std, draws)
        yield Batch(images, view.labels, indices, unreadable, view.objects)


def check_batching(
    preprocess: Preprocess, augment: Augment, batch: int, ranks: int, side: int
) -> None:
    """Raise UsageError if such batches cannot be made; `side` is the first step's."""
    size = preprocess.size
    if batch % ranks:
        raise UsageError(f"batch={batch} is not divisible by {ranks} processes; choose another")
    if side != size and len(preprocess.mean) != preprocess.channels:
        raise UsageError(f"normalize=pixel is for {size} pixels, not {side}: set normalize=data")
    if augment.colour != "none" and preprocess.channels != 3:
        raise UsageError(f"augment.colour={augment.colour} needs colour images, these are grey")


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
    change: ImageOp | None = None,  # noqa: PT028
) -> Iterator[Batch]:
    """Every image once, in the split's order, as the network sees it at test time.

    The arguments are those of `train_batches`, but that `batch` is of one process. A rank has the
    images rank, rank + ranks, ...; its last batch may be smaller, and it may have none at all.

    `crops` says what is taken of an image (see `transforms.test_view`): "corners" are five rows,
    with labels and indices five times; of files, which differ in shape, a "whole" image is a batch.
    Images with boxes or masks are whole in any case; the smaller ones of a batch are filled up to
    the largest. `change` is done to the views on the device, given their indices, before they are
    normalised.

    Raises UsageError if `preprocess` has a mean for each pixel and a "whole" image another shape,
    and DataError if a worker died or hung.
    """
    mean, std = transforms.statistics(preprocess, device)
    view_fn: ViewFn
    if split.has_spatial_labels:
        view_fn = partial(joint_transforms.augment_views, preprocess=preprocess, augment=Augment())
    else:
        image_views = partial(transforms.test_view, preprocess=preprocess, crops=crops)
        view_fn = partial(_labelled, image_views)
    if crops == "whole" and not isinstance(split.images, Tensor):
        batch = 1
    chunks = filter(len, torch.split(torch.arange(len(split))[rank::ranks], batch))
    steps = ((indices, torch.zeros(len(indices), 0), preprocess.size) for indices in chunks)
    for view, read, _, unreadable in _read(split, view_fn, preprocess, steps, device, workers):
        x = view.images
        if mean.shape[1:] not in ((1, 1), x.shape[2:]):
            height, width = x.shape[2:]
            raise UsageError(
                f"normalize=pixel is of {preprocess.size} x {preprocess.size} pixels and fits no "
                f"whole image of {height} x {width}: take crops of the centre or the corners"
            )
        indices = read.repeat_interleave(len(x) // max(1, len(read)))
        x = transforms.normalize(change(x, indices) if change else x, mean, std)
        yield Batch(x, view.labels, indices, unreadable, view.objects)


# Views of decoded images, uint8 (B, C, H, W), given (B, draws) and the input's side.
ViewFn = Callable[[Split, Tensor, int], View]
# Pickled indices, split of these files, draws and side. Pickled here, since each tensor by itself
# would take a file descriptor to the worker.
Request = bytes
# Views, indices and draws of what could be read; the files that could not be.
DecodedBatch = tuple[View, Tensor, Tensor, tuple[tuple[Path, str], ...]]


def _labelled(view: Callable[..., Tensor], split: Split, draws: Tensor, side: int) -> View:
    """Views whose labels are those of their images; of an image there may be several."""
    views = view(split.images, draws, side)
    return View(views, split.labels.repeat_interleave(len(views) // max(1, len(split)), 0))


@dataclass(frozen=True, slots=True)
class Decode(Dataset[DecodedBatch]):
    """What a worker does with a request.

    The request comes with all it needs, so a worker holds no list of files that forking copies.
    `worker_files` is shared with the training process: int64 (workers, 2), of each worker its
    process id, and the index of the file that it is reading, or -1 - that of the last one.
    """

    view_fn: ViewFn
    fill: Tensor  # uint8 (C,), the colour around views that are smaller than others
    white: int  # of grey with 16 bits
    worker_files: Tensor

    def __getitem__(self, request: Request) -> DecodedBatch:
        split: Split
        indices, split, draws, side = pickle.loads(request)
        own_file = self.worker_files[worker.id if (worker := get_worker_info()) else 0]
        views, rows, unreadable = [], [], []
        for row, (index, path) in enumerate(zip(indices.tolist(), split.images, strict=True)):
            own_file.copy_(torch.tensor([os.getpid(), index]))
            try:
                pixels = decode(path, len(self.fill), self.white)
                image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
                decoded = replace(split.take(torch.tensor([row])), images=image)
                view = self.view_fn(decoded, draws[row : row + 1], side)
            except Unreadable as fault:  # of the image or of its mask
                unreadable.append((Path(fault.name), fault.reason))
            else:
                views.append(view)
                rows.append(row)
            own_file[1] = -1 - index
        if not views:
            none = torch.empty(0, len(self.fill), side, side, dtype=torch.uint8)
            nothing = split.take(torch.tensor(rows, dtype=torch.int64))
            views.append(View(none, nothing.labels, nothing.objects))
        view = joint_transforms.collate(views, self.fill)
        return view, indices[rows], draws[rows], tuple(unreadable)


def _read(
    split: Split,
    view_fn: ViewFn,
    preprocess: Preprocess,
    steps: Iterable[tuple[Tensor, Tensor, int]],
    device: torch.device | str,
    workers: int,
) -> Iterator[DecodedBatch]:
    """The views, on the device, of each of the steps (indices, draws, side of the input)."""
    if isinstance(split.images, Tensor):
        split = replace(split, images=split.images.to(device))
        for indices, draws, side in steps:
            yield _to(view_fn(split.take(indices), draws, side), device), indices, draws, ()
        return
    worker_files = torch.full((max(1, workers), 2), -1)
    if workers:
        worker_files.share_memory_()  # type: ignore[no-untyped-call]
    loader = DataLoader(
        Decode(view_fn, transforms.colour(preprocess), preprocess.white, worker_files),
        batch_size=None,  # a request is a whole batch
        sampler=(
            pickle.dumps((indices, split.take(indices), draws, side))
            for indices, draws, side in steps
        ),
        num_workers=workers,
        pin_memory=torch.device(device).type == "cuda",
        timeout=_LOOK if workers else 0,
        worker_init_fn=_ignore_interrupt,
    )
    for view, indices, draws, unreadable in _wait_for_workers(loader, split.images, worker_files):
        # what is pinned comes as lists
        files = tuple((path, reason) for path, reason in unreadable)
        yield _to(view, device), indices, draws, files


def _wait_for_workers(
    loader: DataLoader[DecodedBatch], files: tuple[Path, ...], worker_files: Tensor
) -> Iterator[DecodedBatch]:
    """The batches that the workers decode. Raises DataError when one died or hung."""
    decoded = _quiet_iter(loader)
    waited = 0
    while True:
        try:
            batch = next(decoded)
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
                f"{_worker_status(files, worker_files)}\n"
                "If memory or /dev/shm is short, use fewer workers, or none: --workers 0"
            ) from None
        waited = 0
        yield batch


def _to(view: View, device: torch.device | str) -> View:
    """The same on a device, without waiting for it."""
    return View(
        view.images.to(device, non_blocking=True),
        view.labels.to(device, non_blocking=True),
        None if view.objects is None else view.objects.to(device, non_blocking=True),
    )


def _worker_status(files: tuple[Path, ...], worker_files: Tensor) -> str:
    """What a dead worker was reading, or else what a living one is, as a sentence."""
    children = multiprocessing.active_children()
    # a process that ends loses its connections first, and is a child for some time after
    ended = wait([child.sentinel for child in children], timeout=1)
    alive = {child.pid for child in children if child.sentinel not in ended}
    begun = [(pid, index) for pid, index in worker_files.tolist() if pid > 0]
    dead = [index for pid, index in begun if pid not in alive]
    reading = [index for index in dead or (i for _, i in begun) if index >= 0]
    if reading:
        return f"It was reading {files[reading[0]]}."
    return f"The last that it read is {files[-1 - dead[0]]}." if dead else "It had read nothing."


def _ignore_interrupt(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the training process decides when to stop


def _quiet_iter(loader: DataLoader[DecodedBatch]) -> Iterator[DecodedBatch]:
    """iter(loader), without torch's SIGCHLD handler.

    When a worker dies, that handler raises wherever the training process is, as in the middle of an
    update; without it, asking for the next batch raises, `_LOOK` seconds later.
    """
    if os.name != "posix" or threading.current_thread() is not threading.main_thread():
        return iter(loader)
    before = signal.getsignal(signal.SIGCHLD)
    decoded = iter(loader)
    signal.signal(signal.SIGCHLD, before)
    return decoded

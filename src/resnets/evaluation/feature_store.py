"""Features on the disk: written as they are computed, continued after a kill, kept in the cache."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from resnets.config.arch import to_dict
from resnets.errors import DataError, DiskError, UsageError
from resnets.evaluation.features import Features, default_level, feature_batches, feature_function
from resnets.evaluation.image_set import ImageSet
from resnets.evaluation.scores import Forward
from resnets.files import cache_folder, write_whole
from resnets.tensor_files import digest

if TYPE_CHECKING:
    from resnets.evaluation.predictor import Model

Watch = Callable[[int, int], None]  # called with the images that are done, and all
SAVE_SECONDS = 5.0  # between the notes of how far it is
VECTORS, PROGRESS = "vectors.npy", "progress.json"  # files of a folder of features


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureOptions:
    """Which features are computed, and how."""

    level: str | None = None
    pooled: bool = True
    mirrored: bool = False
    batch: int = 64
    workers: int = 0
    max_unreadable: float = 0.01  # fraction of the images that may be left out


def identity(model: Model, images: ImageSet, options: FeatureOptions) -> dict[str, Any]:
    """What features depend on: the network, its input, the images, and what is taken of them."""
    sha = hashlib.sha256()
    for name, tensor in sorted(model.network.state_dict().items()):
        sha.update(f"{name} {digest(tensor.cpu().contiguous())};".encode())
    facts = [to_dict(model.metadata.arch), repr(model.metadata.preprocess), model.bfloat16]
    sha.update(json.dumps(facts, sort_keys=True, default=repr).encode())
    return {
        "model": sha.hexdigest(),
        "data": images.digest,
        "images": len(images),
        "level": options.level or default_level(model.classifier, pooled=options.pooled),
        "pooled": options.pooled,
        "mirrored": options.mirrored,
    }


def cached_features(
    model: Model, images: ImageSet, options: FeatureOptions, watch: Watch | None = None
) -> Features:
    """The features of images, from the cache where the same model saw the same files before."""
    known = identity(model, images, options)
    key = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
    return store_features(cache_folder() / "features" / key[:32], model, images, options, watch)


@dataclass(slots=True)
class Progress:
    """How far a folder of features is."""

    identity: dict[str, Any]
    shape: tuple[int, ...] = ()  # of the features of an image; unknown before the first
    done: int = 0  # images that were read, or could not be
    unreadable: list[tuple[int, str, str]] = field(default_factory=list)  # number, file, reason

    @property
    def rows(self) -> int:
        """Images that have features."""
        return self.done - len(self.unreadable)


def store_features(
    folder: Path,
    model: Model,
    images: ImageSet,
    options: FeatureOptions,
    watch: Watch | None = None,
) -> Features:
    """The features of images, mapped from a folder that is filled as they are computed.

    What is in the folder already is taken over, so a killed process loses some seconds.

    Raises UsageError where the folder has the features of another model, of other images or of
    another level, or another process writes it; DiskError where they do not fit; DataError where
    too many images cannot be read.
    """
    forward = feature_function(
        model, options.level, pooled=options.pooled, mirrored=options.mirrored
    )
    progress = read_progress(folder, identity(model, images, options))
    if progress.done < len(images):
        with only_writer(folder):
            progress = read_progress(folder, progress.identity)
            fill(folder, progress, model, images, forward, options, watch)
    unreadable = tuple((Path(file), reason) for _, file, reason in progress.unreadable)
    check_unreadable(unreadable, images, options.max_unreadable)
    missing = {number for number, _, _ in progress.unreadable}
    kept = [k for k in range(len(images)) if k not in missing]
    rows = torch.tensor(kept)
    return Features(
        vectors=np.load(folder / VECTORS, mmap_mode="c")[: progress.rows],
        labels=images.split.labels.cpu()[rows],
        indices=rows,
        level=progress.identity["level"],
        names=tuple(images.names[k] for k in kept),
        splits=tuple(images.splits[k] for k in kept),
        classes=images.classes,
        unreadable=unreadable,
    )


def fill(
    folder: Path,
    progress: Progress,
    model: Model,
    images: ImageSet,
    forward: Forward,
    options: FeatureOptions,
    watch: Watch | None,
) -> None:
    """Compute the features that a folder lacks; `progress` is kept on the disk and here."""
    start, total, saved = progress.done, len(images), time.monotonic()
    rest = images.split.take(torch.arange(start, total))
    vectors = np.load(folder / VECTORS, mmap_mode="r+") if progress.shape else None
    for rows, numbers, bad in feature_batches(model, rest, forward, options.batch, options.workers):
        if vectors is None and len(rows):
            progress.shape = rows.shape[1:]
            vectors = allocate(folder / VECTORS, (total, *progress.shape))
        if vectors is not None:
            vectors[progress.rows : progress.rows + len(rows)] = rows
        batch = range(progress.done, progress.done + len(rows) + len(bad))
        lost = sorted({*batch} - {start + k for k in numbers.tolist()})
        for number, (file, reason) in zip(lost, bad, strict=True):
            progress.unreadable.append((number, str(file), reason))
        progress.done = batch.stop
        if watch:
            watch(progress.done, total)
        if time.monotonic() - saved > SAVE_SECONDS or progress.done == total:
            if vectors is not None:
                vectors.flush()
            write_whole(folder / PROGRESS, json.dumps(asdict(progress)).encode())
            saved = time.monotonic()


def read_progress(folder: Path, known: dict[str, Any]) -> Progress:
    """How far a folder is; at the beginning where nothing of use is in it.

    Raises UsageError where it has other features than those `known`.
    """
    try:
        progress = Progress(**json.loads((folder / PROGRESS).read_bytes()))
        progress.shape = tuple(progress.shape)
        different = [name for name in known if progress.identity.get(name) != known[name]]
        possible = 0 <= progress.rows <= progress.done <= known["images"]
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return Progress(known)
    if different:
        raise UsageError(
            f"{folder} has begun with another {' and '.join(different)}: repeat that command, "
            "delete the folder,\nor give another --out"
        )
    try:
        vectors = np.load(folder / VECTORS, mmap_mode="r")
        whole = vectors.shape == (known["images"], *progress.shape) and vectors.dtype == np.float32
    except (OSError, ValueError):
        whole = not progress.shape and not progress.rows
    return progress if whole and possible else Progress(known)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Make a folder and keep other processes from writing it. Raises UsageError, DiskError."""
    from filelock import FileLock, Timeout  # here, since it takes a while

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock", timeout=0):
            yield
    except Timeout:
        raise UsageError(f"{folder} is being written by another process: wait for it") from None
    except PermissionError as error:
        raise DiskError(f"{folder} cannot be written: {error.strerror}") from None


def allocate(path: Path, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A new file of float32, mapped, whose bytes the disk has already. Raises DiskError."""
    needed = 4 * math.prod(shape)
    try:
        free = shutil.disk_usage(path.parent).free
        if needed > free:
            raise DiskError(
                f"{path} needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free.\n"
                "Free some space, choose another folder, or take pooled features."
            )
        vectors = np.lib.format.open_memmap(path, "w+", np.float32, shape)
        if hasattr(os, "posix_fallocate"):  # a mapped file on a full disk would end the process
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        raise DiskError(f"{path} cannot be written: {error.strerror or error}") from None
    return vectors


def check_unreadable(
    unreadable: Sequence[tuple[Path, str]], images: ImageSet, max_unreadable: float
) -> None:
    """Raise DataError where more images than are allowed could not be read, or none could."""
    count, total = len(unreadable), len(images)
    if count == total or count > max_unreadable * total:
        file, reason = unreadable[0] if unreadable else ("none", "no image")
        raise DataError(
            f"unreadable: {count:,} of {total:,} images, first {file}: {reason}\n"
            "Repair or remove them, or allow more: --max-unreadable 0.1"
        )

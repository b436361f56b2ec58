"""Where images and labels come from, by name or place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path

import torch

from resnets.data import get
from resnets.data.folders import read_csv, read_folder, visible
from resnets.data.splits import Source, Split, hold_out, in_memory
from resnets.errors import DataError, nearest

__all__ = ["Source", "Split", "expand", "hold_out", "load"]


def load(data: str | Path, *, seed: int = 0, max_unreadable: float = 0.01) -> Source:
    """A data set by its name or place.

    It is "digits" (scikit-learn's 1,797 grey 8x8 images, split here into a training half and a test
    half, stratified, always the same); "cifar10" or "cifar100" from the cache; a folder (see
    `resnets.data.folders.read_folder`); or a CSV file (`read_csv`). The seed is of an automatic
    split, and `max_unreadable` the part of the files that may be unreadable and left out.

    Raises DataError: there is no such data, or in no known form, or too much is unreadable.
    """
    path = Path(data)
    if data == "digits":
        return digits()
    if data in get.ARCHIVES:
        return get.read(str(data))
    if path.is_dir():
        return read_folder(path, seed=seed, max_unreadable=max_unreadable)
    if path.suffix.lower() == ".csv" and path.is_file():
        return read_csv(path, seed=seed, max_unreadable=max_unreadable)
    if path.exists():
        raise DataError(f"{data} is no folder and no CSV file; an archive has to be unpacked first")
    near = nearest(str(data), ["digits", *get.ARCHIVES])
    raise DataError(f"no data {str(data)!r}, neither a folder nor a known name: {near}")


def digits() -> Source:
    """scikit-learn's handwritten digits; values 0..16 are scaled to 0..255."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images * 255 / 16).round().to(torch.uint8)[:, None]
    every = Split(images, torch.from_numpy(bunch.target).long())
    test, train = every.divided(0, len(every) // 2)
    return in_memory("digits", tuple("0123456789"), train, test)


def expand(inputs: Sequence[str | Path | bytes]) -> Iterator[str | Path | bytes]:
    """Inputs with each folder replaced by its visible files, and each pattern by what it matches.

    Raises DataError for a pattern that matches nothing, or a folder that holds nothing.
    """
    for item in inputs:
        if isinstance(item, bytes) or Path(item).is_file():
            yield item
        elif Path(item).is_dir():
            files = visible(Path(item))
            if not files:
                raise DataError(f"{item} holds no files")
            yield from files
        elif matches := sorted(glob(str(item), recursive=True)):
            yield from expand([match for match in matches if match != item])
        else:
            raise DataError(f"no such file, folder or pattern: {item}")

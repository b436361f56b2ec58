"""Image files with their classes: a folder of folders, or a CSV file."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnets.data.decode import Unreadable, decode, opened, upright
from resnets.data.splits import Source, Split
from resnets.errors import DataError, nearest
from resnets.recipe import Preprocess

CHECKED = 10_000  # files that are decoded whole before a run; of more, every k-th

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_NEAR = {"training", "trainset", "testing", "testset", "eval", "dev", "images", "labels"}
_LITTER = {"thumbs.db", "desktop.ini", "__macosx"}  # that systems leave in every folder


@dataclass(frozen=True, slots=True)
class Row:
    """A file, its class or classes, and its split if the data says one."""

    path: Path
    labels: tuple[str, ...]
    split: str | None


def read_folder(root: Path, *, seed: int, max_unreadable: float) -> Source:
    """A folder of class folders, or of `train`, `val` (`valid`, `validation`) and `test` with them.

    Without split folders every class is split 80 : 10 : 10 by chance; `Source.split_table` has the
    outcome. Images may lie deeper inside a class folder. What begins with a dot is ignored.

    Raises DataError for another layout, an empty class folder, fewer than two classes, or more than
    `max_unreadable` of the files unreadable.
    """
    folders = {f.name: f for f in subfolders(root)}
    parts = {f: SPLITS[f.casefold()] for f in folders if f.casefold() in SPLITS}
    if len(set(parts.values())) < len(parts):
        raise DataError(f"{root} has one split twice: {', '.join(parts)}")
    if "train" not in parts.values() and len(parts) < len(folders):
        if wrong := sorted(f for f in folders if f in parts or f.casefold() in _NEAR):
            raise DataError(
                f"{root} has folders that look like no classes: {', '.join(wrong)}\n"
                "Name them train, val and test with class folders inside, or keep only classes."
            )
        if len(folders) == 1 and (inner := subfolders(*folders.values())):
            raise DataError(f"{root} has a single folder in it; did you mean {inner[0].parent}?")
    rows = [row for name, split in parts.items() for row in _class_rows(folders[name], split)]
    return _source(root, rows or _class_rows(root, None), root, seed, max_unreadable, False)


def _class_rows(folder: Path, split: str | None) -> list[Row]:
    classes = subfolders(folder)
    if not classes:
        found = f"{len(visible(folder))} files but no folders"
        raise DataError(f"{folder} has {found}: it needs one folder for each class")
    rows = [Row(path, (c.name,), split) for c in classes for path in visible(c)]
    if empty := sorted({c.name for c in classes} - _classes(rows)):
        raise DataError(
            f"{folder} has {len(empty)} empty class folders: {', '.join(empty[:5])}\n"
            "Fill them or remove them."
        )
    return rows


def read_csv(table: Path, *, seed: int, max_unreadable: float) -> Source:
    """A CSV file with the header `path,label`, and optionally `split` (train, val, test).

    Paths count from the file's folder. Without `split` the rows are split as in `read_folder`. One
    `|` in any label says that images may have several classes, as `cat|dog` (in any order), or none
    at all, which is an empty label; `cat|` is a cat alone. Space around a name does not count.

    Raises DataError as `read_folder`, for a path twice, and with its line for what is missing.
    """
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            if missing := {"path", "label"} - set(reader.fieldnames or ()):
                raise DataError(f"{table}: no column {' or '.join(sorted(missing))} in line 1")
            entries = [(reader.line_num, entry) for entry in reader]
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{table} is no CSV file in UTF-8: {error}") from None
    several = any("|" in entry["label"] for _, entry in entries)
    rows: list[Row] = []
    lines: dict[Path, int] = {}
    for line, entry in entries:
        label, split = entry["label"].strip(), entry.get("split")
        if not entry["path"] or not (label or several):
            raise DataError(f"{table}, line {line}: path or label is missing")
        if split is not None and split not in SPLITS:
            raise DataError(f"{table}, line {line}: split {split!r}: {nearest(split, SPLITS)}")
        path = Path(os.path.normpath(table.parent / entry["path"]))
        if lines.setdefault(path, line) != line:
            raise DataError(f"{table}: lines {lines[path]}, {line}: {path}")
        labels = tuple(sorted({*map(str.strip, label.split("|"))} - {""})) if several else (label,)
        rows.append(Row(path, labels, SPLITS.get(split or "")))
    return _source(table, rows, table.parent, seed, max_unreadable, several)


def _source(
    origin: Path, rows: list[Row], root: Path, seed: int, max_unreadable: float, several: bool
) -> Source:
    known = _classes(rows)
    if alien := sorted({name for row in rows for name in row.labels} - known):
        raise DataError(f"{origin}: val or test have classes that train has not: {alien[:5]}")
    if len(known) < 2:
        raise DataError(f"{origin} has {len(known)} classes; it takes two to tell apart")
    seen = look([row.path for row in rows], max_unreadable)
    good = [row for row in rows if row.path in seen.looks]
    if lost := sorted(known - _classes(good)):
        raise DataError(f"{origin}: not one image can be read of the classes {lost[:5]}")
    classes = tuple(sorted(known))
    every = Split(tuple(row.path for row in good), _labels(good, classes, several))
    parts = [row.split for row in good]
    return assemble(origin, root, classes, every, parts, seen, seed, _digest(rows, root, several))


def assemble(
    origin: Path,
    root: Path,
    classes: tuple[str, ...],
    every: Split,
    parts: Sequence[str | None],
    seen: Seen,
    seed: int,
    digest: str,
) -> Source:
    """A Source for classification of all readable images, of which `parts` says the splits.

    Where one has no split, all are split 80 : 10 : 10 by chance and stratified.
    """
    automatic = None in parts
    if automatic:
        tenth = round(len(every) / 10)
        test, val, train = every.divided(seed, tenth, 2 * tenth)
    else:
        masks = [torch.tensor([part == s for part in parts]) for s in ("train", "val", "test")]
        train, val, test = (every.take(mask.nonzero()[:, 0]) for mask in masks)
    preprocess = Preprocess(size=1)  # whose mean and std are those of data to evaluate on only
    mean, std = preprocess.mean, preprocess.std
    trained = [seen.looks[path].moments for path in train.images if isinstance(path, Path)]
    if decoded := [moments for moments in trained if moments is not None]:
        first, second = np.mean(decoded, axis=0).reshape(2, 3)
        mean, std = first.tolist(), np.sqrt((second - first**2).clip(255**-2.0)).tolist()
    return Source(
        name=origin.name or origin.resolve().name,
        classes=classes,
        train=train or None,
        val=val or None,
        test=test or None,
        channels=3,
        size=int(np.median([min(look.height, look.width) for look in seen.looks.values()])),
        digest=digest,
        mean=tuple(mean),
        std=tuple(std),
        unreadable=seen.unreadable,
        root=root,
        automatic=automatic,
    )


def _classes(rows: Iterable[Row]) -> set[str]:
    """The classes of the training rows, or of all where none is for training."""
    rows = list(rows)
    training = [row for row in rows if row.split in (None, "train")]
    return {name for row in training or rows for name in row.labels}


def _labels(rows: Sequence[Row], classes: tuple[str, ...], several: bool) -> Tensor:
    number = {name: k for k, name in enumerate(classes)}
    if not several:
        return torch.tensor([number[name] for row in rows for name in row.labels])
    labels = torch.zeros(len(rows), len(classes))
    for k, row in enumerate(rows):
        labels[k, [number[name] for name in row.labels]] = 1
    return labels


class Look(NamedTuple):
    """What a readable image file has: its sides in pixels as it stands upright."""

    height: int
    width: int
    orientation: int  # EXIF's, from 1 (upright as it is stored) to 8
    # Means and mean squares of the channels in 0..1, float64 (6,), where it was decoded.
    moments: NDArray[np.float64] | None


class Seen(NamedTuple):
    """What came of looking at image files."""

    looks: dict[Path, Look]
    unreadable: tuple[tuple[Path, str], ...]  # each with the reason


def look(paths: Sequence[Path], max_unreadable: float) -> Seen:
    """Look at each file once. Raises DataError where too many of them are unreadable."""
    paths = list(dict.fromkeys(paths))
    every = list(zip(paths, examine(paths), strict=True))
    bad = [(path, found.reason) for path, found in every if isinstance(found, Unreadable)]
    if len(bad) > max_unreadable * len(paths):
        first = "; ".join(f"{path} ({reason})" for path, reason in bad[:3])
        raise DataError(
            f"{len(bad):,} of {len(paths):,} files are unreadable, allowed is {max_unreadable:g} "
            f"of them.\n{first}\nMend or remove them, or allow more: --set max_unreadable=0.1 "
            "(train) or --max-unreadable 0.1 (evaluate)."
        )
    return Seen({path: found for path, found in every if isinstance(found, Look)}, tuple(bad))


def examine(paths: Sequence[Path]) -> list[Look | Unreadable]:
    """Every header is read, and up to CHECKED whole images, spread evenly."""
    every = -(-len(paths) // CHECKED)

    def one(job: tuple[int, Path]) -> Look | Unreadable:
        number, path = job
        try:
            with opened(path) as picture:
                sides = upright(picture)
            if number % every:
                return Look(*sides, None)
            image = decode(path, 3)
        except Unreadable as fault:
            return fault
        # of a large image some 64 x 64 pixels: their mean and deviation are the image's
        step = max(1, min(image.shape[:2]) // 64)
        pixels = image[::step, ::step].reshape(-1, 3) / 255.0
        moments = np.array([*pixels.mean(0), *(pixels**2).mean(0)])
        return Look(image.shape[0], image.shape[1], sides[2], moments)

    # Pillow decodes without the interpreter's lock
    with ThreadPool(min(8, os.cpu_count() or 1)) as pool:
        return pool.map(one, enumerate(paths), chunksize=16)


def _digest(rows: Iterable[Row], root: Path, several: bool) -> str:
    def entry(row: Row) -> str:
        size = row.path.stat().st_size if row.path.is_file() else -1
        place = Path(os.path.relpath(row.path, root)).as_posix()
        return json.dumps([place, size, row.labels if several else row.labels[0], row.split])

    lines = "\n".join(sorted(map(entry, rows)))
    return hashlib.sha256(lines.encode()).hexdigest()


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name.casefold() not in _LITTER


def subfolders(folder: Path) -> list[Path]:
    """The visible folders in a folder, sorted."""
    return sorted(f for f in folder.iterdir() if _is_visible(f.name) and f.is_dir())


def visible(folder: Path) -> list[Path]:
    """All files in a folder and below, sorted; nothing that begins with a dot.

    A folder is entered once, so a link back up does not lead in circles.
    """
    entered: set[str] = set()
    files: list[Path] = []
    for place, inner, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        inner[:] = [] if real in entered else [name for name in inner if _is_visible(name)]
        if real not in entered:
            files += [Path(place, name) for name in names if _is_visible(name)]
        entered.add(real)
    return sorted(files)

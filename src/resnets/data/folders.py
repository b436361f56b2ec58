"""Image files with a class each: a folder of folders, or a CSV file."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from resnets.data.decode import Unreadable, check_header, decode
from resnets.data.draws import spread
from resnets.data.splits import Source, Split
from resnets.errors import DataError, nearest

CHECKED = 10_000  # files that are decoded whole before a run; of more, every k-th

_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_NEAR = {"training", "trainset", "testing", "testset", "eval", "dev", "images", "labels"}
_LITTER = {"thumbs.db", "desktop.ini", "__macosx"}  # that systems leave in every folder


@dataclass(frozen=True, slots=True)
class Row:
    """A file, its class, and its split if the data says one."""

    path: Path
    label: str
    split: str | None


def read_folder(root: Path, *, seed: int, max_unreadable: float) -> Source:
    """A folder of class folders, or of `train`, `val` (`valid`, `validation`) and `test` with them.

    Without split folders every class is split 80 : 10 : 10 by chance; `Source.split_table` has the
    outcome. Images may lie deeper inside a class folder. What begins with a dot is ignored.

    Raises:
        DataError: another layout, an empty class folder, fewer than two classes, or more than
            `max_unreadable` of the files are unreadable.
    """
    folders = {f.name: f for f in _folders(root)}
    parts = {f: _SPLITS[f.casefold()] for f in folders if f.casefold() in _SPLITS}
    if len(set(parts.values())) < len(parts):
        raise DataError(f"{root} has one split twice: {', '.join(parts)}")
    if "train" not in parts.values() and len(parts) < len(folders):
        wrong = [f for f in folders if f in parts or f.casefold() in _NEAR]
        if wrong:
            raise DataError(
                f"{root} has folders that look like no classes: {', '.join(sorted(wrong))}\n"
                "Name them train, val and test with class folders inside, or keep only classes."
            )
        if len(folders) == 1 and (inner := _folders(next(iter(folders.values())))):
            below = inner[0].parent
            raise DataError(f"{root} has a single folder in it; did you mean {below}?")
        parts = {}
    rows: list[Row] = []
    for name, split in parts.items():
        rows += _class_rows(folders[name], split)
    if not parts:
        rows = _class_rows(root, None)
    return _source(root, rows, root, seed, max_unreadable)


def _class_rows(folder: Path, split: str | None) -> list[Row]:
    classes = _folders(folder)
    if not classes:
        found = f"{len(visible(folder))} files but no folders"
        raise DataError(f"{folder} has {found}: it needs one folder for each class")
    rows = {c.name: [Row(path, c.name, split) for path in visible(c)] for c in classes}
    empty = sorted(name for name, files in rows.items() if not files)
    if empty:
        raise DataError(
            f"{folder} has {len(empty)} empty class folders: {', '.join(empty[:5])}\n"
            "Fill them or remove them."
        )
    return [row for name in sorted(rows) for row in rows[name]]


def read_csv(table: Path, *, seed: int, max_unreadable: float) -> Source:
    """A CSV file with the header `path,label`, and optionally `split` (train, val, test).

    Paths count from the file's folder. Without `split` the rows are split as in `read_folder`.

    Raises:
        DataError: a column or value is missing (with its line), a path comes twice, or as in
            `read_folder`.
    """
    rows: list[Row] = []
    lines: dict[Path, int] = {}
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = {"path", "label"} - set(reader.fieldnames or ())
            if missing:
                raise DataError(f"{table}: no column {' or '.join(sorted(missing))} in line 1")
            for entry in reader:
                rows.append(_csv_row(table, reader.line_num, entry))
                path = rows[-1].path
                if path in lines:
                    raise DataError(f"{table}: lines {lines[path]}, {reader.line_num}: {path}")
                lines[path] = reader.line_num
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{table} is no CSV file in UTF-8: {error}") from None
    return _source(table, rows, table.parent, seed, max_unreadable)


def _csv_row(table: Path, line: int, entry: dict[str, str]) -> Row:
    if not entry["path"] or not entry["label"]:
        raise DataError(f"{table}, line {line}: path or label is missing")
    split = entry.get("split")
    if split is not None and split not in _SPLITS:
        raise DataError(f"{table}, line {line}: split {split!r}: {nearest(split, _SPLITS)}")
    place = Path(os.path.normpath(table.parent / entry["path"]))
    return Row(place, entry["label"], _SPLITS[split] if split is not None else None)


def _source(origin: Path, rows: list[Row], root: Path, seed: int, max_unreadable: float) -> Source:
    classes = _classes(origin, rows)
    findings = examine([row.path for row in rows])
    bad = [
        (row.path, finding.reason)
        for row, finding in zip(rows, findings, strict=True)
        if isinstance(finding, Unreadable)
    ]
    if len(bad) > max_unreadable * len(rows):
        first = "; ".join(f"{path} ({reason})" for path, reason in bad[:3])
        raise DataError(
            f"{len(bad):,} of {len(rows):,} files are unreadable, allowed is {max_unreadable:g} of "
            f"them.\n{first}\nMend or remove them, or allow more: --set max_unreadable=0.1 "
            "(train) or --max-unreadable 0.1 (evaluate)."
        )
    good = [(r, f) for r, f in zip(rows, findings, strict=True) if not isinstance(f, Unreadable)]
    _classes(origin, [row for row, _ in good], among=classes)
    labels = torch.tensor([classes.index(row.label) for row, _ in good])
    names = [row.split for row, _ in good]
    automatic = None in names
    if automatic:
        names = _automatic(labels, seed)
    splits = {
        name: Split(
            tuple(row.path for (row, _), n in zip(good, names, strict=True) if n == name),
            labels[torch.tensor([n == name for n in names])],
        )
        for name in ("train", "val", "test")
        if name in names
    }
    mean, std = _moments(
        [f.moments for (_, f), n in zip(good, names, strict=True) if n == "train" and f is not None]
    )
    return Source(
        name=origin.name or origin.resolve().name,
        classes=classes,
        train=splits.get("train"),
        val=splits.get("val"),
        test=splits.get("test"),
        channels=3,
        size=int(np.median([f.side for _, f in good if f is not None])),
        digest=_digest(rows, root),
        mean=mean,
        std=std,
        unreadable=tuple(bad),
        root=root,
        automatic=automatic,
    )


def _classes(
    origin: Path, rows: Iterable[Row], among: tuple[str, ...] | None = None
) -> tuple[str, ...]:
    """The sorted classes of the training rows; refuses others elsewhere, and any lost `among`."""
    rows = list(rows)
    train = {row.label for row in rows if row.split in (None, "train")}
    found = train or {row.label for row in rows}
    alien = sorted({row.label for row in rows} - found)
    if alien:
        raise DataError(f"{origin}: val or test have classes that train has not: {alien[:5]}")
    lost = sorted(set(among or ()) - found)
    if lost:
        raise DataError(f"{origin}: not one image can be read of the classes {lost[:5]}")
    if len(found) < 2:
        raise DataError(f"{origin} has {len(found)} classes; it takes two to tell apart")
    return tuple(sorted(found))


def _automatic(labels: torch.Tensor, seed: int) -> list[str | None]:
    """80 : 10 : 10, stratified."""
    tenth = round(len(labels) / 10)
    names: list[str | None] = ["train"] * len(labels)
    for rank, index in enumerate(spread(labels, seed)[: 2 * tenth].tolist()):
        names[index] = "test" if rank < tenth else "val"
    return names


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """What a decoded image told: channel means and mean squares (2, 3) in 0..1; shorter side."""

    moments: NDArray[np.float64]
    side: int


Finding = Unreadable | Look | None


def examine(paths: Sequence[Path]) -> list[Finding]:
    """Every header, and whole images up to CHECKED of them, spread evenly.

    Returns:
        For each path why it is unreadable, or what it told; None where only its header was read.
    """
    every = -(-len(paths) // CHECKED)

    def one(job: tuple[int, Path]) -> Finding:
        number, path = job
        try:
            if number % every:
                check_header(path)
                return None
            image = decode(path, 3)
        except Unreadable as fault:
            return fault
        # of a large image some 64 x 64 pixels: their mean and deviation are the image's
        step = max(1, min(image.shape[:2]) // 64)
        pixels = image[::step, ::step].reshape(-1, 3) / 255.0
        return Look(np.stack([pixels.mean(0), (pixels**2).mean(0)]), min(image.shape[:2]))

    # Pillow decodes without the interpreter's lock
    with ThreadPool(min(8, os.cpu_count() or 1)) as pool:
        return pool.map(one, enumerate(paths), chunksize=16)


def _moments(
    images: Sequence[NDArray[np.float64]],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if not images:  # data to evaluate on only
        return (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    mean, square = np.mean(images, axis=0)
    return tuple(mean.tolist()), tuple(np.sqrt(square - mean**2).tolist())


def _digest(rows: Iterable[Row], root: Path) -> str:
    def entry(row: Row) -> str:
        size = row.path.stat().st_size if row.path.is_file() else -1
        place = Path(os.path.relpath(row.path, root)).as_posix()
        return json.dumps([place, size, row.label, row.split])

    lines = "\n".join(sorted(map(entry, rows)))
    return hashlib.sha256(lines.encode()).hexdigest()


def _folders(folder: Path) -> list[Path]:
    """The visible folders in a folder, sorted."""
    return sorted(f for f in folder.iterdir() if _is_visible(f.name) and f.is_dir())


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name.casefold() not in _LITTER


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

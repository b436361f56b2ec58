"""Image files with their classes: a folder of folders, or a CSV file."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnets.config.recipe import Preprocess
from resnets.data.decode import (
    IMAGE_SUFFIXES,
    Unreadable,
    decode,
    largest_value,
    open_image,
    oriented_size,
    unused_content,
    white_of,
)
from resnets.data.splits import Source, Split, describe_missing_classes
from resnets.data.tables import LABEL, PATH, SPLIT, backslashes, read_table, resolve
from resnets.errors import DataError, DataErrors, Problem, nearest

CHECKED = 10_000  # files that are decoded whole before a run; of more, every k-th

SPLITS = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "valset", "dev", "eval"), "val"),
    **dict.fromkeys(("test", "testing", "testset"), "test"),
}
_NO_CLASSES = {"images", "labels"}
_LITTER = {"thumbs.db", "desktop.ini", "__macosx", ".ds_store"}  # that systems leave everywhere


@dataclass(frozen=True, slots=True)
class Row:
    """A file, its class or classes, and its split if the data says one."""

    path: Path
    labels: tuple[str, ...]
    split: str | None


def split_name(name: str) -> str | None:
    """The split that a folder or a cell names, as `Validation` or `train_set`."""
    return SPLITS.get(re.sub(r"[\s_-]", "", name.casefold()))


def _by_words(folders: Iterable[Path]) -> dict[Path, str]:
    """Folders of class folders of which a word names the split, as `seg_train` beside `seg_test`.

    One that only holds another of its split, as seg_train/seg_train, is that one. Nothing where
    they are not train and another, each once.
    """
    parts: dict[Path, str] = {}
    for folder in folders:
        words = re.split(r"[\W_]+|(?<=[a-z])(?=[A-Z])", folder.name)
        splits = {split for word in words if (split := split_name(word))}
        inner = subfolders(folder)
        if len(splits) == 1 and inner and not _pictured(folder):
            deeper = len(inner) == 1 and inner[0].name == folder.name and subfolders(inner[0])
            parts[inner[0] if deeper else folder] = splits.pop()
    names = [*parts.values()]
    return parts if "train" in names and len({*names}) == len(names) > 1 else {}


def _pictured(folder: Path) -> bool:
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.iterdir())


def read_folder(root: Path, *, seed: int, max_unreadable: float, training: bool = True) -> Source:
    """A folder of class folders, or of `train`, `val` and `test` (see SPLITS) with them.

    Without split folders every class is split 80 : 10 : 10 by chance; `Source.split_table` has the
    outcome. Images may lie deeper inside a class folder. What begins with a dot is ignored, as are
    files that are no images by name or content; `Source.notes` counts what is not read.

    Raises DataError for another layout or more than `max_unreadable` of the files unreadable;
    Refused for `training` on an empty class folder, fewer than two classes, classes that only
    other splits have, or a file of two classes.
    """
    folders = subfolders(root)
    parts = {f: split for f in folders if (split := split_name(f.name)) and subfolders(f)}
    worded = {} if parts else _by_words(folders)
    parts = parts or worded
    others = [f for f in folders if f not in parts and f / f.name not in parts]
    if len(set(parts.values())) < len(parts):
        raise DataError(f"{root} has one split twice: {', '.join(f.name for f in parts)}")
    read = _Read()
    if worded:
        which = ", ".join(f"{f.name} as {split}" for f, split in worded.items())
        read.notes.append(f"{root}: a word in the folders' names is taken as the split: {which}")
    if "train" in parts.values() or (parts and not others):
        read.count(f"{root}: {{}} folders beside {', '.join(f.name for f in parts)}", others)
    else:
        wrong = [f for f in folders if f in parts or f.name.casefold() in _NO_CLASSES]
        if len(folders) == 1 and (inner := subfolders(folders[0])):
            raise DataError(f"{root} has a single folder in it; did you mean {inner[0].parent}?")
        if wrong:
            raise DataError(
                f"{root} has folders that look like no classes: {_names(wrong)}\n"
                "Name them train, val and test with class folders inside, or keep only classes."
            )
        flat = [f for f in folders if split_name(f.name)]
        if flat == folders and flat:
            _refuse_flat(flat[0])
        if flat:
            end = "taken as classes, since no folders are inside"
            read.count(f"{root}: {{}} folders with the names of splits", flat, end)
    for folder in [*parts] or [root]:
        read.classes(folder, parts.get(folder), training)
    rest = (root, read.rows, root, seed, max_unreadable, False, training)
    return _source(*rest, read.finished(root), read.refused)


def _names(folders: Iterable[Path]) -> str:
    return ", ".join(sorted(f.name for f in folders))


def _refuse_flat(folder: Path) -> None:
    files = f"{len(visible(folder))} files but no folders"
    raise DataError(f"{folder} has {files}: it needs one folder for each class")


@dataclass
class _Read:
    """The rows of class folders, and what stood beside them."""

    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    refused: list[Problem] = field(default_factory=list)
    beside: list[Path] = field(default_factory=list)  # of the class folders
    deeper: list[Path] = field(default_factory=list)
    hidden: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)  # files that are no images

    def count(self, what: str, paths: Sequence[Path], end: str = "not read") -> None:
        """Note how many of a kind there are, and the first."""
        if paths:
            self.notes.append(f"{what.format(f'{len(paths):,}')}: {end}, first {paths[0]}")

    def classes(self, folder: Path, split: str | None, training: bool) -> None:
        """Read the class folders in a folder."""
        folders = subfolders(folder)
        if not folders:
            _refuse_flat(folder)
        self.beside += sorted(f for f in folder.iterdir() if _is_visible(f.name) and not f.is_dir())
        self.hidden += sorted(f for f in folder.iterdir() if _is_hidden(f.name))
        empty: list[Path] = []
        for top in folders:
            files, hidden = _walk(top)
            images = [path for path in files if is_image_file(path)]
            self.rows += [Row(path, (top.name,), split) for path in images]
            self.deeper += [path for path in images if path.parent != top]
            self.skipped += sorted(set(files) - set(images))
            self.hidden += hidden
            empty += [] if images else [top]
        inner = [sub for top in folders for sub in subfolders(top) if split_name(sub.name)]
        if len(inner) > 1:
            reason = f"a split inside of a class: make it {inner[0].name}/{inner[0].parent.name}"
            self.refused.append((str(inner[0]), reason))
        if empty and training and split in (None, "train"):
            reason = f"{len(empty)} empty class folders: {_names(empty[:5])}; fill or remove them"
            self.refused.append((str(folder), reason))
        else:
            self.count(f"{folder}: {{}} class folders without images", empty, "left out")

    def finished(self, root: Path) -> list[str]:
        """All notes."""
        self.count(f"{root}: {{}} files that are no images", self.skipped, "skipped")
        self.count(f"{root}: {{}} files beside the class folders", self.beside)
        self.count(f"{root}: {{}} hidden files and folders", self.hidden)
        end = "of the class of the first folder"
        self.count(f"{root}: {{}} images in folders inside of class folders", self.deeper, end)
        return self.notes


def is_image_file(path: Path) -> bool:
    """Whether a file is meant as an image, be it readable or not, by its name, else by content."""
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return True
    try:
        with open_image(path):
            return True
    except Unreadable:
        return False


def read_csv(table: Path, *, seed: int, max_unreadable: float, training: bool = True) -> Source:
    """A CSV file of `path,label`, and optionally `split` (see SPLITS): see `tables.read_table`.

    Paths count from the file's folder. Without `split` the rows are split as in `read_folder`. One
    `|` in any label says that images may have several classes, as `cat|dog` (in any order), or none
    at all, which is an empty label; `cat|` is a cat alone. Space around a name does not count. A
    row that stands twice counts once.

    Raises DataError as `read_folder`; Refused with the lines of all rows that are wrong.
    """
    columns = {"path": PATH, "label": LABEL, "split": SPLIT}
    read = read_table(table, columns, ("path", "label"))
    notes, refused = [*read.notes, *backslashes(read)], list[Problem]()
    if several := [row["label"] for _, row in read.rows if "|" in row["label"]]:
        reason = "so an image may have several classes, or none"
        notes.append(f"{table}: {len(several):,} labels with |, first {several[0]!r}: {reason}")
    rows: dict[Path, tuple[int, Row]] = {}
    twice: list[str] = []
    for line, row in read.rows:
        place, label, split = f"{table}, line {line}", row["label"], row.get("split")
        if not row["path"] or not (label or several):
            refused.append((place, "path or label is missing"))
            continue
        if "://" in row["path"]:
            refused.append((place, f"{row['path']} is a web address: download the images first"))
            continue
        if split is not None and split_name(split) is None:
            refused.append((place, f"split {split!r}: {nearest(split, ('train', 'val', 'test'))}"))
            continue
        path = Path(os.path.normpath(resolve(read, row["path"])))
        labels = tuple(sorted({*map(str.strip, label.split("|"))} - {""})) if several else (label,)
        new = Row(path, labels, split_name(split or ""))
        before, old = rows.setdefault(path, (line, new))
        if before == line:
            continue
        twice.append(place)
        if old != new:
            reason = f"{row['path']} has another label or split than in line {before}"
            refused.append((place, f"{reason}; several labels of an image are one, as cat|dog"))
    if twice:
        notes.append(f"{table}: {len(twice):,} rows stand twice and count once, first {twice[0]}")
    every = [row for _, row in rows.values()]
    rest = (table, every, table.parent, seed, max_unreadable, bool(several), training)
    return _source(*rest, notes, refused)


def _source(
    origin: Path,
    rows: list[Row],
    root: Path,
    seed: int,
    max_unreadable: float,
    several: bool,
    training: bool,
    notes: list[str],
    refused: list[Problem],
) -> Source:
    composed = {name: normalize("NFC", name) for row in rows for name in row.labels}
    if renamed := sorted(name for name, new in composed.items() if name != new):
        rows = [replace(row, labels=tuple(composed[n] for n in row.labels)) for row in rows]
        notes.append(
            f"{origin}: {len(renamed)} class names in decomposed Unicode, first {renamed[0]!r}, "
            "are taken as composed"
        )
    names = {name for row in rows for name in row.labels}
    known = _classes(rows) if training else names
    if alien := sorted(names - known):
        path = next(row.path for row in rows if alien[0] in row.labels)
        reason = f"val or test have classes that train has not: {alien[:5]}"
        refused.append((str(path), reason))
    if len(known) < 2 and training:
        reason = f"{len(known)} classes; it takes two to tell apart"
        refused.append((str(origin), reason))
    kinds: dict[str, list[str]] = {}
    for name in sorted(names):
        kinds.setdefault(re.sub(r"[\s\"']", "", name.casefold()), []).append(name)
    if alike := [group for group in kinds.values() if len(group) > 1]:
        notes.append(
            f"{origin}: {len(alike)} groups of classes differ in case, space or quotes only, "
            f"first {' and '.join(map(repr, alike[0]))}; they are kept apart"
        )
    _note_links(origin, rows, notes, refused)

    def problems(unreadable: Iterable[tuple[Path, str]] = ()) -> DataErrors:
        noted = [(str(origin), note) for note in notes]
        noted += [(str(path), f"unreadable: {reason}") for path, reason in unreadable]
        return DataErrors(origin, refused, noted)

    if refused and max_unreadable < 1:  # a check, which allows all, wants to know of the files too
        raise problems()
    seen = scan_images([row.path for row in rows], max_unreadable)
    good = [row for row in rows if row.path in seen.looks]
    if lost := sorted(known - (_classes(good) if training else known)):
        refused.append((str(origin), f"not one image can be read of the classes {lost[:5]}"))
    if refused:
        raise problems(seen.unreadable)
    if not good:
        raise DataError(f"{origin} has no image that can be read")
    classes = tuple(sorted(known))
    every = Split(tuple(row.path for row in good), _labels(good, classes, several))
    parts = [row.split for row in good]
    made = make_dataset(
        origin, root, classes, every, parts, seen, seed, _digest(rows, root, several)
    )
    if training and made.automatic and made.train is not None:
        counts = made.train.counts(len(classes)).tolist()
        if bare := [name for name, count in zip(classes, counts, strict=True) if not count]:
            reason = (
                f"the split by chance leaves {len(bare)} classes without training images, first "
                f"{bare[0]!r}: add images (three of each), or make the splits: train/, val/, test/"
            )
            refused.append((str(origin), reason))
            raise problems(seen.unreadable)
    return replace(made, notes=(*notes, *made.notes))


def _note_links(origin: Path, rows: list[Row], notes: list[str], refused: list[Problem]) -> None:
    """Name files that are one by links; of two classes they are refused."""
    first: dict[tuple[int, int], Row] = {}
    same: list[tuple[Row, Row]] = []
    for row in rows:
        with suppress(OSError, ValueError):
            found = os.stat(row.path)
            other = first.setdefault((found.st_dev, found.st_ino), row)
            if other is not row and found.st_ino:
                same.append((other, row))
    if bad := [(a, b) for a, b in same if a.labels != b.labels]:
        a, b = bad[0]
        reason = f"{len(bad):,} files have two classes by links, first {a.path} is this one too"
        refused.append((str(b.path), reason))
    elif same:
        a, b = same[0]
        reason = f"are others by links and count twice, first {b.path}, which is {a.path}"
        notes.append(f"{origin}: {len(same):,} files {reason}")


def make_dataset(
    origin: Path,
    root: Path,
    classes: tuple[str, ...],
    every: Split,
    parts: Sequence[str | None],
    seen: ScanResult,
    seed: int,
    digest: str,
) -> Source:
    """A Source for classification of all readable images, of which `parts` says the splits.

    Where one has no split, all are split 80 : 10 : 10 by chance and stratified.
    """
    automatic, bare = None in parts, list[str]()
    if automatic:
        tenth = round(len(every) / 10)
        test, val, train = every.divided(seed, tenth, 2 * tenth)
        drawn = {"train": train, "val": val, "test": test}
        bare = [
            describe_missing_classes(name, part, every, classes)
            for name, part in drawn.items()
            if len(part)
        ]
    else:
        masks = [torch.tensor([part == s for part in parts]) for s in ("train", "val", "test")]
        train, val, test = (every.take(mask.nonzero()[:, 0]) for mask in masks)
    preprocess = Preprocess(size=1)  # whose mean and std are those of data to evaluate on only
    mean, std = preprocess.mean, preprocess.std
    paths = [path for path in train.images if isinstance(path, Path)]
    looks, white, notes = _scaled(origin, seen.looks, paths)
    trained = [looks[path].moments for path in paths]
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
        white=white,
        unreadable=seen.unreadable,
        notes=(
            *notes,
            *_left_out(origin, looks),
            *(f"{origin}: the split by chance {text}" for text in bare if text),
        ),
        greatest={
            path: most for path, each in looks.items() if (most := each.greatest) is not None
        },
        root=root,
        automatic=automatic,
    )


def _scaled(
    origin: Path, looks: dict[Path, ImageInfo], training: list[Path]
) -> tuple[dict[Path, ImageInfo], int, list[str]]:
    """The same with grey of 16 bits scaled by what the training images hold, white, and notes."""
    wide = {path: most for path, each in looks.items() if (most := each.greatest) is not None}
    if not wide:
        return looks, 65535, []
    most = max([wide[path] for path in training if path in wide] or wide.values())
    white = white_of(most)
    if white < 65535:
        again = zip(wide, read_image_info(list(wide), white), strict=True)
        looks = looks | {path: each for path, each in again if isinstance(each, ImageInfo)}
    over = [path for path, value in wide.items() if value > white]
    note = f"{origin}: {len(wide):,} decoded images are grey with 16 bits, first {next(iter(wide))}"
    note += f"; white is {white:,}, since the greatest value for training is {most:,}"
    note += f"; {len(over):,} have greater values, first {over[0]}" if over else ""
    return looks, white, [note]


def _left_out(origin: Path, looks: dict[Path, ImageInfo]) -> list[str]:
    """A note of each kind of what the pixels of images leave out."""
    kinds: dict[str, list[Path]] = {}
    for path, each in looks.items():
        for kind in each.unused:
            kinds.setdefault(kind, []).append(path)
    return [f"{origin}: {len(p):,} images {kind}, first {p[0]}" for kind, p in kinds.items()]


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


class ImageInfo(NamedTuple):
    """What a readable image file has: its sides in pixels as it stands upright."""

    height: int
    width: int
    orientation: int  # EXIF's, from 1 (upright as it is stored) to 8
    # Means and mean squares of the channels in 0..1, float64 (6,), where it was decoded.
    moments: NDArray[np.float64] | None
    unused: tuple[str, ...] = ()  # what its pixels leave out
    greatest: int | None = None  # value, of grey with 16 bits that was decoded


class ScanResult(NamedTuple):
    """What came of looking at image files."""

    looks: dict[Path, ImageInfo]
    unreadable: tuple[tuple[Path, str], ...]  # each with the reason


def scan_images(paths: Sequence[Path], max_unreadable: float) -> ScanResult:
    """Look at each file once. Raises DataError where too many of them are unreadable."""
    paths = list(dict.fromkeys(paths))
    every = list(zip(paths, read_image_info(paths), strict=True))
    bad = [(path, found.reason) for path, found in every if isinstance(found, Unreadable)]
    if len(bad) > max_unreadable * len(paths):
        first = "; ".join(f"{path} ({reason})" for path, reason in bad[:3])
        raise DataError(
            f"{len(bad):,} of {len(paths):,} files are unreadable, allowed is {max_unreadable:g} "
            f"of them.\n{first}\nMend or remove them, or allow more: --set max_unreadable=0.1 "
            "(train) or --max-unreadable 0.1 (evaluate)."
        )
    return ScanResult(
        {path: found for path, found in every if isinstance(found, ImageInfo)}, tuple(bad)
    )


def read_image_info(paths: Sequence[Path], white: int = 65535) -> list[ImageInfo | Unreadable]:
    """Every header is read, and up to CHECKED whole images, spread evenly."""
    every = -(-len(paths) // CHECKED)

    def one(job: tuple[int, Path]) -> ImageInfo | Unreadable:
        number, path = job
        try:
            with open_image(path) as picture:
                left_out, sides = tuple(unused_content(picture)), oriented_size(picture)
                if number % every:
                    return ImageInfo(*sides, None, left_out)
                most = largest_value(picture) if picture.mode.startswith("I;16") else None
            image = decode(path, 3, white)
        except Unreadable as fault:
            return fault
        # of a large image some 64 x 64 pixels: their mean and deviation are the image's
        step = max(1, min(image.shape[:2]) // 64)
        pixels = image[::step, ::step].reshape(-1, 3) / 255.0
        moments = np.array([*pixels.mean(0), *(pixels**2).mean(0)])
        return ImageInfo(image.shape[0], image.shape[1], sides[2], moments, left_out, most)

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


def _is_hidden(name: str) -> bool:
    """Whether a person may have hidden it: not what systems leave behind."""
    return not _is_visible(name) and name.casefold() not in _LITTER and not name.startswith("._")


def subfolders(folder: Path) -> list[Path]:
    """The visible folders in a folder, sorted."""
    return sorted(f for f in folder.iterdir() if _is_visible(f.name) and f.is_dir())


def visible(folder: Path) -> list[Path]:
    """All files in a folder and below, sorted; nothing that begins with a dot.

    A folder is entered once, and none above this one, so a link does not lead in circles.
    """
    return _walk(folder)[0]


def _walk(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files that are `visible`, and the files and folders that are hidden, sorted."""
    entered = set(map(str, Path(os.path.realpath(folder)).parents))
    files, hidden = list[Path](), list[Path]()
    for place, inner, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in entered:
            inner[:] = []
            continue
        hidden += [Path(place, name) for name in (*inner, *names) if _is_hidden(name)]
        inner[:] = [name for name in inner if _is_visible(name)]
        files += [Path(place, name) for name in names if _is_visible(name)]
        entered.add(real)
    return sorted(files), sorted(hidden)

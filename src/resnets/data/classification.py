"""Image files with their classes: a CSV file, and the rules that it shares with folders."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from unicodedata import normalize

import torch
from torch import Tensor

from resnets.data.assemble import (
    ReadOptions,
    ScanResult,
    digest_of_entries,
    file_entry,
    make_dataset,
    scan_images,
)
from resnets.data.issues import Issues
from resnets.data.paths import find_images, parse_split
from resnets.data.splits import Source, Split
from resnets.data.tables import LABEL, PATH, SPLIT, read_table
from resnets.errors import DataError, quantify


@dataclass(frozen=True, slots=True)
class LabelledFile:
    """A file, its class or classes, and its split if the data says one."""

    path: Path
    labels: tuple[str, ...]
    split: str | None


def classification_dataset(
    files: list[LabelledFile], multi_label: bool, issues: Issues, options: ReadOptions
) -> Source:
    """The data set of labelled files; to train it needs two classes, each with images.

    Raises DataErrors with all `issues`: fewer than two classes, classes that only other splits than
    train have, or a file of two classes; DataError where too many files, or all, are unreadable.
    """
    files, training = _compose_unicode(files, issues), options.training
    names = {name for file in files for name in file.labels}
    classes = _classes_to_learn(files) if training else names
    if unknown := sorted(names - classes):
        path = next(file.path for file in files if unknown[0] in file.labels)
        issues.error(path, f"val or test have {_describe(unknown)} that train lacks")
    if len(classes) < 2 and training:
        issues.error(issues.data, f"{quantify(len(classes), 'classes')}; classification needs two")
    _note_similar_classes(names, issues)
    _check_links(files, issues)
    if issues.errors and options.max_unreadable < 1:  # a check, which allows all, reads them too
        raise issues.to_error()
    scan = scan_images([file.path for file in files], options.max_unreadable)
    readable = [file for file in files if file.path in scan.images]
    if training and (lost := sorted(classes - _classes_to_learn(readable))):
        issues.error(issues.data, f"no image can be read of {_describe(lost)}")
    if issues.errors:
        raise issues.to_error(scan)
    if not readable:
        raise DataError(f"{issues.data} has no readable image")
    class_names = tuple(sorted(classes))
    labels = _label_tensor(readable, class_names, multi_label)
    entries = [
        [*file_entry(f.path, issues.root), f.labels if multi_label else f.labels[0], f.split]
        for f in files
    ]
    source = make_dataset(
        Split(tuple(file.path for file in readable), labels),
        [file.split for file in readable],
        task="classify",
        classes=class_names,
        scan=scan,
        issues=issues,
        seed=options.seed,
        digest=digest_of_entries(sorted(entries, key=json.dumps), separator="\n"),
    )
    if training and source.automatic and source.train:
        _check_drawn_classes(source.train, class_names, issues, scan)
    return source


def _check_drawn_classes(
    train: Split, classes: tuple[str, ...], issues: Issues, scan: ScanResult
) -> None:
    """Raise DataErrors where a random split leaves a class without training images."""
    counts = train.counts(len(classes)).tolist()
    if bare := [name for name, count in zip(classes, counts, strict=True) if not count]:
        issues.error(
            issues.data,
            f"the random split leaves {_describe(bare)} without training images: "
            "add images (three of each), or make the splits yourself: train/, val/, test/",
        )
        raise issues.to_error(scan)


def _describe(classes: Sequence[str]) -> str:
    return f"{quantify(len(classes), 'classes')} (first {', '.join(map(repr, classes[:5]))})"


def _compose_unicode(files: list[LabelledFile], issues: Issues) -> list[LabelledFile]:
    """The files with class names in composed Unicode: systems write one name in two ways."""
    composed = {name: normalize("NFC", name) for file in files for name in file.labels}
    renamed = sorted(repr(name) for name, new in composed.items() if name != new)
    text = "class names in decomposed Unicode are read as composed"
    issues.count(text, *renamed)
    return [replace(file, labels=tuple(composed[n] for n in file.labels)) for file in files]


def _classes_to_learn(files: Sequence[LabelledFile]) -> set[str]:
    """The classes of the training files, or of all where none is for training."""
    training = [file for file in files if file.split in (None, "train")] or files
    return {name for file in training for name in file.labels}


def _note_similar_classes(names: set[str], issues: Issues) -> None:
    """Note classes whose names differ in spelling only: they are likely one."""
    groups: dict[object, list[str]] = {}
    for name in sorted(names):
        spelling: object = re.sub(r"[\s\"']", "", name.casefold())
        with suppress(ValueError):
            spelling = float(name) if re.fullmatch(r"[\s\d.+-]+", name) else spelling
        groups.setdefault(spelling, []).append(name)
    alike = [" and ".join(map(repr, group)) for group in groups.values() if len(group) > 1]
    text = "groups of classes have names that differ in case, space, quotes or decimals only"
    issues.count(text, *alike)


def _check_links(files: list[LabelledFile], issues: Issues) -> None:
    """Note files that are the same one by links; of two classes they are errors."""
    first: dict[tuple[int, int], LabelledFile] = {}
    linked: list[tuple[LabelledFile, LabelledFile]] = []
    for file in files:
        with suppress(OSError, ValueError):
            status = os.stat(file.path)
            other = first.setdefault((status.st_dev, status.st_ino), file)
            if other is not file and status.st_ino:
                linked.append((other, file))
    if conflicts := [(a, b) for a, b in linked if a.labels != b.labels]:
        a, b = conflicts[0]
        count = quantify(len(conflicts), "files have two classes by links")
        reason = f"{count}, first {a.path} is this one"
        issues.error(b.path, reason)
    else:
        examples = [f"{b.path}, which is {a.path}" for a, b in linked]
        issues.count("files are the same as another by links, and count again", *examples)


def _label_tensor(
    files: Sequence[LabelledFile], classes: tuple[str, ...], multi_label: bool
) -> Tensor:
    index = {name: k for k, name in enumerate(classes)}
    if not multi_label:
        return torch.tensor([index[name] for file in files for name in file.labels])
    labels = torch.zeros(len(files), len(classes))
    for row, file in zip(labels, files, strict=True):
        row[[index[name] for name in file.labels]] = 1
    return labels


def read_class_table(issues: Issues) -> tuple[list[LabelledFile], bool]:
    """A CSV file of `path,label`, and optionally `split`: see `tables.read_table`.

    Also whether images may have several labels. Paths count from the file's folder; see
    `paths.find_images`. Without `split` the rows are split as class folders are. One `|` in
    any label says that images may have several classes, as `cat|dog` (in any order), or none at
    all, which is an empty label; `cat|` is a cat alone. Space around a name does not count. A row
    that stands twice counts once.
    """
    table = issues.data
    columns = {"path": PATH, "label": LABEL, "split": SPLIT}
    rows = read_table(table, columns, ("path", "label"), issues)
    multiple = [repr(row["label"]) for _, row in rows if "|" in row["label"]]
    issues.count("labels have |, so an image may have several classes, or none", *multiple)
    lists = [repr(row["label"]) for _, row in rows if any(sign in row["label"] for sign in ",;[")]
    issues.count("labels have , ; or [, read as one class; write several as cat|dog", *lists)
    names = (row["path"] for _, row in rows if row["path"] and "://" not in row["path"])
    paths = find_images(names, [table.parent], table.parent, issues)
    files: dict[Path, tuple[int, LabelledFile]] = {}
    for line, row in rows:
        where = f"{table}, line {line}"
        try:
            file = _labelled_file(row, paths, bool(multiple))
        except ValueError as error:
            issues.error(where, str(error))
            continue
        first_line, first = files.setdefault(file.path, (line, file))
        if first_line != line:
            issues.count("rows are repeated: each image counts once", where)
            if first != file:
                reason = f"{row['path']} has another label or split than in line {first_line}"
                issues.error(where, f"{reason}; write several labels of an image as cat|dog")
    return [file for _, file in files.values()], bool(multiple)


def _labelled_file(row: dict[str, str], paths: dict[str, Path], multi_label: bool) -> LabelledFile:
    """The file of a row. Raises ValueError for a row that is wrong."""
    name, label, split = row["path"], row["label"], row.get("split")
    if not name or not (label or multi_label):
        raise ValueError("path or label is missing")
    if "://" in name:
        raise ValueError(f"{name} is a web address: download the images first")
    labels: tuple[str, ...] = (label,)
    if multi_label:
        labels = tuple(sorted({text.strip() for text in label.split("|")} - {""}))
    return LabelledFile(paths[name], labels, None if split is None else parse_split(split))

"""Image files with their classes: the rules that a folder and a CSV file share."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from unicodedata import normalize

import torch
from torch import Tensor

from resnets.data.assemble import digest_of_entries, file_entry, make_dataset
from resnets.data.issues import Issues
from resnets.data.scan import scan_images
from resnets.data.splits import Source, Split
from resnets.errors import DataError


@dataclass(frozen=True, slots=True)
class LabelledFile:
    """A file, its class or classes, and its split if the data says one."""

    path: Path
    labels: tuple[str, ...]
    split: str | None


def classification_dataset(
    origin: Path,
    root: Path,
    files: list[LabelledFile],
    issues: Issues,
    *,
    multi_label: bool,
    training: bool,
    seed: int,
    max_unreadable: float,
) -> Source:
    """The data set of labelled files; `training` needs two classes, each with images.

    Raises DataErrors with all `issues`; DataError where too many files, or all, are unreadable.
    """
    files = _compose_unicode(origin, files, issues)
    classes = _check_classes(origin, files, issues, training)
    _note_similar_classes(origin, {name for file in files for name in file.labels}, issues)
    _check_links(origin, files, issues)
    if issues.errors and max_unreadable < 1:  # a check, which allows all, reads the files too
        raise issues.to_error(origin)
    scan = scan_images([file.path for file in files], max_unreadable)
    readable = [file for file in files if file.path in scan.images]
    if lost := sorted(set(classes) - (_classes_to_learn(readable) if training else {*classes})):
        issues.error(origin, f"no image can be read of {_count(lost, 'classes')}")
    if issues.errors:
        raise issues.to_error(origin, scan.unreadable)
    if not readable:
        raise DataError(f"{origin} has no image that can be read")
    source = make_dataset(
        origin,
        root,
        task="classify",
        classes=classes,
        images=Split(
            tuple(file.path for file in readable), _label_tensor(readable, classes, multi_label)
        ),
        splits=[file.split for file in readable],
        scan=scan,
        issues=issues,
        seed=seed,
        digest=_digest(files, root, multi_label),
    )
    if training and source.automatic:
        _check_drawn_classes(source, origin, issues)
    return source


def _check_drawn_classes(source: Source, origin: Path, issues: Issues) -> None:
    """Raise DataErrors where a split by chance leaves a class without training images."""
    counts = source.train.counts(len(source.classes)).tolist() if source.train else []
    if bare := [name for name, count in zip(source.classes, counts, strict=False) if not count]:
        issues.error(
            origin,
            f"the split by chance leaves {_count(bare, 'classes')} without training images: "
            "add images (three of each), or make the splits yourself: train/, val/, test/",
        )
        raise issues.to_error(origin, source.unreadable)


def _count(names: Sequence[str], what: str) -> str:
    return f"{len(names):,} {what} (first {', '.join(map(repr, names[:5]))})"


def _compose_unicode(origin: Path, files: list[LabelledFile], issues: Issues) -> list[LabelledFile]:
    """The files with class names in composed Unicode: systems write one name in two ways."""
    composed = {name: normalize("NFC", name) for file in files for name in file.labels}
    renamed = sorted(name for name, new in composed.items() if name != new)
    if not renamed:
        return files
    what = "class names are in decomposed Unicode, and are read as composed"
    issues.note(what, list(map(repr, renamed)), origin)
    return [replace(file, labels=tuple(composed[n] for n in file.labels)) for file in files]


def _classes_to_learn(files: Sequence[LabelledFile]) -> set[str]:
    """The classes of the training files, or of all where none is for training."""
    training = [file for file in files if file.split in (None, "train")] or files
    return {name for file in training for name in file.labels}


def _check_classes(
    origin: Path, files: list[LabelledFile], issues: Issues, training: bool
) -> tuple[str, ...]:
    names = {name for file in files for name in file.labels}
    classes = _classes_to_learn(files) if training else names
    if unknown := sorted(names - classes):
        path = next(file.path for file in files if unknown[0] in file.labels)
        issues.error(path, f"val or test have {_count(unknown, 'classes')} that train lacks")
    if len(classes) < 2 and training:
        issues.error(origin, f"{len(classes)} classes; classification needs at least two")
    return tuple(sorted(classes))


def _note_similar_classes(origin: Path, names: set[str], issues: Issues) -> None:
    """Note classes whose names differ in spelling only: they are likely one."""
    groups: dict[object, list[str]] = {}
    for name in sorted(names):
        spelling: object = re.sub(r"[\s\"']", "", name.casefold())
        with suppress(ValueError):
            spelling = float(name) if re.fullmatch(r"[\s\d.+-]+", name) else spelling
        groups.setdefault(spelling, []).append(name)
    alike = [" and ".join(map(repr, group)) for group in groups.values() if len(group) > 1]
    what = "groups of classes differ in case, space, quotes or decimals only; they stay apart"
    issues.note(what, alike, origin)


def _check_links(origin: Path, files: list[LabelledFile], issues: Issues) -> None:
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
        reason = f"{len(conflicts):,} files have two classes by links, first {a.path} is this one"
        issues.error(b.path, reason)
    else:
        examples = [f"{b.path}, which is {a.path}" for a, b in linked]
        issues.note("files are others by links and count twice", examples, origin)


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


def _digest(files: Iterable[LabelledFile], root: Path, multi_label: bool) -> str:
    """A digest that does not depend on the order of the files."""
    entries = [
        [*file_entry(file.path, root), file.labels if multi_label else file.labels[0], file.split]
        for file in files
    ]
    return digest_of_entries(sorted(entries, key=json.dumps), separator="\n")

"""A folder of class folders, with or without folders of splits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from resnets.data.classification import LabelledFile, classification_dataset
from resnets.data.decode import IMAGE_SUFFIXES
from resnets.data.file_names import split_in_name, split_name
from resnets.data.folders import (
    is_hidden_by_user,
    is_image_file,
    is_visible,
    subfolders,
    visible_files,
    walk,
)
from resnets.data.issues import Issues
from resnets.data.splits import SPLITS, Source
from resnets.errors import DataError

_NO_CLASSES = {"images", "labels"}
_FOLD = re.compile(r"(fold|part|split|batch|chunk|shard|cv|set)[\s_-]*\d+", re.IGNORECASE)


def read_folder(root: Path, *, seed: int, max_unreadable: float, training: bool = True) -> Source:
    """A folder of class folders, or of folders of splits (see `split_name`) with them.

    Without split folders every class is split 80 : 10 : 10 by chance; `Source.split_table` has the
    outcome. Images may lie deeper inside a class folder. What begins with a dot is ignored, as are
    files that are no images by name or content; `Source.notes` counts what is not read.

    Raises DataError for another layout or more than `max_unreadable` of the files unreadable;
    DataErrors for `training` on an empty class folder, fewer than two classes, classes that only
    other splits have, or a file of two classes.
    """
    issues = Issues()
    splits = _split_folders(root, issues)
    folders = [f for f in subfolders(root) if f not in splits and f / f.name not in splits]
    if "train" in splits.values() or (splits and not folders):
        names = ", ".join(f.name for f in splits)
        issues.note(f"folders beside {names} are not read", folders, root)
    else:
        _check_class_folders(root, issues)
        splits = {}
    reader = _ClassFolderReader(issues, training)
    for folder in splits or [root]:
        reader.read(folder, splits.get(folder))
    reader.note_skipped(root)
    return classification_dataset(
        root,
        root,
        reader.files,
        issues,
        multi_label=False,
        training=training,
        seed=seed,
        max_unreadable=max_unreadable,
    )


def _split_folders(root: Path, issues: Issues) -> dict[Path, str]:
    """The folders of splits, by their whole names, or else by a word in them."""
    splits: dict[Path, str] = {}
    for folder in subfolders(root):
        if (split := split_name(folder.name)) and subfolders(folder):
            splits[folder] = split
    if not splits and (splits := _split_folders_by_words(root)):
        which = ", ".join(f"{folder.name} as {split}" for folder, split in splits.items())
        issues.notes.append(f"{root}: splits are read from words in the folders' names: {which}")
    if len(set(splits.values())) < len(splits):
        names = ", ".join(f.name for f in splits)
        raise DataError(f"{root} has two folders of one split: {names}; merge or rename them")
    return splits


def _split_folders_by_words(root: Path) -> dict[Path, str]:
    """Folders of class folders of which a word names the split, as `seg_train` beside `seg_test`.

    One that only holds another of its name, as seg_train/seg_train, is that one. Nothing where
    they are not train and another, each once.
    """
    splits: dict[Path, str] = {}
    for folder in subfolders(root):
        split, inner = split_in_name(folder.name), subfolders(folder)
        if split not in SPLITS or not inner or _has_images(folder):
            continue
        repeated = len(inner) == 1 and inner[0].name == folder.name and subfolders(inner[0])
        splits[inner[0] if repeated else folder] = split
    names = [*splits.values()]
    return splits if "train" in names and len(set(names)) == len(names) > 1 else {}


def _has_images(folder: Path) -> bool:
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.iterdir())


def _check_class_folders(root: Path, issues: Issues) -> None:
    """Refuse folders below `root` that cannot be classes, and note those that may be none.

    Raises DataError.
    """
    folders = subfolders(root)
    if len(folders) == 1 and subfolders(folders[0]):
        raise DataError(f"{root} holds a single folder; did you mean {folders[0]}?")
    named_as_splits = [f for f in folders if split_name(f.name)]
    wrong = [f for f in folders if f.name.casefold() in _NO_CLASSES]
    wrong += [f for f in named_as_splits if subfolders(f)]
    if wrong:
        raise DataError(
            f"{root} has folders that do not look like classes: {_names(wrong)}\n"
            "Name them train, val and test with class folders inside, or keep only classes."
        )
    if folders and named_as_splits == folders:
        raise _no_class_folders(folders[0])
    what = "folders have the names of splits, but no folders inside, and are read as classes"
    issues.note(what, named_as_splits, root)
    folds = [f for f in folders if _FOLD.fullmatch(f.name)]
    if len(folds) > 1:
        example = f"{folds[0]}; if they are folds, merge them or list the images in a CSV file"
        what = "folders are named like parts of one data set, and are read as classes"
        issues.note(what, [example, *folds[1:]], root)


def _names(folders: Iterable[Path]) -> str:
    return ", ".join(sorted(f.name for f in folders))


def _no_class_folders(folder: Path) -> DataError:
    files = len(visible_files(folder))
    return DataError(f"{folder} has {files} files but no folders: it needs one for each class")


class _ClassFolderReader:
    """The labelled files of class folders, and what stands beside them."""

    def __init__(self, issues: Issues, training: bool) -> None:
        self.issues, self.training = issues, training
        self.files = list[LabelledFile]()
        self.not_images = list[Path]()
        self.beside = list[Path]()  # files beside the class folders
        self.hidden = list[Path]()
        self.deeper = list[Path]()  # images in folders inside class folders

    def read(self, folder: Path, split: str | None) -> None:
        """Read the class folders in a folder."""
        folders = subfolders(folder)
        if not folders:
            raise _no_class_folders(folder)
        entries = sorted(folder.iterdir())
        self.beside += [f for f in entries if is_visible(f.name) and not f.is_dir()]
        self.hidden += [f for f in entries if is_hidden_by_user(f.name)]
        empty = [top for top in folders if not self._read_class(top, split)]
        inner = [sub for top in folders for sub in subfolders(top) if split_name(sub.name)]
        if len(inner) > 1:
            new = f"{inner[0].name}/{inner[0].parent.name}"
            self.issues.error(inner[0], f"a split inside a class: move it to {new}")
        if empty and self.training and split in (None, "train"):
            reason = f"{len(empty)} empty class folders: {_names(empty[:5])}; fill or remove them"
            self.issues.error(folder, reason)
        else:
            self.issues.note("class folders without images are left out", empty, folder)

    def _read_class(self, folder: Path, split: str | None) -> list[Path]:
        files, hidden = walk(folder)
        images = [path for path in files if is_image_file(path)]
        self.files += [LabelledFile(path, (folder.name,), split) for path in images]
        self.deeper += [path for path in images if path.parent != folder]
        self.not_images += sorted(set(files) - set(images))
        self.hidden += hidden
        return images

    def note_skipped(self, root: Path) -> None:
        notes: dict[str, Sequence[Path]] = {
            "files are not images, and are skipped": self.not_images,
            "files beside the class folders are not read": self.beside,
            "hidden files and folders are not read": self.hidden,
            "images are in folders inside class folders, and have the outer class": self.deeper,
        }
        for what, paths in notes.items():
            self.issues.note(what, paths, root)

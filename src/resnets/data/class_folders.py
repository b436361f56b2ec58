"""A folder of class folders, with or without folders of splits."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from resnets.data.classification import LabelledFile
from resnets.data.decode import IMAGE_SUFFIXES
from resnets.data.issues import Issues
from resnets.data.paths import (
    is_hidden_by_user,
    is_image_file,
    is_visible,
    split_folders,
    split_name,
    subfolders,
    visible_files,
    walk,
)
from resnets.errors import DataError, quantify

_NO_CLASSES = {"images", "labels"}
_FOLD = re.compile(r"(fold|part|split|batch|chunk|shard|cv|set)[\s_-]*\d+", re.IGNORECASE)


def read_class_folders(issues: Issues, training: bool) -> list[LabelledFile]:
    """A folder of class folders, or of folders of splits (see `split_name`) with them.

    Without split folders every class is split 80 : 10 : 10 at random; `Source.split_table` has the
    outcome. Images may lie deeper inside a class folder. What begins with a dot is ignored, as are
    files that are no images by name or content; notes count what is not read.

    Raises DataError for another layout; an empty class folder is an error for `training`.
    """
    root = issues.data
    splits = _split_folders(root, issues)
    others = [f for f in subfolders(root) if f not in splits and f / f.name not in splits]
    if "train" in splits.values() or (splits and not others):
        issues.count(f"folders beside {_names(splits)} are not read", *others)
    else:
        _check_class_folders(root, issues)
        splits = {}
    files = list[LabelledFile]()
    for folder in splits or [root]:
        files += _read_split(folder, splits.get(folder), issues, training)
    return files


def _split_folders(root: Path, issues: Issues) -> dict[Path, str]:
    """The folders of splits, by their whole names, or else by a word in them."""
    splits: dict[Path, str] = {}
    for folder in subfolders(root):
        if (split := split_name(folder.name)) and subfolders(folder):
            splits[_unwrap(folder)] = split
    if not splits and (splits := _split_folders_by_words(root)):
        which = ", ".join(f"{folder.name} as {split}" for folder, split in splits.items())
        issues.note(f"splits are read from words in the folders' names: {which}")
    if len(set(splits.values())) < len(splits):
        raise DataError(
            f"{root} has two folders of one split: {_names(splits)}; merge or rename them"
        )
    return splits


def _split_folders_by_words(root: Path) -> dict[Path, str]:
    """Folders of class folders of which a word names the split, as `seg_train` beside `seg_test`.

    Nothing where they are not train and another, each once.
    """
    splits: dict[Path, str] = {}
    for folder, split in split_folders(root).items():
        has_images = any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.iterdir())
        if subfolders(folder) and not has_images:
            splits[_unwrap(folder)] = split
    names = [*splits.values()]
    return splits if "train" in names and len(set(names)) == len(names) > 1 else {}


def _unwrap(folder: Path) -> Path:
    """The folder, or the only one in it if that has its name, as seg_train/seg_train."""
    inner = subfolders(folder)
    repeated = len(inner) == 1 and inner[0].name == folder.name and subfolders(inner[0])
    return inner[0] if repeated else folder


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
    text = "folders called as splits are, but without folders inside, are read as classes"
    issues.count(text, *named_as_splits)
    folds = [f for f in folders if _FOLD.fullmatch(f.name)]
    if len(folds) > 1:
        example = f"{folds[0]}; if they are folds, merge them or list the images in a CSV file"
        text = "folders are named like parts of one data set, and are read as classes"
        issues.count(text, example, *folds[1:])


def _names(folders: Iterable[Path]) -> str:
    return ", ".join(sorted(f.name for f in folders))


def _no_class_folders(folder: Path) -> DataError:
    files = len(visible_files(folder))
    return DataError(f"{folder} has no folders; it needs one for each class. Its files: {files}")


def _read_split(
    folder: Path, split: str | None, issues: Issues, training: bool
) -> list[LabelledFile]:
    """The images of the class folders in a folder; what else is there is counted."""
    class_folders = subfolders(folder)
    if not class_folders:
        raise _no_class_folders(folder)
    files, empty, inner_splits = list[LabelledFile](), list[Path](), list[Path]()
    for entry in sorted(folder.iterdir()):
        if is_visible(entry.name) and not entry.is_dir():
            issues.count("files beside the class folders are not read", entry)
        elif is_hidden_by_user(entry.name):
            issues.count("hidden paths are not read", entry)
    for class_folder in class_folders:
        images = _read_class(class_folder, issues)
        files += [LabelledFile(path, (class_folder.name,), split) for path in images]
        empty += [] if images else [class_folder]
        inner_splits += [inner for inner in subfolders(class_folder) if split_name(inner.name)]
    if len(inner_splits) > 1:
        first = inner_splits[0]
        issues.error(first, f"a split inside a class: move it to {first.name}/{first.parent.name}")
    if empty and training and split in (None, "train"):
        text = quantify(len(empty), "class folders for training are empty")
        reason = f"{text}: {_names(empty[:5])}; fill or remove such folders"
        issues.error(folder, reason)
    else:
        issues.count("class folders without images are left out", *empty)
    return files


def _read_class(folder: Path, issues: Issues) -> list[Path]:
    files, hidden = walk(folder)
    images = [path for path in files if is_image_file(path)]
    deeper = [path for path in images if path.parent != folder]
    text = "images inside a folder of a class folder are of the outer class"
    issues.count(text, *deeper)
    issues.count("files other than images are skipped", *sorted({*files} - {*images}))
    issues.count("hidden paths are not read", *hidden)
    return images

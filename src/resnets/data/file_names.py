"""Names of splits and files as other people's tools write them."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import takewhile
from pathlib import Path

from resnets.data.folders import image_files, name_key, subfolders
from resnets.data.issues import Issues
from resnets.data.splits import SPLITS
from resnets.data.values import quote
from resnets.errors import nearest

WITH_TRAINVAL = (*SPLITS, "trainval")
_SPLIT = re.compile(r"(trainval|train|val|test)(ing|id|idate|idation)?(set|data|images)?")
_OTHER_SPLIT_NAMES = {"dev": "val", "eval": "val", "minival": "val"}


def _split_of_word(word: str) -> str | None:
    match = _SPLIT.fullmatch(word)
    return match[1] if match else _OTHER_SPLIT_NAMES.get(word)


def split_name(name: str, known: Sequence[str] = SPLITS) -> str | None:
    """The split that a whole name says, as `Validation` or `train_set`; one of `known`, or None."""
    split = _split_of_word(re.sub(r"[\s_-]", "", name.casefold()))
    return split if split in known else None


def parse_split(cell: str, known: Sequence[str] = SPLITS) -> str:
    """The split that a value names. Raises ValueError."""
    if split := split_name(cell, known):
        return split
    raise ValueError(f"unknown split {quote(cell)}: {nearest(cell, SPLITS)}")


def split_in_name(name: str, known: Sequence[str] = WITH_TRAINVAL) -> str | None:
    """The split that words of a name say, as `instances_train2017`; trainval for train and val.

    None for a name that says none of `known`, or two that do not go together.
    """
    words = re.findall("[a-z]+", re.sub("([a-z])([A-Z])", r"\1 \2", name).casefold())
    splits = {split for word in words if (split := _split_of_word(word))}
    if splits == {"train", "val"}:
        splits = {"trainval"}
    if splits == {"test", "val"} and "dev" in words:  # COCO's test-dev
        splits = {"test"}
    return splits.pop() if len(splits) == 1 and splits.issubset(known) else None


def split_folders(folder: Path, known: Sequence[str] = SPLITS) -> dict[Path, str]:
    """The folders in a folder of whose names a word says a split."""
    splits = {inner: split_in_name(inner.name, known) for inner in subfolders(folder)}
    return {inner: split for inner, split in splits.items() if split}


def split_of_folders(path: Path, root: Path) -> str | None:
    """The split that one of a file's folders below `root` is named as; None for none or two."""
    names = components(path.parent.relative_to(root).as_posix())
    splits = {split for name in names if (split := split_name(name))}
    return splits.pop() if len(splits) == 1 else None


def components(name: str) -> list[str]:
    """The keys of a path's components, of POSIX or Windows; without drive, root, `.` and `..`."""
    path = re.sub("^[A-Za-z]:", "", name)
    return [name_key(name) for name in re.split(r"[\\/]+", path) if name not in ("", ".", "..")]


def resolve_case_insensitive(folder: Path, names: Iterable[str]) -> Path | None:
    """The file or folder that keys of names lead to from a folder; None if there is none."""
    path: Path | None = folder
    for name in names:
        try:
            entries = sorted(path.iterdir()) if path and path.is_dir() else []
        except OSError:  # a folder above the data may be closed
            entries = []
        path = next((entry for entry in entries if name_key(entry.name) == name), None)
    return path


def resolve_inside(root: Path, name: str) -> Path | None:
    """What a path, or else its longest end that exists, names below `root`, in any case."""
    names = components(name)
    paths = (resolve_case_insensitive(root, names[start:]) for start in range(len(names)))
    return next(filter(None, paths), None)


def find_images(
    names: Iterable[str], folders: Sequence[Path], root: Path, issues: Issues
) -> dict[str, Path]:
    """The path of the image that each name means; what is assumed of them is noted.

    An image is in the first of `folders` that has its name. Else it is the one below `root` whose
    path ends in the name, whatever its case, Unicode normal form and separators; where no name is
    found even so, as after a move, the end that a path and the name share is enough. An image that
    is not found, or is one of several, gets a path in the first folder.
    """
    file_list = lru_cache(None)(_names_in)
    paths, missing = dict[str, Path](), list[str]()
    for name in dict.fromkeys(names):
        candidates = [os.path.normpath(os.path.join(folder, name)) for folder in folders]
        split_paths = ((path, *os.path.split(path)) for path in dict.fromkeys(candidates))
        existing = [path for path, folder, file in split_paths if file in file_list(folder)]
        paths[name] = Path(existing[0] if existing else os.path.normpath(folders[0] / name))
        if not existing:
            missing.append(name)
        elif len(existing) > 1:
            example = f"{quote(name)}: {existing[0]}, not {existing[1]}"
            issues.count("images are in several folders", example)
    if missing and root.resolve() not in (Path(root.resolve().anchor), Path.home()):
        paths |= _find_below(missing, len(paths), root, set(paths.values()), issues)
    return paths


def _names_in(folder: str) -> set[str]:
    try:
        return set(os.listdir(folder or "."))
    except (OSError, ValueError):
        return set()


def _find_below(
    missing: list[str], total: int, root: Path, taken: set[Path], issues: Issues
) -> dict[str, Path]:
    """The paths of missing images that lie elsewhere below `root`."""
    candidates = defaultdict[str, list[tuple[list[str], Path]]](list)
    for path in image_files(root):
        if path not in taken:
            keys = components(str(path.relative_to(root)))
            candidates[keys[-1]].append((keys, path))
    paths = dict[str, Path]()
    for name in missing:
        ending = components(name)
        shared = [(_shared_end(keys, ending), p) for keys, p in candidates[(ending or [""])[-1]]]
        best = max((count for count, _ in shared), default=0)
        if best == 0 or (best < len(ending) and len(missing) < total):
            continue
        alike = [path for count, path in shared if count == best]
        if len(alike) > 1:
            example = f"{quote(name)}: {alike[0]} or {alike[1]}"
            issues.count("images may be one of several files", example)
        else:
            paths[name] = alike[0]
            example = f"{quote(name)} is {alike[0]}"
            issues.count("images are found under another path or case", example)
    return paths


def _shared_end(a: Sequence[str], b: Sequence[str]) -> int:
    """How many of the last elements are equal."""
    pairs = zip(reversed(a), reversed(b), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

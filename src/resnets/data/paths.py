"""The files and folders of a data set, and what their names mean, as other tools write them."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import takewhile
from pathlib import Path

from resnets.data.decode import IMAGE_SUFFIXES, READABLE, Unreadable, open_image
from resnets.data.issues import Issues, quote
from resnets.data.splits import SPLITS
from resnets.errors import nearest

_LITTER = {"thumbs.db", "desktop.ini", "__macosx", ".ds_store"}  # that systems leave everywhere


def is_visible(name: str) -> bool:
    """Whether a name neither begins with a dot nor is a system's litter."""
    return not name.startswith(".") and name.casefold() not in _LITTER


def is_hidden_by_user(name: str) -> bool:
    """Whether a user may have hidden a file: not what systems leave behind."""
    return not is_visible(name) and name.casefold() not in _LITTER and not name.startswith("._")


def name_key(name: str) -> str:
    """What spellings of one file's name have in common, whatever case and Unicode normal form."""
    return unicodedata.normalize("NFC", name).casefold()


def subfolders(folder: Path) -> list[Path]:
    """The visible folders in a folder, sorted."""
    return sorted(f for f in folder.iterdir() if is_visible(f.name) and f.is_dir())


def folders_called(folder: Path, *names: str) -> list[Path]:
    """The visible folders in a folder that have one of some names, in any case; sorted."""
    return [inner for inner in subfolders(folder) if name_key(inner.name) in names]


def files_with_suffix(folder: Path, *suffixes: str) -> list[Path]:
    """The files in a folder, not below it, with one of some suffixes in any case, sorted."""
    paths = (path for path in folder.iterdir() if path.suffix.casefold() in suffixes)
    return sorted(path for path in paths if path.is_file())


def visible_files(folder: Path) -> list[Path]:
    """All files in a folder and below, sorted; nothing that begins with a dot.

    A folder is entered once, and none above this one, so a link does not lead in circles.
    """
    return walk(folder)[0]


def image_files(folder: Path) -> list[Path]:
    """The image files in a folder and below, by the suffixes of their names, sorted."""
    return [path for path in visible_files(folder) if path.suffix.casefold() in READABLE]


def walk(folder: Path) -> tuple[list[Path], list[Path]]:
    """The `visible_files`, and the files and folders that a user has hidden, sorted."""
    entered = set(map(str, Path(os.path.realpath(folder)).parents))
    files, hidden = list[Path](), list[Path]()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in entered:
            folders[:] = []
            continue
        hidden += [Path(parent, name) for name in (*folders, *names) if is_hidden_by_user(name)]
        folders[:] = [name for name in folders if is_visible(name)]
        files += [Path(parent, name) for name in names if is_visible(name)]
        entered.add(real)
    return sorted(files), sorted(hidden)


def is_image_file(path: Path) -> bool:
    """Whether a file is meant as an image, readable or not, by its name, else by its content."""
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return True
    try:
        with open_image(path):
            return True
    except Unreadable:
        return False


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

"""Files, splits and values as annotations of other people's tools name them."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath

from resnets.data.classification import SPLITS, split_name, visible
from resnets.data.decode import READABLE

_SPLIT = re.compile(r"(trainval|train|minival|val|test)(ing|id|idate|idation|set|data|images|s)?")


def split_of_name(name: str) -> str | None:
    """The split that words of a file's name say: train, val, test, or trainval for both.

    None for a name that says none, or two that do not go together.
    """
    words = re.findall("[a-z]+", re.sub("([a-z])([A-Z])", r"\1 \2", name).casefold())
    known = {SPLITS.get(word) or (m and m[1]) for word in words for m in [_SPLIT.fullmatch(word)]}
    known = {"val" if split == "minival" else split for split in known} - {None}
    if known == {"train", "val"}:
        return "trainval"
    if known == {"test", "val"} and "dev" in words:  # COCO's test-dev
        return "test"
    return known.pop() if len(known) == 1 else None


def folder_split(path: Path, root: Path) -> str | None:
    """The split that one of a file's folders below `root` is called as; None for none or two."""
    names = components(path.parent.relative_to(root).as_posix())
    splits = {split for name in names if (split := split_name(name))}
    return splits.pop() if len(splits) == 1 else None


def quote(value: object) -> str:
    """A value of somebody's file as a message may hold it: in one line, escaped, and short."""
    text = repr(value)  # which escapes what is not printable
    return text if len(text) <= 60 else f"{text[:57]}..."


def number(value: object) -> float:
    """A number, or the text of one. Raises ValueError for anything else, truth values too."""
    if type(value) is float:  # the usual case, millions of times
        return value
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)) or "_" in str(value):
            raise ValueError
        return float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{quote(value)} is no number") from None


def flag(value: object) -> bool:
    """A mark that is set or not, as 0, 1, false, true, or the text of one; nothing is false.

    Raises ValueError for anything else.
    """
    if value is None or value is False or value == 0:
        return False
    text = str(value).strip().casefold() if isinstance(value, (str, int, float)) else value
    if text in ("", "0", "0.0", "false", "no"):
        return False
    if text in ("1", "1.0", "true", "yes"):
        return True
    raise ValueError(f"{quote(value)} is neither 0 nor 1")


def key(name: str) -> str:
    """What names of one file have in common, whatever their case and Unicode normal form."""
    return unicodedata.normalize("NFC", name).casefold()


def components(name: str) -> list[str]:
    """The keys of a path's components, of POSIX or Windows; without drive, root, `.` and `..`."""
    path = re.sub("^[A-Za-z]:", "", name)
    return [key(name) for name in re.split(r"[\\/]+", path) if name not in ("", ".", "..")]


def resolve_case_insensitive(folder: Path, names: Iterable[str]) -> Path | None:
    """The file or folder that keys of names lead to from a folder; None if there is none."""
    path: Path | None = folder
    for name in names:
        try:
            entries = sorted(path.iterdir()) if path and path.is_dir() else []
        except OSError:  # a folder above the data may be closed
            entries = []
        path = next((entry for entry in entries if key(entry.name) == name), None)
    return path


def resolve_inside(root: Path, name: str) -> Path | None:
    """What lies below `root` where a path names it, whatever its case, or else its longest end."""
    wanted = components(name)
    ends = (resolve_case_insensitive(root, wanted[start:]) for start in range(len(wanted)))
    return next(filter(None, ends), None)


def image_files(folder: Path) -> list[Path]:
    """The image files in a folder and below, by their names' ends."""
    return [path for path in visible(folder) if path.suffix.casefold() in READABLE]


def find(
    names: Iterable[str], folders: Sequence[Path], root: Path
) -> tuple[dict[str, Path], list[str]]:
    """Where the images of some names are, and notes of what was assumed.

    An image is where the first of `folders` has it under its name. Else it is the one below `root`
    whose path ends in the name, whatever its case, Unicode normal form and separators; where no
    name is found even so, as after a move, the end that a path and the name share is enough. An
    image that is not found, or not alone, has the first folder for its place.
    """
    where: dict[str, Path] = {}
    missing, twice, listed = list[str](), list[str](), dict[str, set[str]]()
    for name in dict.fromkeys(names):
        paths = [os.path.normpath(os.path.join(folder, name)) for folder in folders]
        paths = list(dict.fromkeys(path for path in paths if _exists(path, listed)))
        where[name] = Path(paths[0]) if paths else Path(os.path.normpath(folders[0] / name))
        missing += [name] if not paths else []
        twice += [f"{quote(name)}: {paths[0]}, not {paths[1]}"] if len(paths) > 1 else []
    notes = [f"{len(twice):,} images are in several places, first {twice[0]}"] if twice else []
    if not missing or root.resolve() in (Path(root.resolve().anchor), Path.home()):
        return where, notes

    ends = defaultdict[str, list[tuple[list[str], Path]]](list)
    for path in image_files(root):
        tail = components(str(path.relative_to(root)))
        ends[tail[-1]].append((tail, path))
    moved, several, taken = list[str](), list[str](), set(where.values())
    for name in missing:
        wanted = components(name)
        fits = [(_shared(tail, wanted), path) for tail, path in ends[wanted[-1]]] if wanted else []
        best = max((shared for shared, path in fits if path not in taken), default=0)
        alike = [path for shared, path in fits if shared == best and path not in taken]
        if best == 0 or (best < len(wanted) and len(missing) < len(where)):
            continue
        if len(alike) > 1:
            several.append(f"{quote(name)}: {alike[0]} or {alike[1]}")
            continue
        where[name] = alike[0]
        moved.append(f"{quote(name)} is {alike[0]}")
    if moved:
        notes.append(
            f"{len(moved):,} images are found under another path or case, first {moved[0]}"
        )
    if several:
        notes.append(f"{len(several):,} images may be one of several files, first {several[0]}")
    return where, notes


def _exists(path: str, listed: dict[str, set[str]]) -> bool:
    """Whether a file is in its folder, of which the listing is made once."""
    folder, name = os.path.split(path)
    if folder not in listed:
        try:
            listed[folder] = set(os.listdir(folder))
        except (OSError, ValueError):
            listed[folder] = set()
    return name in listed[folder]


def _shared(a: Sequence[str], b: Sequence[str]) -> int:
    """How many of the last elements are equal."""
    count = 0
    while count < min(len(a), len(b)) and a[-1 - count] == b[-1 - count]:
        count += 1
    return count


def stem(path: PurePath) -> str:
    """The key of a file's name without its end."""
    return key(path.stem)

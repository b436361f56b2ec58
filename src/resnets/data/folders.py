"""The files and folders of a data set, without what systems and people hide in them."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from resnets.data.decode import IMAGE_SUFFIXES, READABLE, Unreadable, open_image

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

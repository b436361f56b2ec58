"""Images with a mask of classes each."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import replace
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from resnets.config.arch import IGNORE_INDEX
from resnets.data.classification import make_dataset, scan_images, split_name, subfolders, visible
from resnets.data.decode import IMAGE_SUFFIXES, Unreadable
from resnets.data.detection.yolo import class_names, read_yaml
from resnets.data.joint_transforms import class_map
from resnets.data.splits import Source, Split
from resnets.data.tables import read_lines
from resnets.errors import DataError, DataErrors, Problem

FORMS = "images/ and masks/, in both train/, val/ and test/ or none, or train/images/, train/masks/"
_MASKS = ("masks", "semantic_masks")


def layout(root: Path) -> list[tuple[str | None, Path, Path]]:
    """Splits with their folders of images and of masks; nothing in a folder of another layout."""
    if pair := _pair(root):
        images, masks = pair
        names = {f.name for top in pair for f in subfolders(top)}
        splits = {name: split for name in sorted(names) if (split := _split(name))}
        parts = [(split, images / name, masks / name) for name, split in splits.items()]
        return list(parts) or [(None, images, masks)]
    tops = ((_split(top.name), _pair(top)) for top in subfolders(root))
    return [(split, *pair) for split, pair in tops if split and pair]


def _pair(top: Path) -> tuple[Path, Path] | None:
    """The folders of images and of masks in a folder."""
    folders = {f.name.casefold(): f for f in subfolders(top)}
    masks = next((folders[name] for name in _MASKS if name in folders), None)
    return (folders["images"], masks) if masks and "images" in folders else None


def _split(name: str) -> str | None:
    near = (s for s in ("train", "val", "test") if name.casefold().startswith(s))
    return split_name(name) or next(near, None)


def _unread(root: Path, parts: list[tuple[str | None, Path, Path]]) -> list[str]:
    """A note of the folders that stand beside those of the splits."""
    read = {f for _, *pair in parts for top in pair for f in (top, *top.parents)}
    split = any(name for name, *_ in parts)
    tops = {top.parent for _, *pair in parts for top in pair} if split else set[Path]()
    beside = [f for top in sorted(tops | {root}) for f in subfolders(top) if f not in read]
    return [f"{root}: {len(beside)} folders are not read, first {beside[0]}"] if beside else []


def read_masks(root: Path, *, seed: int, max_unreadable: float) -> Source:
    """A folder of images and masks: PNG, indexed or grey, of the same name and size.

    A pixel's value is its class, 255 counts for nothing. Folders that begin with train, val or test
    are splits. Names are those of classes.txt (a line each, from 0; an empty one is none), or of
    `names` or `classes` in a YAML file; classes between them have their number for a name. Without
    names they are the numbers up to the greatest value. Images without a mask are left out and
    counted.

    Raises Refused for values without a name, masks that cannot be read, are of another size or no
    PNG, two images of one name, and for named classes without a pixel where 255 has some;
    DataError for too many unreadable images, fewer than two classes, or another layout.
    """
    noted, refused = list[Problem](), list[Problem]()
    rows: list[tuple[Path, Path, str | None]] = []
    parts = layout(root)
    notes = _unread(root, parts)
    for split, *tops in parts:
        images, masks = (_by_stem(top, refused) for top in tops)
        wrong = [p for p in masks.values() if p.suffix.lower() != ".png"]
        if wrong:
            reason = f"one of {len(wrong):,} masks that are no PNG; JPEG changes classes at edges"
            refused.append((str(wrong[0]), reason))
        masks = {k: p for k, p in masks.items() if p.suffix.lower() == ".png"}
        rows += [(images[k], masks[k], split) for k in sorted(images.keys() & masks.keys())]
        noted += [(str(masks[k]), "no such image") for k in sorted(masks.keys() - images.keys())]
        if bare := len(images.keys() - masks.keys()):
            reason = f"{bare:,} of {len(images):,} images have no mask and are left out"
            noted.append((str(tops[0]), reason))
    if not rows and not refused:
        raise DataError(
            f"{root} has no images with masks (PNG of the same name): {FORMS}"
            + "".join(f"\nFirst: {place}: {reason}" for place, reason in noted[:1])
        )
    seen = scan_images([path for path, _, _ in rows], max_unreadable)
    rows = [row for row in rows if row[0] in seen.looks]

    def count(row: tuple[Path, Path, str | None]) -> NDArray[np.int64] | str:
        image = seen.looks[row[0]]
        try:
            pixels = class_map(row[1], image.height, image.width)
        except Unreadable as fault:
            return fault.reason
        return np.bincount(pixels.ravel(), minlength=256)

    with ThreadPool(min(8, os.cpu_count() or 1)) as pool:
        counted = pool.map(count, rows, chunksize=16)
    refused += [(str(r[1]), c) for r, c in zip(rows, counted, strict=True) if isinstance(c, str)]
    counts = np.array([c for c in counted if not isinstance(c, str)]).reshape(-1, 256)
    ignored, every_pixel = int(counts[:, IGNORE_INDEX].sum()), int(counts.sum())
    border = counts[:, IGNORE_INDEX] > 0
    counts[:, IGNORE_INDEX] = 0
    found = np.flatnonzero(counts.any(0)).tolist()
    told = _names(root)
    names = told or {k: str(k) for k in range(max(found, default=-1) + 1)}
    for row, own in zip(rows, counts, strict=True) if not refused else ():
        if alien := [v for v in np.flatnonzero(own).tolist() if v not in names]:
            refused.append((str(row[1]), f"values {alien} are no classes"))
    absent = [f"{name!r} ({k})" for k, name in told.items() if k not in found]
    lacks = f"{len(absent)} of {len(told)} named classes have no pixel in any mask, first "
    lacks += "".join(absent[:1])
    if absent and (ignored or len(found) < 2) and not refused:
        remedy = "take names of absent classes out of the list of names"
        if ignored:
            free = min({*told, len(told)} - {*found, IGNORE_INDEX})
            part = (
                f"{IGNORE_INDEX}, which is ignored, has {ignored / every_pixel:.1%} of the pixels"
            )
            remedy = f"{part}: a class drawn so has to become {IGNORE_INDEX} -> {free}; or {remedy}"
        refused.append((str(root), f"{lacks}; {remedy}"))
    elif absent:
        notes.append(f"{root}: {lacks}")
    if not told and (gaps := len(names) - len(found)) and not refused:
        text = f"the masks' values are {', '.join(map(str, found[:6]))}{', ...' * (len(found) > 6)}"
        text += f"; {gaps} classes below {max(found)} have no pixel"
        if len(found) < len(names) / 8:
            text += ": they have to become 0, 1, 2, ...; or list the names in classes.txt"
            refused.append((str(root), text))
        else:
            notes.append(f"{root}: {text}")
    drawn = counts[:, 1:].any(1)
    if not refused and drawn.any() and (odd := np.flatnonzero(border & ~drawn)).size:
        text = (
            f"{len(odd):,} of {len(rows):,} masks hold {IGNORE_INDEX}, which is ignored, "
            "beside 0 alone"
        )
        text += f", first {rows[odd[0]][1]}: a class drawn so has to become its number"
        notes.append(f"{root}: {text}")
    if refused:
        unreadable = [(str(path), f"unreadable: {reason}") for path, reason in seen.unreadable]
        raise DataErrors(root, refused, [*((str(root), n) for n in notes), *noted, *unreadable])
    classes = tuple(names.get(k, str(k)) for k in range(max(names, default=-1) + 1))
    if len(classes) < 2:
        raise DataError(
            f"{root}: the masks hold {len(classes)} classes, it takes two to tell apart.\n"
            f"{IGNORE_INDEX} counts for nothing: a foreground drawn with it has to become 1."
        )
    shares = torch.from_numpy(counts[:, : len(classes)] / counts.sum(1, keepdims=True).clip(1))
    every = Split(
        tuple(path for path, _, _ in rows),
        shares.float(),
        tuple(mask for _, mask, _ in rows),
        torch.tensor([seen.looks[path][:2] for path, _, _ in rows]),
    )
    sha = hashlib.sha256(json.dumps(classes).encode())
    for row, own in zip(rows, counts, strict=True):
        files = [[_place(p, root), p.stat().st_size] for p in row[:2]]
        sha.update(json.dumps([files, row[2], own.tolist()]).encode())
    splits = [split for _, _, split in rows]
    made = make_dataset(root, root, classes, every, splits, seen, seed, sha.hexdigest())
    return replace(made, task="segment", problems=tuple(noted), notes=(*notes, *made.notes))


def _place(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _by_stem(top: Path, refused: list[Problem]) -> dict[str, Path]:
    """The images in a folder and below by their place and name without suffix."""
    images: dict[str, Path] = {}
    for path in visible(top):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            first = images.setdefault(path.relative_to(top).with_suffix("").as_posix(), path)
            if first != path:
                refused.append((str(path), f"another image is called {first.name}"))
    return images


def _names(root: Path) -> dict[int, str]:
    """The classes by value, where a file says them. Raises DataError for one that is wrong."""
    if (table := root / "classes.txt").is_file():
        lines = enumerate(map(str.strip, read_lines(table)))
        return class_names({k: line for k, line in lines if line}, table)
    for path in sorted(root.glob("*.y*ml")):
        if re.search(r"(?m)^(names|classes) *:", path.read_text("utf-8", errors="replace")):
            told = read_yaml(path)
            return class_names(told.get("names", told.get("classes")), path)
    return {}

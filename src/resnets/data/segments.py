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

from resnets.arch import IGNORED
from resnets.data.decode import PICTURES, Unreadable
from resnets.data.folders import assemble, look, subfolders, visible
from resnets.data.scenes import class_map
from resnets.data.splits import Source, Split
from resnets.data.yolo import class_names, read_names, read_yaml
from resnets.errors import DataError, Problem, Refused

FORMS = "images/ and masks/, in both train/, val/ and test/ or none, or train/images/, train/masks/"
_MASKS = ("masks", "semantic_masks")


def layout(root: Path) -> list[tuple[str | None, Path, Path]]:
    """Splits with their folders of images and of masks; nothing in a folder of another layout."""
    if masks := _masks(root):
        names = {f.name for top in (root / "images", masks) for f in subfolders(top)}
        splits = {name: split for name in sorted(names) if (split := _split(name))}
        parts = [(split, root / "images" / name, masks / name) for name, split in splits.items()]
        return list(parts) or [(None, root / "images", masks)]
    tops = ((top, _split(top.name), _masks(top)) for top in subfolders(root))
    return [(split, top / "images", masks) for top, split, masks in tops if split and masks]


def _masks(top: Path) -> Path | None:
    masks = next((top / name for name in _MASKS if (top / name).is_dir()), None)
    return masks if (top / "images").is_dir() else None


def _split(name: str) -> str | None:
    return next((s for s in ("train", "val", "test") if name.casefold().startswith(s)), None)


def read_masks(root: Path, *, seed: int, max_unreadable: float) -> Source:
    """A folder of images and masks: PNG, indexed or grey, of the same name and size.

    A pixel's value is its class, 255 counts for nothing. Folders that begin with train, val or test
    are splits. Names are those of classes.txt (a line each, from 0), or of `names` or `classes` in
    a YAML file; classes between them have their number for a name. Without names they are the
    numbers up to the greatest value. Images without a mask are left out and counted.

    Raises Refused for values without a name, masks that cannot be read or are of another size;
    DataError for too many unreadable images, fewer than two classes, or another layout.
    """
    noted: list[Problem] = []
    rows: list[tuple[Path, Path, str | None]] = []
    for split, *tops in layout(root):
        images, masks = ({_stem(p, top): p for p in visible(top)} for top in tops)
        images = {k: p for k, p in images.items() if p.suffix.lower() in PICTURES}
        masks = {k: p for k, p in masks.items() if p.suffix.lower() == ".png"}
        rows += [(images[k], masks[k], split) for k in sorted(images.keys() & masks.keys())]
        noted += [(str(masks[k]), "no such image") for k in sorted(masks.keys() - images.keys())]
        if bare := len(images.keys() - masks.keys()):
            reason = f"{bare:,} of {len(images):,} images have no mask and are left out"
            noted.append((str(tops[0]), reason))
    if not rows:
        raise DataError(f"{root} has no images with masks (PNG of the same name): {FORMS}")
    seen = look([path for path, _, _ in rows], max_unreadable)
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
    refused = [(str(row[1]), c) for row, c in zip(rows, counted, strict=True) if isinstance(c, str)]
    counts = np.array([c for c in counted if not isinstance(c, str)]).reshape(-1, 256)
    counts[:, IGNORED] = 0
    found = np.flatnonzero(counts.any(0)).tolist()
    names = _names(root) or {k: str(k) for k in range(max(found, default=-1) + 1)}
    for row, own in zip(rows, counts, strict=True) if not refused else ():
        if alien := [v for v in np.flatnonzero(own).tolist() if v not in names]:
            refused.append((str(row[1]), f"values {alien} are no classes"))
    if refused:
        unreadable = [(str(path), f"unreadable: {reason}") for path, reason in seen.unreadable]
        raise Refused(root, refused, noted + unreadable)
    classes = tuple(names.get(k, str(k)) for k in range(max(names, default=-1) + 1))
    if len(classes) < 2:
        raise DataError(
            f"{root}: the masks hold {len(classes)} classes, it takes two to tell apart.\n"
            f"{IGNORED} counts for nothing: a foreground drawn with it has to become 1."
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
    parts = [split for _, _, split in rows]
    made = assemble(root, root, classes, every, parts, seen, seed, sha.hexdigest())
    return replace(made, task="segment", problems=tuple(noted))


def _place(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _stem(path: Path, top: Path) -> str:
    return path.relative_to(top).with_suffix("").as_posix()


def _names(root: Path) -> dict[int, str]:
    """The classes by value, where a file says them. Raises DataError for one that is wrong."""
    if (table := root / "classes.txt").is_file():
        return read_names(table)
    for path in sorted(root.glob("*.y*ml")):
        if re.search(r"(?m)^(names|classes) *:", path.read_text("utf-8", errors="replace")):
            told = read_yaml(path)
            return class_names(told.get("names", told.get("classes")), path)
    return {}

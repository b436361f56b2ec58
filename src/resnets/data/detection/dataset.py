"""From objects as annotations have them to a data set, or to all that is wrong with them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import KDTree

from resnets.data.classification import ImageInfo, make_dataset, scan_images
from resnets.data.decode import READABLE
from resnets.data.detection.targets import DetectionTargets, Kind
from resnets.data.splits import Shape, Source, Split
from resnets.errors import DataError, DataErrors, Problem

FLAT = 0.01  # part of the objects whose boxes may have no width or no height; they are left out
MAX_OVERHANG = 1.0  # pixels that a box may reach out of its image without a word


@dataclass(slots=True)
class Annotation:
    """An object as a file describes it."""

    place: str  # file and line, or number
    name: str  # of its class
    box: tuple[float, ...]  # x1, y1, x2, y2
    kind: Kind = Kind.OBJECT
    shape: Shape | None = None


@dataclass(slots=True)
class AnnotatedImage:
    """An image with its objects; `stated` is the height and width that its annotation says."""

    path: Path
    split: str | None
    objects: list[Annotation] = field(default_factory=list)
    stated: tuple[int, int] | None = None


@dataclass(slots=True)
class ParsedAnnotations:
    """What a reader found."""

    scenes: list[AnnotatedImage] = field(default_factory=list)
    classes: tuple[str, ...] | None = None  # None: those of the training scenes, sorted
    relative: bool = False  # coordinates are parts of the sides of the upright image
    refused: list[Problem] = field(default_factory=list)
    noted: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # of the whole, as `Source.notes`
    counted: dict[str, list[str]] = field(default_factory=dict)  # what was assumed, and where

    def count(self, what: str, place: str) -> None:
        """Count something of many places, for one note of them all."""
        self.counted.setdefault(what, []).append(place)


def make_source(
    data: Path, root: Path, found: ParsedAnnotations, *, seed: int, max_unreadable: float
) -> Source:
    """The data set of what a reader found; images in the order of their paths.

    Refused are boxes that are not finite, of an unknown class, or wholly outside their image,
    images of another size than their annotation says, and what could not be read. Boxes without
    width or height are left out and noted, up to FLAT of the objects; of more they are refused.
    Only noted, in `Source.problems`, are boxes that reach out of their image by more than OVERHANG
    (they are clipped), duplicates (they stay: other tools count them too), annotations of unknown
    images, and images that are listed twice.

    Where an annotation says the size that an image has before EXIF turns it upright, its boxes and
    polygons are turned with it. A size that fits both says nothing, as of an image upside down:
    then the other images of the data set decide.

    Raises Refused with all problems; DataError for too many unreadable images, no objects to learn
    from, or images without a split among others that have one.
    """
    found.notes += [f"{len(at):,} {what}; first {at[0]}" for what, at in found.counted.items()]
    _name_splits(found)
    scenes = sorted(found.scenes, key=lambda scene: (str(scene.path), scene.split or ""))
    seen = scan_images([scene.path for scene in scenes], max_unreadable)
    digest = _digest(scenes, root, found.classes)
    scenes = [scene for scene in scenes if scene.path in seen.looks]
    looks = [seen.looks[scene.path] for scene in scenes]
    if twice := [b.path for a, b in pairwise(scenes) if a.path == b.path]:
        reason = f"{len(twice):,} images are listed again, in one split or two, first {twice[0]}"
        found.noted.append((str(data), reason))
    training = [scene for scene in scenes if scene.split in (None, "train")] or scenes
    names = {one.name for scene in training for one in scene.objects}
    classes = found.classes or tuple(sorted(names))

    kept, where, objects = _checked(found, scenes, looks, classes)
    if (drawn := sum(one.shape is not None for one in kept)) not in (0, len(kept)):
        place = next(one.place for one in kept if not one.shape)
        reason = f"{drawn:,} of {len(kept):,} objects have masks, not {place}: none is used"
        found.noted.append((str(data), reason))
    _compare(found, data, objects)
    if found.refused:
        unreadable = [(str(path), f"unreadable: {reason}") for path, reason in seen.unreadable]
        notes = [(str(data), note) for note in found.notes]
        raise DataErrors(data, found.refused, notes + found.noted + unreadable)
    learnt = [scenes[k].split in (None, "train") for k in where[objects.is_object.numpy()]]
    if not learnt or not (any(learnt) or training is scenes):
        what = f"{len(kept):,} objects, which are all to be ignored" if kept else "no objects"
        more = f".\n{found.notes[0]}" if found.notes else ""
        raise DataError(
            f"{data} has {len(scenes):,} readable images and {what}: nothing to learn from{more}"
        )
    found.notes += _unused([scene.path for scene in found.scenes], classes, names)
    counts = np.bincount(where, minlength=len(scenes))
    starts = counts.cumsum() - counts
    targets = DetectionTargets.empty(len(scenes), int(counts.max()))
    image, row = torch.from_numpy(where), torch.from_numpy(np.arange(len(kept)) - starts[where])
    targets.boxes[image, row] = objects.boxes
    targets.classes[image, row] = objects.classes
    targets.kind[image, row] = objects.kind
    shapes = [one.shape for one in kept if one.shape]
    ends = zip(starts.tolist(), counts.tolist(), strict=True)
    every = Split(
        tuple(scene.path for scene in scenes),
        targets.class_presence(len(classes)),
        tuple(tuple(shapes[a : a + n]) for a, n in ends) if drawn == len(kept) else (),
        torch.tensor([(one.height, one.width) for one in looks]),
        targets,
    )
    parts = [scene.split for scene in scenes]
    made = make_dataset(data, root, classes, every, parts, seen, seed, digest)
    return replace(
        made, task="detect", problems=tuple(found.noted), notes=tuple(found.notes) + made.notes
    )


def _name_splits(found: ParsedAnnotations) -> None:
    """Give images of `trainval` the split that is missing, but for those that have one already.

    Raises DataError where some images have a split and others have none.
    """
    splits = {scene.split for scene in found.scenes}
    if None in splits and len(splits) > 1:
        bare = [scene.path for scene in found.scenes if scene.split is None]
        raise DataError(
            f"{len(bare):,} of {len(found.scenes):,} images are of no split, first {bare[0]}.\n"
            "Give each a split, or none."
        )
    known = {scene.path for scene in found.scenes if scene.split in ("train", "val")}
    split = next((name for name in ("train", "val") if name not in splits), None)
    both = [scene for scene in found.scenes if scene.split == "trainval"]
    more = [scene for scene in both if scene.path not in known]
    found.scenes = [scene for scene in found.scenes if scene.split != "trainval"]
    if more and split:
        found.scenes += [replace(scene, split=split) for scene in more]
        text = f"{len(more):,} of {len(both):,} images of trainval are read as {split}"
        found.notes.append(f"{text}; first {more[0].path}")
    elif more:
        text = "images of trainval are neither in train nor in val, and not read"
        found.notes.append(f"{len(more):,} {text}; first {more[0].path}")


def _compare(found: ParsedAnnotations, data: Path, objects: DetectionTargets) -> None:
    """Refuse what no object is wrong with alone."""
    if len(objects) and not found.relative and objects.boxes.max() <= 1:
        reason = "all boxes lie within one pixel: are they parts of the sides? Pixels are needed"
        found.refused.append((str(data), reason))


def _unused(files: Iterable[Path], classes: Sequence[str], names: set[str]) -> Iterator[str]:
    """Notes of images beside those of the data set, and of classes that nothing is learnt of."""
    paths = set(files)
    folders = [
        folder for folder in sorted({path.parent for path in paths}) if os.path.isdir(folder)
    ]
    images = (p for f in folders for p in sorted(f.iterdir()) if p.suffix.casefold() in READABLE)
    if others := [path for path in images if path not in paths]:
        yield f"{len(others):,} images beside these are in no annotation or list; first {others[0]}"
    if bare := [name for name in classes if name not in names]:
        yield f"{len(bare):,} classes have no object to learn from, first {bare[0]!r}"


def _checked(
    found: ParsedAnnotations,
    scenes: list[AnnotatedImage],
    looks: list[ImageInfo],
    classes: tuple[str, ...],
) -> tuple[list[Annotation], NDArray[np.int64], DetectionTargets]:
    """The n objects that are right, which image each is in, and their boxes, classes and kinds."""
    objects = [one for scene in scenes for one in scene.objects]
    where = np.array([k for k, scene in enumerate(scenes) for _ in scene.objects], dtype=np.int64)
    limits = np.array([2 * (one.width, one.height) for one in looks]).reshape(-1, 4)[where]
    boxes = np.array([one.box for one in objects], dtype=np.float64).reshape(-1, 4)
    if found.relative:
        boxes *= limits
        for one, (*_, width, height) in zip(objects, limits.tolist(), strict=True):
            polygons = (np.reshape(p, (-1, 2)) * (width, height) for p in one.shape or ())
            one.shape = tuple(tuple(p.ravel().tolist()) for p in polygons) or None
    flat = (boxes[:, 2:] <= boxes[:, :2]).any(1)
    for k in _stored(found, scenes, looks):
        corners = _upright(boxes[where == k].reshape(-1, 2, 2), looks[k])
        boxes[where == k] = np.concatenate([corners.min(1), corners.max(1)], 1)
    clipped = boxes.clip(0, limits)
    outside = (clipped[:, 2:] <= clipped[:, :2]).any(1)
    number = {name: k for k, name in enumerate(classes)}
    which = np.array([number.get(one.name, -1) for one in objects], dtype=np.int64)
    rounded = clipped.astype(np.float32)  # to the precision of the targets
    flat |= (rounded[:, 2:] <= rounded[:, :2]).any(1) & ~outside

    reasons = ("unknown class", "not finite", "degenerate", "outside the image")
    bad = [which < 0, ~np.isfinite(boxes).all(1), flat, outside]
    states = np.select(bad, range(len(bad)), -1)
    few = np.count_nonzero(states == 2) <= FLAT * len(objects)
    for i in np.flatnonzero(states >= 0):
        what = f" {objects[i].name!r}" if states[i] == 0 else f": box {_text(boxes[i])}"
        told, end = (found.noted, "; left out") if few and states[i] == 2 else (found.refused, "")
        told.append((objects[i].place, reasons[states[i]] + what + end))
    over = np.abs(boxes - clipped).max(1, initial=0)
    for i in np.flatnonzero((states < 0) & (over > MAX_OVERHANG)):
        reason = f"box {_text(boxes[i])} reaches {over[i]:.3g} pixels out of the image; clipped"
        found.noted.append((objects[i].place, reason))
    for one, (*_, width, height) in zip(objects, limits.tolist(), strict=True):
        if one.shape and isinstance(one.shape[0], int) and one.shape[:2] != (height, width):
            reason = f"run lengths of {one.shape[1]} x {one.shape[0]} pixels on another image"
            found.refused.append((one.place, reason))

    good = np.flatnonzero(states < 0)
    kept, where = [objects[i] for i in good], where[good]
    which, rounded = which[good], rounded[good]
    # Ten apart are those of two images or of two classes.
    points = np.concatenate([rounded, 10.0 * where[:, None], 10.0 * which[:, None]], 1)
    for i, j in sorted(KDTree(points).query_pairs(0.5, p=np.inf)) if kept else ():
        found.noted.append((kept[j].place, f"the same box and class as {kept[i].place}"))
    kinds = torch.tensor([one.kind for one in kept], dtype=torch.uint8)
    targets = DetectionTargets(torch.from_numpy(rounded), torch.from_numpy(which), kinds)
    return kept, where, targets


def _text(box: NDArray[np.float64]) -> str:
    return " ".join(f"{x:.6g}" for x in box)


def _stored(
    found: ParsedAnnotations, scenes: list[AnnotatedImage], looks: list[ImageInfo]
) -> list[int]:
    """Which scenes have boxes of the image as it is stored, before EXIF turns it.

    Their polygons are turned here. A size that fits neither image is refused.
    """
    sure: dict[int, bool] = {}
    unsure = []
    for k, (scene, seen) in enumerate(zip(scenes, looks, strict=True)):
        upright = seen.height, seen.width
        stored = upright[::-1] if seen.orientation > 4 else upright
        if scene.stated and scene.stated not in (upright, stored):
            said, has = (f"{width} x {height}" for height, width in (scene.stated, upright))
            found.refused.append((str(scene.path), f"annotated as {said} pixels, it has {has}"))
        elif scene.stated and stored != upright:
            sure[k] = scene.stated == stored
        elif scene.stated and scene.objects and seen.orientation > 1:
            unsure.append(k)
    turned = [k for k, is_stored in sure.items() if is_stored]
    if turned and all(sure.values()):
        turned += unsure
    elif turned or not sure:
        reason = "EXIF turns it, its boxes are taken as of the upright image"
        found.noted += [(str(scenes[k].path), reason) for k in unsure]
    for one, seen in ((one, looks[k]) for k in turned for one in scenes[k].objects if one.shape):
        if one.shape and isinstance(one.shape[0], int):
            reason = "run lengths on an image that EXIF turns; use polygons"
            found.refused.append((one.place, reason))
        else:
            polygons = (_upright(np.reshape(p, (-1, 2)), seen) for p in one.shape or ())
            one.shape = tuple(tuple(p.ravel().tolist()) for p in polygons)
    return turned


def _upright(points: NDArray[np.float64], turned: ImageInfo) -> NDArray[np.float64]:
    """Points (..., 2) of the stored image, x and y, on the image that EXIF's orientation turns."""
    o, height, width = turned.orientation, turned.height, turned.width
    if o > 4:
        height, width = width, height
    x = width - points[..., 0] if o in (2, 3, 7, 8) else points[..., 0]
    y = height - points[..., 1] if o in (3, 4, 6, 7) else points[..., 1]
    return np.stack([y, x] if o > 4 else [x, y], -1)


def _digest(scenes: Sequence[AnnotatedImage], root: Path, classes: Sequence[str] | None) -> str:
    sha = hashlib.sha256(json.dumps(classes).encode())
    for scene in scenes:
        size = scene.path.stat().st_size if os.path.isfile(scene.path) else -1
        place = Path(os.path.relpath(scene.path, root)).as_posix()
        objects = [[one.name, one.kind, one.box, one.shape] for one in scene.objects]
        entry = [place, size, scene.split, scene.stated, objects]
        sha.update(json.dumps(entry, default=bytes.decode).encode())
    return sha.hexdigest()

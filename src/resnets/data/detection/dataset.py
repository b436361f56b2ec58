"""From annotations of objects to a data set, or to all that is wrong with them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import KDTree

from resnets.data.assemble import (
    ImageInfo,
    ReadOptions,
    digest_of_entries,
    file_entry,
    make_dataset,
    scan_images,
)
from resnets.data.decode import READABLE
from resnets.data.detection.targets import DetectionTargets, Kind
from resnets.data.issues import Issues, parse_number, quote
from resnets.data.paths import files_with_suffix
from resnets.data.splits import Polygon, Shape, Source, Split
from resnets.errors import DataError, quantify

MAX_FLAT = 0.01  # fraction of the objects that may have no width or height; they are left out
MAX_OVERHANG = 1.0  # pixels that a box may reach out of its image without a warning

Box = tuple[float, float, float, float]  # x1, y1, x2, y2
Boxes = NDArray[np.float64]  # (n, 4): x1, y1, x2, y2 in pixels of the upright image


@dataclass(slots=True)
class Annotation:
    """An object as a file describes it."""

    where: str  # file and line, or number
    class_name: str
    box: Box
    kind: Kind = Kind.OBJECT
    shape: Shape | None = None


@dataclass(slots=True)
class AnnotatedImage:
    """An image with its objects; `stated_size` is the height and width that its annotation says."""

    path: Path
    split: str | None
    objects: list[Annotation] = field(default_factory=list)
    stated_size: tuple[int, int] | None = None


@dataclass(slots=True)
class ParsedAnnotations:
    """What a reader makes of files of annotations; it goes on after what it cannot read."""

    issues: Issues
    images: list[AnnotatedImage] = field(default_factory=list)
    classes: tuple[str, ...] | None = None  # None: those of the training images, sorted
    relative: bool = False  # coordinates are fractions of the sides of the upright image


def parse_polygon(numbers: Iterable[float]) -> Polygon:
    """A polygon of three or more finite points x, y. Raises ValueError."""
    points = tuple(numbers)
    if len(points) < 6 or len(points) % 2 or not all(abs(x) < 1e6 for x in points):
        raise ValueError("a polygon needs three or more finite points x y")
    return points


def parse_size(height: object, width: object) -> tuple[int, int] | None:
    """Height and width in pixels, where both are given. Raises ValueError for other values."""
    rows, columns = parse_number(height or 0), parse_number(width or 0)
    if not rows or not columns:
        return None
    if rows < 0 or columns < 0 or rows % 1 or columns % 1:
        raise ValueError(f"an image of {quote(width)} x {quote(height)} pixels")
    return int(rows), int(columns)


def compare_with_corners(
    boxes: Boxes, written: Boxes, sizes: NDArray[np.float64], tolerance: float
) -> tuple[int, int]:
    """How many boxes fit their images if the numbers that were `written` are x1, y1, x2, y2.

    `sizes`, (n, 2), are height and width of the images, or 0. Returns the number of boxes that fit
    as corners, and of those among them that leave the image as they were read.
    """
    limits = sizes[:, ::-1] + tolerance
    start, end = written[:, :2], written[:, 2:]
    fits = ((start >= -tolerance) & (start < end) & (end <= limits)).all(1)
    leaves = ((boxes[:, :2] < -tolerance) | (boxes[:, 2:] > limits)).any(1)
    return int(fits.sum()), int((fits & leaves).sum())


def detection_dataset(parsed: ParsedAnnotations, options: ReadOptions) -> Source:
    """The data set of annotations; images in the order of their paths.

    Errors are boxes that are not finite, of an unknown class, or wholly outside their image, images
    of another size than their annotation says, and what could not be read. Boxes without width or
    height are left out with a warning, up to MAX_FLAT of the objects; more are errors. Warnings in
    `Source.problems` are boxes that reach out of their image by more than MAX_OVERHANG (they are
    clipped), duplicates (they stay: other tools count them too), annotations of unknown images, and
    images that are listed twice.

    Where an annotation says the size that an image has before EXIF turns it upright, its boxes and
    polygons are turned with it. A size that fits both says nothing, as of an image upside down:
    then the other images of the data set decide.

    Raises DataErrors with all problems; DataError for too many unreadable images, no objects to
    learn from, or images without a split among others that have one.
    """
    issues = parsed.issues
    _assign_trainval(parsed)
    images = sorted(parsed.images, key=lambda image: (str(image.path), image.split or ""))
    scan = scan_images([image.path for image in images], options.max_unreadable)
    digest = _digest(images, issues.root, parsed.classes)
    images = [image for image in images if image.path in scan.images]
    _warn_repeated(images, issues)
    training = [image for image in images if image.split in (None, "train")] or images
    names = {annotation.class_name for image in training for annotation in image.objects}
    classes = parsed.classes or tuple(sorted(names))

    info = [scan.images[image.path] for image in images]
    objects, index, targets = _check_objects(parsed, images, info, classes)
    shapes = _shapes_of_all(objects, issues)
    if len(objects) and not parsed.relative and targets.boxes.max() <= 1:
        reason = "all boxes lie within one pixel: are they fractions of the sides? Use pixels"
        issues.error(issues.data, reason)
    if issues.errors:
        raise issues.to_error(scan)
    learnt = [images[k].split in (None, "train") for k in index[targets.is_object.numpy()]]
    if not learnt or not (any(learnt) or training is images):
        raise _nothing_to_learn(training, issues)
    _note_unlisted([image.path for image in parsed.images], classes, names, issues)
    return make_dataset(
        _to_split(images, info, index, targets, shapes, len(classes)),
        [image.split for image in images],
        task="detect",
        classes=classes,
        scan=scan,
        issues=issues,
        seed=options.seed,
        digest=digest,
    )


def _digest(images: Sequence[AnnotatedImage], root: Path, classes: Sequence[str] | None) -> str:
    entries: list[object] = [classes]
    for image in images:
        objects = [[a.class_name, a.kind, a.box, a.shape] for a in image.objects]
        entries.append([*file_entry(image.path, root), image.split, image.stated_size, objects])
    return digest_of_entries(entries)


def _warn_repeated(images: list[AnnotatedImage], issues: Issues) -> None:
    if repeated := [b.path for a, b in pairwise(images) if a.path == b.path]:
        text = quantify(len(repeated), "images are listed again, in one split or two")
        issues.warn(issues.data, f"{text}, first {repeated[0]}")


def _shapes_of_all(objects: list[Annotation], issues: Issues) -> list[Shape]:
    """The shapes of objects that all have one; of others none is used, with a warning."""
    shapes = [annotation.shape for annotation in objects if annotation.shape]
    if len(shapes) in (0, len(objects)):
        return shapes
    where = next(annotation.where for annotation in objects if not annotation.shape)
    count = f"{len(shapes):,} of {len(objects):,}"
    issues.warn(issues.data, f"{count} objects have masks, but not {where}: none is used")
    return []


def _nothing_to_learn(training: list[AnnotatedImage], issues: Issues) -> DataError:
    objects = sum(len(image.objects) for image in training)
    has = f"{objects:,} objects, all of which are ignored" if objects else "no objects"
    first = f".\n{issues.notes[0]}" if issues.notes else ""
    images = quantify(len(training), "readable images")
    return DataError(f"{issues.data} has {images} to train on and {has}: nothing to learn{first}")


def _to_split(
    images: list[AnnotatedImage],
    info: list[ImageInfo],
    index: NDArray[np.int64],
    targets: DetectionTargets,
    shapes: list[Shape],
    classes: int,
) -> Split:
    """Images with their objects: `index` has the image of each of the `targets` and `shapes`."""
    counts = np.bincount(index, minlength=len(images))
    ends = counts.cumsum()
    objects = DetectionTargets.empty(len(images), int(counts.max()))
    image = torch.from_numpy(index)
    row = torch.from_numpy(np.arange(len(index)) - (ends - counts)[index])
    objects.boxes[image, row] = targets.boxes
    objects.classes[image, row] = targets.classes
    objects.kind[image, row] = targets.kind
    masks: tuple[tuple[Shape, ...], ...] = ()
    if shapes:
        spans = zip(ends - counts, ends, strict=True)
        masks = tuple(tuple(shapes[start:end]) for start, end in spans)
    paths = tuple(image.path for image in images)
    sizes = torch.tensor([(i.height, i.width) for i in info])
    return Split(paths, objects.multi_hot(classes), masks, sizes, objects)


def _assign_trainval(parsed: ParsedAnnotations) -> None:
    """Give images of `trainval` the split that is missing, but for those that have one already.

    Raises DataError where some images have a split and others have none.
    """
    splits = {image.split for image in parsed.images}
    if None in splits and len(splits) > 1:
        bare = [image.path for image in parsed.images if image.split is None]
        raise DataError(
            f"{quantify(len(bare), f'of {len(parsed.images):,} images have no split')}, first "
            f"{bare[0]}.\n"
            "Give each a split, or none."
        )
    assigned = {image.path for image in parsed.images if image.split in ("train", "val")}
    split = next((name for name in ("train", "val") if name not in splits), None)
    both = [image for image in parsed.images if image.split == "trainval"]
    rest = [image for image in both if image.path not in assigned]
    parsed.images = [image for image in parsed.images if image.split != "trainval"]
    text = "images of trainval are in neither train nor val, and not read"
    if split:
        parsed.images += [replace(image, split=split) for image in rest]
        text = f"of {len(both):,} images of trainval are read as {split}"
    parsed.issues.count(text, *(image.path for image in rest))


def _note_unlisted(
    paths: Sequence[Path], classes: Sequence[str], names: set[str], issues: Issues
) -> None:
    """Note images beside those of the data set, and classes that nothing is learnt of."""
    known, others = set(paths), list[Path]()
    for folder in sorted({path.parent for path in paths}):
        if os.path.isdir(folder):
            others += [p for p in files_with_suffix(folder, *READABLE) if p not in known]
    issues.count("images beside these are in no annotation or list", *others)
    bare = [repr(name) for name in classes if name not in names]
    issues.count("classes have no object to learn from", *bare)


def _check_objects(
    parsed: ParsedAnnotations,
    images: list[AnnotatedImage],
    info: list[ImageInfo],
    classes: Sequence[str],
) -> tuple[list[Annotation], NDArray[np.int64], DetectionTargets]:
    """The n objects that are right, which image each is in, and their boxes, classes and kinds."""
    issues = parsed.issues
    objects = [annotation for image in images for annotation in image.objects]
    index = np.array([k for k, image in enumerate(images) for _ in image.objects], dtype=np.int64)
    limits = np.array([2 * (i.width, i.height) for i in info]).reshape(-1, 4)[index]
    boxes = np.array([annotation.box for annotation in objects], dtype=np.float64).reshape(-1, 4)
    if parsed.relative:
        boxes *= limits
        for annotation, sides in zip(objects, limits[:, 2:], strict=True):
            polygons = (np.reshape(p, (-1, 2)) * sides for p in annotation.shape or ())
            annotation.shape = tuple(tuple(p.ravel().tolist()) for p in polygons) or None
    flat = (boxes[:, 2:] <= boxes[:, :2]).any(1)
    for k in _stored_images(issues, images, info):
        corners = _to_upright(boxes[index == k].reshape(-1, 2, 2), info[k])
        boxes[index == k] = np.concatenate([corners.min(1), corners.max(1)], 1)
    clipped = boxes.clip(0, limits)
    outside = (clipped[:, 2:] <= clipped[:, :2]).any(1)
    class_index = {name: k for k, name in enumerate(classes)}
    labels = np.array([class_index.get(a.class_name, -1) for a in objects], dtype=np.int64)
    rounded = clipped.astype(np.float32)  # to the precision of the targets
    flat |= (rounded[:, 2:] <= rounded[:, :2]).any(1) & ~outside
    infinite = ~np.isfinite(boxes).all(1)
    good = ~_report_bad_boxes(issues, objects, boxes, [labels < 0, infinite, flat, outside])

    overhang = np.abs(boxes - clipped).max(1, initial=0)
    for i in np.flatnonzero(good & (overhang > MAX_OVERHANG)):
        reason = f"reaches {overhang[i]:.3g} pixels out of the image; clipped"
        issues.warn(objects[i].where, f"box {_box_text(boxes[i])} {reason}")
    for annotation, (*_, width, height) in zip(objects, limits.tolist(), strict=True):
        shape = annotation.shape
        if shape and isinstance(shape[0], int) and shape[:2] != (height, width):
            reason = f"run lengths of {shape[1]} x {shape[0]} pixels on another image"
            issues.error(annotation.where, reason)

    kept = [annotation for annotation, is_good in zip(objects, good, strict=True) if is_good]
    # Ten apart are those of two images or of two classes.
    points = np.concatenate([rounded, 10.0 * index[:, None], 10.0 * labels[:, None]], 1)[good]
    for i, j in sorted(KDTree(points).query_pairs(0.5, p=np.inf)) if kept else ():
        issues.warn(kept[j].where, f"the same box and class as {kept[i].where}")
    kinds = torch.tensor([annotation.kind for annotation in kept], dtype=torch.uint8)
    targets = DetectionTargets(
        torch.from_numpy(rounded[good]), torch.from_numpy(labels[good]), kinds
    )
    return kept, index[good], targets


def _report_bad_boxes(
    issues: Issues, objects: list[Annotation], boxes: Boxes, wrong: Sequence[ArrayLike]
) -> NDArray[np.bool_]:
    """Report each wrong box with its first reason; returns which boxes are wrong."""
    reasons = ("unknown class", "not finite", "degenerate", "outside the image")
    states = np.select(list(map(np.asarray, wrong)), range(len(wrong)), -1)
    few_flat = np.count_nonzero(states == 2) <= MAX_FLAT * len(objects)
    for i in np.flatnonzero(states >= 0):
        name, text = objects[i].class_name, f": box {_box_text(boxes[i])}"
        reason = reasons[states[i]] + (f" {name!r}" if states[i] == 0 else text)
        if states[i] == 2 and few_flat:
            issues.warn(objects[i].where, f"{reason}; left out")
        else:
            issues.error(objects[i].where, reason)
    return np.asarray(states >= 0)


def _box_text(box: NDArray[np.float64]) -> str:
    return " ".join(f"{x:.6g}" for x in box)


def _stored_images(
    issues: Issues, images: list[AnnotatedImage], info: list[ImageInfo]
) -> list[int]:
    """Which images have boxes of the image as it is stored, before EXIF turns it.

    Their polygons are turned here. A size that fits neither is an error.
    """
    is_stored: dict[int, bool] = {}
    unknown = []
    for k, (image, scanned) in enumerate(zip(images, info, strict=True)):
        upright = scanned.height, scanned.width
        stored = upright[::-1] if scanned.orientation > 4 else upright
        if image.stated_size and image.stated_size not in (upright, stored):
            stated, real = (f"{w} x {h}" for h, w in (image.stated_size, upright))
            issues.error(image.path, f"annotated as {stated} pixels, but it has {real}")
        elif image.stated_size and stored != upright:
            is_stored[k] = image.stated_size == stored
        elif image.stated_size and image.objects and scanned.orientation > 1:
            unknown.append(k)
    turned = [k for k, stored_size in is_stored.items() if stored_size]
    if turned and all(is_stored.values()):
        turned += unknown
    elif turned or not is_stored:
        for k in unknown:
            issues.warn(images[k].path, "EXIF turns it; its boxes are read as of the upright image")
    for k in turned:
        for annotation in images[k].objects:
            if annotation.shape and isinstance(annotation.shape[0], int):
                reason = "run lengths on an image that EXIF turns; use polygons"
                issues.error(annotation.where, reason)
            elif annotation.shape:
                polygons = (_to_upright(np.reshape(p, (-1, 2)), info[k]) for p in annotation.shape)
                annotation.shape = tuple(tuple(p.ravel().tolist()) for p in polygons)
    return turned


def _to_upright(points: NDArray[np.float64], image: ImageInfo) -> NDArray[np.float64]:
    """Points (..., 2) of the stored image, x and y, on the image that EXIF's orientation turns."""
    o, height, width = image.orientation, image.height, image.width
    if o > 4:
        height, width = width, height
    x = width - points[..., 0] if o in (2, 3, 7, 8) else points[..., 0]
    y = height - points[..., 1] if o in (3, 4, 6, 7) else points[..., 1]
    return np.stack([y, x] if o > 4 else [x, y], -1)

"""YOLO's labels: a text beside each image, and a YAML file or classes.txt with the names."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from resnets.data.decode import READABLE
from resnets.data.detection.dataset import (
    AnnotatedImage,
    Annotation,
    ParsedAnnotations,
    compare_with_corners,
    parse_polygon,
)
from resnets.data.issues import Issues, parse_number, quote
from resnets.data.paths import (
    WITH_TRAINVAL,
    files_with_suffix,
    find_images,
    image_files,
    name_key,
    resolve_case_insensitive,
    resolve_inside,
    split_name,
    split_of_folders,
    visible_files,
)
from resnets.data.tables import read_lines, read_text
from resnets.errors import DataError, MissingPackage
from resnets.escape import shorten

NAME_FILES = ("classes.txt", "obj.names", "labels/classes.txt", "labels/obj.names")
MAX_YAML_BYTES = 1_000_000  # its parser is slow, and class names are short
MAX_POLYGON_OVERHANG = 0.1  # fraction of a side that a polygon may reach out of its image
CORNER_TOLERANCE = 0.01  # fraction of a side: rounding is no sign of corners


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping, of texts alone: `no`, 010 and null stay what they are.

    Aliases, which make gigabytes of a few bytes, types and keys that stand twice are refused.
    Raises MissingPackage, or DataError.
    """
    try:
        yaml = import_module("yaml")
    except ImportError:
        raise MissingPackage(f"{path} needs PyYAML: pip install 'resnets[detect]'") from None

    class Loader(yaml.BaseLoader):  # type: ignore[misc, name-defined]
        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"line {event.start_mark.line + 1} repeats a part by its name (*)")
            if getattr(event, "tag", None) not in (None, "!", "tag:yaml.org,2002:str"):
                raise ValueError(f"line {event.start_mark.line + 1} has a type, {quote(event.tag)}")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            counts = Counter(quote(name.value) for name, _ in node.value)
            if repeated := [name for name, count in counts.items() if count > 1]:
                raise ValueError(f"line {node.start_mark.line + 1}: the key {repeated[0]} twice")
            return super().construct_mapping(node, deep)

    if path.stat().st_size > MAX_YAML_BYTES:
        raise DataError(
            f"{path} has over {MAX_YAML_BYTES:,} bytes; put a list of files into a .txt file"
        )
    try:
        content = yaml.load(read_text(path), Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is not YAML: {shorten(' '.join(str(error).split()))}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} has no keys")
    return content


def class_names(value: Any, path: Path) -> dict[int, str]:
    """Class names by number, from a list or a mapping in `path`. Raises DataError for others."""
    names = dict(enumerate(value)) if isinstance(value, list) else value
    if not isinstance(names, dict) or not names:
        raise DataError(f"{path}: names is neither a list nor a mapping from numbers to names")
    for k, name in names.items():
        if not re.fullmatch("[0-9]{1,4}", str(k)):
            raise DataError(f"{path}: names is not a mapping from numbers below 10,000: {quote(k)}")
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"{path}: the name of class {k} is {quote(name)}, not a string")
    by_number = {int(k): name.strip() for k, name in names.items()}
    if len(by_number) < len(names):
        raise DataError(f"{path} has the same number for two classes")
    if twice := [name for name, n in Counter(by_number.values()).items() if n > 1]:
        raise DataError(f"{path}: {quote(twice[0])} is the name of two classes")
    return dict(sorted(by_number.items()))


def read_names(path: Path) -> dict[int, str]:
    """The class names of a text, a line each, from 0. Raises DataError."""
    return class_names("\n".join(read_lines(path)).rstrip().split("\n"), path)


def names_file(root: Path) -> Path | None:
    """The list of class names of a folder in which images have labels, without a YAML file."""
    paths = (resolve_case_insensitive(root, name.split("/")) for name in NAME_FILES)
    path = next(filter(None, paths), None)
    return path if path and has_labels(root) else None


def has_labels(root: Path) -> bool:
    """Whether an image below a folder has a label file."""
    labels = LabelFiles()
    return any(labels.find(image) for image in image_files(root))


class LabelFiles:
    """The label files of images: in `labels` in place of `images`, or beside them, in any case."""

    def __init__(self) -> None:
        self.by_stem = lru_cache(None)(self._list)  # texts by the stems of images in a folder
        self.unused: dict[Path, None] = {}

    def find(self, image: Path) -> Path | None:
        """The label file of an image, if it has one."""
        path = self.by_stem(image.parent).get(name_key(image.stem))
        if path:
            self.unused.pop(path, None)
        return path

    def _list(self, folder: Path) -> dict[str, Path]:
        by_stem: dict[str, Path] = {}
        for labels in _label_folders(folder):
            for path in files_with_suffix(labels, ".txt"):
                by_stem.setdefault(name_key(path.stem), path)
                self.unused[path] = None
        return by_stem


def _label_folders(folder: Path) -> list[Path]:
    """Where the labels of images in a folder may be, the likeliest first."""
    names, folders = folder.parts, [folder]
    for k, name in enumerate(names):
        if name_key(name) == "images":
            below = ["labels", *map(name_key, names[k + 1 :])]
            if labels := resolve_case_insensitive(Path(*names[:k]), below):
                folders = [labels, *folders]
    return folders


def read_yolo(table: Path, issues: Issues) -> ParsedAnnotations:
    """YOLO's data.yaml: path, train, val, test (folders, or lists of images) and names.

    Without the splits, or of a file of class names alone, it is all images below its folder, with
    splits from the names of their folders. Places have to lie in the file's folder. Labels are in
    files named as the images, in a folder `labels` in place of `images`, or beside them: class and
    centre, width, height as parts of the image's sides; or class and a polygon, whose box is the
    smallest around it. An image without such a file has no objects.
    """
    root, base, keypoints = table.parent, "", 0
    entries: list[tuple[str, str]] = []
    if table.suffix.casefold() in (".yaml", ".yml"):
        content = read_yaml(table)
        names = class_names(content.get("names"), table)
        count = str(content.get("nc", len(names)))
        if count != str(len(names)):
            issues.note(f"nc is {quote(count)}, but names are {len(names)}; nc is not used", table)
        base = (_texts(content.get("path"), table) or [""])[0]
        shape = [int(k) for k in _texts(content.get("kpt_shape"), table) if k.isdigit()]
        keypoints = shape[0] * shape[1] if len(shape) == 2 else 0
        for name, value in content.items():
            if split := split_name(name, WITH_TRAINVAL):
                entries += [(split, entry) for entry in _texts(value, table)]
    else:
        names = read_names(table)
        root = root.parent if name_key(root.name) == "labels" else root
        for path in files_with_suffix(root, ".txt"):
            if (split := split_name(path.stem, WITH_TRAINVAL)) and _is_list(path):
                entries.append((split, path.name))
    rows: list[tuple[Path, str | None]] = []
    for split, entry in entries:
        if split == "test" and len(entries) > 1 and not _entry_exists(root, base, entry):
            issues.note(f"there is no {quote(entry)}, so no test split", table)
            continue
        location = _resolve_entry(root, base, entry, table, issues)
        folders = [location.parent, root / base, root]
        rows += [(path, split) for path in _images_of_entry(location, folders, root, issues)]
    if not entries:
        rows = [(path, split_of_folders(path, root)) for path in image_files(root)]
    images = [AnnotatedImage(path, split) for path, split in rows]
    _read_labels(images, names, keypoints, issues)
    return ParsedAnnotations(issues, images, tuple(names.values()), relative=True)


def _texts(value: Any, table: Path) -> list[str]:
    """A text or a list of texts as the texts that are not empty. Raises DataError for others."""
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in values if text is not None):
        raise DataError(f"{table}: {quote(value)} is neither a path nor a list of paths")
    return [text for text in values if text not in (None, "", "~", "null", "Null", "NULL")]


def _is_list(path: Path) -> bool:
    """Whether the first line of a text names an image."""
    text = path.read_bytes().replace(b"\0", b"").decode("utf-8", "replace").strip()
    return os.path.splitext(text.split("\n")[0].strip())[1].casefold() in READABLE


def _entry_exists(root: Path, base: str, entry: str) -> bool:
    """Whether what a YAML file names exists: Roboflow names a test split that may be missing."""
    paths = (root / base / entry, root / entry)
    return any(map(os.path.exists, paths)) or resolve_inside(root, f"{base}/{entry}") is not None


def _resolve_entry(root: Path, base: str, entry: str, table: Path, issues: Issues) -> Path:
    """The folder or list that a YAML file names. Raises DataError for none, or one outside."""
    tops = {os.path.abspath(root), os.path.realpath(root)}
    written = root / base / entry
    for path in (written, root / entry):
        if path != written and os.path.exists(path):
            text = f"path {quote(base)} has no {quote(entry)}, but the file's folder has"
            issues.note(text, table)
        normal = os.path.normpath(path)
        absolute = Path(os.path.abspath(normal))
        if absolute.exists() and not tops.isdisjoint(map(str, (absolute, *absolute.parents))):
            return Path(normal)
    # Exports are found that were moved, or that count from a folder too low.
    moved = resolve_inside(root, f"{base}/{entry}")
    if os.path.exists(written) and (os.path.isabs(base + entry) or not moved):
        folder = os.path.normpath(root / base if base else written)
        raise DataError(
            f"{table}: {quote(entry)} lies outside the file's folder, so it is not read.\n"
            f"Copy {table.name} into {repr(folder)[1:-1][:200]}, or the folder that has images and "
            "labels,\nand give that copy."
        )
    if moved is None:
        raise DataError(f"{table}: there is no {os.path.normpath(written)}")
    issues.note(f"{quote(entry)} is read as {moved}", table)
    return moved


def _images_of_entry(
    location: Path, folders: list[Path], root: Path, issues: Issues
) -> Iterable[Path]:
    """The images of a folder or of a list."""
    if location.is_dir():
        known = {*READABLE, ".txt", ".cache"}
        others = [path for path in visible_files(location) if path.suffix.casefold() not in known]
        issues.count("files without an image's suffix are not read", *others)
        return image_files(location)
    if location.suffix.casefold() != ".txt":
        raise DataError(f"{location} is neither a folder nor a list of images, which ends in .txt")
    names = []
    for number, line in enumerate(map(str.strip, read_lines(location)), 1):
        if line and os.path.splitext(line)[1].casefold() in READABLE:
            names.append(line)
        elif line:
            issues.error(f"{location}, line {number}", "names no image file")
    paths = find_images(names, folders, root, issues)
    return [paths[name] for name in names]


def _read_labels(
    images: list[AnnotatedImage], names: dict[int, str], keypoints: int, issues: Issues
) -> None:
    """Add objects to images; a row has `keypoints` numbers behind its box, if any."""
    labels = LabelFiles()
    for image in images:
        file = labels.find(image.path) if os.path.isdir(image.path.parent) else None
        try:
            lines = read_lines(file) if file else []
        except DataError as error:
            issues.error(file, str(error))
            continue
        if file is None:
            issues.count("images have no label file, so no objects", image.path)
        for number, line in enumerate(lines, 1):
            where, values = f"{file}, line {number}", line.split()
            with issues.collect(where):
                if values:
                    image.objects.append(_object(issues, values, where, names, keypoints))
    known = {"classes", "train", "val", "valid", "test", "notes", "requirements"}
    for path in labels.unused:
        if (stem := name_key(path.stem)) not in known and "readme" not in stem:
            issues.count("label files have no image", path)
    _check_corners(images, issues)


@np.errstate(all="ignore")  # a box may be infinite
def _check_corners(images: list[AnnotatedImage], issues: Issues) -> None:
    """Refuse boxes that leave their images as centre and size, but fit as corners, for the most."""
    objects = [a for image in images for a in image.objects if not a.shape]
    boxes = np.array([annotation.box for annotation in objects]).reshape(-1, 4)
    sides = boxes[:, 2:] - boxes[:, :2]
    written = np.concatenate([boxes[:, :2] + sides / 2, sides], 1)
    sizes = np.ones((len(boxes), 2))
    fitting, leaving = compare_with_corners(boxes, written, sizes, CORNER_TOLERANCE)
    if leaving > len(boxes) / 2 and fitting > 0.9 * len(boxes):
        reason = (
            f"{leaving:,} of {len(boxes):,} boxes leave their images as x, y of the centre, width, "
            "height, as YOLO has it, but fit as x1, y1, x2, y2: convert them"
        )
        issues.error(objects[0].where.rpartition(",")[0], reason)


def _object(
    issues: Issues, values: list[str], where: str, names: dict[int, str], keypoints: int
) -> Annotation:
    """The object of a row. Raises ValueError or OverflowError."""
    label, *numbers = (_value(values, i) for i in range(len(values)))
    name = names.get(int(label) if label % 1 == 0 else -1, f"number {label:g}")
    if len(numbers) == 4 or (keypoints and len(numbers) == 4 + keypoints):
        x, y, width, height = numbers[:4]
        if len(numbers) > 4:
            issues.count("rows have keypoints, which are not used", where)
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        return Annotation(where, name, box)
    if len(numbers) < 6 or len(numbers) % 2:
        more = "; a box with its confidence?" if len(numbers) == 5 else ""
        count = f"{len(values)} values, neither a box (5) nor a polygon (7, 9, ...)"
        raise ValueError(count + more)
    points = parse_polygon(numbers)
    if not all(-MAX_POLYGON_OVERHANG <= value <= 1 + MAX_POLYGON_OVERHANG for value in points):
        raise ValueError("a polygon beyond 0 to 1, the sides of its image")
    issues.count("rows have a polygon, read as the smallest box around it", where)
    xs, ys = points[::2], points[1::2]
    return Annotation(where, name, (min(xs), min(ys), max(xs), max(ys)), shape=(points,))


def _value(values: list[str], index: int) -> float:
    """A number of a row. What stands there is not repeated: the file may be any."""
    try:
        return parse_number(values[index])
    except ValueError:
        raise ValueError(f"value {index + 1} is not a number") from None

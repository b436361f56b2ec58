"""YOLO's labels: a text beside each image, and a YAML file or classes.txt with the names."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from resnets.data.decode import READABLE
from resnets.data.detection.dataset import (
    AnnotatedImage,
    Annotation,
    Box,
    ParsedAnnotations,
    compare_with_corners,
    parse_error_reason,
    parse_polygon,
)
from resnets.data.file_names import (
    WITH_TRAINVAL,
    find_images,
    key,
    resolve_case_insensitive,
    resolve_inside,
    split_name,
    split_of_folders,
)
from resnets.data.folders import files_with_suffix, image_files, visible_files
from resnets.data.issues import Issues
from resnets.data.tables import read_lines, read_text
from resnets.data.values import parse_number, quote
from resnets.errors import DataError, MissingPackage, shorten

NAME_FILES = ("classes.txt", "obj.names", "labels/classes.txt", "labels/obj.names")
MAX_YAML_BYTES = 1_000_000  # its parser is slow, and class names are short
MAX_OVERHANG = 0.1  # fraction of a side that a polygon may reach out of its image
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
            raise DataError(f"{path}: the name of class {k} is {quote(name)}, not a text")
    by_number = {int(k): name.strip() for k, name in names.items()}
    if len(set(by_number.values())) < len(names):
        raise DataError(f"{path} has one name or number for two classes")
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
        self.by_folder: dict[Path, list[dict[str, Path]]] = {}  # of the image: texts by stem
        self.unused: dict[Path, None] = {}

    def find(self, image: Path) -> Path | None:
        """The label file of an image, if it has one."""
        folder = image.parent
        if folder not in self.by_folder:
            self.by_folder[folder] = [self._list(labels) for labels in _label_folders(folder)]
        stem = key(image.stem)
        for texts in self.by_folder[folder]:
            if path := texts.get(stem):
                self.unused.pop(path, None)
                return path
        return None

    def _list(self, folder: Path) -> dict[str, Path]:
        paths = files_with_suffix(folder, ".txt")
        self.unused |= dict.fromkeys(paths)
        return {key(path.stem): path for path in reversed(paths)}


def _label_folders(folder: Path) -> list[Path]:
    """Where the labels of images in a folder may be, the likeliest first."""
    parts, folders = folder.parts, [folder]
    for k, name in enumerate(parts):
        if key(name) == "images":
            below = ["labels", *map(key, parts[k + 1 :])]
            if labels := resolve_case_insensitive(Path(*parts[:k]), below):
                folders = [labels, *folders]
    return folders


def read_yolo(table: Path) -> ParsedAnnotations:
    """YOLO's data.yaml: path, train, val, test (folders, or lists of images) and names.

    Without the splits, or of a file of class names alone, it is all images below its folder, with
    splits from the names of their folders. Places have to lie in the file's folder. Labels are in
    files named as the images, in a folder `labels` in place of `images`, or beside them: class and
    centre, width, height as parts of the image's sides; or class and a polygon, whose box is the
    smallest around it. An image without such a file has no objects.
    """
    root, parsed = table.parent, ParsedAnnotations(relative=True)
    issues, base, keypoints = parsed.issues, "", 0
    if table.suffix.casefold() in (".yaml", ".yml"):
        content = read_yaml(table)
        names = class_names(content.get("names"), table)
        count = str(content.get("nc", len(names)))
        if count != str(len(names)):
            issues.notes.append(
                f"{table}: nc is {quote(count)}, but names are {len(names)}; nc is not used"
            )
        base = (_texts(content.get("path"), table) or [""])[0]
        shape = [int(k) for k in _texts(content.get("kpt_shape"), table) if k.isdigit()]
        keypoints = shape[0] * shape[1] if len(shape) == 2 else 0
        entries = [
            (split, entry)
            for name, value in content.items()
            if (split := split_name(name, WITH_TRAINVAL))
            for entry in _texts(value, table)
        ]
    else:
        names = read_names(table)
        root = root.parent if key(root.name) == "labels" else root
        entries = [
            (split, path.name)
            for path in files_with_suffix(root, ".txt")
            if (split := split_name(path.stem, WITH_TRAINVAL)) and _is_list(path)
        ]
    parsed.classes = tuple(names.values())
    rows: list[tuple[Path, str | None]] = []
    for split, entry in entries:
        if split == "test" and len(entries) > 1 and not _entry_exists(root, base, entry):
            issues.notes.append(f"{table}: there is no {quote(entry)}, so no test split")
            continue
        location = _resolve_entry(root, base, entry, table, issues)
        folders = [location.parent, root / base, root]
        rows += [(path, split) for path in _images_of_entry(location, folders, root, issues)]
    if not entries:
        rows = [(path, split_of_folders(path, root)) for path in image_files(root)]
    _read_labels(parsed, rows, names, keypoints)
    return parsed


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
            issues.notes.append(f"{table}: {text}")
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
    issues.notes.append(f"{table}: {quote(entry)} is read as {moved}")
    return moved


def _images_of_entry(
    location: Path, folders: list[Path], root: Path, issues: Issues
) -> Iterable[Path]:
    """The images of a folder or of a list."""
    if location.is_dir():
        known = {*READABLE, ".txt", ".cache"}
        others = [path for path in visible_files(location) if path.suffix.casefold() not in known]
        issues.note("files are not images by name, and are not read", others)
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
    parsed: ParsedAnnotations,
    rows: Iterable[tuple[Path, str | None]],
    names: dict[int, str],
    keypoints: int,
) -> None:
    """Add images with their objects; a row has `keypoints` numbers behind its box, if any."""
    labels, bare, issues = LabelFiles(), list[Path](), parsed.issues
    for path, split in rows:
        image = AnnotatedImage(path, split)
        parsed.images.append(image)
        if file := labels.find(path) if os.path.isdir(path.parent) else None:
            _read_label_file(issues, image, file, names, keypoints)
        else:
            bare.append(path)
    issues.note("images have no label file, so no objects", bare)
    known = {"classes", "train", "val", "valid", "test", "notes", "requirements"}
    unused = [p for p in labels.unused if key(p.stem) not in known and "readme" not in key(p.stem)]
    issues.note("label files have no image", unused)
    _check_corners(parsed)


def _check_corners(parsed: ParsedAnnotations) -> None:
    """Refuse boxes that leave their images as centre and size, but fit as corners, for the most."""
    boxes = [
        replace(image, objects=[one for one in image.objects if not one.shape])
        for image in parsed.images
    ]
    total, fitting, leaving = compare_with_corners(
        boxes, _as_written, lambda _: (1.0, 1.0), CORNER_TOLERANCE
    )
    if leaving > total / 2 and fitting > 0.9 * total:
        place = next(image.objects[0].place for image in boxes if image.objects)
        reason = (
            f"{leaving:,} of {total:,} boxes leave their images as x, y of the centre, width, "
            "height, as YOLO has it, but fit as x1, y1, x2, y2: convert them"
        )
        parsed.issues.error(place.rpartition(",")[0], reason)


def _as_written(box: Box) -> Box:
    """The four numbers of a row."""
    x1, y1, x2, y2 = box
    return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1


def _read_label_file(
    issues: Issues, image: AnnotatedImage, path: Path, names: dict[int, str], keypoints: int
) -> None:
    try:
        lines = read_lines(path)
    except DataError as error:
        issues.error(path, str(error))
        return
    for number, line in enumerate(lines, 1):
        place, values = f"{path}, line {number}", line.split()
        try:
            if values:
                image.objects.append(_object(issues, values, place, names, keypoints))
        except (ValueError, OverflowError) as error:
            issues.error(place, parse_error_reason(error))


def _object(
    issues: Issues, values: list[str], place: str, names: dict[int, str], keypoints: int
) -> Annotation:
    """The object of a row. Raises ValueError or OverflowError."""
    label, *numbers = (_value(values, i) for i in range(len(values)))
    name = names.get(int(label) if label % 1 == 0 else -1, f"number {label:g}")
    if len(numbers) == 4 or (keypoints and len(numbers) == 4 + keypoints):
        x, y, width, height = numbers[:4]
        if len(numbers) > 4:
            issues.count("rows have keypoints, which are not used", place)
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        return Annotation(place, name, box)
    if len(numbers) < 6 or len(numbers) % 2:
        more = "; a box with its confidence?" if len(numbers) == 5 else ""
        count = f"{len(values)} values, neither a box (5) nor a polygon (7, 9, ...)"
        raise ValueError(count + more)
    points = parse_polygon(numbers)
    if not all(-MAX_OVERHANG <= value <= 1 + MAX_OVERHANG for value in points):
        raise ValueError("a polygon beyond 0 to 1, the sides of its image")
    issues.count("rows are polygons, whose boxes are the smallest around them", place)
    xs, ys = points[::2], points[1::2]
    return Annotation(place, name, (min(xs), min(ys), max(xs), max(ys)), shape=(points,))


def _value(values: list[str], index: int) -> float:
    """A number of a row. What stands there is not repeated: the file may be any."""
    try:
        return parse_number(values[index])
    except ValueError:
        raise ValueError(f"value {index + 1} is not a number") from None

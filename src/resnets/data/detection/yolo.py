"""YOLO's labels: a text beside each image, and a YAML file or classes.txt with the names."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from resnets.data.classification import split_name, visible
from resnets.data.decode import READABLE
from resnets.data.detection.coco import not_coco_reason, polygon
from resnets.data.detection.dataset import AnnotatedImage, Annotation, ParsedAnnotations
from resnets.data.file_names import (
    find,
    folder_split,
    image_files,
    key,
    number,
    quote,
    resolve_case_insensitive,
    resolve_inside,
)
from resnets.data.tables import read_lines, read_text
from resnets.errors import DataError, MissingPackage

NAMES = ("classes.txt", "obj.names", "labels/classes.txt", "labels/obj.names")
LONGEST = 1_000_000  # bytes of a YAML file: its parser is slow, and class names are short
BEYOND = 0.1  # part of a side that a polygon may reach out of its image


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
            names = Counter(quote(name.value) for name, _ in node.value)
            if twice := [name for name, count in names.items() if count > 1]:
                raise ValueError(f"line {node.start_mark.line + 1} on: the key {twice[0]} twice")
            return super().construct_mapping(node, deep)

    if path.stat().st_size > LONGEST:
        raise DataError(f"{path} has over {LONGEST:,} bytes; a list of files belongs into a .txt")
    try:
        content = yaml.load(read_text(path), Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is no YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} has no keys")
    return content


def class_names(value: Any, path: Path) -> dict[int, str]:
    """Class names by number, from a list or a mapping in `path`. Raises DataError for others."""
    names = dict(enumerate(value)) if isinstance(value, list) else value
    if not isinstance(names, dict) or not names:
        raise DataError(f"{path}: names is no list and no mapping from numbers to names")
    for k, name in names.items():
        if not re.fullmatch("[0-9]{1,4}", str(k)):
            raise DataError(f"{path}: names is no mapping from numbers below 10,000: {quote(k)}")
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"{path}: the name of class {k} is {quote(name)}, not a text")
    named = {int(k): name.strip() for k, name in names.items()}
    if len(set(named.values())) < len(names):
        raise DataError(f"{path} has one name or number for two classes")
    return dict(sorted(named.items()))


def read_names(path: Path) -> dict[int, str]:
    """The class names of a text, a line each, from 0. Raises DataError."""
    return class_names("\n".join(read_lines(path)).rstrip().split("\n"), path)


def names_file(root: Path) -> Path | None:
    """The list of class names of a folder in which images have labels, without a YAML file."""
    paths = [path for name in NAMES if (path := resolve_case_insensitive(root, name.split("/")))]
    return paths[0] if paths and has_labels(root) else None


def has_labels(root: Path) -> bool:
    """Whether an image below a folder has a label file."""
    labels = Labels()
    return any(labels.of(image) for image in image_files(root))


class Labels:
    """The label files of images: in `labels` in place of `images`, or beside them, in any case."""

    def __init__(self) -> None:
        self.folders: dict[Path, list[dict[str, Path]]] = {}  # by the image's folder: texts by stem
        self.unused: dict[Path, None] = {}

    def of(self, image: Path) -> Path | None:
        """The label file of an image, if it has one."""
        folder = image.parent
        if folder not in self.folders:
            self.folders[folder] = [self._texts(place) for place in _label_folders(folder)]
        stem = key(image.stem)
        path = next((texts[stem] for texts in self.folders[folder] if stem in texts), None)
        if path:
            self.unused.pop(path, None)
        return path

    def _texts(self, folder: Path) -> dict[str, Path]:
        paths = sorted(p for p in folder.iterdir() if p.suffix.casefold() == ".txt" and p.is_file())
        self.unused |= dict.fromkeys(paths)
        return {key(path.stem): path for path in reversed(paths)}


def _label_folders(folder: Path) -> list[Path]:
    names, places = folder.parts, [folder]
    for k, name in enumerate(names):
        top = Path(*names[:k])
        if key(name) == "images" and (
            labels := resolve_case_insensitive(top, ["labels", *map(key, names[k + 1 :])])
        ):
            places = [labels, *places]
    return places


def read_yolo(table: Path) -> ParsedAnnotations:
    """YOLO's data.yaml: path, train, val, test (folders, or lists of images) and names.

    Without the splits, or of a file of class names alone, it is all images below its folder, with
    splits from the names of their folders. Places have to lie in the file's folder. Labels are in
    files named as the images, in a folder `labels` in place of `images`, or beside them: class and
    centre, width, height as parts of the image's sides; or class and a polygon, whose box is the
    smallest around it. An image without such a file has no objects.
    """
    root, notes, refused = table.parent, list[str](), list[tuple[str, str]]()
    if table.suffix.casefold() in (".yaml", ".yml"):
        content = read_yaml(table)
        names = class_names(content.get("names"), table)
        count = str(content.get("nc", len(names)))
        if count != str(len(names)):
            notes.append(
                f"{table}: nc is {quote(count)}, but names are {len(names)}; nc is not used"
            )
        base = _texts(content.get("path"), table) or [""]
        entries = [
            (split_name(name), _texts(content[name], table)) for name in content if split_name(name)
        ]
    else:
        content, names, base = {}, read_names(table), [""]
        root = root.parent if key(root.name) == "labels" else root
        lists = [path for path in sorted(root.glob("*.txt")) if split_name(path.stem)]
        entries = [(split_name(path.stem), [path.name]) for path in lists if _is_list(path)]
    rows: list[tuple[Path, str | None]] = []
    for split, texts in entries:
        for entry in texts:
            if split == "test" and len(entries) > 1 and not _there(root, base[0], entry):
                notes.append(f"{table}: there is no {quote(entry)}, so no test split")
                continue
            place = _place(root, base[0], entry, table, notes)
            paths = _listed(place, [place.parent, root / base[0], root], root, notes, refused)
            rows += [(path, split) for path in paths]
    if not any(texts for _, texts in entries):
        rows = [(path, folder_split(path, root)) for path in image_files(root)]
    found = ParsedAnnotations(
        classes=tuple(names.values()), relative=True, refused=refused, notes=notes
    )
    points = [int(k) for k in _texts(content.get("kpt_shape"), table) if k.isdigit()]
    _read(found, rows, names, points[0] * points[1] if len(points) == 2 else 0)
    return found


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


def _there(root: Path, base: str, entry: str) -> bool:
    """Whether what a YAML file names exists: Roboflow names a test split, whether there is one."""
    places = (root / base / entry, root / entry)
    return any(map(os.path.exists, places)) or resolve_inside(root, f"{base}/{entry}") is not None


def _place(root: Path, base: str, entry: str, table: Path, notes: list[str]) -> Path:
    """The folder or list that a YAML file names. Raises DataError for none, or one outside."""
    tops = {os.path.abspath(root), os.path.realpath(root)}
    for path in (root / base / entry, root / entry):
        if path != root / base / entry and os.path.exists(path):
            notes.append(f"{table}: path {quote(base)} has no {quote(entry)}, its own folder has")
        written = os.path.normpath(path)
        absolute = Path(os.path.abspath(written))
        if absolute.exists() and not tops.isdisjoint(map(str, (absolute, *absolute.parents))):
            return Path(written)
    # Exports are found that were moved, or that count from a folder too low.
    moved = resolve_inside(root, f"{base}/{entry}")
    if os.path.exists(root / base / entry) and (os.path.isabs(base + entry) or not moved):
        raise DataError(
            f"{table}: {quote(entry)} lies outside of the file's folder, so it is not read.\n"
            "Move the YAML file into the folder that holds the images and labels."
        )
    if moved is None:
        raise DataError(f"{table}: there is no {os.path.normpath(root / base / entry)}")
    notes.append(f"{table}: {quote(entry)} is read as {moved}")
    return moved


def _listed(
    place: Path,
    folders: list[Path],
    root: Path,
    notes: list[str],
    refused: list[tuple[str, str]],
) -> list[Path]:
    """The images of a folder or of a list."""
    if place.is_dir():
        paths = image_files(place)
        ends = {*READABLE, ".txt", ".cache"}
        if left := [path for path in visible(place) if path.suffix.casefold() not in ends]:
            notes.append(
                f"{len(left):,} files are no images by name, and not read; first {left[0]}"
            )
        return paths
    if place.suffix.casefold() != ".txt":
        raise DataError(f"{place} is neither a folder nor a list of images, which ends in .txt")
    names = []
    for k, line in enumerate(map(str.strip, read_lines(place)), 1):
        if line and os.path.splitext(line)[1].casefold() in READABLE:
            names.append(line)
        elif line:
            refused.append((f"{place}, line {k}", "names no image file"))
    where, more = find(names, folders, root)
    notes += more
    return [where[name] for name in names]


def _read(
    found: ParsedAnnotations,
    rows: Iterable[tuple[Path, str | None]],
    names: dict[int, str],
    points: int,
) -> None:
    """Add images with their objects; a row of theirs has 4 numbers more than keypoints."""
    labels, bare = Labels(), list[Path]()
    for image, split in rows:
        scene = AnnotatedImage(image, split)
        found.scenes.append(scene)
        if path := labels.of(image) if os.path.isdir(image.parent) else None:
            _objects(found, scene, path, names, points)
        else:
            bare.append(image)
    if bare:
        reason = f"{len(bare):,} images have no label file, so no objects; first {bare[0]}"
        found.notes.append(reason)
    known = {"classes", "train", "val", "valid", "test", "notes", "requirements"}
    left = [p for p in labels.unused if key(p.stem) not in known and "readme" not in key(p.stem)]
    if left:
        found.notes.append(f"{len(left):,} label files have no image, first {left[0]}")


def _objects(
    found: ParsedAnnotations, scene: AnnotatedImage, path: Path, names: dict[int, str], points: int
) -> None:
    try:
        lines = read_lines(path)
    except DataError as error:
        found.refused.append((str(path), str(error)))
        return
    for k, line in enumerate(lines, 1):
        place, values = f"{path}, line {k}", line.split()
        if not values:
            continue
        try:
            which, *numbers = (_value(values, i) for i in range(len(values)))
            name = names.get(int(which) if which % 1 == 0 else -1, f"number {which:g}")
            if len(numbers) == 4 or (points and len(numbers) == 4 + points):
                x, y, width, height = numbers[:4]
                box = x - width / 2, y - height / 2, x + width / 2, y + height / 2
                scene.objects.append(Annotation(place, name, box))
                if len(numbers) > 4:
                    found.count("rows have keypoints, which are not used", place)
                continue
            if len(numbers) < 6 or len(numbers) % 2:
                more = "; a box with its confidence?" if len(numbers) == 5 else ""
                count = f"{len(values)} values, neither a box (5) nor a polygon (7, 9, ...)"
                raise ValueError(count + more)
            corners = polygon(numbers)
            if not all(-BEYOND <= value <= 1 + BEYOND for value in corners):
                raise ValueError("a polygon beyond 0 to 1, the sides of its image")
            xs, ys = corners[::2], corners[1::2]
            box = min(xs), min(ys), max(xs), max(ys)
            scene.objects.append(Annotation(place, name, box, shape=(corners,)))
            found.count("rows are polygons, whose boxes are the smallest around them", place)
        except (ValueError, OverflowError) as error:
            found.refused.append((place, not_coco_reason(error)))


def _value(values: list[str], index: int) -> float:
    """A number of a row. What stands there is not repeated: the file may be any."""
    try:
        return number(values[index])
    except ValueError:
        raise ValueError(f"value {index + 1} is no number") from None

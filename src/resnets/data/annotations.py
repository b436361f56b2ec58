"""The objects of COCO, PASCAL VOC and YOLO data sets, and of a CSV file of boxes.

A reader goes on after what it cannot read and names it in `Annotated.refused`.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from resnets.data.decode import MAX_PIXELS
from resnets.data.folders import SPLITS, visible
from resnets.data.objects import Annotated, Object, Scene
from resnets.data.splits import Shape
from resnets.errors import DataError, MissingPackage, Problem

FORMS = (
    "annotations/*train*.json or a .json file (COCO), Annotations/*.xml (PASCAL VOC), a .yaml with "
    "train and names (YOLO), or a .csv of path,x1,y1,x2,y2,label"
)
PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}

# What a value of the wrong kind raises where it is used.
_WRONG = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError)


def reader(data: Path) -> Callable[[], Annotated] | None:
    """What reads the objects of `data`, a file or a folder; None where it is of no known form."""
    if data.is_file():
        if data.suffix.lower() == ".csv":
            with data.open(encoding="utf-8-sig", errors="replace") as file:
                return partial(read_csv, data) if "x1" in file.readline().split(",") else None
        forms = {".json": read_coco, ".yaml": read_yolo, ".yml": read_yolo}
        form = forms.get(data.suffix.lower())
        return form and partial(form, data)
    if coco_tables(data):
        return partial(read_coco, data)
    if any(data.glob("Annotations/*.xml")):
        return partial(read_voc, data)
    for path in sorted(data.glob("*.y*ml"), key=lambda path: (path.stem != "data", path)):
        if {"train", "names"} <= set(re.findall(r"(?m)^(\w+) *:", _text(path))):
            return partial(read_yolo, path)
    tables = [path for path in sorted(data.glob("*.csv")) if reader(path)]
    return partial(read_csv, tables[0]) if len(tables) == 1 else None


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig", errors="replace")


def _why(error: Exception) -> str:
    return f"broken: {error} is missing" if isinstance(error, KeyError) else f"broken: {error}"


def coco_tables(root: Path) -> dict[Path, str | None]:
    """The annotation files of a folder with their splits; instances alone where others are too.

    Raises DataError for two of one split.
    """
    paths = sorted(root.glob("annotations/*.json"))
    paths = [path for path in paths if path.name.startswith("instances")] or paths
    if len(paths) == 1 and not _part(paths[0]):
        return {paths[0]: None}
    tables = {split: [p for p in paths if _part(p) == split] for split in ("train", "val", "test")}
    if twice := next((paths for paths in tables.values() if len(paths) > 1), None):
        raise DataError(f"one split has {len(twice)} files: {', '.join(map(str, twice[:3]))}")
    return {paths[0]: split for split, paths in tables.items() if paths}


def _part(path: Path) -> str | None:
    words = set(re.findall("train|val|test", path.stem.casefold()))
    return words.pop() if len(words) == 1 else None


def read_coco(data: Path) -> Annotated:
    """COCO's JSON: a folder with `annotations`, or one file.

    Images are looked for beside the file, in the folder above, and there in `images` and in folders
    named as the split (train2017), below `images` or not. Categories become classes in the order of
    their ids; crowds are of kind 2.
    """
    found = Annotated()
    for table, split in (coco_tables(data) if data.is_dir() else {data: None}).items():
        places = _image_folders(table)
        try:
            told = json.loads(table.read_bytes())
            categories = sorted(told["categories"], key=lambda category: int(category["id"]))
            names = {category["id"]: str(category["name"]) for category in categories}
            if len(set(names.values())) < len(names):
                raise ValueError("two categories have one name")
            scenes = {
                image["id"]: Scene(_first(places, image["file_name"]), split, [], _sides(image))
                for image in told["images"]
            }
            entries = list(told["annotations"])
        except _WRONG as error:
            found.refused.append((str(table), _why(error)))
            continue
        found.classes = found.classes or tuple(names.values())
        found.scenes += scenes.values()
        for k, entry in enumerate(entries):
            place = f"{table}, annotation {entry.get('id', k) if isinstance(entry, dict) else k}"
            try:
                scene = scenes.get(entry["image_id"])
                if scene is None:
                    found.noted.append((place, f"of the unknown image {entry['image_id']}"))
                    continue
                x, y, width, height = map(float, entry["bbox"])
                name = names.get(entry["category_id"], f"category {entry['category_id']}")
                box, kind = (x, y, x + width, y + height), 2 if entry.get("iscrowd") else 1
                shape = _shape(entry.get("segmentation"))
                scene.objects.append(Object(place, name, box, kind, shape))
            except _WRONG as error:
                found.refused.append((place, _why(error)))
    return found


def _image_folders(table: Path) -> list[Path]:
    folders = [table.parent, table.parent.parent]
    for top in folders[:2]:
        if part := _part(table):
            folders += [*sorted(top.glob(f"images/{part}*")), *sorted(top.glob(f"{part}*"))]
        folders.append(top / "images")
    return [folder for folder in folders if folder.is_dir()]


def _first(folders: list[Path], name: str) -> Path:
    places = (os.path.normpath(folder / name) for folder in folders)
    return Path(next((place for place in places if os.path.isfile(place)), folders[0] / name))


def _sides(image: dict[str, Any]) -> tuple[int, int] | None:
    height, width = int(image.get("height") or 0), int(image.get("width") or 0)
    return (height, width) if height and width else None


def _shape(told: Any) -> Shape | None:
    """COCO's segmentation. Raises ValueError or the like for what is none."""
    if not told:
        return None
    if isinstance(told, dict):
        try:
            from faster_coco_eval.core import mask
        except ImportError:
            raise MissingPackage("run lengths need: pip install 'resnets[detect]'") from None
        height, width = map(int, told["size"])
        if height * width > MAX_PIXELS:  # decoding them below would take as much memory
            raise ValueError("run lengths of more pixels than an image may have")
        packed = mask.frPyObjects(told, height, width) if isinstance(told["counts"], list) else told
        mask.decode(packed)  # raises for what does not fill the image
        counts = packed["counts"]
        return height, width, counts.encode("ascii") if isinstance(counts, str) else counts
    return tuple(_polygon(map(float, points)) for points in told)


def _polygon(numbers: Iterable[float]) -> tuple[float, ...]:
    points = tuple(numbers)
    if len(points) < 6 or len(points) % 2 or not all(abs(x) < 1e6 for x in points):
        raise ValueError("a polygon is three or more finite points x y")
    return points


class _Tree(ElementTree.TreeBuilder):
    def doctype(self, *_: str | None) -> None:
        raise ValueError("a DOCTYPE is refused, since it may define entities without end")


def read_voc(root: Path) -> Annotated:
    """PASCAL VOC: Annotations, JPEGImages, and lists of names in ImageSets/Main.

    The lists are train.txt, val.txt and test.txt, or trainval.txt where the first two are missing;
    without any all are split by chance. Coordinates are those of pixels, from 1, and the last is
    inside: x1 = xmin - 1, x2 = xmax. But xmin = xmax, a click in the tools that people use, is a
    box without width. Difficult objects are of kind 2.
    """
    found = Annotated()
    lists = {path.stem: path for path in root.glob("ImageSets/Main/*.txt")}
    if "trainval" in lists and not {"train", "val"} & set(lists):
        lists["train"] = lists["trainval"]
    names: list[tuple[str, str, str | None]] = [
        (line.split()[0], f"{lists[split]}, line {k}", split)
        for split in ("train", "val", "test")
        if split in lists
        for k, line in enumerate(_text(lists[split]).splitlines(), 1)
        if line.strip()
    ]
    if not names:
        names = [(path.stem, str(path), None) for path in sorted(root.glob("Annotations/*.xml"))]
    images = {path.stem: path for path in reversed(visible(root / "JPEGImages"))}
    for name, place, split in names:
        path = root / "Annotations" / f"{name}.xml"
        scene = Scene(images.get(name, root / "JPEGImages" / f"{name}.jpg"), split)
        try:
            parser = ElementTree.XMLParser(target=_Tree())
            tree = ElementTree.fromstring(path.read_bytes(), parser=parser)
            sides = {k: float(tree.findtext(f"size/{k}") or 0) for k in ("width", "height")}
            scene.stated = _sides(sides)
        except FileNotFoundError:
            found.refused.append((place, f"there is no {path}"))
            continue
        except (*_WRONG, ElementTree.ParseError) as error:
            found.refused.append((str(path), _why(error)))
            continue
        found.scenes.append(scene)
        for k, told in enumerate(tree.findall("object"), 1):
            place = f"{path}, object {k}"
            try:
                corners = ("xmin", "ymin", "xmax", "ymax")
                x1, y1, x2, y2 = (float(told.findtext(f"bndbox/{c}") or "") for c in corners)
                x1, y1, x2, y2 = x1 - 1, y1 - 1, x2 - (x1 == x2), y2 - (y1 == y2)
                if not (name := (told.findtext("name") or "").strip()):
                    raise ValueError("no name")
                kind = 2 if (told.findtext("difficult") or "").strip() == "1" else 1
                scene.objects.append(Object(place, name, (x1, y1, x2, y2), kind))
            except ValueError as error:
                found.refused.append((place, _why(error)))
    return found


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping. Raises MissingPackage, or DataError for another."""
    try:
        yaml = import_module("yaml")
    except ImportError:
        raise MissingPackage(f"{path} needs PyYAML: pip install 'resnets[detect]'") from None
    try:
        told = yaml.safe_load(_text(path))
    except (yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{path} is no YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(told, dict):
        raise DataError(f"{path} has no keys")
    return told


def class_names(told: Any, path: Path) -> dict[int, str]:
    """Class names by number, from a list or a mapping in `path`. Raises DataError for others."""
    told = dict(enumerate(told)) if isinstance(told, list) else told
    names = {k: str(name) for k, name in told.items()} if isinstance(told, dict) else {}
    if not names or not all(isinstance(k, int) and 0 <= k < 10_000 for k in names):
        raise DataError(f"{path}: names is no list and no mapping from numbers to names")
    if len(set(names.values())) < len(names):
        raise DataError(f"{path} has one name for two classes")
    return dict(sorted(names.items()))


def read_yolo(table: Path) -> Annotated:
    """YOLO's data.yaml: path, train, val, test (folders, or lists of images) and names.

    Labels are in files named as the images, in a folder `labels` in place of `images`, or beside
    them: class and centre, width, height as parts of the image's sides; or class and a polygon,
    whose box is the smallest around it. An image without such a file has no objects.
    """
    told = read_yaml(table)
    names = class_names(told.get("names"), table)
    found = Annotated(classes=tuple(names.values()), relative=True)
    bare: list[Path] = []
    for split in ("train", "val", "test"):
        entries = told.get(split) or []
        for entry in entries if isinstance(entries, list) else [entries]:
            for path in _listed(table, str(told.get("path") or ""), str(entry)):
                scene = Scene(path, split)
                found.scenes.append(scene)
                head, images, tail = os.path.abspath(path).rpartition(f"{os.sep}images{os.sep}")
                labels = Path(f"{head}{os.sep}labels{os.sep}{tail}") if images else path
                labels = labels.with_suffix(".txt")
                if labels.is_file():
                    scene.objects = _yolo_objects(labels, names, found.refused)
                else:
                    bare.append(path)
    if bare:
        reason = f"{len(bare):,} images have no label file, so no objects; first {bare[0]}"
        found.noted.append((str(table), reason))
    return found


def _listed(table: Path, base: str, entry: str) -> list[Path]:
    """The images of an entry of data.yaml. Raises DataError where there is no such place."""
    # Exports are found that were moved, or that count from a folder too low.
    tops = [table.parent / base, table.parent]
    places = [top / name for name in (entry, entry.removeprefix("../")) for top in tops]
    place = next((place for place in places if place.exists()), None)
    if place is None:
        raise DataError(f"{table}: there is no {places[0]}")
    if place.is_dir():
        return [path for path in visible(place) if path.suffix.lower() in PICTURES]
    lines = map(str.strip, _text(place).splitlines())
    paths = [place.parent / line for line in lines if line]
    return [Path(os.path.normpath(path)) for path in paths]


def _yolo_objects(path: Path, names: dict[int, str], refused: list[Problem]) -> list[Object]:
    objects = []
    for k, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        place = f"{path}, line {k}"
        try:
            which, *numbers = map(float, line.split())
            name = names.get(int(which) if which % 1 == 0 else -1, f"number {which:g}")
            if len(numbers) == 4:
                x, y, width, height = numbers
                box = x - width / 2, y - height / 2, x + width / 2, y + height / 2
                objects.append(Object(place, name, box))
            else:
                points = _polygon(numbers)
                xs, ys = points[::2], points[1::2]
                box = min(xs), min(ys), max(xs), max(ys)
                objects.append(Object(place, name, box, shape=(points,)))
        except (ValueError, OverflowError) as error:
            refused.append((place, _why(error)))
    return objects


def read_csv(table: Path) -> Annotated:
    """A CSV file with the header `path,x1,y1,x2,y2,label` and optionally `split`, `kind`.

    A row is an object, in pixels from 0 of the upright image, x2 and y2 outside; kind 2 is
    ignored. A row with only a path (and split) is an image without objects. Paths count from the
    file's folder. Raises DataError for a wrong header or what is no CSV.
    """
    found, scenes = Annotated(), dict[str, Scene]()
    wanted = ("x1", "y1", "x2", "y2", "label")
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, restval="")
            if missing := {"path", *wanted} - set(rows.fieldnames or ()):
                raise DataError(f"{table}: no column {' or '.join(sorted(missing))} in line 1")
            for row in rows:
                place = f"{table}, line {rows.line_num}"
                try:
                    _row(row, place, table.parent, wanted, scenes)
                except _WRONG as error:
                    found.refused.append((place, _why(error)))
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{table} is no CSV file in UTF-8: {error}") from None
    found.scenes += scenes.values()
    return found


def _row(
    row: dict[str, str], place: str, root: Path, wanted: Iterable[str], scenes: dict[str, Scene]
) -> None:
    """Add an object, or an image without, to `scenes`. Raises ValueError for a wrong row."""
    *box, name = (row[key].strip() for key in wanted)
    split = SPLITS[row["split"]] if "split" in row else None
    if not row["path"]:
        raise ValueError("no path")
    path = Path(os.path.normpath(root / row["path"]))
    scene = scenes.setdefault(str(path), Scene(path, split))
    if scene.split != split:
        raise ValueError(f"split {split}, but {scene.split} above")
    if not any((*box, name)):
        return
    if not name or (kind := row.get("kind") or "1") not in ("1", "2"):
        raise ValueError("no label, or a kind that is neither 1 nor 2")
    x1, y1, x2, y2 = map(float, box)
    scene.objects.append(Object(place, name, (x1, y1, x2, y2), int(kind)))

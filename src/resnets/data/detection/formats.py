"""The objects of COCO, PASCAL VOC and YOLO data sets, and of a CSV file of boxes.

A reader goes on after what it cannot read and names it in `Annotated.refused`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from resnets.data.classification import split_name
from resnets.data.detection.coco import not_coco_reason, read_coco, tables
from resnets.data.detection.dataset import AnnotatedImage, Annotation, ParsedAnnotations
from resnets.data.detection.targets import Kind
from resnets.data.detection.voc import read_voc, xml_files
from resnets.data.detection.yolo import LONGEST, has_labels, names_file, read_yolo
from resnets.data.file_names import find, key, number, quote, split_of_name
from resnets.data.tables import LABEL, PATH, SPLIT, SUFFIXES, header, read_table
from resnets.errors import DataError, nearest

FORMS = (
    "COCO (a .json file, annotations/*.json, train/*.json), PASCAL VOC (*.xml in Annotations/ or "
    "beside the images),\nYOLO (a .yaml with names, or classes.txt, and labels), or a .csv of "
    "path,x1,y1,x2,y2,label"
)

COCO, VOC = "COCO's JSON", "VOC's XML"
CORNERS = ("x1", "y1", "x2", "y2")
COLUMNS = {  # of a CSV file, and other names that they have
    "path": PATH,
    "x1": ("x1", "xmin", "x_min", "left"),
    "y1": ("y1", "ymin", "y_min", "top"),
    "x2": ("x2", "xmax", "x_max", "right"),
    "y2": ("y2", "ymax", "y_max", "bottom"),
    "label": LABEL,
    "kind": ("kind",),
    "split": SPLIT,
}


def find_reader(data: Path) -> Callable[[], ParsedAnnotations] | None:
    """What reads the objects of `data`, a file or a folder; None where it is of no known form."""
    if data.is_file():
        if data.suffix.lower() in SUFFIXES:
            return partial(read_csv, data) if _is_csv(data) else None
        forms = {".json": read_coco, ".yaml": read_yolo, ".yml": read_yolo}
        form = forms.get(data.suffix.lower())
        return form and partial(form, data)
    readers: dict[str, Callable[[], ParsedAnnotations]] = {}
    if tables(data):
        readers[COCO] = partial(read_coco, data)
    if xml_files(data):
        readers[VOC] = partial(read_voc, data)
    ends = {".yaml", ".yml"}
    yaml = [path for path in sorted(data.iterdir()) if path.suffix.casefold() in ends]
    for path in sorted(filter(_is_yolo, yaml), key=lambda path: path.stem != "data"):
        readers[path.name] = partial(read_yolo, path)
    if not set(readers) - {VOC, COCO} and (names := names_file(data)):
        readers[names.name] = partial(read_yolo, names)
    paths = [p for p in sorted(data.iterdir()) if p.suffix.lower() in SUFFIXES and p.is_file()]
    if csv := list(filter(_is_csv, paths)):
        readers[csv[0].name] = partial(read_csv, *csv)
    return partial(_first, data, readers) if readers else None


def _first(data: Path, readers: dict[str, Callable[[], ParsedAnnotations]]) -> ParsedAnnotations:
    (name, read), *others = readers.items()
    found = read()
    if others:
        more = " and ".join(other for other, _ in others)
        found.notes.append(f"{data}: {name} is read; {more} is there too, and is not read")
    return found


def _is_yolo(path: Path) -> bool:
    """Whether a YAML file has class names, and splits or labels of images beside it."""
    if not path.is_file() or path.stat().st_size > LONGEST:
        return False
    text = path.read_bytes().replace(b"\0", b"").decode("utf-8", "replace")
    keys = set(re.findall(r"(?m)^\W*(\w+)[\"']? *:", text))
    return "names" in keys and (any(map(split_name, keys)) or has_labels(path.parent))


def _is_csv(path: Path) -> bool:
    """Whether a CSV file has columns of boxes, named or in the usual order."""
    try:
        names = header(path)
    except DataError:
        return False
    numbers = [name for name in names[1:5] if re.fullmatch(r"[\d.]+", name)]
    return not set(COLUMNS["x1"]).isdisjoint(names) or (len(numbers) == 4 and len(names) > 5)


def read_csv(*files: Path) -> ParsedAnnotations:
    """CSV files of one split each, from their names; see `read_csv_file` for one.

    Raises DataError for names of which two say the same split, or none.
    """
    if len(files) == 1:
        return read_csv_file(files[0])
    splits = [split_of_name(path.stem) for path in files]
    if None in splits or len(set(splits)) < len(splits):
        names = ", ".join(path.name for path in files[:4])
        raise DataError(f"which of {len(files)} tables, {names}? Give the path of one of them.")
    found = ParsedAnnotations()
    for path, split in zip(files, splits, strict=True):
        read = read_csv_file(path)
        found.scenes += [replace(scene, split=split) for scene in read.scenes]
        found.refused += read.refused
        found.notes += read.notes
    return found


def read_csv_file(table: Path) -> ParsedAnnotations:
    """A CSV file of `path,x1,y1,x2,y2,label`, and optionally `kind`, `split`: `tables.read_table`.

    A row is an object, in pixels from 0 of the upright image, x2 and y2 outside; kind 2 is
    ignored. A row with only a path (and split) is an image without objects. Paths count from the
    file's folder; see `names.find`. Raises DataError for a wrong header or what is no CSV.
    """
    read = read_table(table, COLUMNS, list(COLUMNS)[:6])
    paths, notes = find(
        (row["path"] for _, row in read.rows if row["path"]), [table.parent], table.parent
    )
    found, scenes = ParsedAnnotations(notes=[*read.notes, *notes]), dict[Path, AnnotatedImage]()
    for line, row in read.rows:
        place = f"{table}, line {line}"
        try:
            _row(row, place, paths, scenes)
        except ValueError as error:
            found.refused.append((place, not_coco_reason(error)))
    found.scenes += scenes.values()
    return found


def _row(
    row: dict[str, str], place: str, paths: dict[str, Path], scenes: dict[Path, AnnotatedImage]
) -> None:
    """Add an object, or an image without, to `scenes`. Raises ValueError for a wrong row."""
    if not row["path"]:
        raise ValueError("no path")
    split = None
    if (cell := row.get("split")) is not None:
        split = "trainval" if key(cell) == "trainval" else split_name(cell)
        if split is None:
            raise ValueError(f"split {quote(cell)}: {nearest(cell, ('train', 'val', 'test'))}")
    path = paths[row["path"]]
    scene = scenes.setdefault(path, AnnotatedImage(path, split))
    if scene.split != split:
        raise ValueError(f"split {split}, but {scene.split} above")
    box, name = [row[corner] for corner in CORNERS], row["label"]
    if not any((*box, name)):
        return
    if not name or (kind := row.get("kind") or "1") not in ("1", "2"):
        raise ValueError("no label, or a kind that is neither 1 nor 2")
    x1, y1, x2, y2 = map(number, box)
    scene.objects.append(Annotation(place, name, (x1, y1, x2, y2), Kind(int(kind))))

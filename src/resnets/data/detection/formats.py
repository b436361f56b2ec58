"""Which form the boxes of a data set have: COCO, PASCAL VOC, YOLO, or a CSV file."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from resnets.data.detection.coco import annotation_files, read_coco
from resnets.data.detection.csv import has_boxes, read_box_tables
from resnets.data.detection.dataset import ParsedAnnotations
from resnets.data.detection.voc import read_voc, xml_files
from resnets.data.detection.yolo import MAX_YAML_BYTES, has_labels, names_file, read_yolo
from resnets.data.file_names import split_name
from resnets.data.folders import files_with_suffix
from resnets.data.issues import Issues
from resnets.data.tables import SUFFIXES

FORMS = (
    "COCO (a .json file, annotations/*.json, train/*.json), PASCAL VOC (*.xml in Annotations/ or "
    "beside the images),\nYOLO (a .yaml with names, or classes.txt, and labels), or a .csv of "
    "path,x1,y1,x2,y2,label"
)
Reader = Callable[[Issues], ParsedAnnotations]


def find_reader(data: Path) -> Reader | None:
    """What reads the objects of `data`, a file or a folder; None where it is of no known form."""
    if data.is_file():
        suffix = data.suffix.lower()
        if suffix in SUFFIXES:
            return partial(read_box_tables, [data]) if has_boxes(data) else None
        readers = {".json": read_coco, ".yaml": read_yolo, ".yml": read_yolo}
        return partial(readers[suffix], data) if suffix in readers else None
    forms: list[tuple[str, Reader]] = []
    if annotation_files(data):
        forms.append(("COCO's JSON", partial(read_coco, data)))
    if xml_files(data):
        forms.append(("VOC's XML", partial(read_voc, data)))
    yaml = [path for path in files_with_suffix(data, ".yaml", ".yml") if _is_yolo(path)]
    if not yaml and (names := names_file(data)):
        yaml = [names]
    for path in sorted(yaml, key=lambda path: path.stem != "data"):
        forms.append((path.name, partial(read_yolo, path)))
    if tables := [path for path in files_with_suffix(data, *SUFFIXES) if has_boxes(path)]:
        forms.append((tables[0].name, partial(read_box_tables, tables)))
    return partial(_read_first, forms) if forms else None


def _read_first(forms: list[tuple[str, Reader]], issues: Issues) -> ParsedAnnotations:
    (name, read), *others = forms
    parsed = read(issues)
    if others:
        more = " and ".join(other for other, _ in others)
        issues.note(f"{name} is read; {more} is there too, and is not read")
    return parsed


def _is_yolo(path: Path) -> bool:
    """Whether a YAML file has class names, and splits or labels of images beside it."""
    if path.stat().st_size > MAX_YAML_BYTES:
        return False
    text = path.read_bytes().replace(b"\0", b"").decode("utf-8", "replace")
    keys = set(re.findall(r"(?m)^\W*(\w+)[\"']? *:", text))
    return "names" in keys and (any(map(split_name, keys)) or has_labels(path.parent))

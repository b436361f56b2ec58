"""A CSV file of boxes."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from resnets.data.detection.dataset import AnnotatedImage, Annotation, ParsedAnnotations, parse_size
from resnets.data.detection.targets import Kind
from resnets.data.issues import Issues, parse_number, quote
from resnets.data.paths import WITH_TRAINVAL, find_images, parse_split, split_in_name
from resnets.data.tables import LABEL, PATH, SPLIT, header, read_table
from resnets.errors import DataError

CORNERS = ("x1", "y1", "x2", "y2")
COLUMNS = {  # and other names that they have
    "path": PATH,
    "x1": ("x1", "xmin", "x_min", "left"),
    "y1": ("y1", "ymin", "y_min", "top"),
    "x2": ("x2", "xmax", "x_max", "right"),
    "y2": ("y2", "ymax", "y_max", "bottom"),
    "label": LABEL,
    "kind": ("kind",),
    "split": SPLIT,
    "width": ("width", "image_width", "img_width"),
    "height": ("height", "image_height", "img_height"),
}
REQUIRED = ("path", *CORNERS, "label")


def has_boxes(path: Path) -> bool:
    """Whether a CSV file has columns of boxes, named or in the usual order."""
    try:
        names = header(path)
    except DataError:
        return False
    numbers = [name for name in names[1:5] if re.fullmatch(r"[\d.]+", name)]
    return not set(COLUMNS["x1"]).isdisjoint(names) or (len(numbers) == 4 and len(names) > 5)


def read_box_tables(tables: list[Path], issues: Issues) -> ParsedAnnotations:
    """CSV files of `path,x1,y1,x2,y2,label`, more than one of a split each, from their names.

    See `tables.read_table`. A row is an object, in pixels from 0 of the upright image, x2 and y2
    outside. A row with only a path (and split) is an image without objects. Columns that there may
    be: `kind` (2 is ignored), `split`, and `width` and `height` of the image. Paths count from the
    file's folder; see `paths.find_images`.

    Raises DataError for a wrong header or what is not CSV, or names of which two say the same
    split, or none.
    """
    parsed = ParsedAnnotations(issues)
    splits = [split_in_name(table.stem) if len(tables) > 1 else None for table in tables]
    if len(tables) > 1 and (None in splits or len(set(splits)) < len(splits)):
        names = ", ".join(table.name for table in tables[:4])
        raise DataError(f"which of {len(tables)} tables, {names}? Give the path of one of them.")
    for table, split in zip(tables, splits, strict=True):
        images = _read_table(table, issues)
        for image in images.values():
            image.split = split or image.split
        parsed.images += images.values()
    return parsed


def _read_table(table: Path, issues: Issues) -> dict[Path, AnnotatedImage]:
    rows = read_table(table, COLUMNS, REQUIRED, issues)
    of_boxes = {_is_size_of_box(row) for _, row in rows}
    if True in of_boxes and False not in of_boxes:
        issues.note("width and height are those of the boxes, and are not used", table)
        rows = [(line, row | {"width": "", "height": ""}) for line, row in rows]
    names = (row["path"] for _, row in rows if row["path"])
    paths = find_images(names, [table.parent], table.parent, issues)
    images = dict[Path, AnnotatedImage]()
    for line, row in rows:
        where = f"{table}, line {line}"
        with issues.collect(where):
            _add_row(row, where, paths, images)
    return images


def _is_size_of_box(row: dict[str, str]) -> bool | None:
    """Whether `width` and `height` are those of the row's box; None for a row without them."""
    with suppress(KeyError, ValueError):
        cells = [row[column] for column in (*CORNERS, "width", "height")]
        x1, y1, x2, y2, width, height = map(parse_number, cells)
        return abs(x2 - x1 - width) <= 1 and abs(y2 - y1 - height) <= 1
    return None


def _add_row(
    row: dict[str, str], where: str, paths: dict[str, Path], images: dict[Path, AnnotatedImage]
) -> None:
    """Add an object, or an image without, to `images`. Raises ValueError for a wrong row."""
    if not row["path"]:
        raise ValueError("no path")
    split = parse_split(row["split"], WITH_TRAINVAL) if "split" in row else None
    size = parse_size(row.get("height", ""), row.get("width", ""))
    path = paths[row["path"]]
    image = images.setdefault(path, AnnotatedImage(path, split, stated_size=size))
    if image.split != split:
        raise ValueError(f"split {split}, but {image.split} above")
    if image.stated_size != size:
        raise ValueError(f"height and width {quote(size)}, but {image.stated_size} above")
    box, name = [row[corner] for corner in CORNERS], row["label"]
    if not any((*box, name)):
        return
    if not name or (kind := row.get("kind") or "1") not in ("1", "2"):
        raise ValueError("no label, or a kind that is neither 1 nor 2")
    x1, y1, x2, y2 = map(parse_number, box)
    image.objects.append(Annotation(where, name, (x1, y1, x2, y2), Kind(int(kind))))

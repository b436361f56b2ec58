"""COCO's JSON, as its makers and as CVAT, Roboflow and Label Studio lay it out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from resnets.data.decode import MAX_PIXELS
from resnets.data.detection.dataset import (
    MAX_OVERHANG,
    AnnotatedImage,
    Annotation,
    ParsedAnnotations,
    compare_with_corners,
    parse_polygon,
    parse_size,
)
from resnets.data.detection.targets import Kind
from resnets.data.issues import (
    PARSE_ERRORS,
    Issues,
    parse_error_reason,
    parse_flag,
    parse_number,
    quote,
)
from resnets.data.paths import (
    WITH_TRAINVAL,
    files_with_suffix,
    find_images,
    folders_called,
    name_key,
    split_folders,
    split_in_name,
)
from resnets.data.splits import Shape
from resnets.errors import DataError, MissingPackage

AMBIGUOUS = 10  # boxes from which on it is no accident that all fit as corners too


def annotation_files(root: Path, issues: Issues | None = None) -> dict[Path, str | None]:
    """The annotation files of a folder with their splits, from their names or their folders'.

    They are in `annotations`, beside it, or in folders of splits; those called instances alone,
    where others are too. Raises DataError for two of one split.
    """
    paths = _json_files(root)
    kept = [path for path in paths if path.name.casefold().startswith("instances")] or paths
    splits: dict[Path, str | None] = {}
    for path in kept:
        folder = path.parent.name if path.parent != root else ""
        splits[path] = split_in_name(path.stem) or split_in_name(folder)
    if len(kept) > 1:
        splits = {path: split for path, split in splits.items() if split} or splits
        for split in set(splits.values()):
            same = [str(path) for path, other in splits.items() if other == split]
            if len(same) > 1:
                problem = "one split has" if split else "no split is named by any of"
                raise DataError(
                    f"{problem} {len(same)} files: {', '.join(same[:3])}\n"
                    "Name them train, val and test, or give the path of one of them."
                )
    if issues is not None:
        issues.count("JSON files are not read", *(path for path in paths if path not in splits))
    return splits


def _json_files(root: Path) -> list[Path]:
    """The JSON files that may be COCO's, from the first folder that has any."""
    folders = folders_called(root, "annotations")
    paths = [path for folder in folders for path in files_with_suffix(folder, ".json")]
    if len(paths) == 1:
        return paths
    for candidates in (folders, [root], split_folders(root, WITH_TRAINVAL)):
        paths = [path for folder in candidates for path in files_with_suffix(folder, ".json")]
        if paths := [path for path in paths if _is_coco(path)]:
            return paths
    return []


def _is_coco(path: Path) -> bool:
    """Whether a JSON file begins as COCO's do, whatever its encoding."""
    with path.open("rb") as file:
        head = file.read(1 << 16).replace(b"\0", b"").lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n")
    return head.startswith(b"{") and (b'"images"' in head or b'"annotations"' in head)


@dataclass
class CocoTable:
    """A file of annotations: images and categories by the ids that they have in it."""

    images: dict[int | str, dict[str, Any]]
    categories: dict[int | str, str]  # in the order of their ids
    ids: dict[str, Any]  # of the categories, as the file has them
    annotations: Any
    paths: dict[str, Path]  # of the images, by their names in the file


def read_coco_table(path: Path, split: str | None, root: Path, issues: Issues) -> CocoTable:
    """A COCO file, with or without annotations. Raises one of PARSE_ERRORS for another file."""
    content = json.loads(path.read_bytes())
    if not isinstance(content, dict):
        raise ValueError("no images, annotations and categories")
    images, entries = (_by_id(content[name], name) for name in ("images", "categories"))
    files = [_text(image, "file_name") for image in images.values()]
    if repeated := [name for name, count in Counter(files).items() if count > 1]:
        raise ValueError(f"{quote(repeated[0])} is the file of two images; give it one id")
    order = sorted(entries, key=lambda k: (isinstance(k, str), k))
    categories = {k: _text(entries[k], "name").strip() for k in order}
    groups = _roboflow_groups(categories, entries, content.get("annotations"))
    categories = {k: name for k, name in categories.items() if k not in groups}
    ids = {name: entries[k]["id"] for k, name in categories.items()}
    if len(ids) < len(categories):
        raise ValueError("two categories have the same name")
    paths = find_images(files, _folders(path, split), root, issues)
    text = "category ids without objects are left out: they have the name of another"
    issues.count(text, *(f"{quote(entries[k]['name'])}, id {k} of {path}" for k in groups))
    return CocoTable(images, categories, ids, content.get("annotations"), paths)


def _roboflow_groups(
    categories: dict[int | str, str], entries: dict[int | str, dict[str, Any]], annotations: Any
) -> list[int | str]:
    """Categories without objects that have the name of another: Roboflow's groups of a class."""
    count = Counter(categories.values())
    if len(count) == len(categories) or not isinstance(annotations, list):
        return []
    used = {str(entry.get("category_id")) for entry in annotations if isinstance(entry, dict)}
    idle = [k for k in categories if {str(k), str(entries[k]["id"])}.isdisjoint(used)]
    names_in_use = {name for k, name in categories.items() if k not in idle}
    # of a name that no object has, the last category stays
    last = {name: k for k, name in categories.items() if name not in names_in_use}
    return [k for k in idle if count[categories[k]] > 1 and k != last.get(categories[k])]


def _by_id(entries: Any, name: str) -> dict[int | str, dict[str, Any]]:
    """Images or categories by their ids. Raises ValueError for one that is used twice."""
    by_id: dict[int | str, dict[str, Any]] = {}
    for entry in _list(entries, name):
        other = by_id.setdefault(_id(entry["id"]), entry)
        if other is not entry:
            names = (quote(e.get("file_name", e.get("name"))) for e in (other, entry))
            raise ValueError(f"the id {quote(entry['id'])} is used twice: {' and '.join(names)}")
    return by_id


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{name}: {quote(value)} is not a list")
    return value


def _text(entry: dict[str, Any], name: str) -> str:
    if not isinstance(value := entry[name], str) or not value.strip():
        raise ValueError(f"{name} is {quote(value)}, not a string")
    return value


def _id(value: Any) -> int | str:
    """An id as a number, where it is one or the text of one; other texts are ids too."""
    if type(value) is int:
        return value
    if isinstance(value, str) and value.strip():
        text = value.strip()
        return int(text) if text.isascii() and text.isdigit() and text == str(int(text)) else text
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value % 1 != 0:
        raise ValueError(f"the id {quote(value)} is neither a whole number nor a string")
    return int(value)


def read_coco(data: Path, issues: Issues) -> ParsedAnnotations:
    """COCO's JSON: a folder with files of annotations (see `annotation_files`), or one file.

    Images are looked for in folders named as the split (train2017), in `images`, beside the file,
    and in the folder above; see `paths.find_images`. Categories become classes in the order of
    their ids. Crowds, and objects that are marked `ignore`, are of kind 2.
    """
    parsed = ParsedAnnotations(issues)
    files = annotation_files(data, issues) if data.is_dir() else {data: None}
    for path, split in files.items():
        with issues.collect(path):
            table = read_coco_table(path, split or split_in_name(path.stem), _root(data), issues)
            annotations = _list(table.annotations, "annotations")
            images = {
                k: AnnotatedImage(table.paths[image["file_name"]], split, [], _stated_size(image))
                for k, image in table.images.items()
            }
            parsed.classes = parsed.classes or tuple(table.categories.values())
            parsed.images += images.values()
            _add_objects(path, annotations, images, table.categories, issues)
    return parsed


def _add_objects(
    path: Path,
    annotations: list[Any],
    images: dict[int | str, AnnotatedImage],
    categories: dict[int | str, str],
    issues: Issues,
) -> None:
    """Add the objects of one file to its images, or what is wrong with them."""
    rows, areas = list[tuple[Annotation, AnnotatedImage]](), list[float]()
    for k, entry in enumerate(annotations):
        number = quote(entry.get("id", k)) if isinstance(entry, dict) else k
        where = f"{path}, annotation {number}"
        with issues.collect(where):
            image = images.get(_id(entry["image_id"]))
            if image is None:
                example = f"{where}: image {quote(entry['image_id'])}"
                issues.count("annotations are of an image that the file does not list", example)
                continue
            image.objects.append(_object(issues, entry, categories, where))
            area = entry.get("area")
            is_area = isinstance(area, (int, float)) and not isinstance(area, bool) and area > 0
            areas.append(float(area) if is_area else float("nan"))
            rows.append((image.objects[-1], image))
    if rows:
        _check_corners(issues, path, rows, areas)


def _stated_size(image: dict[str, Any]) -> tuple[int, int] | None:
    try:
        return parse_size(image.get("height"), image.get("width"))
    except ValueError as error:
        raise ValueError(f"{error}, {quote(image.get('file_name'))}") from None


def _root(data: Path) -> Path:
    """The folder below which the images of a folder or file are looked for."""
    if data.is_dir():
        return data
    return data.parent.parent if name_key(data.parent.name) == "annotations" else data.parent


def _object(
    issues: Issues, entry: dict[str, Any], categories: dict[int | str, str], where: str
) -> Annotation:
    """An annotation. Raises one of PARSE_ERRORS."""
    values = entry["bbox"]
    if not isinstance(values, list) or len(values) != 4:
        raise ValueError(f"bbox {quote(values)} is not x, y, width, height")
    x, y, width, height = map(parse_number, values)
    name = categories.get(_id(entry["category_id"]), f"category {entry['category_id']}")
    ids = entry["image_id"], entry["category_id"]
    if any(isinstance(value, str) for value in (*values, *ids, entry.get("iscrowd"))):
        issues.count("annotations have numbers written as texts, which are read as numbers", where)
    crowd, ignored = parse_flag(entry.get("iscrowd")), parse_flag(entry.get("ignore"))
    if ignored and not crowd:
        issues.count("objects are marked `ignore`: they count neither for nor against", where)
    shape = _shape(entry.get("segmentation"))
    box = (x, y, x + width, y + height)
    return Annotation(where, name, box, Kind.IGNORED if crowd or ignored else Kind.OBJECT, shape)


@np.errstate(all="ignore")  # a box may be infinite
def _check_corners(
    issues: Issues,
    path: Path,
    objects: Sequence[tuple[Annotation, AnnotatedImage]],
    areas: Sequence[float],
) -> None:
    """Refuse boxes that are likely x1, y1, x2, y2, and note those that may be."""
    total = len(objects)
    boxes = np.array([annotation.box for annotation, _ in objects])
    sizes = np.array([image.stated_size or (0, 0) for _, image in objects], dtype=np.float64)
    written = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
    fitting, leaving = compare_with_corners(boxes, written, sizes, MAX_OVERHANG)
    # whether `area` is that of the box as it is read, and that of x1, y1, x2, y2
    is_area, is_corner_area = (
        np.abs(sides.prod(1) - areas) <= 0.01 * np.array(areas)
        for sides in (written[:, 2:], written[:, 2:] - written[:, :2])
    )
    if fitting < total:
        return
    if leaving:
        reason = f"{leaving:,} boxes leave their images as x, y, width, height, as COCO has it"
        issues.error(path, f"{reason}, but all fit as x1, y1, x2, y2")
    elif (is_corner_area & ~is_area).all():
        reason = f"the areas of all {total:,} boxes are those of x1, y1, x2, y2, but COCO has "
        issues.error(path, reason + "x, y, width, height")
    elif total >= AMBIGUOUS and not is_area.all():
        text = f"all {total:,} boxes fit as x1, y1, x2, y2 too; they are read as x, y, width, "
        issues.note(text + "height, as COCO has it: convert them if they are corners", path)


def _folders(table: Path, split: str | None) -> list[Path]:
    """Where the images of a table may be, the likeliest first."""
    tops = [table.parent, table.parent.parent]
    inner = [folder for top in tops for folder in folders_called(top, "images")]
    splits = {split, "train", "val"} if split == "trainval" else {split}
    of_split = list[Path]()
    for top in (*inner, *tops):
        folders = split_folders(top, WITH_TRAINVAL) if split else {}
        of_split += [folder for folder, other in folders.items() if other in splits]
    return [*of_split, *inner, *tops]


def _shape(value: Any) -> Shape | None:
    """COCO's segmentation. Raises one of PARSE_ERRORS for what is none."""
    if not value:
        return None
    if isinstance(value, dict):
        return _run_lengths(value)
    if not all(isinstance(points, list) for points in _list(value, "segmentation")):
        raise ValueError("segmentation is not a list of polygons, [[x, y, x, y, ...]]")
    return tuple(parse_polygon(map(parse_number, points)) for points in value if points) or None


def _run_lengths(value: dict[str, Any]) -> Shape:
    try:
        from faster_coco_eval.core import mask
    except ImportError:
        raise MissingPackage("run lengths need: pip install 'resnets[detect]'") from None
    height, width = map(_whole, _list(value["size"], "size"))
    if height * width > MAX_PIXELS:  # decoding them below would take as much memory
        raise ValueError("run lengths of more pixels than an image may have")
    counts = value["counts"]
    if isinstance(counts, list):
        runs = list(map(_whole, counts))
        if sum(runs) != height * width:
            raise ValueError(f"run lengths of {sum(runs)} pixels, not {width} x {height}")
        value = {"size": [height, width], "counts": runs}
        counts = mask.frPyObjects(value, height, width)["counts"]
    elif not isinstance(counts, str):
        raise ValueError(f"counts {quote(counts)} are neither a list nor a string")
    mask.decode({"size": [height, width], "counts": counts})  # raises if the image is not filled
    return height, width, counts.encode("ascii") if isinstance(counts, str) else counts


def _whole(value: Any) -> int:
    number = parse_number(value)
    if number % 1 or number < 0:
        raise ValueError(f"{quote(value)} is not a whole number")
    return int(number)


@dataclass
class UniqueIds:
    """The ids that images, by their paths, and categories, by their names, have in COCO files."""

    images: dict[Path, Any] = field(default_factory=dict)
    categories: dict[str, Any] = field(default_factory=dict)

    def add(self, data: Path) -> bool:
        """Add those of a file or folder; False for one that is not COCO's.

        Raises DataError for what cannot be read, or where one id is of two images or categories.
        """
        if not data.is_dir() and data.suffix.casefold() != ".json":
            return False
        files = annotation_files(data) if data.is_dir() else {data: None}
        for path, split in files.items():
            try:
                split = split or split_in_name(path.stem)
                table = read_coco_table(path, split, _root(data), Issues(data))
            except PARSE_ERRORS as error:
                raise DataError(f"{path}: {parse_error_reason(error)}") from None
            self.images |= {table.paths[i["file_name"]]: i["id"] for i in table.images.values()}
            self.categories |= table.ids
        for ids in (self.images, self.categories):
            counts = Counter(map(str, ids.values()))
            if repeated := [number for number, count in counts.items() if count > 1]:
                raise DataError(
                    f"{data}: its files use the id {repeated[0]} for different things; give one"
                )
        return bool(files)


def unused_id(ids: dict[Any, Any]) -> int:
    """A number from which on no id of `ids` is."""
    return 1 + max((number for number in ids.values() if isinstance(number, int)), default=-1)

"""COCO's JSON, as its makers and as CVAT, Roboflow and Label Studio lay it out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resnets.data.classification import subfolders
from resnets.data.decode import MAX_PIXELS
from resnets.data.detection.dataset import (
    MAX_OVERHANG,
    AnnotatedImage,
    Annotation,
    ParsedAnnotations,
)
from resnets.data.detection.targets import Kind
from resnets.data.file_names import find, flag, key, number, quote, split_of_name
from resnets.data.splits import Polygon, Shape
from resnets.errors import DataError, MissingPackage

# What a value of the wrong kind raises where it is used.
WRONG = (
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, OSError),
)


def not_coco_reason(error: Exception) -> str:
    """The reason of a problem, from what was raised."""
    text = " ".join(str(error).split())[:200]
    return f"broken: {text} is missing" if isinstance(error, KeyError) else f"broken: {text}"


def tables(root: Path, notes: list[str] | None = None) -> dict[Path, str | None]:
    """The annotation files of a folder with their splits, from their names or their folders'.

    They are in `annotations`, beside it, or in folders of splits; those called instances alone,
    where others are too. Raises DataError for two of one split.
    """
    folders = [f for f in subfolders(root) if key(f.name) == "annotations"]
    paths = [path for folder in folders for path in _json(folder)]
    paths = [path for path in paths if len(paths) == 1 or _is_coco(path)]
    paths = paths or [path for path in _json(root) if _is_coco(path)]
    splits = [f for f in subfolders(root) if split_of_name(f.name)]
    paths = paths or [path for f in splits for path in _json(f) if _is_coco(path)]
    kept = [path for path in paths if path.name.casefold().startswith("instances")] or paths
    if len(kept) > 1:
        named = {path: _split(path, root) for path in kept}
        kept = [path for path in kept if named[path]] or kept
        for split in {named[path] for path in kept}:
            if len(twice := [str(path) for path in kept if named[path] == split]) > 1:
                what = "one split has" if split else "no split is named by any of"
                raise DataError(
                    f"{what} {len(twice)} files: {', '.join(twice[:3])}\n"
                    "Name them train, val and test, or give the path of one of them."
                )
    if notes is not None and (left := [path for path in paths if path not in kept]):
        notes.append(f"{len(left):,} JSON files are not read, first {left[0]}")
    return {path: _split(path, root) for path in kept}


def _split(path: Path, root: Path) -> str | None:
    return split_of_name(path.stem) or (
        split_of_name(path.parent.name) if path.parent != root else None
    )


def _json(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.casefold() == ".json" and p.is_file())


def _is_coco(path: Path) -> bool:
    """Whether a JSON file begins as COCO's do, whatever its encoding."""
    with path.open("rb") as file:
        head = file.read(1 << 16).replace(b"\0", b"").lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n")
    return head.startswith(b"{") and (b'"images"' in head or b'"annotations"' in head)


@dataclass
class Table:
    """A file of annotations: images and categories by the ids that they have in it."""

    images: dict[int | str, dict[str, Any]]
    categories: dict[int | str, str]  # in the order of their ids
    ids: dict[str, Any]  # of the categories, as the file has them
    annotations: Any
    paths: dict[str, Path]  # of the images, by their names in the file
    notes: list[str]


def read_table(path: Path, split: str | None, root: Path) -> Table:
    """A COCO file, with or without annotations. Raises ValueError or the like for what is none."""
    content = json.loads(path.read_bytes())
    if not isinstance(content, dict):
        raise ValueError("it holds no images, annotations and categories")
    images, kinds = _by_id(content["images"]), _by_id(content["categories"])
    for image in images.values():
        _text(image, "file_name")
    order = sorted(kinds, key=lambda k: (isinstance(k, str), k))
    categories = {k: _text(kinds[k], "name").strip() for k in order}
    bare = _doubles(categories, kinds, content.get("annotations"))
    categories = {k: name for k, name in categories.items() if k not in bare}
    ids = {name: kinds[k]["id"] for k, name in categories.items()}
    if len(ids) < len(categories):
        raise ValueError("two categories have one name")
    files = [image["file_name"] for image in images.values()]
    if twice := [name for name, count in Counter(files).items() if count > 1]:
        raise ValueError(f"{quote(twice[0])} is the file of two images; give it one id")
    paths, notes = find(files, _folders(path, split, root), root)
    if bare:
        text = f"{len(bare):,} categories without objects are named as another, and left out"
        notes.append(f"{path}: {text}; first {quote(kinds[bare[0]]['name'])}, id {bare[0]}")
    return Table(images, categories, ids, content.get("annotations"), paths, notes)


def _doubles(
    categories: dict[int | str, str], kinds: dict[int | str, dict[str, Any]], entries: Any
) -> list[int | str]:
    """Categories without objects that are named as another: Roboflow's groups of a class."""
    names = Counter(categories.values())
    if len(names) == len(categories) or not isinstance(entries, list):
        return []
    used = {str(entry.get("category_id")) for entry in entries if isinstance(entry, dict)}
    idle = [k for k in categories if {str(k), str(kinds[k]["id"])}.isdisjoint(used)]
    some = {name for k, name in categories.items() if k not in idle}
    last = {name: k for k, name in categories.items() if name not in some}
    return [k for k in idle if names[categories[k]] > 1 and k != last.get(categories[k])]


def _by_id(entries: Any) -> dict[int | str, dict[str, Any]]:
    """Images or categories by their ids. Raises ValueError for one that stands twice."""
    known: dict[int | str, dict[str, Any]] = {}
    for entry in _list(entries):
        other = known.setdefault(_id(entry["id"]), entry)
        if other is not entry:
            both = (quote(e.get("file_name", e.get("name"))) for e in (other, entry))
            raise ValueError(f"the id {quote(entry['id'])} stands twice: {' and '.join(both)}")
    return known


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{quote(value)} is no list")
    return value


def _text(entry: dict[str, Any], name: str) -> str:
    if not isinstance(value := entry[name], str) or not value.strip():
        raise ValueError(f"{name} is {quote(value)}, not a text")
    return value


def _id(value: Any) -> int | str:
    """An id as a number, where it is one or the text of one; other texts are ids too."""
    if type(value) is int:
        return value
    if isinstance(value, str) and value.strip():
        text = value.strip()
        return int(text) if text.isascii() and text.isdigit() and text == str(int(text)) else text
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value % 1 != 0:
        raise ValueError(f"the id {quote(value)} is neither a whole number nor a text")
    return int(value)


def read_coco(data: Path) -> ParsedAnnotations:
    """COCO's JSON: a folder with files of annotations (see `tables`), or one file.

    Images are looked for in folders named as the split (train2017), in `images`, beside the file,
    and in the folder above; see `names.find`. Categories become classes in the order of their ids.
    Crowds, and objects that are marked `ignore`, are of kind 2.
    """
    found, root = ParsedAnnotations(), _root(data)
    which = tables(data, found.notes) if data.is_dir() else {data: None}
    for path, split in which.items():
        try:
            table = read_table(path, split or split_of_name(path.stem), root)
            entries = _list(table.annotations)
            scenes = {
                k: AnnotatedImage(table.paths[image["file_name"]], split, [], sides(image))
                for k, image in table.images.items()
            }
        except WRONG as error:
            found.refused.append((str(path), not_coco_reason(error)))
            continue
        found.classes = found.classes or tuple(table.categories.values())
        found.notes += table.notes
        found.scenes += scenes.values()
        for k, entry in enumerate(entries):
            place = (
                f"{path}, annotation {quote(entry.get('id', k)) if isinstance(entry, dict) else k}"
            )
            try:
                scene = scenes.get(_id(entry["image_id"]))
                if scene is None:
                    text = f"of the unknown image {quote(entry['image_id'])}"
                    found.noted.append((place, text))
                    found.count("annotations are of images that the file does not list", place)
                    continue
                scene.objects.append(_object(found, entry, table.categories, place))
            except WRONG as error:
                found.refused.append((place, not_coco_reason(error)))
        if count := _corners(scenes.values()):
            reason = f"{count:,} boxes leave their images as x, y, width, height, as COCO has it"
            found.refused.append((str(path), f"{reason}, but all fit as x1, y1, x2, y2"))
    return found


def _root(data: Path) -> Path:
    """The folder below which the images of a folder or file are looked for."""
    if data.is_dir():
        return data
    return data.parent.parent if key(data.parent.name) == "annotations" else data.parent


def _object(
    found: ParsedAnnotations, entry: dict[str, Any], categories: dict[int | str, str], place: str
) -> Annotation:
    """An annotation. Raises ValueError or the like."""
    values = _list(entry["bbox"])
    if len(values) != 4:
        raise ValueError(f"bbox {quote(values)} is not x, y, width, height")
    x, y, width, height = map(number, values)
    name = categories.get(_id(entry["category_id"]), f"category {entry['category_id']}")
    ids = entry["image_id"], entry["category_id"]
    if any(isinstance(value, str) for value in (*values, *ids, entry.get("iscrowd"))):
        found.count("annotations have texts where numbers belong, which are read as those", place)
    crowd, ignored = flag(entry.get("iscrowd")), flag(entry.get("ignore"))
    if ignored and not crowd:
        found.count("objects are marked `ignore`, and count neither for nor against", place)
    shape = _shape(entry.get("segmentation"))
    kind = Kind.IGNORED if crowd or ignored else Kind.OBJECT
    return Annotation(place, name, (x, y, x + width, y + height), kind, shape)


def _corners(scenes: Iterable[AnnotatedImage]) -> int:
    """How many boxes leave their images, if all would fit as x1, y1, x2, y2; else 0."""
    count = 0
    for scene in scenes:
        height, width = scene.stated or (0, 0)
        for one in scene.objects:
            x1, y1, x2, y2 = one.box
            if not (x1 < x2 - x1 <= width + MAX_OVERHANG and y1 < y2 - y1 <= height + MAX_OVERHANG):
                return 0
            count += x2 > width + MAX_OVERHANG or y2 > height + MAX_OVERHANG
    return count


def _folders(table: Path, split: str | None, root: Path) -> list[Path]:
    """Where the images of a table may be, the likeliest first."""
    tops = [table.parent, table.parent.parent]
    inner = [folder for top in tops for folder in subfolders(top) if key(folder.name) == "images"]
    wanted = {"trainval": {"train", "val", "trainval"}}.get(split or "", {split})
    every = [f for top in (*inner, *tops) for f in subfolders(top)] if split else []
    return [*(f for f in every if split_of_name(f.name) in wanted), *inner, *tops]


def sides(image: dict[str, Any]) -> tuple[int, int] | None:
    """Height and width, where an entry has both. Raises ValueError for what are none."""
    height, width = (number(image.get(side) or 0) for side in ("height", "width"))
    if not height or not width:
        return None
    if height < 0 or width < 0 or height % 1 or width % 1:
        sides = f"{quote(image['width'])} x {quote(image['height'])}"
        raise ValueError(f"an image of {sides} pixels, {quote(image.get('file_name'))}")
    return int(height), int(width)


def _shape(value: Any) -> Shape | None:
    """COCO's segmentation. Raises ValueError or the like for what is none."""
    if not value:
        return None
    if isinstance(value, dict):
        try:
            from faster_coco_eval.core import mask
        except ImportError:
            raise MissingPackage("run lengths need: pip install 'resnets[detect]'") from None
        height, width = map(_whole, _list(value["size"]))
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
            raise ValueError(f"counts {quote(counts)} are neither a list nor a text")
        packed = {"size": [height, width], "counts": counts}
        mask.decode(packed)  # raises for what does not fill the image
        return height, width, counts.encode("ascii") if isinstance(counts, str) else counts
    if not all(isinstance(points, list) for points in _list(value)):
        raise ValueError("segmentation is no list of polygons, [[x, y, x, y, ...]]")
    return tuple(polygon(map(number, points)) for points in value if points) or None


def _whole(value: Any) -> int:
    if number(value) % 1 or number(value) < 0:
        raise ValueError(f"{quote(value)} is no whole number")
    return int(number(value))


def polygon(numbers: Iterable[float]) -> Polygon:
    """A polygon of three or more finite points x, y. Raises ValueError."""
    points = tuple(numbers)
    if len(points) < 6 or len(points) % 2 or not all(abs(x) < 1e6 for x in points):
        raise ValueError("a polygon is three or more finite points x y")
    return points


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
        which = tables(data) if data.is_dir() else {data: None}
        for path, split in which.items():
            try:
                table = read_table(path, split or split_of_name(path.stem), _root(data))
            except WRONG as error:
                raise DataError(f"{path}: {not_coco_reason(error)}") from None
            self.images |= {table.paths[i["file_name"]]: i["id"] for i in table.images.values()}
            self.categories |= table.ids
        for known in (self.images, self.categories):
            numbers = Counter(map(str, known.values()))
            if twice := [number for number, count in numbers.items() if count > 1]:
                raise DataError(f"{data}: files number otherwise, id {twice[0]}; give one of them")
        return bool(which)


def unused_id(known: dict[Any, Any]) -> int:
    """A number from which on no id of `known` is."""
    return 1 + max((k for k in known.values() if isinstance(k, int)), default=-1)

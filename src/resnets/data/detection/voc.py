"""PASCAL VOC's XML, as its makers, LabelImg, Roboflow and others lay it out."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path, PurePath
from xml.etree import ElementTree

from resnets.data.classification import split_name, subfolders, visible
from resnets.data.decode import READABLE
from resnets.data.detection.coco import WRONG, not_coco_reason, sides
from resnets.data.detection.dataset import AnnotatedImage, Annotation, ParsedAnnotations
from resnets.data.detection.targets import Kind
from resnets.data.file_names import (
    components,
    flag,
    folder_split,
    image_files,
    key,
    number,
    quote,
    resolve_case_insensitive,
)
from resnets.data.tables import read_lines

LARGEST = 2**24  # bytes of one image's annotations
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class _Tree(ElementTree.TreeBuilder):
    def doctype(self, *_: str | None) -> None:
        raise ValueError("a DOCTYPE is refused, since it may define entities without end")


def xml_files(root: Path) -> list[Path]:
    """The annotations of a folder: in `Annotations`, or beside the images, in one or in splits."""
    if tops := [f for f in subfolders(root) if key(f.name) == "annotations"]:
        return [path for top in tops for path in visible(top) if path.suffix.casefold() == ".xml"]
    every = [path for path in visible(root) if path.suffix.casefold() == ".xml"]
    return every if any(map(_is_voc, every[:3])) else []


def _is_voc(path: Path) -> bool:
    with path.open("rb") as file:
        return bool(re.search(rb"<annotation[\s>]", file.read(4096).replace(b"\0", b"")))


def read_voc(root: Path) -> ParsedAnnotations:
    """PASCAL VOC: XML files, images of the same names, and lists of names in ImageSets/Main.

    The lists are train.txt, val.txt and test.txt, or trainval.txt for both; they may also be in
    ImageSets or beside Annotations, and VOC2007 and the like in one folder. Without lists the
    folders of the XML files may be called as splits; else all are split by chance. Coordinates are
    those of pixels, from 1, and the last is inside: x1 = xmin - 1, x2 = xmax. But xmin = xmax, a
    click in the tools that people use, is a box without width. Difficult objects are of kind 2.
    """
    found, files = ParsedAnnotations(), xml_files(root)
    every = (top for path in files for top in path.parents if key(top.name) == "annotations")
    tops = sorted({root, *(top.parent for top in every if root in top.parents)})
    lists = [
        (*one, named)
        for top in tops
        for named in [_named(top, files)]
        for one in _lists(top, named)
    ]
    rows = [(path, folder_split(path, root)) for path in files] if not lists else []
    sets = [
        f for top in tops for f in [resolve_case_insensitive(top, ["imagesets"])] if f and not lists
    ]
    if unread := [path for top in sets for path in visible(top) if path.suffix == ".txt"]:
        found.notes.append(
            f"{len(unread):,} lists say no split, and are not read; first {unread[0]}"
        )
    for split, names, named in lists:
        lines = list(map(str.strip, read_lines(names)))
        if all(re.search(r"\s-?[01]$", line) for line in lines if line):  # VOC's lists of a class
            lines = [line[:-2].strip() for line in lines]
        for k, line in enumerate(lines, 1):
            if xml := _listed(line, named):
                rows.append((xml, split))
            elif line:
                gone = (files or [root / "Annotations" / ""])[0].parent / f"{line}.xml"
                found.refused.append((f"{names}, line {k}", f"there is no {gone}"))
    if left := sorted(set(files) - {path for path, _ in rows}):
        found.notes.append(f"{len(left):,} XML files are in no list, and not read; first {left[0]}")
    images = _images(root)
    for path, part in rows:
        _read(found, path, part, images)
    return found


def _named(top: Path, files: list[Path]) -> dict[str, Path]:
    """The annotations below a folder by the keys of their stems."""
    return {key(path.stem): path for path in reversed(files) if top in path.parents}


def _lists(top: Path, named: Mapping[str, Path]) -> list[tuple[str, Path]]:
    """Splits and their lists of names: of ImageSets/Main, or else of ImageSets, or the folder."""
    for names in (["imagesets", "main"], ["imagesets"], []):
        folder = resolve_case_insensitive(top, names)
        texts = (
            sorted(p for p in folder.iterdir() if p.suffix.casefold() == ".txt") if folder else []
        )
        splits = {p: "trainval" if key(p.stem) == "trainval" else split_name(p.stem) for p in texts}
        lists = [(split, path) for path, split in splits.items() if split]
        if not names:  # where a text may be anything
            lists = [(s, p) for s, p in lists if _listed(read_lines(p)[0].strip(), named)]
        if lists:
            return lists
    return []


def _listed(line: str, named: Mapping[str, Path]) -> Path | None:
    """The annotation of a line: a name, perhaps with a folder before it and an end."""
    name = (components(line) or [""])[-1]
    bare = PurePath(name).stem if PurePath(name).suffix in {".xml", *READABLE} else name
    return named.get(name) or named.get(bare)


def _images(root: Path) -> dict[str, list[Path]]:
    """The images by the keys of their stems: of JPEGImages or `images`, or all that there are."""
    usual = {"jpegimages", "images", "imgs", "image"}
    images = defaultdict[str, list[Path]](list)
    for top in [f for f in subfolders(root) if key(f.name) in usual] or [root]:
        for path in image_files(top):
            images[key(path.stem)].append(path)
    return images


def _read(
    found: ParsedAnnotations, path: Path, split: str | None, images: dict[str, list[Path]]
) -> None:
    """Add the image of an XML file with its objects, or what is wrong with them."""
    try:
        tree = _parsed(path)
        stated = sides({side: tree.findtext(f"size/{side}") for side in ("height", "width")})
        image = _image(found, path, (tree.findtext("filename") or "").strip(), images)
    except (*WRONG, ElementTree.ParseError) as error:
        found.refused.append((str(path), not_coco_reason(error)))
        return
    scene = AnnotatedImage(image, split, [], stated)
    found.scenes.append(scene)
    for k, entry in enumerate(tree.findall("object"), 1):
        place = f"{path}, object {k}"
        try:
            texts = [entry.findtext(f"bndbox/{corner}") for corner in _CORNERS]
            if None in texts:
                raise ValueError(f"no bndbox with {', '.join(_CORNERS)}")
            x1, y1, x2, y2 = map(number, texts)
            if min(x1, y1) == 0:
                found.count("boxes begin at 0; all are read as counted from 1, as VOC's are", place)
            x1, y1, x2, y2 = x1 - 1, y1 - 1, x2 - (x1 == x2), y2 - (y1 == y2)
            if not (name := (entry.findtext("name") or "").strip()):
                raise ValueError("no name")
            kind = Kind.IGNORED if flag(entry.findtext("difficult")) else Kind.OBJECT
            scene.objects.append(Annotation(place, name, (x1, y1, x2, y2), kind))
        except ValueError as error:
            found.refused.append((place, not_coco_reason(error)))


def _parsed(path: Path) -> ElementTree.Element:
    """The tree of a VOC file. Raises ParseError, ValueError or the like."""
    if (size := path.stat().st_size) > LARGEST:
        raise ValueError(f"{size:,} bytes of XML, the limit is {LARGEST:,}")
    content: bytes | str = path.read_bytes()
    declared = re.match(rb"\s*<\?xml[^>]*encoding=[\"']([\w.-]+)", path.read_bytes()[:200])
    if declared and not declared[1].lower().startswith((b"utf", b"us-ascii", b"iso-8859-1")):
        content = path.read_bytes().decode(declared[1].decode())  # GBK and others
    tree = ElementTree.fromstring(content, parser=ElementTree.XMLParser(target=_Tree()))
    if tree.tag != "annotation":
        raise ValueError(f"<{quote(tree.tag)[1:-1]}> is no annotation of VOC, <annotation>")
    return tree


def _image(found: ParsedAnnotations, path: Path, name: str, images: dict[str, list[Path]]) -> Path:
    """The image called as an annotation is, or else as it says. Raises ValueError for several."""
    words = components(name)
    alike = images.get(key(path.stem))
    if not alike and words and (alike := images.get(key(PurePath(words[-1]).stem))):
        found.count("annotations are of the image that they name, not of one called so", str(path))
    if not alike:
        return path.with_name(f"{path.stem}.jpg")
    folders = components(str(path.parent))

    def likeness(image: Path) -> tuple[bool, int, bool]:
        shared = len(set(folders) & set(components(str(image.parent))))
        return (
            image.parent == path.parent,
            shared,
            key(image.name) == words[-1:][0] if words else False,
        )

    best = sorted(alike, key=likeness, reverse=True)
    if len(best) > 1 and likeness(best[0]) == likeness(best[1]):
        raise ValueError(f"its image is {best[0]} or {best[1]}; keep one")
    return best[0]

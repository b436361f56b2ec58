"""PASCAL VOC's XML, as its makers, LabelImg, Roboflow and others lay it out."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path, PurePath
from xml.etree import ElementTree

from resnets.data.decode import READABLE
from resnets.data.detection.dataset import AnnotatedImage, Annotation, ParsedAnnotations, parse_size
from resnets.data.detection.targets import Kind
from resnets.data.issues import Issues, parse_flag, parse_number, quote
from resnets.data.paths import (
    WITH_TRAINVAL,
    components,
    files_with_suffix,
    folders_called,
    image_files,
    name_key,
    resolve_case_insensitive,
    split_name,
    split_of_folders,
    visible_files,
)
from resnets.data.tables import read_lines

MAX_XML_BYTES = 2**24  # of one image's annotations
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class _NoDoctype(ElementTree.TreeBuilder):
    def doctype(self, *_: str | None) -> None:
        raise ValueError("a DOCTYPE is refused, since it may define entities without end")


def xml_files(root: Path) -> list[Path]:
    """The annotations of a folder: in `Annotations`, or beside the images, in one or in splits."""
    tops = folders_called(root, "annotations")
    paths = [path for top in tops or [root] for path in visible_files(top)]
    paths = [path for path in paths if path.suffix.casefold() == ".xml"]
    return paths if tops or any(map(_is_voc, paths[:3])) else []


def _is_voc(path: Path) -> bool:
    with path.open("rb") as file:
        return bool(re.search(rb"<annotation[\s>]", file.read(4096).replace(b"\0", b"")))


def read_voc(root: Path, issues: Issues) -> ParsedAnnotations:
    """PASCAL VOC: XML files, images of the same names, and lists of names in ImageSets/Main.

    The lists are train.txt, val.txt and test.txt, or trainval.txt for both; they may also be in
    ImageSets or beside Annotations, and VOC2007 and the like in one folder. Without lists the
    folders of the XML files may be called as splits; else all are split at random. Coordinates are
    those of pixels, from 1, and the last is inside: x1 = xmin - 1, x2 = xmax. But xmin = xmax, a
    click in the tools that people use, is a box without width. Difficult objects are of kind 2.
    """
    parsed, files = ParsedAnnotations(issues), xml_files(root)
    tops = {root}
    for path in files:
        for folder in path.parents:
            if name_key(folder.name) == "annotations" and root in folder.parents:
                tops.add(folder.parent)
    folder_of_files = files[0].parent if files else root / "Annotations"
    rows, has_lists = list[tuple[Path, str | None]](), False
    for top in sorted(tops):
        by_stem = {name_key(path.stem): path for path in reversed(files) if top in path.parents}
        for listed_split, names in _split_lists(top, by_stem):
            listed = _listed_files(names, by_stem, folder_of_files, issues)
            rows += [(path, listed_split) for path in listed]
            has_lists = True
    if not has_lists:
        rows = [(file, split_of_folders(file, root)) for file in files]
        for top in sorted(tops):
            image_sets = resolve_case_insensitive(top, ["imagesets"])
            for text in visible_files(image_sets) if image_sets else ():
                if text.suffix == ".txt":
                    issues.count("lists are named for no split, so not read", text)
    unlisted = sorted(set(files) - {path for path, _ in rows})
    issues.count("XML files are in no list, and not read", *unlisted)
    images = _images_by_stem(root)
    for path, split in rows:
        with issues.collect(path):
            _read_file(parsed, path, split, images)
    return parsed


def _split_lists(top: Path, by_stem: Mapping[str, Path]) -> list[tuple[str, Path]]:
    """Splits and their lists of names: of ImageSets/Main, or else of ImageSets, or the folder."""
    for names in (["imagesets", "main"], ["imagesets"], []):
        folder = resolve_case_insensitive(top, names)
        lists = list[tuple[str, Path]]()
        for path in files_with_suffix(folder, ".txt") if folder else ():
            split = split_name(path.stem, WITH_TRAINVAL)
            # beside the images a text may be anything
            if split and (names or _find_listed(read_lines(path)[0].strip(), by_stem)):
                lists.append((split, path))
        if lists:
            return lists
    return []


def _listed_files(
    names: Path, by_stem: Mapping[str, Path], folder: Path, issues: Issues
) -> list[Path]:
    """The annotations that a list names."""
    lines = [line.strip() for line in read_lines(names)]
    if all(re.search(r"\s-?[01]$", line) for line in lines if line):  # VOC's lists of a class
        lines = [line[:-2].strip() for line in lines]
    files = list[Path]()
    for number, line in enumerate(lines, 1):
        if path := _find_listed(line, by_stem):
            files.append(path)
        elif line:
            issues.error(f"{names}, line {number}", f"there is no {folder / line}.xml")
    return files


def _find_listed(line: str, by_stem: Mapping[str, Path]) -> Path | None:
    """The annotation of a line: a name, perhaps with a folder before it and an end."""
    name = (components(line) or [""])[-1]
    bare = PurePath(name).stem if PurePath(name).suffix in {".xml", *READABLE} else name
    return by_stem.get(name) or by_stem.get(bare)


def _images_by_stem(root: Path) -> dict[str, list[Path]]:
    """The images by the keys of their stems: of JPEGImages or `images`, or all that there are."""
    images = defaultdict[str, list[Path]](list)
    for top in folders_called(root, "jpegimages", "images", "imgs", "image") or [root]:
        for path in image_files(top):
            images[name_key(path.stem)].append(path)
    return images


def _read_file(
    parsed: ParsedAnnotations, path: Path, split: str | None, images: dict[str, list[Path]]
) -> None:
    """Add the image of an XML file with its objects. Raises one of PARSE_ERRORS."""
    issues, tree = parsed.issues, _parse_xml(path)
    size = parse_size(tree.findtext("size/height"), tree.findtext("size/width"))
    name = (tree.findtext("filename") or "").strip()
    image = AnnotatedImage(_find_image(issues, path, name, images), split, [], size)
    parsed.images.append(image)
    for number, entry in enumerate(tree.findall("object"), 1):
        where = f"{path}, object {number}"
        with issues.collect(where):
            image.objects.append(_object(issues, entry, where))


def _object(issues: Issues, entry: ElementTree.Element, where: str) -> Annotation:
    """An annotation. Raises ValueError."""
    texts = [entry.findtext(f"bndbox/{corner}") for corner in _CORNERS]
    if None in texts or len(entry.findall("bndbox")) > 1:
        raise ValueError(f"not one bndbox with {', '.join(_CORNERS)}")
    x1, y1, x2, y2 = map(parse_number, texts)
    if min(x1, y1) == 0:
        issues.count("boxes have an edge at 0; all are read as counted from 1, as VOC's are", where)
    box = (x1 - 1, y1 - 1, x2 - (x1 == x2), y2 - (y1 == y2))
    if not (name := (entry.findtext("name") or "").strip()):
        raise ValueError("no name")
    kind = Kind.IGNORED if parse_flag(entry.findtext("difficult")) else Kind.OBJECT
    return Annotation(where, name, box, kind)


def _parse_xml(path: Path) -> ElementTree.Element:
    """The tree of a VOC file. Raises one of PARSE_ERRORS."""
    if (size := path.stat().st_size) > MAX_XML_BYTES:
        raise ValueError(f"{size:,} bytes of XML, the limit is {MAX_XML_BYTES:,}")
    content: bytes | str = (raw := path.read_bytes())
    declared = re.match(rb"\s*<\?xml[^>]*encoding=[\"']([\w.-]+)", raw[:200])
    if declared and not declared[1].lower().startswith((b"utf", b"us-ascii", b"iso-8859-1")):
        content = raw.decode(declared[1].decode())  # GBK and others
    tree = ElementTree.fromstring(content, parser=ElementTree.XMLParser(target=_NoDoctype()))
    if tree.tag != "annotation":
        raise ValueError(f"<{quote(tree.tag)[1:-1]}> is not VOC's <annotation>")
    return tree


def _find_image(issues: Issues, path: Path, name: str, images: dict[str, list[Path]]) -> Path:
    """The image called as an annotation is, or else as it says. Raises ValueError for several."""
    words = components(name)
    candidates = images.get(name_key(path.stem))
    if not candidates and words:
        candidates = images.get(name_key(PurePath(words[-1]).stem))
        if candidates:
            text = "annotations are of the image named inside, not of one with the file's name"
            issues.count(text, path)
    if not candidates:
        return path.with_name(f"{path.stem}.jpg")
    folders = set(components(str(path.parent)))

    def likeness(image: Path) -> tuple[bool, int, bool]:
        shared = len(folders & set(components(str(image.parent))))
        return image.parent == path.parent, shared, words[-1:] == [name_key(image.name)]

    best = sorted(candidates, key=likeness, reverse=True)
    if len(best) > 1 and likeness(best[0]) == likeness(best[1]):
        raise ValueError(f"its image is {best[0]} or {best[1]}; keep one")
    return best[0]

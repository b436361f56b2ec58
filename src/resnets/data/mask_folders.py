"""Which image has which mask: folders of both, as people and programs lay them out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from resnets.data.decode import IMAGE_SUFFIXES
from resnets.data.issues import Issues
from resnets.data.paths import (
    WITH_TRAINVAL,
    files_with_suffix,
    folders_called,
    resolve_case_insensitive,
    split_folders,
    split_name,
    subfolders,
    visible_files,
)
from resnets.data.tables import read_lines
from resnets.errors import DataError, quantify

LAYOUTS = (
    "images/ and masks/ (or VOC's JPEGImages/ and SegmentationClass/, ADE20K's annotations/), both "
    "with train/, val/ and test/ or without,\ntrain/images/ and train/masks/, or x.png beside "
    "x_mask.png"
)
_IMAGES = ("images", "jpegimages", "imgs")
_MASKS = ("masks", "semantic_masks", "segmentationclass", "annotations")  # the likelier first
_MASK_NAME = re.compile(r"(.+)[_-]mask", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class MaskFolders:
    """A folder of images and one of their masks, which may be the same."""

    split: str | None
    images: Path
    masks: Path


@dataclass(frozen=True, slots=True)
class MaskedImage:
    """An image, its mask, and its split if the data says one."""

    image: Path
    mask: Path
    split: str | None


def find_mask_folders(root: Path) -> list[MaskFolders]:
    """The folders of images and masks below `root`; none where it has another layout."""
    if pair := _images_and_masks(root):
        return _split_pairs(*pair) or [MaskFolders(None, *pair)]
    splits = split_folders(root)
    pairs = [(split, pair) for top, split in splits.items() if (pair := _images_and_masks(top))]
    if pairs:
        return [MaskFolders(split, *pair) for split, pair in pairs]
    beside = [top for top in (root, *subfolders(root)) if _has_masks_beside(top)]
    if beside and all(top in splits for top in beside):
        return [MaskFolders(splits[top], top, top) for top in beside]
    return [MaskFolders(None, root, root)] if beside else []


def _images_and_masks(folder: Path) -> tuple[Path, Path] | None:
    """The folder of images and that of masks in a folder; annotations may be JSON or XML files."""
    images = [f for name in _IMAGES for f in folders_called(folder, name)]
    masks = [f for name in _MASKS for f in folders_called(folder, name)]
    masks = [
        f
        for f in masks
        if f.name.casefold() != "annotations"
        or any(path.suffix.casefold() == ".png" for path in visible_files(f))
    ]
    return (images[0], masks[0]) if images and masks else None


def _split_pairs(images: Path, masks: Path) -> list[MaskFolders]:
    """The folders of splits in a folder of images and one of masks, by name, or else by split."""
    of_masks, pairs = split_folders(masks), []
    for folder, split in split_folders(images).items():
        mask_folder = masks / folder.name
        same_split = [f for f, other in of_masks.items() if other == split]
        if mask_folder not in of_masks and len(same_split) == 1:
            mask_folder = same_split[0]
        of_masks.pop(mask_folder, None)
        pairs.append(MaskFolders(split, folder, mask_folder))
    return pairs + [MaskFolders(split, images / f.name, f) for f, split in of_masks.items()]


def _has_masks_beside(folder: Path) -> bool:
    stems = {path.stem for path in files_with_suffix(folder, *IMAGE_SUFFIXES)}
    matches = (_MASK_NAME.fullmatch(stem) for stem in stems)
    return any(match[1] in stems for match in matches if match)


def pair_masks(issues: Issues) -> list[MaskedImage]:
    """The images that have masks. Raises DataError where there are none at all."""
    root = issues.data
    folders, pairs = find_mask_folders(root), list[MaskedImage]()
    for folder in folders:
        images, masks = _list_by_name(folder, issues)
        wrong = [path for path in masks.values() if path.suffix.lower() != ".png"]
        if wrong:
            count = quantify(len(wrong), "masks are not PNG, this first")
            reason = f"{count}; JPEG changes classes at edges"
            issues.error(wrong[0], reason)
        masks = {name: path for name, path in masks.items() if path.suffix.lower() == ".png"}
        for name in sorted(images.keys() & masks.keys()):
            pairs.append(MaskedImage(images[name], masks[name], folder.split))
        for name in sorted(masks.keys() - images.keys()):
            issues.warn(masks[name], "no image of this name")
        if bare := len(images.keys() - masks.keys()):
            reason = quantify(bare, f"of {len(images):,} images have no mask, so left out")
            issues.warn(folder.images, reason)
    if not pairs and not issues.errors:
        first = "".join(f"\nFirst: {file}: {reason}" for file, reason in issues.warnings[:1])
        raise DataError(f"{root} has no images with masks (PNG of the same name): {LAYOUTS}{first}")
    split_of = _image_sets(root) if [folder.split for folder in folders] == [None] else {}
    _note_other_folders(folders, bool(split_of), issues)
    if not split_of:
        return pairs
    others = [pair.image for pair in pairs if pair.image.stem not in split_of]
    issues.count("images are in no list of ImageSets/Segmentation, so left out", *others)
    listed = [pair for pair in pairs if pair.image.stem in split_of]
    if not listed:
        raise DataError(f"{root}: the lists of ImageSets/Segmentation name no image with a mask")
    return [replace(pair, split=split_of[pair.image.stem]) for pair in listed]


def _list_by_name(folder: MaskFolders, issues: Issues) -> tuple[dict[str, Path], dict[str, Path]]:
    """Images and masks by their paths in their folders without suffix, and a mask's `_mask`."""
    images, masks = (
        [path for path in visible_files(top) if path.suffix.lower() in IMAGE_SUFFIXES]
        for top in (folder.images, folder.masks)
    )
    if folder.images == folder.masks:
        images = [path for path in images if not _MASK_NAME.fullmatch(path.stem)]
        masks = [path for path in masks if _MASK_NAME.fullmatch(path.stem)]
    of_images = _by_name(images, folder.images, issues)
    of_masks = _by_name(masks, folder.masks, issues)
    for name in sorted(of_masks.keys() - of_images.keys()):
        match = _MASK_NAME.fullmatch(name)
        if match and match[1] in of_images and match[1] not in of_masks:
            of_masks[match[1]] = of_masks.pop(name)
    return of_images, of_masks


def _by_name(paths: Iterable[Path], folder: Path, issues: Issues) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for path in paths:
        first = named.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
        if first != path:
            issues.error(path, f"another image is called {first.name}")
    return named


def _image_sets(root: Path) -> dict[str, str]:
    """The splits of images by their names, from VOC's ImageSets/Segmentation."""
    folder = resolve_case_insensitive(root, ["imagesets", "segmentation"])
    splits: dict[str, str] = {}
    tables = files_with_suffix(folder, ".txt") if folder else []
    for table in sorted(tables, key=lambda path: split_name(path.stem) is None):
        if split := split_name(table.stem, WITH_TRAINVAL):
            for name in filter(None, map(str.strip, read_lines(table))):
                splits.setdefault(name, "train" if split == "trainval" else split)
    return splits


def _note_other_folders(folders: list[MaskFolders], has_lists: bool, issues: Issues) -> None:
    """Note the folders that stand beside those of the splits."""
    tops = {top for folder in folders for top in (folder.images, folder.masks)}
    read = tops | {parent for top in tops for parent in top.parents}
    parents = {issues.data} | {top.parent for top in tops if any(f.split for f in folders)}
    others = list[Path]()
    for parent in sorted(parents) if issues.data not in tops else ():
        others += [f for f in subfolders(parent) if f not in read]
    others = [f for f in others if not (has_lists and f.name.casefold() == "imagesets")]
    issues.count("folders are not read", *others)

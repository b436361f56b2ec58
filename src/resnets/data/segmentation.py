"""Images with a mask of classes each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from resnets.config.arch import IGNORE_INDEX
from resnets.data.assemble import (
    ReadOptions,
    ScanResult,
    digest_of_entries,
    file_entry,
    in_threads,
    make_dataset,
    scan_images,
)
from resnets.data.decode import Unreadable, open_image
from resnets.data.detection.yolo import class_names, read_yaml
from resnets.data.issues import Issues
from resnets.data.joint_transforms import class_map
from resnets.data.mask_folders import MaskedImage, pair_masks
from resnets.data.splits import Source, Split
from resnets.data.tables import read_lines
from resnets.errors import DataError, quantify

Counts = NDArray[np.int64]  # (masks, 256): pixels of each value


@dataclass
class MaskValues:
    """How many pixels of each mask have each value, without those that are ignored."""

    masks: list[Path]
    counts: Counts
    ignored: NDArray[np.int64]  # (masks,)

    @cached_property
    def present(self) -> list[int]:
        """The values that some pixel has."""
        return np.flatnonzero(self.counts.any(0)).tolist()


def read_masks(root: Path, options: ReadOptions) -> Source:
    """A folder of images and masks: PNG, indexed or grey, of the same name and size.

    See `mask_folders.LAYOUTS` for where they are. A pixel's value is its class, 255 is ignored.
    Names are those of classes.txt (a line each, from 0; an empty one is none), or of `names` or
    `classes` in a YAML file; classes between them have their number for a name. Without names they
    are the numbers up to the greatest value. Images without a mask are left out and counted.

    Raises DataErrors for values without a name, masks that cannot be read, are of another size or
    not PNG, palettes that contradict each other, two images of one name, and for named classes
    without a pixel where 255 has some; DataError for too many unreadable images, fewer than two
    classes, or another layout.
    """
    issues = Issues(root)
    pairs = pair_masks(issues)
    scan = scan_images([pair.image for pair in pairs], options.max_unreadable)
    pairs = [pair for pair in pairs if pair.image in scan.images]
    counts = _count_values(pairs, scan, issues)
    _check_palettes([pair.mask for pair in pairs], counts, issues)
    ignored = counts[:, IGNORE_INDEX].copy()
    counts[:, IGNORE_INDEX] = 0
    values = MaskValues([pair.mask for pair in pairs], counts, ignored)
    classes = _name_classes(values, issues)
    if issues.errors:
        raise issues.to_error(scan)
    if counts.any(0).sum() < 2:
        raise DataError(
            f"{root}: the masks have pixels of fewer than two classes.\n"
            f"{IGNORE_INDEX} is the ignore index; use 1 for the foreground, 0 for the background."
        )
    shares = torch.from_numpy(counts[:, : len(classes)] / counts.sum(1, keepdims=True).clip(1))
    images = Split(
        tuple(pair.image for pair in pairs),
        shares.float(),
        tuple(values.masks),
        torch.tensor([scan.images[pair.image][:2] for pair in pairs]),
    )
    return make_dataset(
        images,
        [pair.split for pair in pairs],
        task="segment",
        classes=classes,
        scan=scan,
        issues=issues,
        seed=options.seed,
        digest=_digest(root, classes, pairs, counts),
    )


def _digest(root: Path, classes: tuple[str, ...], pairs: list[MaskedImage], counts: Counts) -> str:
    entries: list[object] = [classes]
    for pair, row in zip(pairs, counts, strict=True):
        files = [file_entry(pair.image, root), file_entry(pair.mask, root)]
        entries.append([files, pair.split, row.tolist()])
    return digest_of_entries(entries)


def _count_values(pairs: list[MaskedImage], scan: ScanResult, issues: Issues) -> Counts:
    """How many pixels of each mask have each value; nothing of one that cannot be read."""

    def count(pair: MaskedImage) -> NDArray[np.int64] | Unreadable:
        image = scan.images[pair.image]
        try:
            values = class_map(pair.mask, image.height, image.width)
        except Unreadable as error:
            return error
        return np.bincount(values.ravel(), minlength=256)

    counts = np.zeros((len(pairs), 256), dtype=np.int64)
    for row, pair, counted in zip(counts, pairs, in_threads(count, pairs), strict=True):
        if isinstance(counted, Unreadable):
            issues.error(pair.mask, counted.reason)
        else:
            row[:] = counted
    return counts


def _check_palettes(masks: list[Path], counts: Counts, issues: Issues) -> None:
    """Refuse masks in which a colour has another value than in others, as of adaptive palettes.

    A value of other colours in other masks is only noted.
    """
    values: dict[tuple[int, ...], tuple[int, Path]] = {}  # by colour: its value in the first mask
    colours: dict[int, tuple[tuple[int, ...], Path]] = {}
    conflicts, recoloured = dict[Path, str](), dict[Path, str]()
    for mask, row, palette in zip(masks, counts, in_threads(_palette, masks), strict=True):
        used = [value for value in np.flatnonzero(row).tolist() if value < len(palette)]
        mask_colours = [palette[value] for value in used]
        for value, colour in zip(used, mask_colours, strict=True):
            first_colour, first_mask = colours.setdefault(value, (colour, mask))
            if first_colour != colour:
                text = f"{mask}: {value} is RGB {colour}, but {first_colour} in {first_mask}"
                recoloured[mask] = text
            if mask_colours.count(colour) > 1:
                continue
            first_value, first_mask = values.setdefault(colour, (value, mask))
            if first_value != value:
                text = f"{mask}: RGB {colour} is {value}, but {first_value} in {first_mask}"
                conflicts[mask] = text
    if conflicts:
        first = next(iter(conflicts.values()))
        count = quantify(len(conflicts), "masks have palettes that contradict others")
        reason = f"{count}, first {first}"
        remedy = "save all masks with one palette, so that a value is one class in all of them"
        issues.error(issues.data, f"{reason}; {remedy}")
    else:
        text = "masks have other colours for their values; the value is the class, not the colour"
        issues.count(text, *recoloured.values())


def _palette(mask: Path) -> list[tuple[int, ...]]:
    """The colours of an indexed image by value; none of another or unreadable one."""
    try:
        with open_image(mask) as picture:
            flat = picture.getpalette() if picture.mode == "P" else None
    except Unreadable:
        return []
    return [tuple(flat[k : k + 3]) for k in range(0, len(flat), 3)] if flat else []


def _name_classes(values: MaskValues, issues: Issues) -> tuple[str, ...]:
    """The names of the classes, checked against the values."""
    named = _class_names(issues.data)
    if named:
        _check_named_classes(values, named, issues)
    else:
        _check_unnamed_classes(values.present, issues)
    has_classes = values.counts[:, 1:].any(1)
    odd = np.flatnonzero((values.ignored > 0) & ~has_classes)
    if has_classes.any() and odd.size:
        issues.note(
            f"{quantify(len(odd), f'of {len(values.masks):,} masks have')} no values but 0 and "
            f"{IGNORE_INDEX}, which is ignored, first {values.masks[odd[0]]}: if {IGNORE_INDEX} is "
            "a class, change it to the number of the class"
        )
    last = max(named or values.present, default=-1)
    return tuple(named.get(value, str(value)) for value in range(last + 1))


def _check_named_classes(values: MaskValues, named: dict[int, str], issues: Issues) -> None:
    """Refuse values without a name, and names without a value where that is likely a mistake."""
    for mask, row in zip(values.masks, values.counts, strict=True):
        if unknown := [value for value in np.flatnonzero(row).tolist() if value not in named]:
            issues.error(mask, f"values {unknown} are not classes")
    present, ignored = values.present, values.ignored.sum()
    absent = [f"{name!r} ({value})" for value, name in named.items() if value not in present]
    if not absent or issues.errors:
        return
    problem = quantify(len(absent), f"of {len(named)} named classes have no pixel in any mask")
    problem += f", first {absent[0]}"
    if not ignored and len(present) >= 2:
        issues.note(problem)
        return
    remedy = "remove the names of absent classes"
    if ignored:
        share = ignored / (values.counts.sum() + ignored)
        free = min({*named, len(named)} - {*present, IGNORE_INDEX})
        remedy = (
            f"{IGNORE_INDEX}, which is ignored, has {share:.1%} of the pixels: if it is a class, "
            f"change {IGNORE_INDEX} -> {free}; else {remedy}"
        )
    issues.error(issues.data, f"{problem}; {remedy}")


def _check_unnamed_classes(present: list[int], issues: Issues) -> None:
    """Refuse values that are far apart, as 0 and 128, and note a few gaps between them."""
    classes = max(present, default=-1) + 1
    gaps = classes - len(present)
    if not gaps:
        return
    values = ", ".join(map(str, present[:6])) + (", ..." if len(present) > 6 else "")
    problem = quantify(gaps, f"classes below {classes - 1} have no pixel")
    problem = f"the masks' values are {values}; {problem}"
    if len(present) < classes / 8 or gaps > 64:  # far apart, or as many as grey levels
        remedy = "change them to 0, 1, 2, ..., or list the names in classes.txt"
        issues.error(issues.data, f"{problem}: {remedy}")
    else:
        issues.note(problem)


def _class_names(root: Path) -> dict[int, str]:
    """The classes by value, where a file has them. Raises DataError for one that is wrong."""
    if (table := root / "classes.txt").is_file():
        lines = enumerate(line.strip() for line in read_lines(table))
        return class_names({value: line for value, line in lines if line}, table)
    for path in sorted(root.glob("*.y*ml")):
        if re.search(r"(?m)^(names|classes) *:", path.read_text("utf-8", errors="replace")):
            content = read_yaml(path)
            return class_names(content.get("names", content.get("classes")), path)
    return {}

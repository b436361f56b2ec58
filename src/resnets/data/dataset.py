"""Where images and labels come from, by name or place, and what a data set holds."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from resnets.config.recipe import Preprocess
from resnets.config.types import NAMED_DATA, TaskName
from resnets.data import download, torch_dataset
from resnets.data.assemble import ReadOptions
from resnets.data.class_folders import read_class_folders
from resnets.data.classification import classification_dataset, read_class_table
from resnets.data.decode import Unreadable, open_image, oriented_size
from resnets.data.detection.coco import annotation_files, read_coco
from resnets.data.detection.csv import has_boxes, read_box_tables
from resnets.data.detection.dataset import ParsedAnnotations, detection_dataset
from resnets.data.detection.targets import DetectionTargets
from resnets.data.detection.voc import read_voc, xml_files
from resnets.data.detection.yolo import MAX_YAML_BYTES, has_labels, names_file, read_yolo
from resnets.data.issues import Issues
from resnets.data.mask_folders import find_mask_folders
from resnets.data.paths import files_with_suffix, split_name
from resnets.data.segmentation import read_masks
from resnets.data.splits import Source, Split, in_memory
from resnets.data.tables import SUFFIXES
from resnets.data.torch_dataset import Data
from resnets.errors import DataError, DataErrors, Problem, UsageError, nearest

__all__ = ["Source", "Split", "load", "normalization"]

FORMS = (
    "COCO (a .json file, annotations/*.json, train/*.json), PASCAL VOC (*.xml in Annotations/ or "
    "beside the images),\nYOLO (a .yaml with names, or classes.txt, and labels), or a .csv of "
    "path,x1,y1,x2,y2,label"
)
Reader = Callable[[Issues], ParsedAnnotations]


def load(
    data: str | Path | object,
    *,
    seed: int = 0,
    max_unreadable: float = 0.01,
    task: str = "classify",
    training: bool = True,
) -> Source:
    """A data set by its name or path; a file or folder that exists comes before a name.

    To classify it is "digits"; "cifar10" or "cifar100" from the cache; a folder (see
    `class_folders.read_class_folders`); or a CSV file (`classification.read_class_table`). To
    detect or localize, which is the same here, it is COCO, PASCAL VOC, YOLO or a CSV of boxes (see
    `find_reader`); to segment a folder of images and masks (see `segmentation.read_masks`). Another
    object is a torch Dataset, or a dictionary of them (`torch_dataset.load`). `seed` draws an
    automatic split, and `max_unreadable` is the fraction of files that may be unreadable and left
    out. What only `training` needs, as two classes, is not required of data to test on.

    Raises DataError: there is no such data, or in no known form, or too much is unreadable;
    DataErrors, a DataError, for data that training refuses.
    """
    read = READERS.get(task)
    if not isinstance(data, str | Path):
        if read is not read_classes:
            raise DataError("a Dataset has one class per image: boxes and masks come from files")
        return torch_dataset.load(data, seed=seed, training=training)
    path, data = Path(data), str(data)
    known = data in NAMED_DATA
    if read is None:
        raise DataError(f"no reader for data of the task {task!r}: give a Source")
    if known and not path.exists():
        if read is read_classes:
            return digits() if data == "digits" else download.load_cached(data)
        raise DataError(f"{data} has one class for each image, neither boxes nor masks")
    if not path.exists():
        near = nearest(data, NAMED_DATA)
        raise DataError(f"no data {data!r}, neither a folder nor a known name: {near}")
    note = f"{path} is read from {path.resolve()}, and is not the data set of that name"
    try:
        source = read(path, ReadOptions(seed, max_unreadable, training))
        return replace(source, notes=(note, *source.notes)) if known else source
    except DataError as error:
        if read is read_classes and (other := guess_task(path)) != "classify":
            error.args = (_describe_other_task(path, other),)
        if known and isinstance(error, DataErrors):
            error.noted.append((str(path), note))
        elif known:
            error.args = (f"{error}\n{note}",)
        raise


def _describe_other_task(path: Path, other: str) -> str:
    check = f"`resnets data check {path} --task classify` says why it has no classes"
    return f"{path} is data to {other}: `resnets {other} train {path}`.\n{check}"


def read_classes(path: Path, options: ReadOptions) -> Source:
    """Images with a class each, or several. Raises as `load`."""
    issues, multi_label = Issues(path), False
    if path.is_dir():
        files = read_class_folders(issues, options.training)
    elif path.suffix.lower() in SUFFIXES and path.is_file():
        files, multi_label = read_class_table(issues)
    else:
        raise DataError(f"{path} is neither a folder nor a CSV file; unpack an archive first")
    return classification_dataset(files, multi_label, issues, options)


def read_boxes(path: Path, options: ReadOptions) -> Source:
    """Images with boxes, and masks where there are some. Raises as `load`."""
    read = find_reader(path)
    if read is None:
        raise DataError(f"{path} has no boxes in a known form. Looked for:\n{FORMS}")
    return detection_dataset(read(Issues(path)), options)


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


READERS = {  # of data in files, by the name of the task
    "classify": read_classes,
    "detect": read_boxes,
    "localize": read_boxes,
    "segment": read_masks,
}


def name_in_recipe(data: object, source: Source) -> str:
    """What a recipe says of its data: a whole path, a name, or the name of a Dataset."""
    if not isinstance(data, str | Path):
        return source.name
    return str(data) if source.root is None else str(Path(data).resolve())


def guess_task(data: str | Path | object) -> TaskName:
    """What the labels of `data` look like: objects before masks, masks before classes."""
    if not isinstance(data, str | Path):
        return "classify"
    path = Path(data)
    if path.exists() and find_reader(path):
        return "detect"
    return "segment" if path.is_dir() and find_mask_folders(path) else "classify"


def describe(data: Data, task: TaskName | None) -> dict[str, Any]:
    """What a data set holds: splits, classes, sizes, digest, unreadable files, problems."""
    source = load(data, max_unreadable=1.0, task=task or guess_task(data))
    fields = ("name", "task", "digest", "channels", "size", "mean", "std")
    splits, count = source.splits, len(source.classes)
    facts = {
        **{name: getattr(source, name) for name in fields},
        "classes": list(source.classes),
        "images": {name: split.counts(count).tolist() for name, split in splits.items()},
        "unreadable": [(str(path), reason) for path, reason in source.unreadable],
        "problems": source.problems,
        "notes": source.notes,
    }
    objects = {name: split.objects for name, split in splits.items() if split.objects is not None}
    if objects:
        facts["objects"] = {name: x.count_classes(count).tolist() for name, x in objects.items()}
    return facts


def list_problems(data: Data, task: TaskName | None, max_unreadable: float) -> list[dict[str, Any]]:
    """Everything that is wrong with data, with its place, and whether training refuses it.

    Training refuses more unreadable files than `max_unreadable` of all.
    """
    refused, noted = list[Problem](), list[Problem]()
    try:
        source = load(data, max_unreadable=1.0, task=task or guess_task(data))
        name = str(Path(data)) if isinstance(data, str | Path) else source.name
        noted = [*((name, note) for note in source.notes), *source.problems]
        unreadable, files = source.unreadable, source.files
    except DataErrors as error:
        refused, noted = error.refused, error.noted
        unreadable, files = error.unreadable, error.files
    broken = [(str(path), f"unreadable: {reason}") for path, reason in unreadable]
    (noted if len(broken) <= max_unreadable * files else refused).extend(broken)
    return [
        {"place": where, "problem": problem.removeprefix(f"{where}: "), "refused": is_refused}
        for problems, is_refused in ((refused, True), (noted, False))
        for where, problem in problems
    ]


def digits() -> Source:
    """scikit-learn's 1,797 handwritten digits, grey 8x8 images of 0..16, scaled to 0..255.

    Split into a training half and a test half, stratified, always the same.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images * 255 / 16).round().to(torch.uint8)[:, None]
    split = Split(images, torch.from_numpy(bunch.target).long())
    test, train = split.split_stratified(0, len(split) // 2)
    return in_memory("digits", tuple("0123456789"), train, test)


def normalization(
    normalize: Literal["data", "imagenet", "none"], source: Source | None, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation for a network of `channels` input channels. Raises UsageError."""
    if normalize == "data" and source is None:
        raise UsageError("--normalize data needs the data: --data DATA")
    imagenet = Preprocess(size=1)
    known = source if source and normalize == "data" else imagenet
    mean, std = ((0.0,), (1.0,)) if normalize == "none" else (known.mean, known.std)
    if len(mean) == channels:
        return mean, std
    if 1 not in (len(mean), channels):
        raise UsageError(f"no mean of {len(mean)} channels for a network of {channels}")
    mean, std = ((sum(x) / len(x),) * channels for x in (mean, std))  # grey is the colours' mean
    return mean, std


def unlabelled_split(files: Sequence[object]) -> tuple[Split, list[tuple[Path, str]]]:
    """Images of which nothing is known but their sizes, and the files that are no images."""
    good, sizes, bad = list[Path](), list[tuple[int, int]](), list[tuple[Path, str]]()
    for file in files:
        if not isinstance(file, str | Path):
            raise DataError("pictures are drawn of files only: name them")
        try:
            with open_image(file) as picture:
                height, width, _ = oriented_size(picture)
        except Unreadable as fault:
            bad.append((Path(file), fault.reason))
        else:
            good.append(Path(file))
            sizes.append((height, width))
    return Split(
        tuple(good),
        torch.zeros(len(good), 0),
        sizes=torch.tensor(sizes).view(-1, 2),
        objects=DetectionTargets.empty(len(good), 0),
    ), bad

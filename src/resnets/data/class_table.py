"""A CSV file of images and their classes."""

from __future__ import annotations

from pathlib import Path

from resnets.data.classification import LabelledFile
from resnets.data.file_names import find_images, parse_split
from resnets.data.issues import Issues
from resnets.data.tables import LABEL, PATH, SPLIT, read_table


def read_class_table(issues: Issues) -> tuple[list[LabelledFile], bool]:
    """A CSV file of `path,label`, and optionally `split`: see `tables.read_table`.

    Also whether images may have several labels. Paths count from the file's folder; see
    `file_names.find_images`. Without `split` the rows are split as class folders are. One `|` in
    any label says that images may have several classes, as `cat|dog` (in any order), or none at
    all, which is an empty label; `cat|` is a cat alone. Space around a name does not count. A row
    that stands twice counts once.
    """
    table = issues.data
    columns = {"path": PATH, "label": LABEL, "split": SPLIT}
    rows = read_table(table, columns, ("path", "label"), issues)
    multiple = [repr(row["label"]) for _, row in rows if "|" in row["label"]]
    issues.count("labels have |, so an image may have several classes, or none", *multiple)
    lists = [repr(row["label"]) for _, row in rows if any(sign in row["label"] for sign in ",;[")]
    issues.count("labels have , ; or [, read as one class; write several as cat|dog", *lists)
    names = (row["path"] for _, row in rows if row["path"] and "://" not in row["path"])
    paths = find_images(names, [table.parent], table.parent, issues)
    files: dict[Path, tuple[int, LabelledFile]] = {}
    for line, row in rows:
        where = f"{table}, line {line}"
        try:
            file = _labelled_file(row, paths, bool(multiple))
        except ValueError as error:
            issues.error(where, str(error))
            continue
        first_line, first = files.setdefault(file.path, (line, file))
        if first_line != line:
            issues.count("rows are repeated: each image counts once", where)
            if first != file:
                reason = f"{row['path']} has another label or split than in line {first_line}"
                issues.error(where, f"{reason}; write several labels of an image as cat|dog")
    return [file for _, file in files.values()], bool(multiple)


def _labelled_file(row: dict[str, str], paths: dict[str, Path], multi_label: bool) -> LabelledFile:
    """The file of a row. Raises ValueError for a row that is wrong."""
    name, label, split = row["path"], row["label"], row.get("split")
    if not name or not (label or multi_label):
        raise ValueError("path or label is missing")
    if "://" in name:
        raise ValueError(f"{name} is a web address: download the images first")
    labels: tuple[str, ...] = (label,)
    if multi_label:
        labels = tuple(sorted({text.strip() for text in label.split("|")} - {""}))
    return LabelledFile(paths[name], labels, None if split is None else parse_split(split))

"""What a data set holds, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from resnets.config.types import TaskName
from resnets.data import dataset
from resnets.data.torch_dataset import Data
from resnets.errors import DataErrors, Problem


def describe(data: Data, task: TaskName | None) -> dict[str, Any]:
    """What a data set holds: splits, classes, sizes, digest, unreadable files, problems."""
    source = dataset.load(data, max_unreadable=1.0, task=task or dataset.guess_task(data))
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
        source = dataset.load(data, max_unreadable=1.0, task=task or dataset.guess_task(data))
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

"""What a data set holds, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from resnets.config.types import TaskName
from resnets.data import dataset
from resnets.data.torch_dataset import Data
from resnets.errors import DataErrors


def describe(data: Data, task: TaskName | None) -> dict[str, Any]:
    """What a data set holds: splits, classes, sizes, digest, unreadable files, problems."""
    source = dataset.load(data, max_unreadable=1.0, task=task or dataset.task_of(data))
    names, kinds = ("name", "task", "digest", "channels", "size", "mean", "std"), source.classes
    facts = {
        **{name: getattr(source, name) for name in names},
        "classes": list(kinds),
        "images": {
            name: split.counts(len(kinds)).tolist() for name, split in source.splits.items()
        },
        "unreadable": [(str(path), reason) for path, reason in source.unreadable],
        "problems": source.problems,
        "notes": source.notes,
    }
    objects = {
        name: split.objects.count_classes(len(kinds)).tolist()
        for name, split in source.splits.items()
        if split.objects is not None
    }
    if objects:
        facts["objects"] = objects
    return facts


def list_problems(data: Data, task: TaskName | None, max_unreadable: float) -> list[dict[str, Any]]:
    """Everything that is wrong with data, with its place, and whether training refuses it.

    Training refuses more unreadable files than `max_unreadable` of all.
    """
    refused: list[tuple[str, str]] = []
    try:
        source = dataset.load(data, max_unreadable=1.0, task=task or dataset.task_of(data))
        place = str(data) if isinstance(data, str | Path) else source.name
        noted = [*((place, text) for text in source.notes), *source.problems]
        unreadable = [(str(path), f"unreadable: {reason}") for path, reason in source.unreadable]
        few = len(unreadable) <= max_unreadable * source.files
        (noted if few else refused).extend(unreadable)
    except DataErrors as fault:
        refused, noted = fault.refused, fault.noted
    return [
        {"place": place, "problem": problem, "refused": told is refused}
        for told in (refused, noted)
        for place, problem in told
    ]

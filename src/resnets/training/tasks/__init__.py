"""The tasks: each file holds what differs for one in training, and ends in its `Task`.

Its figures are in `evaluation`, the part of its report in `reporting`, under the same name.

A plan carries its task, so neither the loop nor a step asks which one it is. `TASKS` finds the task
of a run or a model file by its name; docs/extending.md shows how one is added.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from resnets.config import arch as archs
from resnets.errors import UsageError, nearest
from resnets.training.plan import Task
from resnets.training.tasks.classification import CLASSIFICATION
from resnets.training.tasks.detection import DETECTION
from resnets.training.tasks.localization import LOCALIZATION
from resnets.training.tasks.segmentation import SEGMENTATION

TASKS: dict[str, Task] = {
    task.name: task for task in (CLASSIFICATION, DETECTION, LOCALIZATION, SEGMENTATION)
}


def find_task(name: str) -> Task:
    """The task of that name. Raises UsageError."""
    if name not in TASKS:
        raise UsageError(
            f"no task {name!r}: {nearest(name, TASKS)}. A custom task has to be in "
            "resnets.training.tasks.TASKS first"
        )
    return TASKS[name]


def task_of_run(source: Mapping[str, Any]) -> Task:
    """The task of a run, given its source.json. Raises UsageError for one that is not in TASKS."""
    if name := source.get("task"):
        return find_task(name)
    return TASKS[archs.task_for_arch(archs.from_dict(source["arch"]))]  # of an older version

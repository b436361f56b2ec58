"""What there is: networks, data, runs, and this machine. torch is imported where it is needed."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from resnets.errors import ResnetsError
from resnets.options import Task


def list_models(pattern: str) -> Iterator[dict[str, Any]]:
    """`api.list_models`."""
    from resnets.config.families import FAMILY
    from resnets.models.cost import cost

    if not any(sign in pattern for sign in "*?["):
        pattern = f"*{pattern}*"
    for name in sorted(fnmatch.filter(FAMILY, pattern), key=natural):
        arch = FAMILY[name]
        price = cost(arch)
        row = {"name": name, "depth": arch.depth, "parameters": price.parameters}
        row |= {"multiply_adds": price.macs, "channels": arch.channels, "size": arch.size}
        yield row | {"source": arch.source}


def natural(name: str) -> list[tuple[int, str]]:
    """A sort key by which resnet18 comes before resnet110."""
    return [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", name)]


def data_info(data: str, task: Task | None) -> dict[str, Any]:
    """`api.data_info`."""
    from resnets.data import dataset

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
    if any(split.labels.ndim == 3 for split in source.splits.values()):
        rows = {name: split.labels.flatten(0, 1) for name, split in source.splits.items()}
        which = {name: row[row[:, 5] == 1, 4].long() for name, row in rows.items()}
        facts["objects"] = {k: v.bincount(minlength=len(kinds)).tolist() for k, v in which.items()}
    return facts


def data_check(data: str, task: Task | None) -> list[dict[str, Any]]:
    """`api.data_check`."""
    from resnets.config.recipe import Recipe
    from resnets.data import dataset
    from resnets.errors import DataErrors

    refused: list[tuple[str, str]] = []
    try:
        source = dataset.load(data, max_unreadable=1.0, task=task or dataset.task_of(data))
        noted = [*((data, text) for text in source.notes), *source.problems]
        unreadable = [(str(path), f"unreadable: {reason}") for path, reason in source.unreadable]
        few = len(unreadable) <= Recipe(model="resnet18").max_unreadable * source.files
        (noted if few else refused).extend(unreadable)
    except DataErrors as fault:
        refused, noted = fault.refused, fault.noted
    return [
        {"place": place, "problem": problem, "refused": told is refused}
        for told in (refused, noted)
        for place, problem in told
    ]


def runs(root: Path) -> list[dict[str, Any]]:
    """`api.runs`."""
    from resnets.config.arch import task
    from resnets.config.families import FAMILY
    from resnets.config.tasks import TASK_TEXTS
    from resnets.training.run import Run

    rows = []
    for run in (Run(path.parent) for path in sorted(root.glob("*/recipe.json"))):
        try:
            recipe = run.read_json("recipe.json")
        except ResnetsError:
            recipe = {"data": "unreadable recipe.json", "model": "?"}
        last = (run.rows("metrics.jsonl") or [{"epoch": 0.0, "train_error": None}])[-1]
        result = run.read_json("result.json") if run.finished else {}
        errors = {result.get("split", "test"): result.get("error")}
        row = {"run": str(run.path), "data": recipe["data"], "model": recipe["model"]}
        row |= {"epoch": last["epoch"], "train_error": last["train_error"]}
        errors = {"val": last.get("val_error")} | errors  # of held-out images beside a test split
        row |= {f"{split}_error": errors.get(split) for split in ("val", "test")}
        arch = FAMILY.get(recipe["model"])
        row |= {"error_is": TASK_TEXTS[task(arch)].error if arch else "?"}
        rows.append(row | {"finished": run.finished})
    return rows

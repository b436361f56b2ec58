"""A model put to the test on a split of a data set."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from resnets import lifecycle
from resnets.data.sources import Source, Split, hold_out
from resnets.errors import DataError, UsageError
from resnets.evaluation.metrics import Result
from resnets.evaluation.model import Model, aligned, load
from resnets.evaluation.scores import Scores
from resnets.evaluation.views import View
from resnets.training.plan import moments, pick_device
from resnets.training.run import Run


@dataclass(frozen=True)
class Subject:
    """A model, and the split that it is tested on, with the model's labels."""

    model: Model
    split: Split
    view: View
    size: int
    batch: int
    workers: int

    def scores(self, change: Callable[[Tensor, Tensor], Tensor] | None = None) -> Scores:
        """What the model says of each image, `change`d where that is given."""
        return self.model.scores(
            self.split,
            view=self.view,
            size=self.size,
            batch=self.batch,
            workers=self.workers,
            change=change,
        )


def pick_split(source: Source, name: str) -> Split:
    """The split of that name, or "all". Raises DataError that says which there are."""
    there = source.splits
    if name == "all":
        return functools.reduce(Split.plus, there.values())
    if name not in there:
        raise DataError(f"{source.name} has no {name} split; it has: {', '.join(there)} (--split)")
    return there[name]


def subject(
    path: str | Path,
    source: Source,
    *,
    split: str | None = None,
    view: View = "center",
    size: int = 0,
    normalize: Literal["data", "imagenet", "none"] | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    batch: int = 128,
    max_unreadable: float = 0.01,
    device: str = "auto",
    workers: int = 2,
) -> Subject:
    """A model file or run with a split of the data; errors as `verbs.evaluate`."""
    model = load(
        path,
        device=pick_device(device),
        bfloat16=precision == "bfloat16",
        classes=source.classes,
    )
    same = source.digest == model.card.provenance.get("digest")
    recipe = json.loads(model.card.provenance.get("recipe", "{}"))
    if same and recipe.get("holdout") and source.val is None:  # what was kept from the training
        source = hold_out(source, recipe["holdout"], recipe["seed"])
    if split is None and source.automatic and not same:
        raise UsageError(
            f"{source.name} has no splits of its own and is not what {path} was trained on.\n"
            "If the model never saw its images: --split all. If it is the training folder with "
            "changes,\nimages of the training would be in the test: give it train/ and test/."
        )
    if normalize is not None:
        model = model.normalized(*moments(normalize, source, model.card.arch.channels))
    chosen = aligned(pick_split(source, split or "test"), source.classes, model)
    return Subject(model, chosen, view, size, batch, workers)


def opened(path: str | Path, source: Source, result: Result) -> None:
    """Record the look at the test images, where the model is a run's."""
    run = Run(Path(path) if Path(path).is_dir() else Path(path).parent)
    if (run.path / "source.json").exists():
        lifecycle.opened(run, source, result)


def unlabelled(source: Source) -> Split:
    """All images of a data set, whose labels are of no account."""
    every = functools.reduce(Split.plus, source.splits.values())
    return replace(every, labels=torch.zeros(len(every), dtype=torch.int64))

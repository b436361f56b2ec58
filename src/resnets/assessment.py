"""A model put to the test on a split of a data set."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from resnets.data.batches import Change
from resnets.data.sources import Source, Split, hold_out, with_val
from resnets.errors import DataError, UsageError
from resnets.evaluation.metrics import Result
from resnets.evaluation.model import Model, aligned, load
from resnets.evaluation.scores import Scores
from resnets.options import View
from resnets.training.plan import moments, pick_device


@dataclass(frozen=True)
class Subject:
    """A model, and the split that it is tested on, with the model's labels."""

    model: Model
    split: Split
    said: Callable[..., Scores]  # `model.scores` with how it is tested

    def scores(self, change: Change | None = None) -> Scores:
        """What the model says of each image, `change`d where that is given."""
        return self.said(self.split, change=change)


def pick_split(source: Source, name: str) -> Split:
    """The split of that name, or "all". Raises DataError that says which there are."""
    there = source.splits
    if name == "all":
        return functools.reduce(Split.plus, there.values())
    if name not in there:
        keep = "\nTrain with --set holdout=0.1 to keep some images." if name == "val" else ""
        known = f"it has: {', '.join(there)} (--split){keep}"
        raise DataError(f"{source.name} has no {name} split; {known}")
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
    """A model file or run with a split of the data; errors as `classifiers.evaluate`."""
    model = load(
        path,
        device=pick_device(device),
        bfloat16=precision == "bfloat16",
        classes=source.classes,
        task="classify",
    )
    if normalize is not None:
        model = model.normalized(*moments(normalize, source, model.card.arch.channels))
    chosen = fair(path, model, source, split)
    if chosen.labels.ndim == 2 and model.card.provenance.get("labels") == "one":
        raise UsageError(f"{path} gives one label, the images of {source.name} have several each")
    said = functools.partial(model.scores, view=view, size=size, batch=batch, workers=workers)
    return Subject(model, chosen, said)


def fair(path: str | Path, model: Model, source: Source, split: str | None) -> Split:
    """The split that a model is tested on, with its labels; errors as `classifiers.evaluate`."""
    same = source.digest == model.card.provenance.get("digest")
    recipe = json.loads(model.card.provenance.get("recipe", "{}"))
    if same and recipe.get("trainval") and source.val is not None:
        source = with_val(source)
    if same and recipe.get("holdout") and source.val is None:  # what was kept from the training
        source = hold_out(source, recipe["holdout"], recipe["seed"])
    if split is None and source.automatic and not same:
        raise UsageError(
            f"{source.name} has no splits of its own and is not what {path} was trained on.\n"
            "If the model never saw its images: --split all. If it is the training folder with "
            "changes,\nimages of the training would be in the test: give it train/ and test/."
        )
    return aligned(pick_split(source, split or "test"), source.classes, model)


def check_same(splits: Sequence[Split]) -> None:
    """Raise UsageError where models are to be tested on different images."""
    first, *others = (np.asarray(split.images) for split in splits)
    if not all(np.array_equal(first, images) for images in others):
        raise UsageError(
            "the models kept different images from their training for validation: name --split test"
        )


def check_read(bad: Sequence[tuple[Path, str]], images: int, allowed: float, what: str) -> None:
    """Raise DataError where more than that part of the images are `bad`, or all are."""
    if len(bad) == images or len(bad) > allowed * images:
        raise DataError(
            f"{len(bad)} of {images} files of the {what} are unreadable, first: "
            f"{bad[0][0] if bad else 'none'}\nMend them, or allow more: --max-unreadable 0.1"
        )


def unlabelled(source: Source, like: Tensor) -> Split:
    """All images of a data set; their labels, of no account, are of the form of others."""
    every = functools.reduce(Split.plus, source.splits.values())
    return replace(every, labels=like.new_zeros(len(every), *like.shape[1:]))


@dataclass(frozen=True)
class Calibration:
    """A temperature, and the figures before and after on the images that it was fitted on."""

    temperature: float
    before: Result
    after: Result

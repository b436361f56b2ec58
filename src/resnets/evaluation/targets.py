"""A model, or several, tested on a split of a data set."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydantic
from torch import Tensor

from resnets.config import arch
from resnets.config.recipe import FINITE, rename_old_fields
from resnets.config.types import EvaluateOptions, InferenceOptions, TaskName, View
from resnets.data import dataset
from resnets.data.dataset import Source, Split, normalization
from resnets.data.decode import warn_clipped
from resnets.data.loader import ImageOp
from resnets.data.torch_dataset import PREFIX as DATASET
from resnets.device import pick_device
from resnets.errors import CheckpointError, DataError, UsageError, shorten
from resnets.evaluation.calibration import selective_accuracy
from resnets.evaluation.classification import (
    ClassificationMetrics,
    Comparison,
    classification_metrics,
    compare_scores,
    ood_auroc,
)
from resnets.evaluation.predictor import Model, check_task, load, match_classes
from resnets.evaluation.scores import Scores, ensemble, error_rate

# Called for a tested model with the data's digest, the split, and the error if it is its alone.
LogAccess = Callable[[str | Path, str, str, float | None], None]
AnyModel = str | Path | Model


@dataclass(frozen=True)
class EvaluationTarget:
    """A model, and the split that it is tested on, with the model's labels."""

    model: Model
    split: Split
    scored: Callable[..., Scores]  # `model.scores` with how it is tested
    name: str = "test"  # of the split

    def scores(self, change: ImageOp | None = None) -> Scores:
        """The logits of each image, `change`d where that is given."""
        return self.scored(self.split, change=change)


@dataclass(frozen=True)
class Calibration:
    """A temperature, and the figures before and after on the images that it was fitted on."""

    temperature: float
    before: ClassificationMetrics
    after: ClassificationMetrics


def load_model(
    path: AnyModel, source: Source | None, how: InferenceOptions, task: TaskName | None = None
) -> Model:
    """A model, normalised as asked for; errors as `evaluation.predictor.load`.

    One that is loaded already stays on its device.
    """
    if isinstance(path, Model):
        check_task(path.metadata.arch, path.path, task)
        model = path
    else:
        model = load(
            path,
            device=pick_device(how.device),
            bfloat16=how.precision == "bfloat16",
            classes=source.classes if source else None,
            task=task,
            fields=how.fields,
            network=how.network,
        )
    if how.normalize is not None:
        model = model.normalized(
            *normalization(how.normalize, source, model.metadata.arch.channels)
        )
    return model


def pick_split(source: Source, name: str) -> Split:
    """The split of that name, or "all". Raises DataError that says which there are."""
    splits = source.splits
    if name == "all":
        return functools.reduce(Split.concat, splits.values())
    if name not in splits:
        keep = "\nTrain with --set val_fraction=0.1 to keep some images." if name == "val" else ""
        known = f"it has: {', '.join(splits)} (--split){keep}"
        raise DataError(f"{source.name} has no {name} split; {known}")
    return splits[name]


def load_target(
    path: AnyModel, source: Source, how: InferenceOptions, view: View = "center"
) -> EvaluationTarget:
    """A classifier with a split of the data; errors as `api.evaluate`."""
    model = load_model(path, source, how, "classify")
    if not model.metadata.provenance:  # of a foreign file nothing says what white was
        preprocess = replace(model.metadata.preprocess, white=source.white)
        model = replace(model, metadata=replace(model.metadata, preprocess=preprocess))
    same = source.digest == model.metadata.provenance.get("digest")
    # Of a Dataset by itself there is nothing else to choose.
    whole = source.automatic and not same and source.name.startswith(DATASET)
    name = how.split or ("all" if whole else "test")
    chosen = held_out_split(path, model, source, name if whole else how.split)
    if chosen.labels.ndim == 2 and model.metadata.provenance.get("labels") == "one":
        raise UsageError(f"{path} gives one label, the images of {source.name} have several each")
    batch = how.images_per_batch()
    scored = functools.partial(
        model.scores, view=view, size=how.size, batch=batch, workers=how.workers
    )
    return EvaluationTarget(model, chosen, scored, name)


class TrainingData(pydantic.BaseModel):
    """Of the recipe in a model file: which images were held out from the training."""

    model_config = FINITE

    trainval: bool = False
    val_fraction: pydantic.NonNegativeFloat = 0.0
    seed: Annotated[int, pydantic.Field(ge=-(2**63), lt=2**63)] = 0

    @pydantic.model_validator(mode="before")
    @classmethod
    def read_old_names(cls, values: Any) -> Any:
        """Model files outlive versions, so they are read without a note."""
        return rename_old_fields(values, note=False) if isinstance(values, dict) else values


def held_out_split(path: AnyModel, model: Model, source: Source, split: str | None) -> Split:
    """The split that a model is tested on, with its labels; errors as `api.evaluate`."""
    same = source.digest == model.metadata.provenance.get("digest")
    try:
        held = TrainingData.model_validate_json(model.metadata.provenance.get("recipe", "{}"))
    except pydantic.ValidationError as error:
        raise CheckpointError(
            f"{path}: provenance.recipe, {shorten(arch.field_problem(error)[0])}"
        ) from None
    if same and held.trainval and source.val is not None:
        source = dataset.merge_val_into_train(source)
    if same and held.val_fraction and source.val is None:  # what was kept from the training
        source = dataset.hold_out(source, held.val_fraction, held.seed)
    if split is None and source.automatic and not same:
        raise UsageError(
            f"{source.name} has no splits of its own and is not what {path} was trained on.\n"
            "If the model never saw its images: --split all. If it is the training folder with "
            "changes,\nimages of the training would be in the test: give it train/ and test/."
        )
    chosen = pick_split(source, split or "test")
    files = [] if isinstance(chosen.images, Tensor) else chosen.images
    values = {path: source.greatest.get(path) for path in files}
    warn_clipped(values, model.metadata.preprocess.white)
    return match_classes(chosen, source.classes, model)


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
    """All images of a data set, with placeholder labels shaped like `like`."""
    images = functools.reduce(Split.concat, source.splits.values())
    return replace(images, labels=like.new_zeros(len(images), *like.shape[1:]))


def test_classifiers(
    models: Sequence[AnyModel],
    data: Any,
    how: InferenceOptions,
    options: EvaluateOptions,
    log: LogAccess,
) -> ClassificationMetrics:
    """`api.evaluate` for classifiers."""
    source = dataset.load(data, max_unreadable=how.max_unreadable, training=False)
    pairs = zip(models, options.views, strict=True)
    targets = [load_target(path, source, how, view) for path, view in pairs]
    name = targets[0].name
    check_same([target.split for target in targets])
    each = [target.scores() for target in targets]
    scores = each[-1] if options.compare else ensemble(each)
    result, bad = classification_metrics(scores, name), scores.unreadable
    images = result.images + len(bad)
    check_read(bad, images, how.max_unreadable, f"{name} split of {data}")
    for path, own in dict(zip(map(model_path, models), each, strict=True)).items():
        log(path, source.digest, name, error_rate(own))
    result = replace(result, unreadable=(*source.unreadable, *bad))
    if options.compare:
        comparison = name_images(compare_scores(*each), targets[0].split)
        result = replace(result, comparison=comparison)
    if options.at_precision is not None:
        abstention = selective_accuracy(scores, options.at_precision)
        result = replace(result, abstention=abstention)
    if options.ood is not None:
        other = dataset.load(options.ood, max_unreadable=how.max_unreadable, training=False)
        ood = unlabelled(other, scores.labels)
        ood_scores = ensemble([replace(target, split=ood).scores() for target in targets])
        result = replace(result, ood_auroc=ood_auroc(scores, ood_scores))
    if options.corruptions:
        from resnets.evaluation.corruptions import robustness  # here: torchvision delays a start

        rows = robustness(targets[0].scores, targets[0].model.metadata.arch.channels)
        result = replace(result, corruptions=tuple(rows))
    return result


def name_images(comparison: Comparison, split: Split) -> Comparison:
    """The changed images by their files, where there are files."""
    if isinstance(split.images, Tensor):
        return comparison
    fixed = tuple(str(split.images[int(k)]) for k in comparison.fixed)
    broken = tuple(str(split.images[int(k)]) for k in comparison.broken)
    return replace(comparison, fixed=fixed, broken=broken)


def task_of(path: AnyModel, how: InferenceOptions) -> TaskName:
    """What the network of a model, a run or a foreign file is for; errors as `load`."""
    model = path if isinstance(path, Model) else load(path, fields=how.fields, network=how.network)
    return arch.task(model.metadata.arch)


def model_path(model: AnyModel) -> Path:
    """Where a model is from."""
    return model.path if isinstance(model, Model) else Path(model)

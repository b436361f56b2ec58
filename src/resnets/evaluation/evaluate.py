"""Models of any task evaluated on a split of a data set: what `api.evaluate` does."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydantic
from torch import Tensor

from resnets.config import arch
from resnets.config.arch import ExternalArch
from resnets.config.recipe import FINITE, rename_old_fields
from resnets.config.types import EvaluateOptions, InferenceOptions, TaskName, ViewName
from resnets.data import dataset
from resnets.data.dataset import Source, Split
from resnets.data.decode import warn_clipped
from resnets.data.loader import ImageOp
from resnets.data.splits import apply_holdout
from resnets.data.torch_dataset import PREFIX as DATASET
from resnets.errors import Assumption, CheckpointError, DataError, UsageError, quantify
from resnets.escape import shorten
from resnets.evaluation.load import AnyModel, load, load_model, match_classes
from resnets.evaluation.predictor import Model, name_model_in_errors
from resnets.evaluation.scores import Scores
from resnets.evaluation.tasks import TASKS, Metrics
from resnets.models.io.fetch import locate_weights
from resnets.models.io.model_file import read_metadata

# Called for an evaluated model with the data's digest, the split, and the error if it is its alone.
LogAccess = Callable[[str | Path, str, str, float | None], None]


def evaluate(
    task: TaskName, models: Sequence[AnyModel], data: Any, options: EvaluateOptions, log: LogAccess
) -> Metrics:
    """The metrics of models of a task together; arguments and errors as `api.evaluate`."""
    functions = TASKS[task]
    if len(models) > 1 and not functions.ensembles:
        raise UsageError(f"only detectors can form an ensemble: give one model to `resnets {task}`")
    source = load_data(data, options, task)
    setups = [
        load_setup(model, source, options, task, view)
        for model, view in zip(models, options.views, strict=True)
    ]
    for model, setup in zip(models, setups, strict=True):
        warn_of_training_images(model, setup)
    first, *others = (np.asarray(setup.split.images) for setup in setups)
    if not all(np.array_equal(first, images) for images in others):
        raise UsageError("the models held out different validation images: use --split test")
    if options.classifier is not None:  # a foreign file has the data's classes, in their order
        plain = replace(options, fields={})
        classifier = load_model(options.classifier, source, plain, "classify")
        options = replace(options, classifier=classifier)
    paths = [model.path if isinstance(model, Model) else Path(model) for model in models]
    with name_model_in_errors(*paths):
        metrics, errors = functions.evaluate(setups, options)
    for path, error in dict(zip(paths, errors, strict=True)).items():
        log(path, source.digest, setups[0].split_name, error)
    unreadable = (*source.unreadable, *metrics.unreadable)
    return replace(metrics, unreadable=unreadable)


def load_data(data: Any, options: InferenceOptions, task: TaskName = "classify") -> dataset.Source:
    """Data to evaluate models of a task on. Raises as `dataset.load`."""
    return dataset.load(data, max_unreadable=options.max_unreadable, task=task, training=False)


def task_of_model(path: AnyModel, options: InferenceOptions) -> TaskName:
    """What the network of a model, a run or a foreign file is for; errors as `load`."""
    if isinstance(path, Model):
        return arch.task_for_arch(path.metadata.arch)
    metadata = read_metadata(locate_weights(path)[0]) or load(path, fields=options.fields).metadata
    return arch.task_for_arch(metadata.arch)


def load_custom_code(
    models: Sequence[AnyModel], options: EvaluateOptions
) -> tuple[list[AnyModel], EvaluateOptions]:
    """The models, those of custom code loaded with it, and the options for the others.

    Where there is none, the code stays in the options, and `load` refuses it.
    """
    loaded = list[AnyModel](models)
    for k, path in enumerate(models):
        metadata = None if isinstance(path, Model) else read_metadata(locate_weights(path)[0])
        if metadata and isinstance(metadata.arch, ExternalArch):
            loaded[k] = load_model(path, None, replace(options, normalize=None))
    return loaded, options if loaded == [*models] else replace(options, network=None)


@dataclass(frozen=True)
class EvalSetup:
    """A model, the split that it is evaluated on, with the model's labels, and how."""

    model: Model
    source: Source
    split: Split
    split_name: str
    options: InferenceOptions
    view: ViewName = "center"

    def scores(self, change: ImageOp | None = None) -> Scores:
        """The logits of each image, `change`d where that is given."""
        return self.model.scores(
            self.split,
            view=self.view,
            size=self.options.size,
            batch=self.options.images_per_batch(),
            workers=self.options.workers,
            change=change,
        )

    def check_unreadable(self, unreadable: Sequence[tuple[Path, str]]) -> None:
        """Raise DataError where more images than are allowed are unreadable, or all are."""
        images = len(self.split)
        if len(unreadable) == images or len(unreadable) > self.options.max_unreadable * images:
            noun = f"of {images} files of the {self.split_name} split are unreadable"
            raise DataError(
                f"{self.source.name}: {quantify(len(unreadable), noun)}, first: "
                f"{unreadable[0][0] if unreadable else 'none'}\n"
                "Repair them, or allow more: --max-unreadable 0.1"
            )


def load_setup(
    path: AnyModel,
    source: Source,
    options: InferenceOptions,
    task: TaskName = "classify",
    view: ViewName = "center",
) -> EvalSetup:
    """A model of a task with a split of the data; errors as `api.evaluate`."""
    model = load_model(path, source, options, task)
    if not model.metadata.provenance:  # of a foreign file nothing says what white was
        preprocess = replace(model.metadata.preprocess, white=source.white)
        model = replace(model, metadata=replace(model.metadata, preprocess=preprocess))
    same, name = source.digest == model.metadata.provenance.get("digest"), options.split
    if name is None and source.automatic and not same and source.name.startswith(DATASET):
        name = "all"  # of a Dataset by itself there is nothing else to choose
    split = held_out_split(path, model, source, name)
    multi_label = split.labels.ndim == 2 and not split.has_spatial_labels
    if multi_label and model.metadata.provenance.get("labels") == "one":
        raise UsageError(f"{path} predicts one label, but images of {source.name} have several")
    return EvalSetup(model, source, split, name or "test", options, view)


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


class TrainingData(pydantic.BaseModel):
    """Of the recipe in a model file: which images were held out from the training."""

    model_config = FINITE

    trainval: bool = False
    val_fraction: pydantic.NonNegativeFloat = 0.0
    seed: Annotated[int, pydantic.Field(ge=-(2**63), lt=2**63)] = 0
    folds: pydantic.NonNegativeInt = 0
    fold: pydantic.NonNegativeInt = 0

    @pydantic.model_validator(mode="before")
    @classmethod
    def read_old_names(cls, values: Any) -> Any:
        """Model files outlive versions, so they are read without a note."""
        return rename_old_fields(values, note=False) if isinstance(values, dict) else values


def split_as_trained(path: AnyModel, model: Model, source: Source) -> Source:
    """The data with the splits of the model's training, if it is that data; else as it is.

    Raises CheckpointError for a recipe in the model file that makes no sense.
    """
    try:
        held = TrainingData.model_validate_json(model.metadata.provenance.get("recipe", "{}"))
    except pydantic.ValidationError as error:
        raise CheckpointError(
            f"{path}: provenance.recipe, {shorten(arch.field_problem(error)[0])}"
        ) from None
    if source.digest != model.metadata.provenance.get("digest"):
        return source
    return apply_holdout(source, held.trainval, held.val_fraction, held.seed, held.folds, held.fold)


def warn_of_training_images(path: AnyModel, setup: EvalSetup) -> None:
    """Warn with an `Assumption` if images of the model's own training are evaluated."""
    same = setup.source.digest == setup.model.metadata.provenance.get("digest")
    if same and setup.source.train is not None and setup.split_name in ("all", "train"):
        trained = pick_split(split_as_trained(path, setup.model, setup.source), "train")
        text = f"{path} was trained on {len(trained):,} of these {len(setup.split):,} images"
        warnings.warn(f"{text}: its figures on others are worse", Assumption, stacklevel=2)


def held_out_split(path: AnyModel, model: Model, source: Source, split: str | None) -> Split:
    """The split that a model is tested on, with its labels; errors as `api.evaluate`."""
    same = source.digest == model.metadata.provenance.get("digest")
    source = split_as_trained(path, model, source)
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

"""What `api.evaluate` does: models of each task evaluated on a split of a data set."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

from resnets.config import arch
from resnets.config.arch import ExternalArch
from resnets.config.types import EvaluateOptions, InferenceOptions, TaskName
from resnets.data import dataset
from resnets.data.dataset import Split
from resnets.errors import CheckpointError, DataError, UsageError, quantify
from resnets.evaluation.calibration import selective_accuracy
from resnets.evaluation.classification import (
    ClassificationMetrics,
    classification_metrics,
    compare_scores,
    ood_auroc,
)
from resnets.evaluation.load import AnyModel, load, load_model
from resnets.evaluation.predictor import Model, name_model_in_errors
from resnets.evaluation.scores import ensemble, error_rate
from resnets.evaluation.setup import EvalSetup, load_setup, warn_of_training_images
from resnets.models.io.fetch import locate_weights
from resnets.models.io.model_file import read_metadata

if TYPE_CHECKING:  # torchvision takes 1.7 s to import
    from resnets.evaluation.detection import Detect, DetectionMetrics
    from resnets.evaluation.localization import LocalizationMetrics
    from resnets.evaluation.segmentation import SegmentationMetrics

# Called for an evaluated model with the data's digest, the split, and the error if it is its alone.
LogAccess = Callable[[str | Path, str, str, float | None], None]
Metrics: TypeAlias = (
    "ClassificationMetrics | DetectionMetrics | LocalizationMetrics | SegmentationMetrics"
)
# The metrics of models together, and the error of each by itself, where there is one.
Measured: TypeAlias = tuple[Metrics, Sequence[float | None]]


def evaluate(
    task: TaskName,
    measure: Callable[[Sequence[EvalSetup], EvaluateOptions], Measured],
    models: Sequence[AnyModel],
    data: Any,
    options: EvaluateOptions,
    log: LogAccess,
) -> Metrics:
    """`api.evaluate` for models of a task that `measure` gives the metrics of."""
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
    paths = [model.path if isinstance(model, Model) else Path(model) for model in models]
    with name_model_in_errors(*paths):
        metrics, errors = measure(setups, options)
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


def check_read(unreadable: Sequence[tuple[Path, str]], setup: EvalSetup) -> None:
    """Raise DataError where more images than are allowed are unreadable, or all are."""
    images = len(setup.split)
    if len(unreadable) == images or len(unreadable) > setup.options.max_unreadable * images:
        noun = f"of {images} files of the {setup.split_name} split are unreadable"
        raise DataError(
            f"{setup.source.name}: {quantify(len(unreadable), noun)}, first: "
            f"{unreadable[0][0] if unreadable else 'none'}\n"
            "Repair them, or allow more: --max-unreadable 0.1"
        )


def evaluate_classifiers(setups: Sequence[EvalSetup], options: EvaluateOptions) -> Measured:
    """Every metric of the mean of classifiers; or of the second, compared with the first."""
    first, scores = setups[0], [setup.scores() for setup in setups]
    combined = scores[-1] if options.compare else ensemble(scores)
    check_read(combined.unreadable, first)
    metrics = classification_metrics(combined, first.split_name)
    if options.compare:
        comparison = compare_scores(*scores)
        if isinstance(first.split.images, tuple):
            names = functools.partial(map, lambda k: str(first.split.images[int(k)]))
            fixed, broken = tuple(names(comparison.fixed)), tuple(names(comparison.broken))
            comparison = replace(comparison, fixed=fixed, broken=broken)
        metrics = replace(metrics, comparison=comparison)
    if options.at_precision is not None:
        abstention = selective_accuracy(combined, options.at_precision)
        metrics = replace(metrics, abstention=abstention)
    if options.ood is not None:
        splits = load_data(options.ood, options).splits.values()
        ood = functools.reduce(Split.concat, splits)
        labels = combined.labels  # placeholders of the same shape
        ood = replace(ood, labels=labels.new_zeros(len(ood), *labels.shape[1:]))
        ood_scores = ensemble([replace(setup, split=ood).scores() for setup in setups])
        metrics = replace(metrics, ood_auroc=ood_auroc(combined, ood_scores))
    if options.corruptions:
        from resnets.evaluation.corruptions import robustness  # here: torchvision delays a start

        rows = robustness(first.scores, first.model.metadata.arch.channels)
        metrics = replace(metrics, corruptions=tuple(rows))
    return metrics, [error_rate(one_model) for one_model in scores]


def evaluate_detectors(setups: Sequence[EvalSetup], options: EvaluateOptions) -> Measured:
    """Metrics of detectors as one; or of the second, compared with the first."""
    from resnets.evaluation import detection

    detection.import_coco()  # fails now, not after all images
    first, models = setups[0], [fold_norms(setup.model) for setup in setups]
    classes = first.model.metadata.classes
    if any(model.metadata.classes != classes for model in models):
        raise CheckpointError("the models' classes differ, or their order does")
    detections = [
        detection.detect(
            prepare_detector(members, options),
            first.split,
            models[0].loader_options(options.images_per_batch(4), options.workers),
            bfloat16=models[0].bfloat16,
        )
        for members in ([[model] for model in models] if options.compare else [models])
    ]
    check_read(detections[-1].unreadable, first)
    metrics = detection.evaluate_predictions(detections[-1], first.split, classes, first.split_name)
    if options.compare:
        before, after = detections
        comparison = detection.compare_detections(before, after, first.split, len(classes))
        metrics = replace(metrics, comparison=comparison)
    return metrics, [metrics.error if len(models) == 1 else None] * len(models)


def evaluate_localizer(setups: Sequence[EvalSetup], options: EvaluateOptions) -> Measured:
    """Both errors, with the classes of another model where one is given."""
    from resnets.evaluation import localization

    setup, model = only_setup(setups, "localize")
    predicted = None
    if options.classifier is not None:
        predicted = predict_five_classes(options.classifier, setup)
    network: Any = prepare_detector([model], options)
    metrics = localization.evaluate(
        network,
        setup.split,
        model.loader_options(options.images_per_batch(4), options.workers),
        predicted=predicted,
        name=setup.split_name,
        bfloat16=model.bfloat16,
    )
    check_read(metrics.unreadable, setup)
    return metrics, [metrics.error]


def evaluate_segmenter(setups: Sequence[EvalSetup], options: EvaluateOptions) -> Measured:
    """Mean IoU."""
    from resnets.evaluation import segmentation

    setup, model = only_setup(setups, "segment")
    metrics = segmentation.evaluate_split(
        model.network,
        setup.split,
        model.metadata.classes,
        model.loader_options(options.images_per_batch(4), options.workers),
        name=setup.split_name,
        bfloat16=model.bfloat16,
    )
    check_read(metrics.unreadable, setup)
    return metrics, [metrics.error]


def only_setup(setups: Sequence[EvalSetup], task: TaskName) -> tuple[EvalSetup, Model]:
    """The one setup, and its model with its normalisation folded. Raises UsageError for more."""
    if len(setups) > 1:
        raise UsageError(f"only detectors can form an ensemble: give one model to `resnets {task}`")
    return setups[0], fold_norms(setups[0].model)


def fold_norms(model: Model) -> Model:
    """The same model with its normalisation folded into the convolutions."""
    from resnets.models.fuse import fuse_conv_bn

    return replace(model, network=fuse_conv_bn(model.network))


def predict_five_classes(path: AnyModel, setup: EvalSetup) -> Tensor:
    """The classes that a classifier predicts: int64 (N, 5 or all), the best first.

    A foreign file, which names no classes, has to have the data's in their order. Raises
    CheckpointError where its classes are not those of the setup's localiser.
    """
    options, names = setup.options, setup.model.metadata.classes
    model = load_model(path, setup.source, replace(options, fields={}), "classify")
    if set(model.metadata.classes) != set(names):
        raise CheckpointError(f"{path} has other classes than the localiser")
    assert isinstance(setup.split.images, tuple)
    count = min(5, len(names))
    predictions = model.predict(setup.split.images, top=count, batch=options.images_per_batch(4))
    # An image that cannot be read is left out of the figures later.
    rows = [[names.index(name) for name in x.classes] or [0] * count for x in predictions]
    return torch.tensor(rows).view(-1, count)


def prepare_detector(models: Sequence[Model], options: InferenceOptions) -> Detect:
    """Detectors or a localiser as one, with the improvements that are asked for.

    Raises UsageError.
    """
    from resnets.evaluation.box_refinement import refined_detections
    from resnets.models.detection.faster_rcnn import FasterRCNN
    from resnets.models.localizer import Localizer

    networks = [model.network for model in models]
    if len(networks) == 1 and not options.refine:
        if isinstance(networks[0], Localizer):
            localizer = copy.copy(networks[0])  # the model's own keeps its scales
            localizer.scales = options.scales
            return localizer
        if options.scales == (1.0,):
            return cast("Detect", networks[0])
    two_stages = [network for network in networks if isinstance(network, FasterRCNN)]
    if len(two_stages) < len(networks):
        raise UsageError(
            "ensembles, --refine and --scales are for two-stage detectors, and --scales "
            "for localisers"
        )
    return refined_detections(two_stages, refine=options.refine, scales=options.scales)

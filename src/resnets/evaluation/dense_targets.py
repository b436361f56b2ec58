"""Detectors, localisers and segmenters tested on a split of a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor

from resnets.config.types import EvaluateOptions, InferenceOptions, TaskName
from resnets.data import dataset
from resnets.data.dataset import Source, Split
from resnets.errors import CheckpointError, NotFinite, UsageError
from resnets.evaluation.predictor import Model
from resnets.evaluation.targets import (
    AnyModel,
    LogAccess,
    check_read,
    check_same,
    held_out_split,
    load_model,
    model_path,
)

if TYPE_CHECKING:
    from resnets.evaluation.detection import Detect, DetectionMetrics
    from resnets.evaluation.loading import LoaderOptions
    from resnets.evaluation.localization import LocalizationMetrics
    from resnets.evaluation.segmentation import SegmentationMetrics


def loader_options(model: Model, how: InferenceOptions) -> LoaderOptions:
    """How the images of a detector, localiser or segmenter are read."""
    from resnets.evaluation.loading import LoaderOptions

    batch, workers = model.together(how.images_per_batch(4)), how.workers
    preprocess, device = model.metadata.preprocess, model.device
    return LoaderOptions(preprocess=preprocess, device=device, batch=batch, workers=workers)


def fold_norms(model: Model) -> Model:
    """The same model with its normalisation folded into the convolutions."""
    from resnets.models.fuse import fuse_conv_bn

    return replace(model, network=fuse_conv_bn(model.network))


DenseMetrics = TypeVar(
    "DenseMetrics", "DetectionMetrics", "LocalizationMetrics", "SegmentationMetrics"
)


@dataclass(frozen=True)
class DenseTargets:
    """Detectors, localisers or segmenters, and the split that they are tested on."""

    models: Sequence[Model]
    source: Source
    split: Split
    name: str  # of the split
    how: InferenceOptions
    options: EvaluateOptions

    def only(self, task: TaskName) -> Model:
        """The one model. Raises UsageError for more."""
        if len(self.models) > 1:
            raise UsageError(f"only detectors make an ensemble: one model for `resnets {task}`")
        return self.models[0]


def evaluate_dense(
    task: TaskName,
    test: Callable[[DenseTargets], DenseMetrics],
    paths: Sequence[AnyModel],
    data: Any,
    how: InferenceOptions,
    options: EvaluateOptions,
    log: LogAccess,
) -> DenseMetrics:
    """`api.evaluate` for models of a task that `test` gives the figures of."""
    with name_model_in_errors(*paths):
        source = dataset.load(data, max_unreadable=how.max_unreadable, task=task)
        models = [fold_norms(load_model(path, source, how, task)) for path in paths]
        splits = [
            held_out_split(path, model, source, how.split)
            for path, model in zip(paths, models, strict=True)
        ]
        check_same(splits)
        split, name = splits[0], how.split or "test"
        result = test(DenseTargets(models, source, split, name, how, options))
        check_read(result.unreadable, len(split), how.max_unreadable, f"{name} split of {data}")
        for path in paths:  # of one among several there is no error by itself
            log(model_path(path), source.digest, name, result.error if len(paths) == 1 else None)
    return result


@contextmanager
def name_model_in_errors(*paths: AnyModel) -> Iterator[None]:
    """Names the models whose answers are not finite."""
    try:
        yield
    except NotFinite:
        raise NotFinite(" or ".join(map(str, paths))) from None


def predict_five_classes(
    path: AnyModel, split: Split, source: Source, names: tuple[str, ...], how: InferenceOptions
) -> Tensor:
    """The classes that a classifier predicts: int64 (N, 5 or all), the best first.

    A foreign file, which names no classes, has to have the data's in their order. Raises
    CheckpointError where its classes are not `names`.
    """
    model = load_model(path, source, replace(how, fields={}), "classify")
    if set(model.metadata.classes) != set(names):
        raise CheckpointError(f"{path} knows other classes than the localiser")
    assert isinstance(split.images, tuple)
    count = min(5, len(names))
    answers = model.predict(split.images, top=count, batch=how.images_per_batch(4))
    # An image that cannot be read is left out of the figures later.
    rows = [[names.index(name) for name in one.classes] or [0] * count for one in answers]
    return torch.tensor(rows).view(-1, count)


def prepare_detector(models: Sequence[Model], how: InferenceOptions) -> Detect:
    """Detectors or a localiser as one, with the improvements that are asked for.

    Raises UsageError.
    """
    from resnets.evaluation.box_refinement import refined_detections
    from resnets.models.detection.faster_rcnn import FasterRCNN
    from resnets.models.localizer import Localizer

    networks = [model.network for model in models]
    first, *more = networks
    if not more and not how.refine and isinstance(first, Localizer):
        first.scales = how.scales
        return first
    if not more and not how.refine and how.scales == (1.0,):
        return cast("Detect", first)
    two_stages = [network for network in networks if isinstance(network, FasterRCNN)]
    if len(two_stages) < len(networks):
        raise UsageError(
            "ensembles, --refine and --scales are for detectors in two stages, and --scales "
            "for localisers"
        )
    return refined_detections(two_stages, refine=how.refine, scales=how.scales)


def test_detectors(target: DenseTargets) -> DetectionMetrics:
    """Figures of detectors as one, or where that is asked of the second against the first."""
    from resnets.evaluation import detection

    detection.import_coco()  # is missed now, not after all images
    models, split, how = target.models, target.split, target.how
    first, compare = models[0], target.options.compare
    if any(model.metadata.classes != first.metadata.classes for model in models):
        raise CheckpointError("the models know different classes, or in another order")
    detections = [
        detection.detect(
            prepare_detector(some, how), split, loader_options(first, how), bfloat16=first.bfloat16
        )
        for some in ([[model] for model in models] if compare else [models])
    ]
    figures = detection.evaluate_predictions(
        detections[-1], split, first.metadata.classes, target.name
    )
    if not compare:
        return figures
    change = detection.compare_detections(
        detections[0], detections[1], split, len(first.metadata.classes)
    )
    return replace(figures, comparison=change)


def test_localizer(target: DenseTargets) -> LocalizationMetrics:
    """Both errors, with the classes of another model where one is given."""
    from resnets.evaluation import localization

    model, predicted = target.only("localize"), None
    network: Any = prepare_detector([model], target.how)
    if target.options.classifier is not None:
        predicted = predict_five_classes(
            target.options.classifier,
            target.split,
            target.source,
            model.metadata.classes,
            target.how,
        )
    return localization.evaluate(
        network,
        target.split,
        loader_options(model, target.how),
        predicted=predicted,
        name=target.name,
        bfloat16=model.bfloat16,
    )


def test_segmenter(target: DenseTargets) -> SegmentationMetrics:
    """Mean IoU."""
    from resnets.evaluation import segmentation

    model = target.only("segment")
    return segmentation.evaluate_split(
        model.network,
        target.split,
        model.metadata.classes,
        loader_options(model, target.how),
        name=target.name,
        bfloat16=model.bfloat16,
    )

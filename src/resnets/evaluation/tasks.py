"""What differs between tasks in evaluation and prediction: one table of functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from torch import Tensor

from resnets.config.types import EvaluateOptions, TaskName
from resnets.evaluation import classification, detection, localization, segmentation
from resnets.evaluation.classification import ClassificationMetrics, Prediction
from resnets.evaluation.detection import DetectionMetrics, DetectionPrediction
from resnets.evaluation.localization import LocalizationMetrics, LocalizationPrediction
from resnets.evaluation.segmentation import SegmentationMetrics, SegmentationPrediction

if TYPE_CHECKING:  # these modules import the table
    from resnets.evaluation.evaluate import EvalSetup
    from resnets.evaluation.predictor import Model

AnyPrediction: TypeAlias = (
    Prediction | DetectionPrediction | LocalizationPrediction | SegmentationPrediction
)
Metrics: TypeAlias = (
    ClassificationMetrics | DetectionMetrics | LocalizationMetrics | SegmentationMetrics
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFunctions:
    """How models of a task are evaluated, and how they predict."""

    # The metrics of models together, and the error of each by itself, where there is one.
    evaluate: Callable[
        [Sequence[EvalSetup], EvaluateOptions], tuple[Metrics, Sequence[float | None]]
    ]
    ensembles: bool = False  # whether `evaluate` takes more than one model
    # Of a model for named images: its `top` classes, or what has a `score` so high.
    predict: Callable[[Model, Sequence[str], Sequence[Tensor], int, float], Sequence[AnyPrediction]]
    # Whether `predict` gets one image as it is, uint8 (C, H, W), or the test-time views of a batch,
    # uint8 (C, size, size) each.
    whole_images: bool = True
    prediction: type[AnyPrediction]  # with the `problem` of an image that cannot be read


TASKS: dict[TaskName, TaskFunctions] = {
    "classify": TaskFunctions(
        evaluate=classification.evaluate_classifiers,
        ensembles=True,
        predict=classification.predict,
        prediction=Prediction,
        whole_images=False,
    ),
    "detect": TaskFunctions(
        evaluate=detection.evaluate_detectors,
        ensembles=True,
        predict=detection.predict,
        prediction=DetectionPrediction,
    ),
    "localize": TaskFunctions(
        evaluate=localization.evaluate_localizer,
        predict=localization.predict,
        prediction=LocalizationPrediction,
    ),
    "segment": TaskFunctions(
        evaluate=segmentation.evaluate_segmenter,
        predict=segmentation.predict,
        prediction=SegmentationPrediction,
    ),
}

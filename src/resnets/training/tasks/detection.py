"""Detection: boxes of objects and their classes, with masks where the data has them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

from resnets.config.tasks import DETECT
from resnets.data.dataset import Split
from resnets.evaluation import detection
from resnets.evaluation.detection import DetectionMetrics
from resnets.evaluation.detections import concatenate, import_coco, save
from resnets.evaluation.evaluate import evaluate
from resnets.evaluation.predictor import Model
from resnets.models import Network
from resnets.training.plan import Plan, Stopped
from resnets.training.tasks import dense

DETECTIONS = "detections.safetensors"


def validate(plan: Plan, network: Network, split: Split, stopped: Stopped) -> dict[str, float]:
    """COCO's averages over what all ranks find; one that is undefined is left out."""
    loader = plan.loader_options(plan.world, stopped)
    mine = detection.detect(cast(Any, network), split, loader, bfloat16=plan.bfloat16)
    predictions = concatenate(plan.world.gather(mine))
    if stopped():
        return {"error": 1.0}
    figures = detection.evaluate_predictions(predictions, split, plan.source.classes)
    averages = {"map": figures.map, "map50": figures.map50}
    if figures.masks:
        averages["mask_map"] = figures.masks.map
    defined = {name: value for name, value in averages.items() if value is not None}
    return {"error": figures.error, **defined}


def test(folder: Path, plan: Plan, model: Model, split: Split, name: str) -> DetectionMetrics:
    """COCO's figures and VOC's of the predictions, which are kept in the folder."""
    options = plan.loader_options()
    predictions = detection.detect(cast(Any, model.network), split, options)
    save(folder / DETECTIONS, predictions)
    return detection.evaluate_predictions(predictions, split, plan.source.classes, name)


DETECTION = dense.dense_task(
    text=DETECT,
    default_recipe=partial(dense.default_recipe, "detect", "fasterrcnn_resnet50_fpn"),
    validate=validate,
    test=test,
    details=DETECTIONS,
    require=import_coco,
    evaluate=partial(evaluate, "detect"),
)

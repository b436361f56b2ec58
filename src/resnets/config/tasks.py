"""What the tasks and their figures are called: for commands, messages and reports; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskText:
    """Names and sentences of a task. Names in braces and keys of `figures` are in result.json."""

    name: str
    does: str  # before "images"
    error: str
    figures: dict[str, tuple[str, str]]  # name and meaning
    headline: str
    detail: str = "{images} images say so."
    command: str = ""  # what its commands begin with after `resnets`: its group and a blank
    help: str = ""  # of the group
    data_help: str = ""
    predict_help: str = "Draw predictions on images, and write them as COCO JSON or as masks."
    # The arguments of `evaluate` and `predict` that it has, of those that not every task has.
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    pipeline: str = "other"  # its name on a model hub
    metrics: dict[str, str] = field(default_factory=dict)  # a hub's name: figure
    thresholds: tuple[str, ...] = ()  # figures that --fail-under takes: the larger, the better
    others: str = "What it was not trained on gets an answer too."  # of no known class
    balance: str = "more of the latter"  # what helps against classes of very different size


CLASSIFY = TaskText(
    name="classify",
    pipeline="image-classification",
    does="names what is on",
    error="wrong answers",
    others="An image of something else gets the name of one of these classes too.",
    balance="class_weights=balanced",
    options={
        "evaluate": ("view", "compare", "at_precision", "ood", "corruptions", "size"),
        "predict": ("top",),
    },
    predict_help="Classify images: files, folders, patterns, or - for an image on standard input.",
    thresholds=("top1", "top5", "balanced_accuracy", "macro_f1", "mean_average_precision"),
    metrics={"accuracy": "top1", "f1": "macro_f1"},
    figures={
        "top1": ("Accuracy", "the answer is the label, or exactly the labels"),
        "top5": ("Top-5 accuracy", "a label is among the five most probable classes"),
        "balanced_accuracy": ("Balanced accuracy", "mean recall: each class counts the same"),
        "macro_f1": ("Macro F1", "mean over classes of precision and recall in one"),
        "mean_average_precision": ("Mean average precision", "area under precision over recall"),
        "ece": ("Calibration error", "mean distance of confidence and accuracy, 15 bins"),
    },
    headline="{model} answers {top1} of {where} right.",
    detail="{images} images say so; with 95 % confidence (Wilson) it is {top1_interval_95}.",
)
DENSE_OTHERS = "What is of another class is not found, or taken for one of these."
DETECT = TaskText(
    name="detect",
    command="detect ",
    help="Detect objects: boxes, and masks where the data has them.",
    data_help="COCO, PASCAL VOC, YOLO, or a CSV of boxes.",
    options={
        "evaluate": ("compare", "refine", "scales"),
        "predict": ("score", "out", "workers", "refine", "scales"),
    },
    pipeline="object-detection",
    does="finds and names objects on",
    error="1 - mAP at IoU 0.5",
    others=DENSE_OTHERS,
    thresholds=("map", "map50", "map75", "voc", "voc07", "recall_100"),
    metrics={"mAP50": "map50", "mAP": "map", "mask_mAP": "mask_map"},
    figures={
        "map50": ("mAP at IoU 0.5", "a box has to overlap its object by half"),
        "map": ("mAP", "mean over IoU 0.5, 0.55, ... 0.95, as of COCO"),
        "map_small": ("mAP of small objects", "less than 32 x 32 pixels"),
        "map_medium": ("mAP of medium objects", "up to 96 x 96 pixels"),
        "map_large": ("mAP of large objects", "more than that"),
        "mask_map50": ("mAP of masks at IoU 0.5", "a mask has to overlap its object by half"),
        "mask_map": ("mAP of masks", "mean over IoU as mAP"),
    },
    headline="{model} finds the objects on {where} with a mAP of {map50}.",
    detail="A box is right if it overlaps an object of its class by half (IoU 0.5); asked for "
    "more, IoU 0.5 to 0.95, mAP is {map}. {objects} objects on {images} images say so. As VOC "
    "counts at IoU 0.5, mAP is {voc}, with 95 % confidence {voc_interval_95} (bootstrap).",
)
LOCALIZE = TaskText(
    name="localize",
    command="localize ",
    help="Locate the one object of an image, with or without its class.",
    data_help="COCO, PASCAL VOC, YOLO, or a CSV of boxes, with one object an image.",
    options={
        "evaluate": ("classifier", "refine", "scales"),
        "predict": ("score", "out", "workers", "refine", "scales"),
    },
    pipeline="object-detection",
    does="finds and names the one object on",
    error="localisation error",
    others=DENSE_OTHERS,
    thresholds=("accuracy", "top5_accuracy"),
    metrics={"localization_error": "error", "top5_localization_error": "top5_error"},
    figures={
        "error": ("Localisation error", "told the class, its box is off: IoU below 0.5"),
        "top5_error": ("Top-5 localisation error", "no right class of five with its box"),
    },
    headline="{model} misses the object on {error} of {where}.",
    detail="It is told the class, and its box has to overlap the object by half (IoU 0.5). "
    "{images} images say so; with 95 % confidence (Wilson) it is {error_interval_95}. By five "
    "classes of its own it misses {top5_error} ({top5_interval_95}).",
)
SEGMENT = TaskText(
    name="segment",
    command="segment ",
    help="Assign a class to each pixel.",
    data_help="A folder of images and masks.",
    options={"predict": ("score", "out", "workers")},
    pipeline="image-segmentation",
    does="gives each pixel its class on",
    error="1 - mean IoU",
    others=DENSE_OTHERS,
    thresholds=("mean_iou", "pixel_accuracy"),
    metrics={"mean_iou": "mean_iou"},
    figures={
        "mean_iou": ("Mean IoU", "mean over classes of intersection / union"),
        "pixel_accuracy": ("Pixel accuracy", "pixels that are given their class"),
    },
    headline="{model} gives the pixels of {where} their class with a mean IoU of {mean_iou}.",
    detail="IoU is the part where truth and answer agree, of all pixels that either says are of "
    "a class; its mean is over classes. {pixel_accuracy} of the pixels of {images} images are "
    "right.",
)
TASK_TEXTS: dict[str, TaskText] = {
    text.name: text for text in (CLASSIFY, DETECT, LOCALIZE, SEGMENT)
}


def tasks_with(function: str, option: str) -> list[str]:
    """The tasks that have an argument of `evaluate` or `predict` that not every task has."""
    return [t.name for t in TASK_TEXTS.values() if option in t.options.get(function, ())]


def missing_options(function: str, text: TaskText) -> list[str]:
    """The arguments of `evaluate` or `predict` that other tasks have, and this one does not."""
    every = {name for other in TASK_TEXTS.values() for name in other.options.get(function, ())}
    return sorted(every - {*text.options.get(function, ())})

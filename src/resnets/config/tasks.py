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
    detail: str = "Tested on {images}."
    command: str = ""  # what its commands begin with after `resnets`: its group and a blank
    help: str = ""  # of the group
    data_help: str = ""
    predict_help: str = "Draw predictions on images, and write them as COCO JSON or as masks."
    # The arguments of `evaluate` and `predict` that it has, of those that not every task has.
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    pipeline: str = "other"  # its name on a model hub
    metrics: dict[str, str] = field(default_factory=dict)  # a hub's name: figure
    thresholds: tuple[str, ...] = ()  # figures that --fail-under takes: the larger, the better
    others: str = "Images unlike those of the training get a prediction too."
    balance: str = "more of the latter"  # what helps against classes of very different size


CLASSIFY = TaskText(
    name="classify",
    pipeline="image-classification",
    does="classifies",
    error="wrong predictions",
    others="An image of something else is classified as one of these classes too.",
    balance="class_weights=balanced",
    options={
        "evaluate": ("view", "compare", "at_precision", "ood", "corruptions", "size", "crop"),
        "predict": ("top", "crop"),
    },
    predict_help="Classify images: files, folders, patterns, or - for an image on standard input.",
    thresholds=("top1", "top5", "balanced_accuracy", "macro_f1", "mean_average_precision"),
    metrics={"accuracy": "top1", "f1": "macro_f1"},
    figures={
        "top1": ("Accuracy", "the prediction is the label, or exactly the labels"),
        "top5": ("Top-5 accuracy", "a label is among the five most probable classes"),
        "balanced_accuracy": ("Balanced accuracy", "mean recall: each class counts the same"),
        "macro_f1": ("Macro F1", "mean over classes of precision and recall in one"),
        "mean_average_precision": ("Mean average precision", "area under precision over recall"),
        "ece": ("Calibration error", "mean distance of confidence and accuracy, 15 bins"),
    },
    headline="{model} classifies {top1} of {where} correctly.",
    detail="Tested on {images}; the 95 % confidence interval (Wilson) is {top1_interval_95}.",
)
DENSE_OTHERS = "Objects of other classes are missed, or taken for one of these."
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
    does="detects objects in",
    error="1 - mAP at IoU 0.5",
    others=DENSE_OTHERS,
    thresholds=("map", "map50", "map75", "voc", "voc07", "recall_100"),
    metrics={"mAP50": "map50", "mAP": "map", "mask_mAP": "mask_map"},
    figures={
        "map50": ("mAP at IoU 0.5", "a box is correct from IoU 0.5 on"),
        "map": ("mAP", "mean over IoU 0.5, 0.55, ... 0.95, as in COCO"),
        "map_small": ("mAP of small objects", "less than 32 x 32 pixels"),
        "map_medium": ("mAP of medium objects", "up to 96 x 96 pixels"),
        "map_large": ("mAP of large objects", "more than that"),
        "mask_map50": ("mAP of masks at IoU 0.5", "a mask is correct from IoU 0.5 on"),
        "mask_map": ("mAP of masks", "mean over IoU as mAP"),
    },
    headline="{model} finds the objects in {where} with an mAP of {map50}.",
    detail="A box is correct if its IoU with an object of its class is at least 0.5; averaged over "
    "IoU 0.5 to 0.95 the mAP is {map}. Tested on {objects} in {images}. PASCAL "
    "VOC's mAP at IoU 0.5 is {voc} (95 % confidence interval by bootstrap: {voc_interval_95}).",
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
    does="localises the one object in",
    error="localisation error",
    others=DENSE_OTHERS,
    thresholds=("accuracy", "top5_accuracy"),
    metrics={"localization_error": "error", "top5_localization_error": "top5_error"},
    figures={
        "error": ("Localisation error", "the box for the given class has an IoU below 0.5"),
        "top5_error": (
            "Top-5 localisation error",
            "none of five predicted classes has a right box",
        ),
    },
    headline="{model} misses the object in {error} of {where}.",
    detail="The class is given, and the IoU of box and object has to be at least 0.5. Tested on "
    "{images}; the 95 % confidence interval (Wilson) is {error_interval_95}. With five "
    "predicted classes instead it misses {top5_error} ({top5_interval_95}).",
)
SEGMENT = TaskText(
    name="segment",
    command="segment ",
    help="Assign a class to each pixel.",
    data_help="A folder of images and masks.",
    options={"predict": ("score", "out", "workers")},
    pipeline="image-segmentation",
    does="segments",
    error="1 - mean IoU",
    others=DENSE_OTHERS,
    thresholds=("mean_iou", "pixel_accuracy"),
    metrics={"mean_iou": "mean_iou"},
    figures={
        "mean_iou": ("Mean IoU", "mean over classes of intersection / union"),
        "pixel_accuracy": ("Pixel accuracy", "pixels whose predicted class is right"),
    },
    headline="{model} segments {where} with a mean IoU of {mean_iou}.",
    detail="IoU is the intersection of the true and the predicted pixels of a class over their "
    "union; the mean is over classes. Tested on {images}, of whose pixels {pixel_accuracy} "
    "are right.",
)
TASK_TEXTS: dict[str, TaskText] = {
    text.name: text for text in (CLASSIFY, DETECT, LOCALIZE, SEGMENT)
}


def tasks_with(function: str, option: str) -> list[str]:
    """The tasks that have an argument of `evaluate` or `predict` that not every task has."""
    return [t.name for t in TASK_TEXTS.values() if option in t.options.get(function, ())]


def missing_options(function: str, text: TaskText) -> list[str]:
    """The arguments of `evaluate` or `predict` that other tasks have, and this one does not."""
    known = {name for other in TASK_TEXTS.values() for name in other.options.get(function, ())}
    return sorted(known - {*text.options.get(function, ())})

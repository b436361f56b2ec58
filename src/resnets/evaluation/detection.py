"""Detection: what a network finds on images, and every figure of it."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from resnets.config.types import EvaluateOptions, InferenceOptions
from resnets.data.splits import Split
from resnets.errors import CheckpointError, UsageError, quantify
from resnets.evaluation import voc
from resnets.evaluation.coco import CocoMetrics, coco_metrics
from resnets.evaluation.detections import (
    NO_DETECTIONS,
    Detect,
    SplitDetections,
    concatenate,
    import_coco,
    paste_mask,
)
from resnets.evaluation.diagnosis import diagnose
from resnets.evaluation.intervals import percentile_interval
from resnets.evaluation.loader import LoaderOptions, split_of_image
from resnets.models.detection.boxes import BatchDetections, clip

if TYPE_CHECKING:  # these modules import this one
    from resnets.evaluation.evaluate import EvalSetup
    from resnets.evaluation.predictor import Model


@torch.inference_mode()
def detect(
    network: Detect, split: Split, loader: LoaderOptions, *, bfloat16: bool = False
) -> SplitDetections:
    """Detections of a network in evaluation mode; each rank has a share, see `concatenate`.

    Raises as `test_batches`, and MissingPackage for masks.
    """
    start, shares = time.monotonic(), [NO_DETECTIONS]
    for batch, sizes, file_sizes in loader.sized_batches(split):
        share = replace(NO_DETECTIONS, indices=batch.indices, unreadable=batch.unreadable)
        if len(file_sizes):
            with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=bfloat16):
                output = network(batch.images, sizes=sizes)
            share = replace(share, **in_files(output, batch.indices, sizes.cpu(), file_sizes))
        shares.append(share)
    return replace(concatenate(shares), seconds=time.monotonic() - start)


def in_files(
    output: BatchDetections, indices: Tensor, sizes: Tensor, file_sizes: Tensor
) -> dict[str, Any]:
    """The detections of a batch as fields of `SplitDetections`, in pixels of the files.

    The images have `indices` in their split, and their `sizes` in the batch and `file_sizes`.
    """
    classes = output.classes.cpu()
    valid = classes >= 0
    rows = valid.nonzero()[:, 0]
    boxes = boxes_in_files(output, sizes, file_sizes)[valid]
    masks = None
    if output.masks is not None:
        columns = output.masks.float().cpu()[valid], boxes, file_sizes[rows].tolist()
        triples = zip(*columns, strict=True)
        masks = tuple(paste_mask(mask, box, *size) for mask, box, size in triples)
    return {
        "images": indices[rows],
        "classes": classes[valid],
        "scores": output.scores.float().cpu()[valid],
        "boxes": boxes,
        "masks": masks,
    }


def boxes_in_files(output: BatchDetections, sizes: Tensor, file_sizes: Tensor) -> Tensor:
    """The boxes in pixels of the files, on the CPU: (B, D, 4)."""
    scale = (file_sizes / sizes).flip(1).repeat(1, 2)[:, None]
    return clip(output.boxes.float().cpu() * scale, file_sizes)


@dataclass(frozen=True)
class DetectionComparison:
    """A second detector against a first on the same images."""

    images: int
    difference: float  # of `DetectionMetrics.voc`, the second minus the first
    interval: tuple[float, float]  # of it, 95 %, images drawn in pairs

    @property
    def text(self) -> str:
        """One line."""
        low, high = (f"{100 * x:+.2f}" for x in self.interval)
        return (
            f"the second detector against the first: {100 * self.difference:+.2f} points of VOC's "
            f"mAP at IoU 0.5 ({low} to {high} at 95 % by bootstrap)"
        )


@dataclass(frozen=True)
class DetectionMetrics(CocoMetrics):
    """Figures of a detector's boxes on one split. Objects that are ignored do not count."""

    images: int
    objects: int  # that are not ignored
    voc: float  # mAP at IoU 0.5 as in VOC 2010, of all points
    voc07: float  # of eleven points
    interval: tuple[float, float]  # 95 %, of `voc` over the images
    counts: tuple[tuple[int, int], ...]  # of each class: images that have it, objects
    classes: tuple[str, ...]
    masks: CocoMetrics | None  # where the network and the data have masks
    why: str  # a diagnosis, where almost nothing is right
    unreadable: tuple[tuple[Path, str], ...]
    split: str
    comparison: DetectionComparison | None = None  # with another detector, where that was asked for

    @property
    def error(self) -> float:
        """1 - mAP at IoU 0.5, which is 0 without objects."""
        return 1 - (self.map50 or 0.0)

    def per_class(self) -> list[dict[str, Any]]:
        """Images, objects and average precision of each class."""
        columns = {"ap": self.ap, "ap50": self.ap50}
        if self.masks:
            columns |= {"mask_ap": self.masks.ap, "mask_ap50": self.masks.ap50}
        return [
            {"class": self.classes[k], "images": images, "objects": objects}
            | {name: column[k] for name, column in columns.items()}
            for k, (images, objects) in enumerate(self.counts)
        ]

    def headline(self) -> str:
        """The averages in a line; a diagnosis where almost nothing is right."""
        low, high = self.interval
        masks = f", of masks {_decimal(self.masks.map)}" if self.masks else ""
        return (
            f"{self.split} mAP {_decimal(self.map)}{masks}; at IoU 0.5 {_decimal(self.map50)}, "
            f"as of VOC {_decimal(self.voc)} ({low:.4f} to {high:.4f} at 95 % by bootstrap), "
            f"{quantify(self.objects, 'objects')} on {quantify(self.images, 'images')}"
            + f". {self.why}" * bool(self.why)
            + (f". {self.comparison.text}" if self.comparison else "")
        )

    def summary(self) -> dict[str, Any]:
        """The stable JSON form."""
        return {
            "split": self.split,
            "images": self.images,
            "objects": self.objects,
            "error": round(self.error, 6),
            **self.numbers(),
            "voc_interval_95": [round(x, 6) for x in self.interval],
            "masks": self.masks and self.masks.numbers(),
            "why": self.why,
            **({"comparison": asdict(self.comparison)} if self.comparison else {}),
            "unreadable": [str(path) for path, _ in self.unreadable],
            "per_class": self.per_class(),
        }


def _decimal(mean: float | None) -> str:
    return "-" if mean is None else f"{mean:.4f}"


def evaluate_predictions(
    detections: SplitDetections, split: Split, classes: tuple[str, ...], name: str = "test"
) -> DetectionMetrics:
    """All figures of the evaluated images. Raises MissingPackage."""
    flags = voc.flags(detections, split, len(classes))
    boxes = coco_metrics(detections, split, "bbox", len(classes))
    has_masks = bool(split.masks) and detections.masks is not None
    images, objects = (x.sum(0).astype(int).tolist() for x in (flags.objects > 0, flags.objects))
    return DetectionMetrics(
        **vars(boxes),
        images=len(detections.indices),
        objects=sum(objects),
        voc=voc.all_points(flags),
        voc07=voc.eleven_points(flags),
        interval=percentile_interval(voc.bootstrap_map(flags)),
        counts=tuple(zip(images, objects, strict=True)),
        classes=classes,
        masks=coco_metrics(detections, split, "segm", len(classes)) if has_masks else None,
        why=diagnose(detections, split, classes) if (boxes.map50 or 0) < 0.01 else "",
        unreadable=detections.unreadable,
        split=name,
    )


def compare_detections(
    first: SplitDetections, second: SplitDetections, split: Split, num_classes: int
) -> DetectionComparison:
    """The gain of the second. Raises UsageError where they are of different images."""
    if not torch.equal(first.indices, second.indices):
        raise UsageError("the detections are of different images: use the same split for both")
    before, after = (voc.flags(detections, split, num_classes) for detections in (first, second))
    return DetectionComparison(
        images=len(first.indices),
        difference=voc.all_points(after) - voc.all_points(before),
        interval=percentile_interval(voc.bootstrap_map(after) - voc.bootstrap_map(before)),
    )


@dataclass(frozen=True, eq=False)
class DetectionPrediction:
    """The objects on one image, best first; or the `problem` of an unreadable one."""

    file: str
    # float32 (D, 4): x1, y1, x2, y2 in pixels of the image
    boxes: Tensor = field(default_factory=lambda: torch.empty(0, 4))
    labels: tuple[str, ...] = ()  # a name for each box
    scores: tuple[float, ...] = ()  # of each box, in 0..1
    masks: Tensor | None = None  # bool (D, H, W), of a network that draws masks
    problem: str | None = None


def predict(
    model: Model, files: Sequence[str], images: Sequence[Tensor], top: int, score: float
) -> list[DetectionPrediction]:
    """The objects on images, uint8 (C, H, W), that have a `score` so high."""
    names, predictions = model.metadata.classes, []
    for file, image in zip(files, images, strict=True):
        output, boxes = find_boxes(model, image)
        classes, scores = output.classes[0].cpu(), output.scores[0].float().cpu()
        kept = (classes >= 0) & (scores >= score)
        masks = None
        if output.masks is not None:
            from torchvision.models.detection.roi_heads import paste_masks_in_image

            in_boxes = output.masks[0].float().cpu()[kept][:, None]
            masks = paste_masks_in_image(in_boxes, boxes[kept], image.shape[1:])[:, 0] > 0.5
        labels, best = tuple(names[k] for k in classes[kept].tolist()), scores[kept].tolist()
        predictions.append(DetectionPrediction(file, boxes[kept], labels, tuple(best), masks))
    return predictions


def find_boxes(model: Model, image: Tensor) -> tuple[BatchDetections, Tensor]:
    """The output of a network for one image, uint8 (C, H, W), and boxes in its pixels (D, 4)."""
    ((batch, sizes, file_sizes),) = model.loader_options(1).sized_batches(split_of_image(image))
    network = cast("Detect", model.network)
    with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=model.bfloat16):
        output = network(batch.images, sizes=sizes)
    return output, boxes_in_files(output, sizes.cpu(), file_sizes)[0]


def evaluate_detectors(
    setups: Sequence[EvalSetup], options: EvaluateOptions
) -> tuple[DetectionMetrics, list[float | None]]:
    """Metrics of detectors as one; or of the second, compared with the first."""
    import_coco()  # fails now, not after all images
    first, models = setups[0], [setup.model.fold_norms() for setup in setups]
    classes = first.model.metadata.classes
    if any(model.metadata.classes != classes for model in models):
        raise CheckpointError("the models' classes differ, or their order does")
    detections = [
        detect(
            prepare_detector(members, options),
            first.split,
            models[0].loader_options(options.images_per_batch(4), options.workers),
            bfloat16=models[0].bfloat16,
        )
        for members in ([[model] for model in models] if options.compare else [models])
    ]
    first.check_unreadable(detections[-1].unreadable)
    metrics = evaluate_predictions(detections[-1], first.split, classes, first.split_name)
    if options.compare:
        before, after = detections
        comparison = compare_detections(before, after, first.split, len(classes))
        metrics = replace(metrics, comparison=comparison)
    return metrics, [metrics.error if len(models) == 1 else None] * len(models)


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

"""Detections of a network on a split, and every figure of them, computed without the images."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from resnets.data.splits import Shape, Split
from resnets.errors import MissingPackage, UsageError, quantify
from resnets.evaluation import voc
from resnets.evaluation.diagnosis import diagnose
from resnets.evaluation.intervals import percentile_interval
from resnets.evaluation.loader import LoaderOptions
from resnets.evaluation.predictions import NO_DETECTIONS, Rle, SplitDetections, concatenate
from resnets.models.detection.boxes import clip

if TYPE_CHECKING:  # torchvision takes 1.7 s to import
    from resnets.models.detection.boxes import BatchDetections


class Detect(Protocol):
    """A detector, or a procedure that is used like one."""

    def __call__(self, images: Tensor, *, sizes: Tensor) -> BatchDetections: ...


@torch.inference_mode()
def detect(
    network: Detect,
    split: Split,
    loader: LoaderOptions,
    *,
    bfloat16: bool = False,
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
    scale = (file_sizes / sizes).flip(1).repeat(1, 2)[:, None]
    boxes = clip(output.boxes.float().cpu() * scale, file_sizes)[valid]
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


def import_coco() -> Any:
    """The package for COCO's metrics and masks. Raises MissingPackage."""
    try:
        import faster_coco_eval
    except ImportError:
        raise MissingPackage(
            'figures and masks of objects need faster-coco-eval: pip install "resnets[detect]"'
        ) from None
    return faster_coco_eval


def paste_mask(mask: Tensor, box: Tensor, height: int, width: int) -> Rle:
    """Where a mask (28, 28), 0..1 inside its box (4,), is above 0.5 in an image.

    The pixels are those of torchvision's `paste_masks_in_image`. Raises MissingPackage.
    """
    side = mask.shape[0]
    half = (box[2:] - box[:2]) * 0.5 * ((side + 2) / side)
    center = (box[2:] + box[:2]) * 0.5
    x1, y1, x2, y2 = torch.cat([center - half, center + half]).long().tolist()
    padded, sides = F.pad(mask, (1, 1, 1, 1))[None, None], (y2 - y1 + 1, x2 - x1 + 1)
    enlarged = F.interpolate(padded, sides, mode="bilinear", align_corners=False)[0, 0]
    left, top = max(0, x1), max(0, y1)
    inside = enlarged[top - y1 : height - y1, left - x1 : width - x1] > 0.5
    # Run lengths go down the image's columns; only pixels inside of the box are counted.
    x, y = inside.T.numpy().nonzero()
    positions = (left + x) * height + top + y
    ends = np.flatnonzero(np.diff(positions, prepend=-2, append=height * width + 1) != 1)
    runs = np.stack([positions[ends[:-1]], positions[ends[1:] - 1] + 1], 1).ravel()
    counts = np.trim_zeros(np.diff(runs, prepend=0, append=height * width), "b").tolist()
    encoded = import_coco().mask.frPyObjects(
        {"counts": counts, "size": [height, width]}, height, width
    )
    return height, width, encoded["counts"]


@dataclass(frozen=True)
class CocoMetrics:
    """COCO's twelve and what they are of each class; None where there is no such object.

    Small objects have less than 32^2 pixels, large ones more than 96^2: of the mask, or without
    masks of the box. Recalls are of 1, 10 and 100 detections of a class in an image.
    """

    map: float | None  # mean over the classes and the IoU 0.5, 0.55, ... 0.95
    map50: float | None
    map75: float | None
    map_small: float | None
    map_medium: float | None
    map_large: float | None
    recall_1: float | None
    recall_10: float | None
    recall_100: float | None
    recall_small: float | None
    recall_medium: float | None
    recall_large: float | None
    ap: tuple[float | None, ...]  # of each class, as `map`
    ap50: tuple[float | None, ...]
    # of each class at IoU 0.5 and a recall of 0, 0.01, ... 1; empty where it does not occur
    precision: tuple[tuple[float, ...], ...]

    def numbers(self) -> dict[str, float | None]:
        """The figures that are one number."""
        numbers = {k: v for k, v in vars(self).items() if isinstance(v, float | None)}
        return {k: None if value is None else round(value, 6) for k, value in numbers.items()}


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


def coco_metrics(
    detections: SplitDetections, split: Split, kind: Literal["bbox", "segm"], num_classes: int
) -> CocoMetrics:
    """COCO's figures of boxes or of masks, those of pycocotools. Raises MissingPackage."""
    package = import_coco()
    ground_truth = package.COCO(coco_ground_truth(detections.indices, split, num_classes))
    results = ground_truth.loadRes(coco_results(detections, masks=kind == "segm"))
    test = package.COCOeval_faster(ground_truth, results, kind)
    test.run()
    # (IoU, recall, class), of objects of all sizes and 100 detections
    precision = test.eval["precision"][..., 0, 2]
    per_class = [precision[..., k] if precision[0, 0, k] >= 0 else None for k in range(num_classes)]
    names = (field.name for field in fields(CocoMetrics))
    return CocoMetrics(
        **{name: None if x < 0 else float(x) for name, x in zip(names, test.stats, strict=False)},
        ap=tuple(None if x is None else float(x.mean()) for x in per_class),
        ap50=tuple(None if x is None else float(x[0].mean()) for x in per_class),
        precision=tuple(() if x is None else tuple(x[0].tolist()) for x in per_class),
    )


def coco_ground_truth(indices: Tensor, split: Split, num_classes: int) -> dict[str, Any]:
    """The objects of these images of a split in COCO's form. Raises MissingPackage."""
    assert split.sizes is not None
    assert split.objects is not None
    sizes = dict(zip(indices.tolist(), split.sizes[indices].tolist(), strict=True))
    annotations = list[dict[str, Any]]()
    for image, size in sizes.items():
        shapes = split.masks[image] if split.masks else ()
        assert not isinstance(shapes, Path)
        targets = split.objects[image]
        targets = targets[~targets.is_padding]
        columns = (targets.boxes, targets.classes, targets.is_ignored)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        for k, ((x1, y1, x2, y2), class_index, crowd) in enumerate(rows):
            # A number of 0 would mean that a detection matches nothing.
            row = {"id": len(annotations) + 1, "image_id": image, "category_id": class_index}
            row |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            if shapes:
                mask = to_rle(shapes[k], *size)
                row |= {"segmentation": mask, "area": float(import_coco().mask.area(mask))}
            annotations.append(row | {"iscrowd": int(crowd)})
    return {
        "images": [{"id": image, "height": h, "width": w} for image, (h, w) in sizes.items()],
        "categories": [{"id": k, "name": str(k)} for k in range(num_classes)],
        "annotations": annotations,
    }


def coco_results(detections: SplitDetections, *, masks: bool) -> list[dict[str, Any]]:
    """Detections in COCO's form of results, with their masks or with their boxes."""
    corners, ends = detections.boxes.double().tensor_split(2, 1)
    boxes = torch.cat([corners, ends - corners], 1)
    columns = (detections.images, detections.classes, detections.scores.double(), boxes)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    results = [
        {"image_id": image, "category_id": class_index, "score": score, "bbox": box}
        for image, class_index, score, box in rows
    ]
    if masks and detections.masks:
        for row, mask in zip(results, detections.masks, strict=True):
            row["segmentation"] = to_rle(mask)
            del row["bbox"]
    return results


def to_rle(shape: Shape, height: int = 0, width: int = 0) -> dict[str, Any]:
    """A mask as COCO's package has it; polygons need the sides of their image."""
    if isinstance(shape[0], int):
        return {"size": shape[:2], "counts": shape[2]}
    mask = import_coco().mask
    merged: dict[str, Any] = mask.merge(mask.frPyObjects(list(map(list, shape)), height, width))
    return merged


def decode_mask(mask: Rle) -> Tensor:
    """The pixels of a mask: bool (H, W). Raises MissingPackage."""
    return torch.from_numpy(import_coco().mask.decode(to_rle(mask))).bool()


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

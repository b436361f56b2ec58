"""Detections of a network on a split, and every figure of them, computed without the images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from resnets.data.splits import Shape, Split
from resnets.errors import MissingPackage, UsageError
from resnets.evaluation import voc
from resnets.evaluation.diagnosis import diagnose
from resnets.evaluation.intervals import percentile_interval
from resnets.evaluation.loading import LoaderOptions, sized_batches
from resnets.evaluation.predictions import DetectionPredictions, Rle
from resnets.evaluation.scores import advice, unreadable_files
from resnets.models.detection.boxes import clip
from resnets.tensor_files import check_range, check_tensor, load_tensors, save_tensors

if TYPE_CHECKING:  # torchvision takes 1.7 s to import
    from resnets.models.detection.faster_rcnn import BatchDetections


class Detect(Protocol):
    """A detector, or a procedure that is used like one."""

    def __call__(self, images: Tensor, *, sizes: Tensor) -> BatchDetections: ...


_TENSORS = ("images", "classes", "scores", "boxes", "indices")
_NONE = torch.empty(0, dtype=torch.int64)
NO_DETECTIONS = DetectionPredictions(_NONE, _NONE, torch.empty(0), torch.empty(0, 4), None, _NONE)


@torch.inference_mode()
def detect(
    network: Detect,
    split: Split,
    loader: LoaderOptions,
    *,
    bfloat16: bool = False,
) -> DetectionPredictions:
    """Detections of a network in evaluation mode; each rank has a share, see `concatenate`.

    Raises as `test_batches`, and MissingPackage for masks.
    """
    start, parts = time.monotonic(), [NO_DETECTIONS]
    for batch, sizes, file_sizes in sized_batches(split, loader):
        parts.append(replace(NO_DETECTIONS, indices=batch.indices, unreadable=batch.unreadable))
        if not len(file_sizes):
            continue
        with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=bfloat16):
            output = network(batch.images, sizes=sizes)
        valid = output.classes.cpu() >= 0
        rows = valid.nonzero()[:, 0]
        scale = (file_sizes / sizes.cpu()).flip(1).repeat(1, 2)[:, None]
        boxes = clip(output.boxes.float().cpu() * scale, file_sizes)[valid]
        masks = None
        if output.masks is not None:
            columns = output.masks.float().cpu()[valid], boxes, file_sizes[rows].tolist()
            triples = zip(*columns, strict=True)
            masks = tuple(paste_mask(mask, box, *size) for mask, box, size in triples)
        classes, scores = output.classes.cpu()[valid], output.scores.float().cpu()[valid]
        parts.append(
            DetectionPredictions(batch.indices[rows], classes, scores, boxes, masks, _NONE)
        )
    return replace(concatenate(parts), seconds=time.monotonic() - start)


def concatenate(parts: Sequence[DetectionPredictions]) -> DetectionPredictions:
    """The detections of the parts of a split, as by the ranks, in the split's order."""
    columns = {name: torch.cat([getattr(part, name) for part in parts]) for name in _TENSORS}
    order = columns["images"].argsort(stable=True)
    masks = [mask for part in parts for mask in part.masks or ()]
    has_masks = any(part.masks is not None for part in parts)
    indices = columns.pop("indices").sort().values
    return DetectionPredictions(
        **{name: column[order] for name, column in columns.items()},
        masks=tuple(masks[i] for i in order.tolist()) if has_masks else None,
        indices=indices,
        unreadable=tuple(bad for part in parts for bad in part.unreadable),
        seconds=max(part.seconds for part in parts),
    )


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


def save(path: str | Path, detections: DetectionPredictions) -> None:
    """One safetensors file, replaced in one step. Raises DiskError."""
    files = [(str(file), reason) for file, reason in detections.unreadable]
    metadata = {
        "unreadable": files,
        "seconds": detections.seconds,
        "drawn": detections.masks is not None,
    }
    tensors = {name: getattr(detections, name) for name in _TENSORS}
    masks = detections.masks or ()
    shapes = [(height, width, len(runs)) for height, width, runs in masks]
    tensors["shapes"] = torch.tensor(shapes, dtype=torch.int64).view(-1, 3)
    runs = np.frombuffer(b"".join(runs for *_, runs in masks), np.uint8)
    tensors["counts"] = torch.from_numpy(runs.copy())
    save_tensors(path, tensors, "detections", metadata)


def load(path: str | Path) -> DetectionPredictions:
    """What `save` wrote. Raises as `load_tensors`."""
    return load_tensors(path, "detections", _from_tensors, advice(path))


def _from_tensors(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> DetectionPredictions:
    count, (images,) = len(tensors["scores"]), tensors["indices"].shape
    for name, kind in zip(_TENSORS[:3], (torch.int64, torch.int64, torch.float32), strict=True):
        check_tensor(tensors[name], kind, (count,), name)
    check_tensor(tensors["boxes"], torch.float32, (count, 4), "boxes")
    check_tensor(tensors["indices"], torch.int64, (images,), "indices")
    check_tensor(tensors["shapes"], torch.int64, (count if metadata["drawn"] else 0, 3), "shapes")
    check_tensor(tensors["counts"], torch.uint8, (len(tensors["counts"]),), "counts")
    check_range(tensors["shapes"], 2**31, "shapes")
    check_range(tensors["classes"], 2**31, "classes")
    check_range(tensors["images"], 2**31, "images")
    if not all(torch.isfinite(tensors[name]).all() for name in ("scores", "boxes")):
        raise ValueError("scores or boxes are not finite")
    shapes, counts = tensors.pop("shapes"), tensors.pop("counts")
    runs = torch.split(counts, shapes[:, 2].tolist())
    pairs = zip(shapes.tolist(), runs, strict=True)
    masks = tuple((height, width, bytes(part.numpy())) for (height, width, _), part in pairs)
    all_masks = masks if metadata["drawn"] else None
    return DetectionPredictions(
        **tensors,
        masks=all_masks,
        unreadable=unreadable_files(metadata),
        seconds=float(metadata["seconds"]),
    )


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
        each = {k: v for k, v in vars(self).items() if isinstance(v, float | None)}
        return {name: None if value is None else round(value, 6) for name, value in each.items()}


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
    objects: int
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
            f"{self.objects:,} objects on {self.images:,} images"
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
    detections: DetectionPredictions, split: Split, classes: tuple[str, ...], name: str = "test"
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
    detections: DetectionPredictions, split: Split, kind: Literal["bbox", "segm"], num_classes: int
) -> CocoMetrics:
    """COCO's figures of boxes or of masks, those of pycocotools. Raises MissingPackage."""
    package = import_coco()
    assert split.sizes is not None
    assert split.objects is not None
    indices = detections.indices
    sizes = dict(zip(indices.tolist(), split.sizes[indices].tolist(), strict=True))
    annotations, predictions = list[dict[str, Any]](), list[dict[str, Any]]()
    for image, size in sizes.items():
        shapes = split.masks[image] if split.masks else ()
        assert not isinstance(shapes, Path)
        targets = split.objects[image]
        targets = targets[~targets.is_padding]
        rows = zip(
            *(targets.boxes.tolist(), targets.classes.tolist(), targets.is_ignored.tolist()),
            strict=True,
        )
        for k, ((x1, y1, x2, y2), class_index, crowd) in enumerate(rows):
            # A number of 0 would mean that a detection matches nothing.
            row = {"id": len(annotations) + 1, "image_id": image, "category_id": class_index}
            row |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            if shapes:
                mask = to_rle(shapes[k], *size)
                row |= {"segmentation": mask, "area": float(package.mask.area(mask))}
            annotations.append(row | {"iscrowd": int(crowd)})
    corners, ends = detections.boxes.double().tensor_split(2, 1)
    boxes = torch.cat([corners, ends - corners], 1)
    columns = (detections.images, detections.classes, detections.scores.double(), boxes)
    masks = detections.masks if detections.masks and kind == "segm" else [None] * len(boxes)
    for image, class_index, score, box, mask in zip(
        *(column.tolist() for column in columns), masks, strict=True
    ):
        row = {"image_id": image, "category_id": class_index, "score": score}
        predictions.append(row | ({"segmentation": to_rle(mask)} if mask else {"bbox": box}))
    data = {
        "images": [{"id": image, "height": h, "width": w} for image, (h, w) in sizes.items()],
        "categories": [{"id": k, "name": str(k)} for k in range(num_classes)],
        "annotations": annotations,
    }
    ground_truth = package.COCO(data)
    test = package.COCOeval_faster(ground_truth, ground_truth.loadRes(predictions), kind)
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
    first: DetectionPredictions, second: DetectionPredictions, split: Split, num_classes: int
) -> DetectionComparison:
    """The gain of the second. Raises UsageError where they are of different images."""
    if not torch.equal(first.indices, second.indices):
        raise UsageError("the detections are of different images: take both on the same split")
    before, after = (voc.flags(detections, split, num_classes) for detections in (first, second))
    return DetectionComparison(
        images=len(first.indices),
        difference=voc.all_points(after) - voc.all_points(before),
        interval=percentile_interval(voc.bootstrap_map(after) - voc.bootstrap_map(before)),
    )

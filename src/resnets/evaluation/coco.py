"""COCO's figures of detections, those of pycocotools."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from resnets.data.splits import Split
from resnets.evaluation.detections import SplitDetections, import_coco, to_rle


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

"""What models predict: a record for one image, by task, and the detections of a whole split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from resnets.config.types import TaskName
from resnets.evaluation.scores import advice, read_metadata, reading_metadata
from resnets.tensor_files import check_range, check_tensor, load_tensors, save_tensors


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image, best first; or the `problem` of an unreadable one."""

    file: str  # "input K" of an image that is no file
    classes: tuple[str, ...] = ()  # names
    probabilities: tuple[float, ...] = ()  # of these classes
    problem: str | None = None


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


@dataclass(frozen=True)
class LocalizationPrediction:
    """The class of one image and the box of its object; or the `problem` of an unreadable one."""

    file: str
    label: str = ""  # the name of the class
    box: tuple[float, ...] = ()  # x1, y1, x2, y2 in pixels of the image
    score: float = 0.0  # in 0..1
    problem: str | None = None


@dataclass(frozen=True, eq=False)
class SegmentationPrediction:
    """The class of each pixel of one image; or the `problem` of an unreadable one."""

    file: str
    # int64 (H, W), indices of `classes`
    class_map: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.int64))
    classes: tuple[str, ...] = ()  # names
    problem: str | None = None

    @property
    def shares(self) -> dict[str, float]:
        """The share of the image's pixels of each class that it has, the largest first."""
        counts = torch.bincount(self.class_map.flatten(), minlength=len(self.classes))
        order = counts.argsort(descending=True, stable=True).tolist()
        total = max(1, self.class_map.numel())
        return {self.classes[k]: int(counts[k]) / total for k in order if counts[k]}


AnyPrediction: TypeAlias = (
    Prediction | DetectionPrediction | LocalizationPrediction | SegmentationPrediction
)


# The record of a task.
RECORDS: dict[TaskName, type[AnyPrediction]] = {
    "classify": Prediction,
    "detect": DetectionPrediction,
    "localize": LocalizationPrediction,
    "segment": SegmentationPrediction,
}

Rle = tuple[int, int, bytes]  # height, width and COCO's compressed run lengths of a mask


@dataclass(frozen=True, slots=True, eq=False)
class SplitDetections:
    """All detections of a split, image after image, on the CPU."""

    images: Tensor  # int64 (D,): indices in the split, ascending
    classes: Tensor  # int64 (D,)
    scores: Tensor  # float32 (D,)
    boxes: Tensor  # float32 (D, 4): x1, y1, x2, y2 in pixels of the upright image
    masks: tuple[Rle, ...] | None  # at the image's size; None where the network draws none
    indices: Tensor  # int64 (N,): the images that were read, ascending
    unreadable: tuple[tuple[Path, str], ...] = ()
    seconds: float = 0.0  # of reading and computing

    def take(self, rows: Tensor) -> SplitDetections:
        """The detections at int64 (n,) `rows`, or where bool (D,) `rows` is true."""
        numbers = torch.arange(len(self.scores))[rows].tolist()
        return replace(
            self,
            **{name: getattr(self, name)[rows] for name in _COLUMNS},
            masks=self.masks and tuple(self.masks[k] for k in numbers),
        )


_COLUMNS = ("images", "classes", "scores", "boxes")  # a row for each detection
_NONE = torch.empty(0, dtype=torch.int64)
NO_DETECTIONS = SplitDetections(_NONE, _NONE, torch.empty(0), torch.empty(0, 4), None, _NONE)


def concatenate(shares: Sequence[SplitDetections]) -> SplitDetections:
    """The detections of all shares of a split, as of the ranks, in the split's order."""
    masks = [share.masks for share in shares if share.masks is not None]
    joined = SplitDetections(
        **{name: torch.cat([getattr(share, name) for share in shares]) for name in _COLUMNS},
        masks=tuple(chain(*masks)) if masks else None,
        indices=torch.cat([share.indices for share in shares]).sort().values,
        unreadable=tuple(chain.from_iterable(share.unreadable for share in shares)),
        seconds=max(share.seconds for share in shares),
    )
    return joined.take(joined.images.argsort(stable=True))


def save(path: str | Path, detections: SplitDetections) -> None:
    """One safetensors file, replaced in one step. Raises DiskError."""
    masks = detections.masks or ()
    shapes = [(height, width, len(counts)) for height, width, counts in masks]
    counts = np.frombuffer(b"".join(counts for *_, counts in masks), np.uint8)
    tensors = {name: getattr(detections, name) for name in (*_COLUMNS, "indices")} | {
        "shapes": torch.tensor(shapes, dtype=torch.int64).view(-1, 3),
        "counts": torch.from_numpy(counts.copy()),
    }
    reading = reading_metadata(detections.unreadable, detections.seconds)
    has_masks = detections.masks is not None
    save_tensors(path, tensors, "detections", reading | {"drawn": has_masks})


def load(path: str | Path) -> SplitDetections:
    """What `save` wrote. Raises as `load_tensors`."""
    return load_tensors(path, "detections", _from_tensors, advice(path))


def _from_tensors(tensors: dict[str, Any], metadata: dict[str, Any]) -> SplitDetections:
    count, has_masks = len(tensors["scores"]), metadata["drawn"]
    for name, dtype, shape in (
        ("images", torch.int64, (count,)),
        ("classes", torch.int64, (count,)),
        ("scores", torch.float32, (count,)),
        ("boxes", torch.float32, (count, 4)),
        ("indices", torch.int64, (tensors["indices"].numel(),)),
        ("shapes", torch.int64, (count if has_masks else 0, 3)),
        ("counts", torch.uint8, (tensors["counts"].numel(),)),
    ):
        check_tensor(tensors[name], dtype, shape, name)
    for name in ("shapes", "classes", "images"):
        check_range(tensors[name], 2**31, name)
    if not all(torch.isfinite(tensors[name]).all() for name in ("scores", "boxes")):
        raise ValueError("scores or boxes are not finite")
    shapes = tensors.pop("shapes").tolist()
    counts = torch.split(tensors.pop("counts"), [length for *_, length in shapes])
    masks = [(h, w, bytes(c.numpy())) for (h, w, _), c in zip(shapes, counts, strict=True)]
    fields = {**tensors, "masks": tuple(masks) if has_masks else None, **read_metadata(metadata)}
    return SplitDetections(**fields)

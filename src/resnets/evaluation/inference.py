"""What a model answers for single images: a small record for each, by the task of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from resnets.config.arch import DenseTaskArch, DetectorArch, LocalizerArch, SegmenterArch
from resnets.config.recipe import Augment, Preprocess
from resnets.data.joint_transforms import augment_views, fit_side
from resnets.data.splits import Split
from resnets.data.transforms import center_crop, crop_resize, normalize, statistics
from resnets.errors import NotFinite
from resnets.evaluation.classification import predict_batch

if TYPE_CHECKING:
    from resnets.evaluation.predictor import Model


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image, best first; or the `problem` of an unreadable one."""

    file: str  # "input K" of an image that is no file
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    problem: str | None = None


@dataclass(frozen=True, eq=False)
class DetectionPrediction:
    """The objects on one image, best first; or the `problem` of an unreadable one."""

    file: str
    # float32 (D, 4): x1, y1, x2, y2 in pixels of the image
    boxes: Tensor = field(default_factory=lambda: torch.empty(0, 4))
    labels: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    masks: Tensor | None = None  # bool (D, H, W), of a network that draws masks
    problem: str | None = None


@dataclass(frozen=True)
class LocalizationPrediction:
    """The class of one image and the box of its object; or the `problem` of an unreadable one."""

    file: str
    label: str = ""
    box: tuple[float, ...] = ()  # x1, y1, x2, y2 in pixels of the image
    score: float = 0.0
    problem: str | None = None


@dataclass(frozen=True, eq=False)
class SegmentationPrediction:
    """The class of each pixel of one image; or the `problem` of an unreadable one."""

    file: str
    # int64 (H, W), indices of `classes`
    class_map: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.int64))
    classes: tuple[str, ...] = ()
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


def unanswered(model: Model, file: str, problem: str | None) -> AnyPrediction:
    """The record of an image that the model was not asked about, with the reason."""
    match model.metadata.arch:
        case DetectorArch():
            return DetectionPrediction(file, problem=problem)
        case LocalizerArch():
            return LocalizationPrediction(file, problem=problem)
        case SegmenterArch():
            return SegmentationPrediction(file, problem=problem)
    return Prediction(file, problem=problem)


@torch.inference_mode()
def predict_views(
    model: Model, files: Sequence[str], images: Sequence[Tensor], top: int, score: float
) -> list[AnyPrediction]:
    """The answers for what `input_view` made of images. Raises NotFinite."""
    match model.metadata.arch:
        case DetectorArch():
            return [_detect(model, *pair, score) for pair in zip(files, images, strict=True)]
        case LocalizerArch():
            return [_localize(model, *pair) for pair in zip(files, images, strict=True)]
        case SegmenterArch():
            return [_segment(model, *pair) for pair in zip(files, images, strict=True)]
    return [*_classify(model, files, images, top)]


def input_view(model: Model, image: NDArray[Any]) -> Tensor:
    """What is kept of a decoded image, uint8 (H, W, C), until the network gets it.

    uint8 (C, size, size) for a classifier; for others, whose images differ in size, (C, H, W).
    """
    pixels = torch.from_numpy(image)
    if isinstance(model.metadata.arch, DenseTaskArch):
        return pixels.permute(2, 0, 1)
    return preprocess_image(pixels, model.metadata.preprocess)


def preprocess_image(image: Tensor, preprocess: Preprocess) -> Tensor:
    """The test-time view of one decoded image: uint8 (H, W, C) -> uint8 (C, size, size)."""
    where = center_crop(image.shape[0], image.shape[1], preprocess)
    return crop_resize(image.permute(2, 0, 1)[None], where, preprocess.size)[0]


def _classify(
    model: Model, files: Sequence[str], views: Sequence[Tensor], top: int
) -> list[Prediction]:
    preprocess, names = model.metadata.preprocess, model.metadata.classes
    images = torch.stack([*views]).to(model.device)
    x = normalize(images, *statistics(preprocess, model.device))
    logits = predict_batch(model.classifier, x, bfloat16=model.bfloat16)
    logits = logits / (model.metadata.temperature or 1.0)
    if not torch.isfinite(logits).all():
        raise NotFinite(model.path)
    probabilities = logits.sigmoid() if model.several else logits.softmax(1)
    best = probabilities.topk(min(top, probabilities.shape[1]), dim=1)
    rows = zip(files, best.values.tolist(), best.indices.tolist(), strict=True)
    return [Prediction(file, tuple(names[k] for k in ks), tuple(ps)) for file, ps, ks in rows]


def _whole_view(model: Model, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a detector, localiser or segmenter gets of one image.

    uint8 (C, H, W) -> float32 (1, C, h, w), and int64 (1, 2) of the image inside it and of its own.
    """
    preprocess, device = model.metadata.preprocess, model.device
    height, width = image.shape[1:]
    split = Split(image[None], torch.zeros(1, 0))
    views = augment_views(split, torch.zeros(1, 0), preprocess.size, preprocess, Augment())
    x = normalize(views.images.to(device), *statistics(preprocess, device))
    inside = torch.tensor([fit_side(height, width, preprocess.size)], device=device)
    return x.contiguous(memory_format=torch.channels_last), inside, torch.tensor([[height, width]])


def _find_boxes(model: Model, image: Tensor) -> tuple[Any, Tensor]:
    """What the network finds on one image, and the boxes in its pixels: float32 (D, 4)."""
    from resnets.models.detection.boxes import clip  # torchvision takes 1.7 s to import

    x, inside, size = _whole_view(model, image)
    network: Any = model.network
    try:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=model.bfloat16):
            found = network(x, sizes=inside)
    except NotFinite:
        raise NotFinite(model.path) from None
    scale = (size / inside.cpu()).flip(1).repeat(1, 2)[:, None]
    return found, clip(found.boxes.float().cpu() * scale, size)[0]


def _detect(model: Model, file: str, image: Tensor, score: float) -> DetectionPrediction:
    found, boxes = _find_boxes(model, image)
    classes, scores = found.classes[0].cpu(), found.scores[0].float().cpu()
    kept = (classes >= 0) & (scores >= score)
    masks = None
    if found.masks is not None:
        from torchvision.models.detection.roi_heads import paste_masks_in_image

        drawn = found.masks[0].float().cpu()[kept][:, None]
        masks = paste_masks_in_image(drawn, boxes[kept], image.shape[1:])[:, 0] > 0.5
    labels = tuple(model.metadata.classes[k] for k in classes[kept].tolist())
    return DetectionPrediction(file, boxes[kept], labels, tuple(scores[kept].tolist()), masks)


def _localize(model: Model, file: str, image: Tensor) -> LocalizationPrediction:
    found, boxes = _find_boxes(model, image)
    label = model.metadata.classes[int(found.classes[0, 0])]
    return LocalizationPrediction(file, label, tuple(boxes[0].tolist()), float(found.scores[0, 0]))


def _segment(model: Model, file: str, image: Tensor) -> SegmentationPrediction:
    from resnets.models.layers import check_finite

    x, inside, _ = _whole_view(model, image)
    height, width = inside[0].tolist()
    try:
        logits = check_finite(predict_batch(model.network, x, bfloat16=model.bfloat16))
    except NotFinite:
        raise NotFinite(model.path) from None
    logits = logits[..., :height, :width]
    whole = F.interpolate(logits, image.shape[1:], mode="bilinear", align_corners=False)
    return SegmentationPrediction(file, whole[0].argmax(0).cpu(), model.metadata.classes)

"""Localisation of the object of a class: per-class proposals and an R-CNN, 1512.03385 appendix C.

Two sibling 1x1 layers on the last map, both with outputs of their own for each class: one says
whether an anchor holds an object of the class (a logistic regression for each class by itself),
one moves the anchor onto it. The R-CNN is a second network that gets one region at a time, cut out
of the image, and predicts the same of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnets.config.arch import LocalizerArch
from resnets.errors import UsageError
from resnets.models.detection import boxes as box
from resnets.models.detection.boxes import BatchDetections, SampledBoxes, gather_rows, sample_boxes
from resnets.models.detection.roi_align import sampling_grid
from resnets.models.detection.rpn import (
    HIGH,
    LOW,
    flatten_levels,
    image_sizes,
    make_anchors,
    rescale,
)
from resnets.models.layers import check_finite, global_mean
from resnets.models.resnet import make_backbone

if TYPE_CHECKING:  # `data` takes longer to import than the networks
    from resnets.data.detection.targets import DetectionTargets

SAMPLED, POSITIVE_SHARE = 8, 0.5  # anchors of an image in the loss: appendix C
IOU = 0.5  # from which on a region is of an object
ROI_BATCH = 64  # regions in a forward pass of the R-CNN at test
# Boxes of an image, each of another class; where an R-CNN scores them.
DETECTIONS_PER_IMG, RCNN_DETECTIONS_PER_IMG = 100, 5


class RegionFeatures(NamedTuple):
    """Features of images at one scale, on P positions with A anchors each."""

    ratio: Tensor  # (4,): how much larger x, y, x, y are than on the images
    features: Tensor  # (B, P, C)
    logits: Tensor  # float32 (B, K, P * A)
    anchors: Tensor  # float32 (P * A, 4)
    sizes: Tensor  # int64 (B, 2): height, width of the images


def init_predictors(classification: nn.Module, regression: nn.Module, classes: int) -> None:
    """The first weights: each class has the prior 1 / (2 K), RetinaNet's pi.

    Half of the sampled boxes have an object, of one of K classes.
    """
    for layer, bias in (classification, -math.log(2 * classes - 1)), (regression, 0.0):
        nn.init.normal_(layer.weight, std=0.01)  # type: ignore[arg-type]
        nn.init.constant_(layer.bias, bias)  # type: ignore[arg-type]


class RCNN(nn.Module):
    """Regions of images, cut out and warped: a logit and deltas for each class.

    Shapes: (B, C, H, W), boxes (B, R, 4) -> float32 (B, R, K), float32 (B, R, K, 4).
    """

    def __init__(self, arch: LocalizerArch, *, activation_checkpointing: int = 0) -> None:
        super().__init__()
        self.crop, self.body = arch.crop, make_backbone(arch, activation_checkpointing)
        channels, _ = list(self.body.levels.values())[-1]
        self.cls_score = nn.Linear(channels, arch.classes)
        self.bbox_pred = nn.Linear(channels, 4 * arch.classes)
        init_predictors(self.cls_score, self.bbox_pred, arch.classes)

    def forward(self, images: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        maps = list(self.body.features(crop_regions(images, boxes, self.crop)).values())
        x, shape = global_mean(maps[-1]), boxes.shape[:2]
        logits, deltas = self.cls_score(x), self.bbox_pred(x)
        return logits.float().view(*shape, -1), deltas.float().view(*shape, -1, 4)


@torch.no_grad()
def crop_regions(images: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Boxes (B, R, 4) of images (B, C, H, W), warped to squares: (B * R, C, side, side)."""
    height, width = images.shape[2:]
    whole = boxes.new_tensor([0, 0, width, height]).expand_as(boxes)
    grid = sampling_grid(boxes, whole, side).flatten(1, 2)  # regions below each other
    crops = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    crops = crops.to(images).view(*images.shape[:2], boxes.shape[1], side, side)
    return crops.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)


class Localizer(nn.Module):
    """Images (B, C, H, W), any H and W, to the best box for each class.

    BatchDetections: the best box of each of the `DETECTIONS_PER_IMG` best classes, or of the
    `RCNN_DETECTIONS_PER_IMG` best with an R-CNN. With targets (B, M): float32
    (len(loss_names) + 1,), the losses, each a mean over images, and the share of images whose best
    proposal of the true class has an IoU below 0.5. The class of an image is that of its first
    object; other classes' objects are ignored. Raises UsageError for numbers of regions that cannot
    be meant.
    """

    def __init__(self, arch: LocalizerArch, *, activation_checkpointing: int = 0) -> None:
        super().__init__()
        self.arch = arch
        has_rcnn = arch.regions != (0, 0)
        if has_rcnn and (arch.regions[0] < 2 or arch.regions[1] < 1 or arch.crop < 1):
            raise UsageError(
                f"arch.regions={arch.regions}: two or more to learn from, of which half may have "
                f"the object, and one or more to score; arch.crop={arch.crop}: from 1 on"
            )
        rcnn_losses = ["rcnn_classification", "rcnn_boxes"] * has_rcnn
        self.loss_names = ("classification", "boxes", *rcnn_losses)
        self.backbone = make_backbone(arch, activation_checkpointing)
        channels, _ = list(self.backbone.levels.values())[-1]
        self.shapes = len(arch.anchors) * len(arch.ratios)
        self.classification = nn.Conv2d(channels, arch.classes * self.shapes, 1)
        self.regression = nn.Conv2d(channels, arch.classes * self.shapes * 4, 1)
        init_predictors(self.classification, self.regression, arch.classes)
        self.rcnn = (
            RCNN(arch, activation_checkpointing=activation_checkpointing) if has_rcnn else None
        )
        self.scales: tuple[float, ...] = (1.0,)  # of the images at test: dense testing

    def forward(
        self, images: Tensor, targets: DetectionTargets | None = None, sizes: Tensor | None = None
    ) -> BatchDetections | Tensor:
        sizes = image_sizes(images, sizes)
        if targets is not None:
            return self.losses(images, sizes, targets)
        features = self.multi_scale_features(images, sizes)
        best = torch.stack([at_scale.logits.amax(2) for at_scale in features]).amax(0)
        count = DETECTIONS_PER_IMG if self.rcnn is None else RCNN_DETECTIONS_PER_IMG
        classes = best.topk(min(count, best.shape[1])).indices
        boxes, scores = self.localize(images, features, classes)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        return BatchDetections(gather_rows(boxes, order), scores, classes.gather(1, order))

    def best(
        self, images: Tensor, classes: Tensor, sizes: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The best box of given classes int64 (B, k): boxes (B, k, 4), scores 0..1 (B, k)."""
        features = self.multi_scale_features(images, image_sizes(images, sizes))
        return self.localize(images, features, classes)

    def localize(
        self, images: Tensor, features: Sequence[RegionFeatures], classes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `best`, given the features; with an R-CNN its best of the best proposals.

        It gets a few regions at a time, which bounds the memory.
        """
        boxes, scores = self.proposals(features, classes, self.arch.regions[1] or 1)
        if self.rcnn is None:
            return boxes[:, :, 0], scores[:, :, 0]
        best_boxes, best_scores = [], []
        for k, label in enumerate(classes.unbind(1)):
            rois, sizes = boxes[:, k], features[0].sizes
            chunks = torch.split(rois, max(1, ROI_BATCH // len(rois)), 1)
            outputs = zip(*[self.rcnn(images, chunk) for chunk in chunks], strict=True)
            logits, deltas = (torch.cat(x, 1) for x in outputs)
            which = label[:, None, None]
            score, best = logits.take_along_dim(which, 2).max(1, keepdim=True)  # (B, 1, 1)
            class_deltas = deltas.take_along_dim(which[..., None], 2)[:, :, 0]
            moved = box.decode(class_deltas.take_along_dim(best, 1), rois.take_along_dim(best, 1))
            best_boxes.append(box.clip(moved, sizes))
            best_scores.append(score[..., 0].sigmoid())
        return torch.cat(best_boxes, 1), torch.cat(best_scores, 1)

    def multi_scale_features(self, images: Tensor, sizes: Tensor) -> list[RegionFeatures]:
        """The features at each of the `scales`."""
        return [self.region_features(images, scale, sizes) for scale in self.scales]

    def region_features(self, images: Tensor, scale: float, sizes: Tensor) -> RegionFeatures:
        """The last map of images at one scale, and the logit of each class at each anchor."""
        images, ratio = rescale(images, scale)
        height, width = images.shape[2:]
        last = list(self.features(images).values())[-1]
        anchors, _ = make_anchors([last], (height, width), [self.arch.anchors], self.arch.ratios)
        logits = flatten_levels([self.classification(last)], self.arch.classes).mT.float()
        return RegionFeatures(ratio, last.flatten(2).mT, logits, anchors, sizes)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """The levels of the backbone: (B, C, H, W) -> {level: (B, C', H / stride, W / stride)}."""
        return self.backbone.features(images)

    def proposals(
        self, features: Sequence[RegionFeatures], classes: Tensor, count: int
    ) -> tuple[Tensor, Tensor]:
        """The `count` best boxes of classes (B, k), best first: (B, k, n, 4), scores (B, k, n)."""
        boxes, scores = list[Tensor](), list[Tensor]()
        for at_scale in features:
            logits = gather_rows(at_scale.logits, classes)
            logits, index = logits.topk(min(count, logits.shape[2]))
            deltas = self.deltas(at_scale, classes, index)
            moved = box.decode(deltas, at_scale.anchors[index]) / at_scale.ratio
            boxes.append(box.clip(moved.flatten(1, 2), at_scale.sizes).view_as(moved))
            scores.append(check_finite(logits).sigmoid())
        all_scores = torch.cat(scores, 2)
        best_scores, best = all_scores.topk(min(count, all_scores.shape[2]))
        return torch.cat(boxes, 2).take_along_dim(best[..., None], 2), best_scores

    def deltas(self, features: RegionFeatures, classes: Tensor, index: Tensor) -> Tensor:
        """How classes (B, k) move anchors index (B, k, n): (B, k, n, 4).

        Of the regression's 4 A K outputs at each position only these are computed.
        """
        image = torch.arange(len(index), device=index.device)[:, None, None]
        x = features.features[image, index // self.shapes]
        which = index % self.shapes * self.arch.classes + classes[..., None]
        weight = self.regression.weight.view(-1, 4, x.shape[-1])[which]
        bias = self.regression.bias.view(-1, 4)[which]  # type: ignore[union-attr]
        return (weight @ x[..., None])[..., 0].float() + bias

    def losses(self, images: Tensor, sizes: Tensor, targets: DetectionTargets) -> Tensor:
        """As `forward` with targets: float32 (len(loss_names) + 1,)."""
        features = self.region_features(images, 1, sizes)
        targets = targets.pad(targets.boxes.shape[1] + 1)  # one at least, if only of padding
        first = targets.is_object.byte().argmax(1, keepdim=True)
        label = targets.classes.gather(1, first)  # (B, 1)
        targets = targets.ignore(targets.is_object & (targets.classes != label))

        samples = sample_boxes(
            *(features.anchors[None], targets, SAMPLED, POSITIVE_SHARE),
            low=LOW,
            high=HIGH,
            allow_low_quality_matches=True,
        )
        logits = features.logits.gather(
            2, samples.index[:, None].expand(-1, self.arch.classes, -1)
        ).mT
        deltas = self.deltas(features, label, samples.index[:, None])[:, 0]
        losses = class_losses(logits, deltas, label, samples)
        with torch.no_grad():
            rois = self.proposals([features], label, self.arch.regions[1] or 1)[0][:, 0]
            overlap = (box.iou(rois[:, :1], targets.boxes)[:, 0] * targets.is_object).amax(1)
            wrong = (targets.is_object.any(1) & (overlap < 0.5)).float()
        if self.rcnn is not None:
            # The true boxes are among the regions, as nothing else may be right at first.
            rois = torch.cat([rois, targets.boxes], 1)
            samples = sample_boxes(
                rois, targets, self.arch.regions[0], POSITIVE_SHARE, low=IOU, high=IOU
            )
            logits, deltas = self.rcnn(images, samples.boxes)
            deltas = deltas.take_along_dim(label[..., None, None], 2)[:, :, 0]
            losses += class_losses(logits, deltas, label, samples)
        return torch.stack([*losses, wrong.mean()])


def class_losses(
    logits: Tensor, deltas: Tensor, label: Tensor, samples: SampledBoxes
) -> list[Tensor]:
    """Classification and box loss of n sampled boxes, each a mean over images.

    Logits are (B, n, K), deltas (B, n, 4) of the label's class (B, 1).
    """
    one_hot = torch.zeros_like(logits)
    index = label[..., None].expand(-1, logits.shape[1], 1)
    one_hot.scatter_(2, index, samples.is_positive[..., None].float())
    losses = F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none").sum(2)
    return [samples.mean(losses), samples.box_loss(deltas)]

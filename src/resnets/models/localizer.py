"""Where the object of a class is: per-class proposals and an R-CNN, 1512.03385 appendix C.

Two sibling 1x1 layers on the last map, both with outputs of their own for each class: one says
whether an anchor holds an object of the class (a logistic regression for each class by itself),
one moves the anchor onto it. The R-CNN is a second network that sees one region at a time, cut out
of the image, and says the same of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnets.config.arch import LocalizerArch
from resnets.errors import UsageError
from resnets.models.detection import boxes as box
from resnets.models.detection.faster_rcnn import Detections
from resnets.models.detection.rpn import (
    HIGH,
    LOW,
    flatten_levels,
    gather_rows,
    inside,
    make_anchors,
    per_image_mean,
    scaled,
    smooth_l1,
)
from resnets.models.layers import finite, global_mean
from resnets.models.resnet import ResNet

if TYPE_CHECKING:  # `data` takes longer to import than the networks
    from resnets.data.detection.targets import DetectionTargets

SAMPLED, POSITIVE_SHARE = 8, 0.5  # anchors of an image that are learnt from: appendix C
RIGHT = 0.5  # IoU from which on a region is an object
AT_ONCE = 64  # regions that the R-CNN sees in a forward pass at test
MOST, JUDGED = 100, 5  # boxes of an image, each of another class; where an R-CNN judges them


class RegionFeatures(NamedTuple):
    """What the network makes of images, on P positions with A anchors each."""

    ratio: Tensor  # (4,): how much larger x, y, x, y are than on the images
    features: Tensor  # (B, P, C)
    logits: Tensor  # float32 (B, K, P * A)
    anchors: Tensor  # float32 (P * A, 4)
    sizes: Tensor  # int64 (B, 2): height, width of the images


def predictors(classification: nn.Module, regression: nn.Module, classes: int) -> None:
    """The first weights of two layers: at first every class is as likely as in the sample.

    Half of that has one.
    """
    for layer, bias in (classification, -math.log(2 * classes - 1)), (regression, 0.0):
        nn.init.normal_(layer.weight, std=0.01)  # type: ignore[arg-type]
        nn.init.constant_(layer.bias, bias)  # type: ignore[arg-type]


def backbone(arch: LocalizerArch, checkpoint: int) -> ResNet:
    """The backbone without its classifier."""
    body = ResNet(replace(arch.backbone, channels=arch.channels), checkpoint=checkpoint)
    body.add_module("fc", nn.Identity())
    return body


class RCNN(nn.Module):
    """Regions of images, cut out and warped: a score and a movement for each class."""

    def __init__(self, arch: LocalizerArch, *, checkpoint: int = 0) -> None:
        super().__init__()
        self.crop, self.body = arch.crop, backbone(arch, checkpoint)
        channels, _ = list(self.body.levels.values())[-1]
        self.cls_score = nn.Linear(channels, arch.classes)
        self.bbox_pred = nn.Linear(channels, 4 * arch.classes)
        predictors(self.cls_score, self.bbox_pred, arch.classes)

    def forward(self, images: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W), (B, R, 4) -> logits float32 (B, R, K), deltas float32 (B, R, K, 4)."""
        maps = list(self.body.features(crop_regions(images, boxes, self.crop)).values())
        x, shape = global_mean(maps[-1]), boxes.shape[:2]
        logits, deltas = self.cls_score(x), self.bbox_pred(x)
        return logits.float().view(*shape, -1), deltas.float().view(*shape, -1, 4)


@torch.no_grad()
def crop_regions(images: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Boxes (B, R, 4) of images (B, C, H, W), warped to squares: (B * R, C, side, side)."""
    shape = (*boxes.shape[:2], side, side)
    corner, length = boxes[..., None, :2], (boxes[..., 2:] - boxes[..., :2])[..., None, :]
    middles = (torch.arange(side, device=boxes.device) + 0.5) / side
    points = corner + length * middles[:, None]  # of the columns, of the rows: (B, R, side, 2)
    x, y = (2 * points / points.new_tensor(images.shape[:1:-1]) - 1).unbind(3)
    grid = torch.stack([x[:, :, None].expand(shape), y[..., None].expand(shape)], 4).flatten(1, 2)
    found = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    views = found.to(images).view(len(images), -1, *shape[1:]).transpose(1, 2).flatten(0, 1)
    return views.contiguous(memory_format=torch.channels_last)


class Localizer(nn.Module):
    """Images (B, C, H, W), any H and W, to a box for each class.

    With targets (B, M) it gives the losses `parts` and the share of images whose best proposal of
    the true class has an IoU below 0.5: float32 (len(parts) + 1,). The class of an image is that of
    its first object; other classes' objects are ignored. Raises UsageError for numbers of regions
    that cannot be meant.
    """

    def __init__(self, arch: LocalizerArch, *, checkpoint: int = 0) -> None:
        super().__init__()
        self.arch = arch
        judged = arch.regions != (0, 0)
        if judged and (arch.regions[0] < 2 or arch.regions[1] < 1 or arch.crop < 1):
            raise UsageError(
                f"arch.regions={arch.regions}: two or more to learn from, of which half may have "
                f"the object, and one or more to judge; arch.crop={arch.crop}: from 1 on"
            )
        self.parts = ("classification", "boxes", *["judgement", "movement"] * judged)
        self.backbone = backbone(arch, checkpoint)
        channels, _ = list(self.backbone.levels.values())[-1]
        self.shapes = len(arch.anchors) * len(arch.ratios)
        self.classification = nn.Conv2d(channels, arch.classes * self.shapes, 1)
        self.regression = nn.Conv2d(channels, arch.classes * self.shapes * 4, 1)
        predictors(self.classification, self.regression, arch.classes)
        self.rcnn = RCNN(arch, checkpoint=checkpoint) if judged else None
        self.scales: tuple[float, ...] = (1.0,)  # of the images at test: dense testing

    def forward(
        self,
        images: Tensor,
        targets: DetectionTargets | None = None,
        sizes: Tensor | None = None,
    ) -> Detections | Tensor:
        """Detections: the best box of each of the best `MOST` classes. Or the losses."""
        sizes = inside(images, sizes)
        if targets is not None:
            return self.losses(images, sizes, targets)
        seen = self.look(images, sizes)
        best = torch.stack([one.logits.amax(2) for one in seen]).amax(0)
        count = MOST if self.rcnn is None else JUDGED
        classes = best.topk(min(count, best.shape[1])).indices
        boxes, scores = self.located(images, seen, classes)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        return Detections(gather_rows(boxes, order), scores, classes.gather(1, order), None)

    def best(
        self, images: Tensor, classes: Tensor, sizes: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The best box of given classes int64 (B, k): boxes (B, k, 4), scores 0..1 (B, k)."""
        return self.located(images, self.look(images, inside(images, sizes)), classes)

    def located(
        self, images: Tensor, seen: Sequence[RegionFeatures], classes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `best`, of what was seen: the R-CNN's best of the best proposals, where there is one.

        Some regions are judged at a time, which bounds the memory.
        """
        boxes, scores = self.candidates(seen, classes, self.arch.regions[1] or 1)
        if self.rcnn is None:
            return boxes[:, :, 0], scores[:, :, 0]
        kept = []
        for k, own in enumerate(classes.unbind(1)):
            proposed, sizes = boxes[:, k], seen[0].sizes
            some = torch.split(proposed, max(1, AT_ONCE // len(proposed)), 1)
            judged = zip(*[self.rcnn(images, regions) for regions in some], strict=True)
            logits, deltas = (torch.cat(x, 1) for x in judged)
            which = own[:, None, None]
            score, best = logits.take_along_dim(which, 2).max(1, keepdim=True)  # (B, 1, 1)
            way = deltas.take_along_dim(which[..., None], 2)[:, :, 0].take_along_dim(best, 1)
            moved = box.decode(way, proposed.take_along_dim(best, 1))
            kept.append((box.clip(moved, sizes), score[..., 0].sigmoid()))
        found, certain = (torch.cat(x, 1) for x in zip(*kept, strict=True))
        return found, certain

    def look(self, images: Tensor, sizes: Tensor) -> list[RegionFeatures]:
        """The features at each of the `scales`, and how each class scores each anchor."""
        return [self.seen(*scaled(images, scale), sizes) for scale in self.scales]

    def seen(self, images: Tensor, ratio: Tensor, sizes: Tensor) -> RegionFeatures:
        """The same at one scale."""
        height, width = images.shape[2:]
        last = list(self.features(images).values())[-1]
        anchors, _ = flatten_levels([last], (height, width), [self.arch.anchors], self.arch.ratios)
        logits = make_anchors([self.classification(last)], self.arch.classes).mT.float()
        return RegionFeatures(ratio, last.flatten(2).mT, logits, anchors, sizes)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """The levels of the backbone."""
        return self.backbone.features(images)

    def candidates(
        self, seen: Sequence[RegionFeatures], classes: Tensor, count: int
    ) -> tuple[Tensor, Tensor]:
        """The `count` best boxes of classes (B, k), best first: (B, k, n, 4), scores (B, k, n)."""
        found = [self.proposed(one, classes, count) for one in seen]
        boxes, scores = (torch.cat(x, 2) for x in zip(*found, strict=True))
        scores, best = scores.topk(min(count, scores.shape[2]))
        return boxes.take_along_dim(best[..., None], 2), scores

    def proposed(self, seen: RegionFeatures, classes: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The same at one scale."""
        own = gather_rows(seen.logits, classes)
        scores, index = own.topk(min(count, own.shape[2]))
        boxes = box.decode(self.deltas(seen, classes, index), seen.anchors[index]) / seen.ratio
        clipped = box.clip(boxes.flatten(1, 2), seen.sizes).view_as(boxes)
        return clipped, finite(scores).sigmoid()

    def deltas(self, seen: RegionFeatures, classes: Tensor, index: Tensor) -> Tensor:
        """How classes (B, k) move anchors index (B, k, n): (B, k, n, 4).

        Of the regression's 4 A K outputs at each position only these are computed.
        """
        image = torch.arange(len(index), device=index.device)[:, None, None]
        x = seen.features[image, index // self.shapes]
        which = index % self.shapes * self.arch.classes + classes[..., None]
        weight = self.regression.weight.view(-1, 4, x.shape[-1])[which]
        bias = self.regression.bias.view(-1, 4)[which]  # type: ignore[union-attr]
        return (weight @ x[..., None])[..., 0].float() + bias

    def losses(self, images: Tensor, sizes: Tensor, targets: DetectionTargets) -> Tensor:
        """The losses, each a mean over images, and the share of images located wrongly."""
        seen = self.seen(*scaled(images, 1), sizes)
        targets = targets.pad(targets.boxes.shape[1] + 1)  # one at least, if only of padding
        first = targets.is_object.byte().argmax(1, keepdim=True)
        label = targets.classes.gather(1, first)  # (B, 1)
        targets = targets.ignore(targets.is_object & (targets.classes != label))

        matched = box.match(seen.anchors[None], targets, LOW, HIGH, rescue=True)
        index, chosen = box.sample(matched, SAMPLED, POSITIVE_SHARE)
        logits = seen.logits.gather(2, index[:, None].expand(-1, self.arch.classes, -1))
        deltas = self.deltas(seen, label, index[:, None])[:, 0]
        at = matched.gather(1, index)
        lost = trained_levels(logits.mT, deltas, seen.anchors[index], label, targets, at, chosen)
        with torch.no_grad():
            proposed = self.candidates([seen], label, self.arch.regions[1] or 1)[0][:, 0]
            overlap = (box.iou(proposed[:, :1], targets.boxes)[:, 0] * targets.is_object).amax(1)
            wrong = (targets.is_object.any(1) & (overlap < 0.5)).float()
        if self.rcnn is not None:
            # The true boxes are among the regions, as nothing else may be right at first.
            proposed = torch.cat([proposed, targets.boxes], 1)
            matched = box.match(proposed, targets, RIGHT, RIGHT, rescue=False)
            index, chosen = box.sample(matched, self.arch.regions[0], POSITIVE_SHARE)
            regions, at = gather_rows(proposed, index), matched.gather(1, index)
            logits, moves = self.rcnn(images, regions)
            deltas = moves.take_along_dim(label[..., None, None], 2)[:, :, 0]
            lost += trained_levels(logits, deltas, regions, label, targets, at, chosen)
        return torch.stack([*lost, wrong.mean()])


def trained_levels(
    logits: Tensor,
    deltas: Tensor,
    boxes: Tensor,
    label: Tensor,
    targets: DetectionTargets,
    matched: Tensor,
    chosen: Tensor,
) -> list[Tensor]:
    """Both losses of n sampled boxes: logits (B, n, K), deltas of the label's class (B, n, 4)."""
    positive = chosen & (matched >= 0)
    wanted = torch.zeros_like(logits)
    wanted.scatter_(2, label[..., None].expand(-1, logits.shape[1], 1), positive[..., None].float())
    lost = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    goals = box.encode(gather_rows(targets.boxes, matched.clamp(min=0)), boxes)
    return [
        per_image_mean(lost.sum(2), chosen),
        per_image_mean(smooth_l1(deltas, goals) * positive, chosen),
    ]

"""Where the object of a class is: per-class proposals, 1512.03385 appendix C.

Two sibling 1x1 layers on the last map, both with outputs of their own for each class: one says
whether an anchor holds an object of the class (a logistic regression for each class by itself),
one moves the anchor onto it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnets.arch import LocalizerArch
from resnets.nets.detector import Detections
from resnets.nets.proposals import HIGH, LOW, distance, laid, mean, spread, take
from resnets.nets.resnet import ResNet
from resnets.ops import boxes as box

SAMPLED, POSITIVE_SHARE = 8, 0.5  # anchors of an image that are learnt from: appendix C
MOST = 100  # boxes of an image, each of another class


class Seen(NamedTuple):
    """What the network makes of images, on P positions with A anchors each."""

    features: Tensor  # (B, P, C)
    logits: Tensor  # float32 (B, K, P * A)
    anchors: Tensor  # float32 (P * A, 4)
    sizes: Tensor  # int64 (B, 2): height, width of the images


class Localizer(nn.Module):
    """Images (B, C, H, W), any H and W, to a box for each class.

    With objects (B, M, 6 or more) it gives the losses `parts` and the share of images whose best
    box of the true class has an IoU below 0.5: float32 (3,). The class of an image is that of its
    first object; other classes' objects are ignored.
    """

    parts = ("classification", "boxes")

    def __init__(self, arch: LocalizerArch, *, checkpoint: int = 0) -> None:
        super().__init__()
        self.arch = arch
        self.backbone = ResNet(
            replace(arch.backbone, channels=arch.channels), checkpoint=checkpoint
        )
        self.backbone.add_module("fc", nn.Identity())
        channels, _ = list(self.backbone.levels.values())[-1]
        self.shapes = len(arch.anchors) * len(arch.ratios)
        self.classification = nn.Conv2d(channels, arch.classes * self.shapes, 1)
        self.regression = nn.Conv2d(channels, arch.classes * self.shapes * 4, 1)
        # At first every class is as likely as in the sample of anchors: half of them have one.
        rare = -math.log(2 * arch.classes - 1)
        for layer, bias in (self.classification, rare), (self.regression, 0.0):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(layer.bias, bias)  # type: ignore[arg-type]

    def forward(
        self, images: Tensor, objects: Tensor | None = None, sizes: Tensor | None = None
    ) -> Detections | Tensor:
        """Detections: the best box of each of the best `MOST` classes. Or the losses."""
        seen = self.look(images, sizes)
        if objects is not None:
            return self.losses(seen, objects.float())
        best = seen.logits.amax(2)
        classes = best.topk(min(MOST, best.shape[1])).indices
        boxes, scores = self.candidates(seen, classes, 1)
        return Detections(boxes[:, :, 0], scores[:, :, 0], classes, None)

    def best(
        self, images: Tensor, classes: Tensor, sizes: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The best box of given classes int64 (B, k): boxes (B, k, 4), scores 0..1 (B, k)."""
        boxes, scores = self.candidates(self.look(images, sizes), classes, 1)
        return boxes[:, :, 0], scores[:, :, 0]

    def look(self, images: Tensor, sizes: Tensor | None = None) -> Seen:
        """The features, and how each class scores each anchor."""
        height, width = images.shape[2:]
        last = list(self.features(images).values())[-1]
        anchors, _ = spread([last], (height, width), [self.arch.anchors], self.arch.ratios)
        logits = laid([self.classification(last)], self.arch.classes).mT.float()
        if sizes is None:
            sizes = torch.tensor([[height, width]], device=images.device).expand(len(images), 2)
        return Seen(last.flatten(2).mT, logits, anchors, sizes)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """The levels of the backbone."""
        return self.backbone.features(images)

    def candidates(self, seen: Seen, classes: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The `count` best boxes of classes (B, k), best first: (B, k, n, 4), scores (B, k, n)."""
        own = take(seen.logits, classes)
        scores, index = own.topk(min(count, own.shape[2]))
        boxes = box.decode(self.deltas(seen, classes, index), seen.anchors[index])
        clipped = box.clip(boxes.flatten(1, 2), seen.sizes).view_as(boxes)
        return clipped, scores.sigmoid()

    def deltas(self, seen: Seen, classes: Tensor, index: Tensor) -> Tensor:
        """How classes (B, k) move anchors index (B, k, n): (B, k, n, 4).

        Of the regression's 4 A K outputs at each position only these are computed.
        """
        image = torch.arange(len(index), device=index.device)[:, None, None]
        x = seen.features[image, index // self.shapes]
        which = index % self.shapes * self.arch.classes + classes[..., None]
        weight = self.regression.weight.view(-1, 4, x.shape[-1])[which]
        bias = self.regression.bias.view(-1, 4)[which]  # type: ignore[union-attr]
        return (weight @ x[..., None])[..., 0].float() + bias

    def losses(self, seen: Seen, objects: Tensor) -> Tensor:
        """The losses, each a mean over images, and the share of images located wrongly."""
        objects = F.pad(objects[..., :6], (0, 0, 0, 1))  # one at least, if only of padding
        true = objects[..., 5] == 1
        first = true.byte().argmax(1, keepdim=True)
        label = objects[..., 4].gather(1, first).long()  # (B, 1)
        own = true & (objects[..., 4] == label)
        kind = torch.where(true & ~own, 2, objects[..., 5])
        objects = torch.cat([objects[..., :5], kind[..., None]], 2)

        matched = box.match(seen.anchors[None], objects, LOW, HIGH, rescue=True)
        index, chosen = box.sample(matched, SAMPLED, POSITIVE_SHARE)
        at = matched.gather(1, index)
        positive = chosen & (at >= 0)

        logits = seen.logits.gather(2, index[:, None].expand(-1, self.arch.classes, -1))
        wanted = torch.zeros_like(logits)
        wanted.scatter_(1, label[:, None].expand(-1, 1, SAMPLED), positive[:, None].float())
        lost = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        goals = box.encode(take(objects[..., :4], at.clamp(min=0)), seen.anchors[index])
        far = distance(self.deltas(seen, label, index[:, None])[:, 0], goals) * positive
        with torch.no_grad():
            best = self.candidates(seen, label, 1)[0][:, 0]
            overlap = (box.iou(best, objects[..., :4])[:, 0] * own).amax(1)
            wrong = (own.any(1) & (overlap < 0.5)).float()
        return torch.stack([mean(lost.sum(1), chosen), mean(far, chosen), wrong.mean()])

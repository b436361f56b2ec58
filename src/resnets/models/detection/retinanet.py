"""RetinaNet: a detector in one stage, Lin et al. 2017, arXiv 1708.02002."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import sigmoid_focal_loss

from resnets.config.arch import DetectorArch
from resnets.models.detection import boxes as box
from resnets.models.detection.faster_rcnn import Detections, top_k_detections
from resnets.models.detection.fpn import FeaturePyramid
from resnets.models.detection.rpn import RPNOutput, flatten_levels, gather_rows, inside
from resnets.models.layers import LayerFactory, finite

if TYPE_CHECKING:  # `data` takes longer to import than the networks
    from resnets.data.detection.targets import DetectionTargets

LOW, HIGH = 0.4, 0.5  # IoU of an anchor that is background, and of one that is an object
PRE_NMS_TOP_N = 1000  # best pairs of anchor and class of a level that suppression looks at


class RetinaNet(nn.Module):
    """Classes and boxes of the anchors of pyramid levels 3 to 7, by two towers of convolutions.

    Images (B, C, H, W), sizes int64 (B, 2) of each inside the input (None: all of it) ->
    Detections. With targets (B, M): float32 (3,), the focal loss and the L1 loss of the boxes, each
    divided by the image's anchors that have an object and then the mean over images; and the share
    of these anchors of wrong class.

    There is a logit for each class and none for background. torchvision's weights count
    background among the classes and never train it: they are a network of one class more, whose
    class 0 is not found. Names are torchvision's. `norm="group"` stands after each convolution of
    the pyramid but P6 and P7, and before each ReLU of the towers. Raises UsageError for anchors
    that do not fit the levels.
    """

    parts = ("classes", "boxes")

    def __init__(self, arch: DetectorArch, *, checkpoint: int = 0) -> None:
        super().__init__()
        self.arch = arch
        self.backbone = FeaturePyramid(arch, checkpoint=checkpoint)
        group = LayerFactory(norm_kind="group").norm if arch.norm == "group" else None
        shapes = len(arch.anchors[0]) * len(arch.ratios)
        self.head = RetinaNetHead(arch.width, shapes, arch.classes, group)
        self.threshold, self.overlap, self.kept = 0.05, 0.5, 300  # of detections, see `select`

    def forward(
        self,
        images: Tensor,
        targets: DetectionTargets | None = None,
        sizes: Tensor | None = None,
    ) -> Tensor | Detections:
        height, width = images.shape[2:]
        maps = list(self.features(images).values())
        said = self.head(maps)
        anchors, counts = flatten_levels(maps, (height, width), self.arch.anchors, self.arch.ratios)
        seen = RPNOutput(said["cls_logits"].float(), said["bbox_regression"], anchors, counts)
        if targets is not None:
            return losses(seen, targets)
        return self.select(seen, inside(images, sizes))

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) -> {level: (B, width, h, w)}."""
        maps: dict[str, Tensor] = self.backbone(images)
        return maps

    def select(self, seen: RPNOutput, sizes: Tensor) -> Detections:
        """The best pairs of anchor and class of each level, and what suppression leaves of them."""
        # The best pairs are among the anchors whose best class is best: much less to sort.
        index = seen.best(seen.logits.amax(2), PRE_NMS_TOP_N)
        boxes, logits = seen.boxes(index, sizes), gather_rows(seen.logits, index)
        kinds = logits.shape[2]
        counts = [min(PRE_NMS_TOP_N, count) * kinds for count in seen.counts]
        pairs = seen._replace(counts=counts).best(logits.flatten(1), PRE_NMS_TOP_N)
        scores = finite(logits.flatten(1).gather(1, pairs)).sigmoid()
        valid = scores > self.threshold
        boxes = gather_rows(boxes, pairs // kinds)
        return top_k_detections(boxes, scores, pairs % kinds, valid, self.overlap, self.kept)


def losses(seen: RPNOutput, targets: DetectionTargets) -> Tensor:
    """As `RetinaNet` with targets."""
    matched = box.match(seen.anchors[None], targets, LOW, HIGH, rescue=True)
    known, positive = matched != -2, matched >= 0
    image, anchor = positive.nonzero(as_tuple=True)
    row = matched[image, anchor]
    classes = targets.classes[image, row]
    count = positive.sum(1).clamp(min=1)
    goals = torch.zeros_like(seen.logits)
    goals[image, anchor, classes] = 1
    focal = sigmoid_focal_loss(seen.logits, goals, alpha=0.25, gamma=2.0).sum(2) * known
    deltas = box.encode(targets.boxes[image, row], seen.anchors[anchor])
    far = F.l1_loss(seen.deltas[image, anchor].float(), deltas, reduction="none").sum(1)
    missed = (seen.logits.argmax(2)[image, anchor] != classes).float()
    share = 1 / (count[image] * len(targets))  # of the mean over images of the means of each
    return torch.stack([(focal.sum(1) / count).mean(), (far * share).sum(), (missed * share).sum()])

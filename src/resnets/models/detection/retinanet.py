"""RetinaNet: a detector in one stage, Lin et al. 2017, arXiv 1708.02002."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from resnets.config.arch import DetectorArch
from resnets.models.detection import boxes as box
from resnets.models.detection.boxes import BatchDetections, gather_rows, top_k_detections
from resnets.models.detection.fpn import NORMS, FeaturePyramid
from resnets.models.detection.rpn import RPNOutput, image_sizes, make_anchors
from resnets.models.layers import check_finite

if TYPE_CHECKING:  # `data` takes longer to import than the networks
    from resnets.data.detection.targets import DetectionTargets

LOW, HIGH = 0.4, 0.5  # IoU of an anchor that is background, and of one that is an object
PRE_NMS_TOP_N = 1000  # pairs of anchor and class of a level that go into suppression


class RetinaNet(nn.Module):
    """Classes and boxes of the anchors of pyramid levels 3 to 7, by two towers of convolutions.

    Images (B, C, H, W), sizes int64 (B, 2) of each inside the input (None: all of it) ->
    BatchDetections. With targets (B, M): float32 (3,), the focal loss and the loss of the boxes,
    each divided by the image's anchors that have an object and then the mean over images; and the
    share of these anchors of wrong class.

    There is a logit for each class and none for background. torchvision's weights count
    background among the classes and never train it: they are a network of one class more, whose
    class 0 is not found. Names are torchvision's. A `norm` stands after each convolution of
    the pyramid but P6 and P7 (with `pyramid_norm`), and before each ReLU of the towers. Raises
    UsageError for anchors that do not fit the levels.
    """

    loss_names = ("classes", "boxes")

    def __init__(self, arch: DetectorArch, *, activation_checkpointing: int = 0) -> None:
        super().__init__()
        self.arch = arch
        self.backbone = FeaturePyramid(arch, activation_checkpointing=activation_checkpointing)
        shapes = len(arch.anchors[0]) * len(arch.ratios)
        self.head = RetinaNetHead(arch.width, shapes, arch.classes, NORMS[arch.norm])
        self.score_thresh, self.nms_thresh, self.detections_per_img = 0.05, 0.5, 300

    def forward(
        self, images: Tensor, targets: DetectionTargets | None = None, sizes: Tensor | None = None
    ) -> Tensor | BatchDetections:
        height, width = images.shape[2:]
        maps = list(self.features(images).values())
        head = self.head(maps)
        anchors, counts = make_anchors(maps, (height, width), self.arch.anchors, self.arch.ratios)
        output = RPNOutput(head["cls_logits"].float(), head["bbox_regression"], anchors, counts)
        if targets is not None:
            return losses(output, targets, self.arch.box_loss)
        return self.postprocess(output, image_sizes(images, sizes))

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) -> {level: (B, width, h, w)}."""
        return self.backbone(images)

    def postprocess(self, output: RPNOutput, sizes: Tensor) -> BatchDetections:
        """The best pairs of anchor and class of each level, and what suppression leaves of them."""
        # The best pairs are among the anchors whose best class is best: much less to sort.
        index = output.top_k(output.logits.amax(2), PRE_NMS_TOP_N)
        boxes, logits = output.decode(index, sizes), gather_rows(output.logits, index)
        kinds = logits.shape[2]
        counts = [min(PRE_NMS_TOP_N, count) * kinds for count in output.counts]
        pairs = output._replace(counts=counts).top_k(logits.flatten(1), PRE_NMS_TOP_N)
        scores = check_finite(logits.flatten(1).gather(1, pairs)).sigmoid()
        boxes, classes = gather_rows(boxes, pairs // kinds), pairs % kinds
        valid = scores > self.score_thresh
        return top_k_detections(
            boxes, scores, classes, valid, self.nms_thresh, self.detections_per_img
        )


def losses(
    output: RPNOutput, targets: DetectionTargets, kind: Literal["l1", "giou"] = "l1"
) -> Tensor:
    """As `RetinaNet` with targets: float32 (3,). The focal loss has alpha 0.25 and gamma 2."""
    matched = box.match(output.anchors[None], targets, LOW, HIGH, allow_low_quality_matches=True)
    known, positive = matched != -2, matched >= 0
    image, anchor = positive.nonzero(as_tuple=True)
    row = matched[image, anchor]
    classes = targets.classes[image, row]
    count = positive.sum(1).clamp(min=1)
    one_hot = torch.zeros_like(output.logits)
    one_hot[image, anchor, classes] = 1
    focal = sigmoid_focal_loss(output.logits, one_hot, alpha=0.25, gamma=2.0).sum(2) * known
    deltas, anchors = output.deltas[image, anchor].float(), output.anchors[anchor]
    true_boxes = targets.boxes[image, row]
    if kind == "giou":
        box_loss = generalized_box_iou_loss(box.decode(deltas, anchors), true_boxes)
    else:
        true_deltas = box.encode(true_boxes, anchors)
        box_loss = F.l1_loss(deltas, true_deltas, reduction="none").sum(1)
    wrong = (output.logits.argmax(2)[image, anchor] != classes).float()
    weight = 1 / (count[image] * len(targets))  # of the mean over images of the means of each
    return torch.stack(
        [(focal.sum(1) / count).mean(), (box_loss * weight).sum(), (wrong * weight).sum()]
    )

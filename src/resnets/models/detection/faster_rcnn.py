"""Detectors in two stages: regions are proposed, then classified; with `masks`, segmented.

Faster R-CNN on conv4 as in He et al. 2015, appendix A; on a feature pyramid (1612.03144); Mask
R-CNN (1703.06870). Where torchvision has the network, the names of the tensors are torchvision's.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from resnets.config.arch import DetectorArch
from resnets.errors import UsageError
from resnets.models.detection import boxes as box
from resnets.models.detection import roi_align
from resnets.models.detection.boxes import (
    BatchDetections,
    SampledBoxes,
    sample_boxes,
    top_k_detections,
)
from resnets.models.detection.fpn import EXTRA_LEVELS, NORMS, FeaturePyramid
from resnets.models.detection.rpn import RegionProposalNetwork, image_sizes
from resnets.models.layers import check_finite, global_mean, per_image_mean

if TYPE_CHECKING:  # `data` takes longer to import than the networks
    from resnets.data.detection.targets import DetectionTargets

IOU = 0.5  # from which on a region is of an object
POSITIVE_SHARE = 0.25  # of the regions that training learns from, at most
WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # of dx, dy, dw, dh: about 1 / their standard deviations
MIN_BOX_SIDE = 1e-2  # side of a detection, in pixels
CELLS = {"fpn": 7, "c4": 14}  # of a region; conv5 halves the 14
MASK_CELLS = 14  # of a region for the mask head; the mask has twice as many


class BoxHead(nn.Module):
    """Two fully connected layers: (N, C, cells, cells) -> (N, hidden)."""

    def __init__(self, c_in: int, cells: int, hidden: int) -> None:
        super().__init__()
        self.shape = (c_in, cells, cells)
        self.fc6 = nn.Linear(math.prod(self.shape), hidden)
        self.fc7 = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        # Regions are channels last: there are fewer weights to permute than pixels of regions.
        weight = self.fc6.weight.view(-1, *self.shape).permute(0, 2, 3, 1).flatten(1)
        x = F.relu(F.linear(x.permute(0, 2, 3, 1).flatten(1), weight, self.fc6.bias))
        return F.relu(self.fc7(x))


def make_box_head(arch: DetectorArch, channels: int) -> nn.Module:
    """The layers on a region: (N, channels, cells, cells) -> (N, hidden)."""
    cells = CELLS["fpn"]
    if arch.box_convs == 0:
        return BoxHead(channels, cells, arch.hidden)
    widths = [arch.width] * arch.box_convs
    return FastRCNNConvFCHead((channels, cells, cells), widths, [arch.hidden], NORMS[arch.norm])


class FasterRCNN(nn.Module):
    """Faster R-CNN and Mask R-CNN, architectures "c4" and "fpn".

    Images (B, C, H, W), sizes int64 (B, 2) of each inside the input (None: all of it) ->
    BatchDetections. With targets (B, M): float32 (len(loss_names) + 1,), the losses, each the mean
    over images of its mean over the image's sampled anchors or regions, and the share of sampled
    regions of wrong class.

    A `norm` follows each convolution of the pyramid, and each 3x3 of box and mask head, before its
    ReLU. Raises UsageError for anchors that do not fit the levels, and in
    training for masks that the targets lack.
    """

    def __init__(self, arch: DetectorArch, *, activation_checkpointing: int = 0) -> None:
        super().__init__()
        self.arch = arch
        self.loss_names = ("objectness", "proposals", "classes", "boxes", *["masks"] * arch.masks)
        self.backbone = FeaturePyramid(arch, activation_checkpointing=activation_checkpointing)
        levels = list(self.backbone.levels.values())
        channels = levels[0][0]
        self.rpn = RegionProposalNetwork(arch, channels)
        # Of the levels that regions are read from; those further up are for proposals only.
        self.strides = [s for _, s in levels[: len(levels) - len(EXTRA_LEVELS[arch.architecture])]]
        heads: dict[str, nn.Module] = {}
        features = arch.hidden
        if arch.architecture == "c4":
            features, _ = list(self.backbone.body.levels.values())[-1]
        else:
            heads["box_head"] = make_box_head(arch, channels)
        features *= 2 if arch.context else 1
        heads["box_predictor"] = FastRCNNPredictor(features, arch.classes + 1)
        if arch.masks:
            heads["mask_head"] = MaskRCNNHeads(channels, [arch.width] * 4, 1, NORMS[arch.norm])
            heads["mask_predictor"] = MaskRCNNPredictor(arch.width, arch.width, arch.classes + 1)
        self.roi_heads = nn.ModuleDict(heads)
        # Anchors of a level that go into suppression, in training and at test. conv4 alone has all
        # sizes on one level, so many overlap: Ren et al.'s 12,000 and 6,000 for 2,000 and 300.
        many, few = arch.proposals
        self.pre_nms_top_n = (6 * many, 20 * few) if arch.architecture == "c4" else arch.proposals
        self.score_thresh, self.nms_thresh, self.detections_per_img = 0.05, 0.5, 100

    def forward(
        self, images: Tensor, targets: DetectionTargets | None = None, sizes: Tensor | None = None
    ) -> Tensor | BatchDetections:
        height, width = images.shape[2:]
        sizes = image_sizes(images, sizes)
        maps = self.features(images)
        if targets is not None:
            return self.losses(maps, targets, (height, width), sizes)
        rois, _ = self.propose(maps, (height, width), sizes)
        detections = self.postprocess(*self.classify_rois(maps, rois, sizes), sizes)
        return self.add_masks(maps, detections)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) -> {level: (B, width, h, w)}."""
        return self.backbone(images)

    def propose(
        self, maps: dict[str, Tensor], image_shape: tuple[int, int], sizes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Regions (B, R, 4) and their logits (B, R), best first; padded by empty ones and -inf."""
        output = self.rpn(list(maps.values()), image_shape)
        check_finite(output.logits)
        return self.rpn.propose(output, sizes, self.pre_nms_top_n[1], self.arch.proposals[1])

    def classify_rois(
        self, maps: dict[str, Tensor], rois: Tensor, sizes: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Regions (B, R, 4) -> probabilities (B, R, K + 1), background first; boxes (B, R, K, 4).

        With `context` the sizes (B, 2) say what the whole image is; without them it is the input.
        """
        return self.predict_boxes(self.box_features(maps, rois, sizes), rois)

    def box_features(
        self, maps: dict[str, Tensor], rois: Tensor, sizes: Tensor | None = None
    ) -> Tensor:
        """The input of the two sibling layers: (B, R, 4) -> (B, R, D).

        With `context` a region's features are followed by those of the whole image (1512.03385,
        appendix B).
        """
        if self.arch.context:
            rois = torch.cat([self.image_box(maps, rois, sizes), rois], 1)
        x = self.roi_features(maps, rois, CELLS[self.arch.architecture])
        if self.arch.architecture == "c4":
            x = global_mean(self.backbone.run_roi_stages(x))
        else:
            x = self.roi_heads["box_head"](x)
        x = x.view(*rois.shape[:2], x.shape[1])
        if self.arch.context:
            whole, x = x[:, :1], x[:, 1:]
            x = torch.cat([x, whole.expand_as(x)], 2)
        return x

    def predict_boxes(self, features: Tensor, rois: Tensor) -> tuple[Tensor, Tensor]:
        """(B, R, D), (B, R, 4) -> probabilities (B, R, K + 1), boxes (B, R, K, 4)."""
        logits, deltas = self.predict_deltas(features)
        boxes = box.decode(deltas[:, :, 1:].float(), rois[:, :, None], WEIGHTS)
        return check_finite(logits.float()).softmax(2), boxes

    def predict_deltas(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The sibling layers: (B, R, D) -> logits (B, R, K + 1), deltas (B, R, K + 1, 4)."""
        logits, deltas = self.roi_heads["box_predictor"](features.flatten(0, 1))
        shape = features.shape[:2]
        return logits.unflatten(0, shape), deltas.unflatten(0, shape).unflatten(2, (-1, 4))

    def postprocess(self, probabilities: Tensor, boxes: Tensor, sizes: Tensor) -> BatchDetections:
        """What `classify_rois` gave -> the best `detections_per_img` after suppression."""
        rows = flatten_classes(probabilities, boxes, sizes, self.score_thresh)
        return top_k_detections(*rows, self.nms_thresh, self.detections_per_img)

    def add_masks(self, maps: dict[str, Tensor], detections: BatchDetections) -> BatchDetections:
        """With the masks of the detections; without a mask head they stay as they are."""
        if not self.arch.masks:
            return detections
        valid = detections.classes >= 0
        most = max(1, int(valid.sum(1).max()))  # valid ones come first
        boxes, classes = detections.boxes[:, :most], detections.classes[:, :most]
        logits = self.mask_logits(maps, boxes, classes.clamp(min=0))
        masks = logits.sigmoid() * valid[:, :most, None, None]
        padding = (0, 0, 0, 0, 0, valid.shape[1] - most)
        return detections._replace(masks=F.pad(masks, padding))

    def mask_logits(self, maps: dict[str, Tensor], rois: Tensor, classes: Tensor) -> Tensor:
        """Mask logits of one class for each region: (B, R, 4), int64 (B, R) -> (B, R, 28, 28)."""
        x = self.roi_heads["mask_head"](self.roi_features(maps, rois, MASK_CELLS))
        logits = self.roi_heads["mask_predictor"](x)
        logits = logits.take_along_dim(classes.view(-1, 1, 1, 1) + 1, 1)[:, 0]
        return logits.float().unflatten(0, rois.shape[:2])

    def roi_features(self, maps: dict[str, Tensor], rois: Tensor, cells: int) -> Tensor:
        """The maps inside regions, each of its level: (B, R, 4) -> (B*R, C, cells, cells)."""
        levels = list(maps.values())[: len(self.strides)]
        at = 4 - int(math.log2(self.strides[0]))  # a region of 224 pixels is read at stride 16
        which = roi_align.pyramid_level(rois, len(levels), at=at)
        pool = roi_align.roi_align if self.arch.pool == "align" else roi_align.roi_pool
        return pool(levels, rois, self.strides, which, cells)

    def image_box(self, maps: dict[str, Tensor], rois: Tensor, sizes: Tensor | None) -> Tensor:
        """The box of each whole image, in the type of the regions: (B, 1, 4)."""
        if sizes is None:
            height, width = next(iter(maps.values())).shape[2:]
            shape = [[height * self.strides[0], width * self.strides[0]]]
            sizes = torch.tensor(shape, device=rois.device).expand(len(rois), 2)
        return F.pad(sizes.flip(1), (2, 0))[:, None].to(rois)

    def losses(
        self,
        maps: dict[str, Tensor],
        targets: DetectionTargets,
        image_shape: tuple[int, int],
        sizes: Tensor,
    ) -> Tensor:
        """As `forward` with targets: float32 (len(loss_names) + 1,)."""
        targets = targets.pad(1)  # there is one to index
        output = self.rpn(list(maps.values()), image_shape)
        rpn_losses = self.rpn.losses(output, targets)

        rois, _ = self.rpn.propose(output, sizes, self.pre_nms_top_n[0], self.arch.proposals[0])
        rois = torch.cat([rois, targets.boxes], 1)
        samples = sample_boxes(rois, targets, self.arch.sampled, POSITIVE_SHARE, low=IOU, high=IOU)
        labels = (targets.classes.gather(1, samples.rows) + 1) * samples.is_positive

        logits, deltas = self.predict_deltas(self.box_features(maps, samples.boxes, sizes))
        logits = logits.float()
        class_loss = samples.mean(F.cross_entropy(logits.mT, labels, reduction="none"))
        class_deltas = deltas.take_along_dim(labels[..., None, None], 2)[:, :, 0]
        losses = [class_loss, samples.box_loss(class_deltas, WEIGHTS)]
        if self.arch.masks:
            losses.append(self.mask_loss(maps, targets, samples, labels))
        wrong = samples.mean((logits.argmax(2) != labels).float())
        return torch.cat([rpn_losses, torch.stack([*losses, wrong])])

    def mask_loss(
        self,
        maps: dict[str, Tensor],
        targets: DetectionTargets,
        samples: SampledBoxes,
        labels: Tensor,
    ) -> Tensor:
        """Cross-entropy of the positives' masks of their true classes, `labels` less 1."""
        if targets.masks is None:
            raise UsageError("the network predicts masks, but the objects of the data have none")
        most = max(1, int(samples.is_positive.sum(1).max()))  # positives come first
        boxes, true_boxes = samples.boxes[:, :most], samples.true_boxes[:, :most]
        masks = targets.masks.take_along_dim(samples.rows[:, :most, None, None], 1)
        true_masks = crop_masks(masks, true_boxes, boxes, 2 * MASK_CELLS)
        logits = self.mask_logits(maps, boxes, (labels[:, :most] - 1).clamp(min=0))
        losses = F.binary_cross_entropy_with_logits(logits, true_masks, reduction="none")
        return per_image_mean(losses.mean((2, 3)), samples.is_positive[:, :most])


def flatten_classes(
    probabilities: Tensor, boxes: Tensor, sizes: Tensor, score_thresh: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A row for each region and class, of what `FasterRCNN.classify_rois` gave.

    Boxes (B, R*K, 4) inside the images, and (B, R*K) each: scores, classes, and whether a row may
    be a detection.
    """
    count, kinds = boxes.shape[1:3]
    classes = torch.arange(kinds, device=boxes.device).repeat(count).expand(len(boxes), -1)
    boxes, scores = box.clip(boxes.flatten(1, 2), sizes), probabilities[..., 1:].flatten(1)
    large = (boxes[..., 2:] - boxes[..., :2]).amin(2) >= MIN_BOX_SIDE
    return boxes, scores, classes, large & (scores > score_thresh)


def crop_masks(masks: Tensor, boxes: Tensor, rois: Tensor, cells: int) -> Tensor:
    """What masks (B, R, m, m) of boxes (B, R, 4) show in rois (B, R, 4): (B, R, cells, cells).

    The bilinear value at the middle of each cell; outside of the box there is nothing.
    """
    grid = roi_align.sampling_grid(rois, boxes, cells).flatten(0, 1)
    cropped = F.grid_sample(masks.flatten(0, 1)[:, None], grid, align_corners=False)
    return cropped.view(*rois.shape[:2], cells, cells)

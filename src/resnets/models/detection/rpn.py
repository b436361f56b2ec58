"""The region proposal network, Ren et al. 2015, arXiv 1506.01497."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import Conv2dNormActivation

from resnets.config.arch import STRIDE, DetectorArch
from resnets.models.detection import boxes as box
from resnets.models.detection.boxes import gather_rows, sample_boxes

if TYPE_CHECKING:  # `data` takes longer to import than the networks
    from resnets.data.detection.targets import DetectionTargets

LOW, HIGH = 0.3, 0.7  # IoU of an anchor that is background, and of one that is an object
NMS_THRESH = 0.7  # IoU beyond which the better proposal suppresses the other
MIN_PROPOSAL_SIDE = 1e-3  # side of a proposal, in pixels


class RPNOutput(NamedTuple):
    """The output of a network for each of A anchors, level after level."""

    logits: Tensor  # (B, A), or (B, A, K) of K classes
    deltas: Tensor  # (B, A, 4)
    anchors: Tensor  # float32 (A, 4)
    counts: list[int]  # anchors of each level

    def top_k(self, scores: Tensor, count: int) -> Tensor:
        """The anchors of the best `count` scores (B, A) of each level: int64 (B, n)."""
        best, first = [], 0
        for level in torch.split(scores, self.counts, 1):
            best.append(level.topk(min(count, level.shape[1])).indices + first)
            first += level.shape[1]
        return torch.cat(best, 1)

    def decode(self, index: Tensor, sizes: Tensor) -> Tensor:
        """The boxes that anchors int64 (B, n) become, inside images of `sizes`: (B, n, 4)."""
        return box.clip(box.decode(gather_rows(self.deltas, index), self.anchors[index]), sizes)


def image_sizes(images: Tensor, sizes: Tensor | None) -> Tensor:
    """Height and width of each image of (B, C, H, W), all of it without `sizes`: int64 (B, 2)."""
    if sizes is not None:
        return sizes
    return torch.tensor([images.shape[2:]], device=images.device).expand(len(images), 2)


def rescale(images: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W) at another size, and how much larger x, y, x, y are there: (4,)."""
    if scale == 1:
        return images, torch.ones(4, device=images.device)
    sides = [max(1, round(side * scale / STRIDE)) * STRIDE for side in images.shape[2:]]
    large = F.interpolate(images, sides, mode="bilinear", antialias=True)
    ratio = torch.tensor([sides[k] / images.shape[k + 2] for k in (1, 0)], device=images.device)
    return large, ratio.repeat(2)


class RPNHead(nn.Module):
    """3x3 convolutions, and on them 1x1 ones: for each anchor a score, and a box."""

    def __init__(self, c_in: int, width: int, shapes: int, convs: int = 1) -> None:
        super().__init__()
        inputs = [c_in] + [width] * (convs - 1)
        self.conv = nn.Sequential(
            *(Conv2dNormActivation(channels, width, norm_layer=None) for channels in inputs)
        )
        self.cls_logits = nn.Conv2d(width, shapes, 1)
        self.bbox_pred = nn.Conv2d(width, 4 * shapes, 1)
        for p in self.parameters():
            nn.init.normal_(p, std=0.01) if p.ndim > 1 else nn.init.zeros_(p)


class RegionProposalNetwork(nn.Module):
    """Scores and moves the anchors of each level; the levels share one head."""

    def __init__(self, arch: DetectorArch, c_in: int) -> None:
        super().__init__()
        self.sizes, self.ratios = arch.anchors, arch.ratios
        shapes = len(arch.anchors[0]) * len(arch.ratios)
        self.head = RPNHead(c_in, arch.width, shapes, arch.rpn_convs)
        self.sampled = 256  # anchors of an image in the loss, at most half of them positive

    def forward(self, maps: Sequence[Tensor], image_shape: tuple[int, int]) -> RPNOutput:
        head = self.head
        hidden = [head.conv(m) for m in maps]
        logits = flatten_levels([head.cls_logits(x) for x in hidden], 1)[..., 0].float()
        deltas = flatten_levels([head.bbox_pred(x) for x in hidden], 4)
        anchors, counts = make_anchors(maps, image_shape, self.sizes, self.ratios)
        return RPNOutput(logits, deltas, anchors, counts)

    @torch.no_grad()
    def propose(
        self, output: RPNOutput, sizes: Tensor, pre_nms_top_n: int, post_nms_top_n: int
    ) -> tuple[Tensor, Tensor]:
        """Suppression within the best `pre_nms_top_n` of each level, and the best of what is left.

        Gives boxes (B, R, 4) and logits (B, R), best first, R at most `post_nms_top_n`; where there
        are fewer than R, boxes without area and -inf.
        """
        index = output.top_k(output.logits, pre_nms_top_n)
        boxes, scores = output.decode(index, sizes), output.logits.gather(1, index)
        level = torch.bucketize(index, torch.tensor(output.counts).cumsum(0).to(index), right=True)
        large = (boxes[..., 2:] - boxes[..., :2]).amin(2) >= MIN_PROPOSAL_SIDE
        count = min(post_nms_top_n, boxes.shape[1])
        index, valid = box.nms(boxes, scores, level, large, NMS_THRESH, count)
        scores = scores.gather(1, index).where(valid, -math.inf)
        return gather_rows(boxes, index) * valid[..., None], scores

    def losses(self, output: RPNOutput, targets: DetectionTargets) -> Tensor:
        """Of the scores, and of the boxes: float32 (2,). Targets (B, M), M > 0."""
        samples = sample_boxes(
            output.anchors[None],
            targets,
            self.sampled,
            0.5,
            low=LOW,
            high=HIGH,
            allow_low_quality_matches=True,
        )
        scores, positive = output.logits.gather(1, samples.index), samples.is_positive.float()
        score_loss = F.binary_cross_entropy_with_logits(scores, positive, reduction="none")
        box_loss = samples.box_loss(gather_rows(output.deltas, samples.index))
        return torch.stack([samples.mean(score_loss), box_loss])


def flatten_levels(maps: Sequence[Tensor], values: int) -> Tensor:
    """Maps (B, A * values, h, w) as one (B, anchors, values), in the order of the anchors."""
    rows = [m.permute(0, 2, 3, 1).reshape(len(m), -1, values) for m in maps]
    return torch.cat(rows, 1)


def make_anchors(
    maps: Sequence[Tensor],
    image_shape: tuple[int, int],
    sizes: Sequence[Sequence[float]],
    ratios: Sequence[float],
) -> tuple[Tensor, list[int]]:
    """The anchors of maps of images (height, width): float32 (A, 4), and how many a level has.

    Strides are whole parts of the image, as in torchvision: a level of 3 columns on 160 pixels has
    53, though 64 pixels lie between its own.
    """
    height, width = image_shape
    shapes = [(m.shape[2], m.shape[3]) for m in maps]
    strides: Any = [(height // h, width // w) for h, w in shapes]
    generator = AnchorGenerator(tuple(sizes), (tuple(ratios),) * len(sizes))
    generator.set_cell_anchors(torch.float32, maps[0].device)
    levels = generator.grid_anchors(shapes, strides)
    return torch.cat(levels), [len(level) for level in levels]

"""Boxes x1, y1, x2, y2 in pixels, x2 and y2 exclusive: pure functions on tensors, on any device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from resnets.models.layers import per_image_mean

if TYPE_CHECKING:  # `data` takes longer to import than the networks
    from resnets.data.detection.targets import DetectionTargets


# Of a decoded dw, dh: an early, wild network must not overflow exp.
MAX_LOG_SCALE = math.log(1000 / 16)
TINY = 1e-6  # instead of a width, height or area of 0
CHUNK = 2**20  # pairs of object and box that `match` holds at a time


class BatchDetections(NamedTuple):
    """The detections of each image of a batch, the best first; D is fixed."""

    boxes: Tensor  # float32 (B, D, 4), pixels of the input
    scores: Tensor  # float32 (B, D), 0 where there is none
    classes: Tensor  # int64 (B, D), -1 where there is none
    masks: Tensor | None = None  # float32 (B, D, 28, 28), 0..1 inside the box


def area(boxes: Tensor) -> Tensor:
    """(..., 4) -> (...)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def intersection_area(first: Tensor, second: Tensor) -> Tensor:
    """Area of the intersection of all pairs: (..., N, 4), (..., M, 4) -> (..., N, M)."""
    a, b = first[..., :, None, :], second[..., None, :, :]
    width = torch.minimum(a[..., 2], b[..., 2]) - torch.maximum(a[..., 0], b[..., 0])
    height = torch.minimum(a[..., 3], b[..., 3]) - torch.maximum(a[..., 1], b[..., 1])
    return width.clamp_(min=0) * height.clamp_(min=0)


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of all pairs: (..., N, 4), (..., M, 4) -> (..., N, M)."""
    both = intersection_area(first, second)
    return both / (area(first)[..., :, None] + area(second)[..., None, :] - both).clamp_(min=TINY)


def _centred(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centre x, y; width, height."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1


def encode(boxes: Tensor, anchors: Tensor, weights: Sequence[float] = (1, 1, 1, 1)) -> Tensor:
    """(dx, dy, dw, dh) of R-CNN (1311.2524, appendix C) times `weights`: (..., 4) -> (..., 4).

    Empty boxes and anchors give finite numbers.
    """
    x, y, w, h = _centred(boxes)
    ax, ay, aw, ah = _centred(anchors)
    w, h, aw, ah = (side.clamp(min=TINY) for side in (w, h, aw, ah))
    deltas = (x - ax) / aw, (y - ay) / ah, (w / aw).log(), (h / ah).log()
    return torch.stack([d * weight for d, weight in zip(deltas, weights, strict=True)], -1)


def decode(deltas: Tensor, anchors: Tensor, weights: Sequence[float] = (1, 1, 1, 1)) -> Tensor:
    """The inverse of `encode`: deltas (..., 4) -> boxes (..., 4), in the anchors' type."""
    ax, ay, aw, ah = _centred(anchors)
    columns = zip(deltas.to(anchors.dtype).unbind(-1), weights, strict=True)
    dx, dy, dw, dh = (d / weight for d, weight in columns)
    x, y = ax + dx * aw, ay + dy * ah
    w, h = dw.clamp(max=MAX_LOG_SCALE).exp() * aw, dh.clamp(max=MAX_LOG_SCALE).exp() * ah
    return torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1)


def gather_rows(rows: Tensor, index: Tensor) -> Tensor:
    """Rows (B or 1, N, C) at index (B, n): (B, n, C)."""
    return rows.take_along_dim(index[..., None], 1)


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes (B, R, 4) inside images of sizes (B, 2): height, width."""
    return boxes.clamp(min=0).minimum(sizes.flip(1).repeat(1, 2)[:, None].to(boxes))


@torch.no_grad()
def match(
    boxes: Tensor,
    targets: DetectionTargets,
    low: float,
    high: float,
    allow_low_quality_matches: bool,
) -> Tensor:
    """The row of `targets` (B, M) of each box: boxes (B or 1, A, 4) -> int64 (B, A).

    As torchvision's `Matcher`: the object of the largest IoU if that is at least `high`; -1,
    background, where it is below `low`; else -2. A box also is -2 if it matches nothing and at
    least `low` of it lies in an ignored object, or if it is empty. `allow_low_quality_matches`: the
    best boxes of an object match, too (1506.01497, section 3.1.2).
    """
    boxes = boxes.mT.contiguous().mT  # x1 of all boxes side by side: half the time
    areas = area(boxes)[:, None]
    best = areas.new_zeros(len(targets), boxes.shape[1])
    index, rescued, ignored = best.long(), best.bool(), areas[:, 0] <= 0
    step = max(1, CHUNK // best.numel())
    for first in range(0, targets.boxes.shape[1], step):
        rows = slice(first, first + step)
        some = targets.boxes[:, rows]
        is_object, is_ignored = targets.is_object[:, rows, None], targets.is_ignored[:, rows, None]
        both = intersection_area(some, boxes)  # (B, objects of the chunk, A)
        overlap = both / (area(some)[..., None] + areas - both).clamp_(min=TINY) * is_object
        ignored = ignored | (both * is_ignored >= low * areas.clamp(min=TINY)).any(1)
        value, row = overlap.max(1)
        index = torch.where(value > best, row + first, index)
        best = torch.maximum(value, best)
        if allow_low_quality_matches:
            top = overlap.amax(2, keepdim=True)
            rescued |= ((overlap == top) & (top > 0)).any(1)
    neither = ignored | (best >= low)
    return torch.where((best >= high) | rescued, index, torch.where(neither, -2, -1))


@torch.no_grad()
def sample(matched: Tensor, count: int, positive_share: float) -> tuple[Tensor, Tensor]:
    """Random positives, at most their share of `count`, and negatives: what `match` gave, (B, A).

    Gives index, int64 (B, count), and chosen, bool (B, count): the positives first, then the
    negatives; where there are too few of both, the rest is not chosen and index 0.
    """
    key = torch.rand(matched.shape, device=matched.device)
    groups = (matched >= 0, int(count * positive_share)), (matched == -1, count)
    picks = [torch.where(these, key, -1).topk(min(n, matched.shape[1])) for these, n in groups]
    chosen = torch.cat([pick.values for pick in picks], 1) >= 0
    index = torch.cat([pick.indices for pick in picks], 1).where(chosen, 0)
    order = chosen.byte().argsort(stable=True, dim=1, descending=True)[:, :count]
    pad = (0, count - order.shape[1])
    return F.pad(index.gather(1, order), pad), F.pad(chosen.gather(1, order), pad)


@torch.no_grad()
def nms(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, threshold: float, keep: int
) -> tuple[Tensor, Tensor]:
    """Non-maximum suppression within each image and group, and the best `keep` of each image.

    boxes (B, R, 4), scores (B, R), groups int64 (B, R), valid bool (B, R). Gives index, int64
    (B, keep), by falling score, and valid, bool (B, keep); index is 0 where it is not valid.
    """
    from torchvision.ops import batched_nms

    number = groups * len(boxes) + torch.arange(len(boxes), device=boxes.device)[:, None]
    # Groups may be moved aside by number * size: float64 has the digits for that.
    kept = batched_nms(boxes[valid].double(), scores[valid].double(), number[valid], threshold)
    alive = torch.full_like(scores, -math.inf).flatten()
    kept = valid.flatten().nonzero()[:, 0][kept]
    alive[kept] = scores.flatten()[kept]
    best = alive.view_as(scores).topk(min(keep, scores.shape[1]))
    pad = (0, keep - best.values.shape[1])
    valid = F.pad(best.values > -math.inf, pad)
    return F.pad(best.indices, pad).where(valid, 0), valid


def top_k_detections(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    valid: Tensor,
    nms_thresh: float,
    detections_per_img: int,
) -> BatchDetections:
    """Suppression within each image and class, and the best of each image.

    boxes (B, R, 4); scores, classes and valid (B, R).
    """
    index, valid = nms(boxes, scores, classes, valid, nms_thresh, detections_per_img)
    return BatchDetections(
        gather_rows(boxes, index) * valid[..., None],
        scores.gather(1, index) * valid,
        classes.gather(1, index).where(valid, -1),
    )


def box_voting(
    boxes: Tensor, voters: Tensor, scores: Tensor, groups: Tensor, theirs: Tensor, threshold: float
) -> Tensor:
    """Box voting (1512.03385, appendix B, after Gidaris and Komodakis 2015): -> boxes (B, R, 4).

    Each of boxes (B, R, 4) of groups (B, R) becomes the mean, weighted by scores (B, S), of the
    voters (B, S, 4) of its group, `theirs` (B, S), that it overlaps by an IoU of at least
    `threshold`. Without a voter it stays.
    """
    near = (iou(boxes, voters) >= threshold) & (groups[:, :, None] == theirs[:, None])
    weight = near * scores.clamp(min=0)[:, None]
    total = weight.sum(-1)
    mean = torch.stack([(weight * c[:, None]).sum(-1) / total for c in voters.unbind(-1)], -1)
    return torch.where(total[..., None] > 0, mean, boxes)


@dataclass(frozen=True, slots=True, eq=False)
class SampledBoxes:
    """n boxes of each of B images, those that match an object first."""

    index: Tensor  # int64 (B, n): of the boxes among all that were given
    boxes: Tensor  # (B, n, 4)
    is_sampled: Tensor  # bool (B, n): False for the rest of an image that has fewer
    is_positive: Tensor  # bool (B, n): whether the box matches an object
    rows: Tensor  # int64 (B, n): that object's row of the targets, else 0
    true_boxes: Tensor  # float32 (B, n, 4): the boxes of these rows

    def mean(self, losses: Tensor) -> Tensor:
        """As `per_image_mean`, of losses (B, n)."""
        return per_image_mean(losses, self.is_sampled)

    def box_loss(self, deltas: Tensor, weights: Sequence[float] = (1, 1, 1, 1)) -> Tensor:
        """Smooth L1 of deltas (B, n, 4) of the positives, linear from 1/9 on; the `mean` of it."""
        goals = encode(self.true_boxes, self.boxes, weights)
        losses = F.smooth_l1_loss(deltas.float(), goals, beta=1 / 9, reduction="none").sum(2)
        return self.mean(losses * self.is_positive)


def sample_boxes(
    boxes: Tensor,
    targets: DetectionTargets,
    count: int,
    positive_share: float,
    *,
    low: float,
    high: float,
    allow_low_quality_matches: bool = False,
) -> SampledBoxes:
    """`count` of boxes (B or 1, A, 4), by `match` and `sample`. Targets (B, M), M > 0."""
    matched = match(boxes, targets, low, high, allow_low_quality_matches)
    index, is_sampled = sample(matched, count, positive_share)
    matched = matched.gather(1, index)
    rows = matched.clamp(min=0)
    is_positive = is_sampled & (matched >= 0)
    true_boxes = gather_rows(targets.boxes, rows)
    return SampledBoxes(index, gather_rows(boxes, index), is_sampled, is_positive, rows, true_boxes)

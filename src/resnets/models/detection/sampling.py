"""The boxes that a detector learns from in a step, what they should be, and means over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

from resnets.models.detection import boxes as box
from resnets.models.detection.boxes import gather_rows
from resnets.models.layers import per_image_mean

if TYPE_CHECKING:  # `data` takes longer to import than the networks
    from resnets.data.detection.targets import DetectionTargets


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
        goals = box.encode(self.true_boxes, self.boxes, weights)
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
    matched = box.match(boxes, targets, low, high, allow_low_quality_matches)
    index, is_sampled = box.sample(matched, count, positive_share)
    matched = matched.gather(1, index)
    rows = matched.clamp(min=0)
    is_positive = is_sampled & (matched >= 0)
    true_boxes = gather_rows(targets.boxes, rows)
    return SampledBoxes(index, gather_rows(boxes, index), is_sampled, is_positive, rows, true_boxes)

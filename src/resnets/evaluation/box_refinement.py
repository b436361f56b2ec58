"""The test-time improvements of 1512.03385, appendix B, on detectors in two stages.

Boxes are refined: regions are judged a second time where the first judgement moved them, and all
these boxes vote on the ones that are left. Regions are judged at several sizes of the image, each
at the two where it is nearest to 224 pixels square, by the larger of the two features. Several
detectors judge the regions that all of them propose. The fourth improvement, global context, is
part of a network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from resnets.evaluation.detection import Detect
from resnets.models.detection import boxes as box
from resnets.models.detection.faster_rcnn import SMALLEST, Detections, FasterRCNN, top_k_detections
from resnets.models.detection.rpn import gather_rows, scaled

SIDE = 224  # pixels: regions of the size that classifiers are trained on
OVERLAP = 0.3  # IoU beyond which a refined box suppresses another of its class
VOTING = 0.5  # IoU from which on a box votes (Gidaris and Komodakis 2015, section 5)

View = tuple[dict[str, Tensor], Tensor]  # maps, and how much larger x, y, x, y are, (4,)


def refined_detections(
    detectors: Sequence[FasterRCNN], *, refine: bool = False, scales: Sequence[float] = (1.0,)
) -> Detect:
    """Detectors of the same classes, in evaluation mode, used as one.

    `scales` are sizes of the image as parts of the input's; regions are proposed on the input.
    Masks are the first detector's. One detector with nothing else is itself.
    """

    def detect(images: Tensor, *, sizes: Tensor) -> Detections:
        whole = [detector.features(images) for detector in detectors]
        pairs = list(zip(detectors, whole, strict=True))
        seen = [views(detector, maps, images, scales) for detector, maps in pairs]
        shape = images.shape[2], images.shape[3]
        rois = torch.cat([one.propose(maps, shape, sizes)[0] for one, maps in pairs], 1)

        def judge(rois: Tensor) -> tuple[Tensor, Tensor]:
            said = [
                multi_scale_scores(*each, rois, sizes) for each in zip(detectors, seen, strict=True)
            ]
            probabilities, boxes = (torch.stack(x).mean(0) for x in zip(*said, strict=True))
            return probabilities, boxes

        probabilities, boxes = judge(rois)
        if refine:
            best = probabilities[..., 1:].argmax(2)[..., None, None]
            moved = box.clip(boxes.take_along_dim(best, 2)[:, :, 0], sizes)
            again, further = judge(moved)
            every = torch.cat([probabilities, again], 1), torch.cat([boxes, further], 1)
            found = vote_boxes(detectors[0], *every, sizes)
        else:
            found = detectors[0].select(probabilities, boxes, sizes)
        return detectors[0].draw(whole[0], found)

    return detect


def views(
    detector: FasterRCNN, maps: dict[str, Tensor], images: Tensor, scales: Sequence[float]
) -> list[View]:
    """What a detector sees of images at each of the scales; `maps` is what it sees at 1."""
    seen = []
    for scale in scales:
        view, ratio = scaled(images, scale)
        seen.append((maps if scale == 1 else detector.features(view), ratio))
    return seen


def multi_scale_scores(
    detector: FasterRCNN, seen: Sequence[View], rois: Tensor, sizes: Tensor
) -> tuple[Tensor, Tensor]:
    """As `Detector.judge`, by the larger of a region's features in the two nearest views."""
    growth = torch.stack([ratio[:2].prod() for _, ratio in seen])
    far = (box.area(rois)[..., None] * growth - SIDE**2).abs()
    nearest = far.topk(min(2, len(seen)), largest=False).indices
    parts = []
    for k, (maps, ratio) in enumerate(seen):
        used = (nearest == k).any(2)
        count = int(used.sum(1).max())
        index = used.byte().argsort(dim=1, descending=True, stable=True)[:, :count]
        x = detector.describe(maps, gather_rows(rois, index) * ratio, sizes * ratio[:2].flip(0))
        x = x.masked_fill(~used.gather(1, index)[..., None], -math.inf)
        parts.append((index[..., None].expand_as(x), x))
    features = parts[0][1].new_full((*rois.shape[:2], parts[0][1].shape[2]), -math.inf)
    for index, x in parts:
        features.scatter_reduce_(1, index, x, "amax")
    return detector.decide(features, rois)


def vote_boxes(
    detector: FasterRCNN, probabilities: Tensor, boxes: Tensor, sizes: Tensor
) -> Detections:
    """As `Detector.select`, and all boxes of a class that overlap one that is left move it."""
    count, kinds = boxes.shape[1:3]
    boxes, scores = box.clip(boxes.flatten(1, 2), sizes), probabilities[..., 1:].flatten(1)
    classes = torch.arange(kinds, device=boxes.device).repeat(count).expand(len(boxes), -1)
    large = (boxes[..., 2:] - boxes[..., :2]).amin(2) >= SMALLEST
    votes = scores * (large & (scores > detector.threshold))
    votes, few = votes.topk(max(1, int((votes > 0).sum(1).max())))
    boxes, classes = gather_rows(boxes, few), classes.gather(1, few)
    found = top_k_detections(boxes, votes, classes, votes > 0, OVERLAP, detector.kept)
    moved = box.box_voting(found.boxes, boxes, votes, found.classes, classes, VOTING)
    return found._replace(boxes=moved)

"""The test-time improvements of 1512.03385, appendix B, on detectors in two stages.

Boxes are refined: regions are classified a second time where the first time moved them, and all
these boxes vote on the ones that are left. Regions are classified at several sizes of the image,
each at the two where it is nearest to 224 pixels square, by the larger of the two features. Several
detectors classify the regions that all of them propose. The fourth improvement, global context, is
part of a network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from resnets.evaluation.detections import Detect
from resnets.models.detection import boxes as box
from resnets.models.detection.boxes import BatchDetections, gather_rows, top_k_detections
from resnets.models.detection.faster_rcnn import FasterRCNN, flatten_classes
from resnets.models.detection.rpn import rescale

SIDE = 224  # pixels: regions of the size that classifiers are trained on
NMS_THRESH = 0.3  # IoU beyond which a refined box suppresses another of its class
VOTE_IOU = 0.5  # from which on a box votes (Gidaris and Komodakis 2015, section 5)

# Maps of the images at one scale, and the factors of x, y, x, y between input and scale, (4,).
ScaledMaps = tuple[dict[str, Tensor], Tensor]


def refined_detections(
    detectors: Sequence[FasterRCNN], *, refine: bool = False, scales: Sequence[float] = (1.0,)
) -> Detect:
    """Detectors of the same classes, in evaluation mode, used as one.

    `scales` are sizes of the image as parts of the input's; regions are proposed on the input.
    Masks are the first detector's. One detector with nothing else is itself.
    """

    def detect(images: Tensor, *, sizes: Tensor) -> BatchDetections:
        pairs = [(detector, detector.features(images)) for detector in detectors]
        scaled = [(detector, scaled_maps(detector, x, images, scales)) for detector, x in pairs]
        shape = images.shape[2], images.shape[3]
        rois = torch.cat([detector.propose(x, shape, sizes)[0] for detector, x in pairs], 1)

        def classify(rois: Tensor) -> tuple[Tensor, Tensor]:
            outputs = [multi_scale_scores(detector, x, rois, sizes) for detector, x in scaled]
            probabilities, boxes = (torch.stack(x).mean(0) for x in zip(*outputs, strict=True))
            return probabilities, boxes

        probabilities, boxes = classify(rois)
        if refine:
            best = probabilities[..., 1:].argmax(2)[..., None, None]
            refined = box.clip(boxes.take_along_dim(best, 2)[:, :, 0], sizes)
            outputs = zip((probabilities, boxes), classify(refined), strict=True)
            probabilities, boxes = (torch.cat(pair, 1) for pair in outputs)
            detections = vote_boxes(detectors[0], probabilities, boxes, sizes)
        else:
            detections = detectors[0].postprocess(probabilities, boxes, sizes)
        return detectors[0].add_masks(pairs[0][1], detections)

    return detect


def scaled_maps(
    detector: FasterRCNN, maps: dict[str, Tensor], images: Tensor, scales: Sequence[float]
) -> list[ScaledMaps]:
    """The maps of images at each of the scales; `maps` are those at 1."""
    scaled = []
    for scale in scales:
        view, ratio = rescale(images, scale)
        scaled.append((maps if scale == 1 else detector.features(view), ratio))
    return scaled


def multi_scale_scores(
    detector: FasterRCNN, scaled: Sequence[ScaledMaps], rois: Tensor, sizes: Tensor
) -> tuple[Tensor, Tensor]:
    """As `FasterRCNN.classify_rois`, by the maximum of features at the two nearest scales."""
    growth = torch.stack([ratio[:2].prod() for _, ratio in scaled])
    distance = (box.area(rois)[..., None] * growth - SIDE**2).abs()
    nearest = distance.topk(min(2, len(scaled)), largest=False).indices
    features_by_scale = list[tuple[Tensor, Tensor]]()
    for k, (maps, ratio) in enumerate(scaled):
        used = (nearest == k).any(2)
        count = int(used.sum(1).max())
        index = used.byte().argsort(dim=1, descending=True, stable=True)[:, :count]
        scaled_rois = gather_rows(rois, index) * ratio
        x = detector.box_features(maps, scaled_rois, sizes * ratio[:2].flip(0))
        x = x.masked_fill(~used.gather(1, index)[..., None], -math.inf)
        features_by_scale.append((index[..., None].expand_as(x), x))
    features = x.new_full((*rois.shape[:2], x.shape[2]), -math.inf)
    for index, x in features_by_scale:
        features.scatter_reduce_(1, index, x, "amax")
    return detector.predict_boxes(features, rois)


def vote_boxes(
    detector: FasterRCNN, probabilities: Tensor, boxes: Tensor, sizes: Tensor
) -> BatchDetections:
    """As `FasterRCNN.postprocess`; all boxes of a class that overlap one that is left move it."""
    boxes, scores, classes, valid = flatten_classes(
        probabilities, boxes, sizes, detector.score_thresh
    )
    votes = scores * valid
    votes, voters = votes.topk(max(1, int((votes > 0).sum(1).max())))
    boxes, classes = gather_rows(boxes, voters), classes.gather(1, voters)
    detections = top_k_detections(
        boxes, votes, classes, votes > 0, NMS_THRESH, detector.detections_per_img
    )
    moved = box.box_voting(detections.boxes, boxes, votes, detections.classes, classes, VOTE_IOU)
    return detections._replace(boxes=moved)

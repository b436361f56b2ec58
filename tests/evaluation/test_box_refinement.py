"""Improvements at test time, each against a plain loop over regions."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import box_iou, nms

from resnets.config.arch import DetectorArch
from resnets.config.families import TINY, c4, tiny
from resnets.evaluation import box_refinement
from resnets.evaluation.box_refinement import multi_scale_scores, refined_detections, scaled_maps
from resnets.models import build
from resnets.models.detection import boxes as box
from resnets.models.detection.faster_rcnn import FasterRCNN

NARROW = replace(TINY, blocks=(1, 1, 1, 1), widths=(8, 16, 24, 32), stem_width=8, norm="group")
FPN = replace(tiny(DetectorArch(backbone=NARROW)), backbone=NARROW, width=16, hidden=24, classes=3)
FPN = replace(FPN, proposals=(40, 30), anchors=((16,), (32,), (48,), (64,)))
ARCHS = {
    "fpn": FPN,
    "masks": replace(FPN, masks=True),
    "context": replace(FPN, context=True),
    # Maxima of small maps are the same in many regions: their order would be by chance.
    "c4": replace(tiny(c4(NARROW)), backbone=NARROW, classes=3, proposals=(40, 30), pool="align"),
}
SIZES = torch.tensor([[96, 128], [64, 100]])


def detector(name="fpn", seed=0):
    """Random weights whose answers differ from region to region, so that some are sure."""
    torch.manual_seed(seed)
    network = build(ARCHS[name]).eval()
    assert isinstance(network, FasterRCNN)
    heads = network.roi_heads["box_predictor"]
    torch.nn.init.normal_(heads.cls_score.weight, std=3)
    torch.nn.init.normal_(heads.bbox_pred.weight, std=3)
    return network


def images():
    x = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    x[1, :, 64:] = 0
    x[1, :, :, 100:] = 0
    return x


def same(one, other):
    assert torch.equal(one.classes, other.classes)
    torch.testing.assert_close(one.scores, other.scores, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(one.boxes, other.boxes, rtol=1e-5, atol=1e-3)
    if one.masks is not None:
        torch.testing.assert_close(one.masks, other.masks, rtol=1e-4, atol=1e-5)
    else:
        assert other.masks is None


@pytest.mark.parametrize("name", ARCHS)
@torch.no_grad()
def test_one_detector_without_improvements_is_itself(name):
    network = detector(name)
    alone = network(images(), sizes=SIZES)
    assert (alone.classes >= 0).sum() > 5
    same(refined_detections([network])(images(), sizes=SIZES), alone)


# --- Box refinement -------------------------------------------------------------------------------


def settled(probabilities, boxes, size):
    """Suppression of 0.3 in each class, votes of 0.5, by a loop over boxes: class, score, box."""
    rows = []
    for k in range(boxes.shape[1]):
        scores = probabilities[:, k + 1]
        own = box.clip(boxes[None, :, k], size[None])[0]
        valid = (scores > 0.05) & ((own[:, 2:] - own[:, :2]).amin(1) >= 0.01)
        own, scores = own[valid].double(), scores[valid].double()
        for i in nms(own, scores, 0.3).tolist():
            near = box_iou(own[i : i + 1], own)[0] >= 0.5
            mean = (own[near] * scores[near, None]).sum(0) / scores[near].sum()
            rows.append((k, float(scores[i]), mean))
    return sorted(rows, key=lambda row: -row[1])[:100]


@pytest.mark.parametrize("name", ["fpn", "c4", "context"])
@torch.no_grad()
def test_refined_boxes_are_those_of_a_loop(name):
    network, x = detector(name), images()
    found = refined_detections([network], refine=True)(x, sizes=SIZES)
    maps = network.features(x)
    rois, _ = network.propose(maps, (96, 128), SIZES)
    first, boxes = network.classify_rois(maps, rois, SIZES)
    best = first[..., 1:].argmax(2).tolist()
    moved = [[boxes[i, r, k] for r, k in enumerate(row)] for i, row in enumerate(best)]
    moved = box.clip(torch.stack([torch.stack(row) for row in moved]), SIZES)
    second, further = network.classify_rois(maps, moved, SIZES)
    moves = 0
    for i in range(2):
        rows = settled(
            torch.cat([first[i], second[i]]), torch.cat([boxes[i], further[i]]), SIZES[i]
        )
        assert len(rows) == (found.classes[i] >= 0).sum()
        for d, (kind, score, mean) in enumerate(rows):
            assert found.classes[i, d] == kind
            assert float(found.scores[i, d]) == pytest.approx(score, abs=1e-6)
            torch.testing.assert_close(found.boxes[i, d].double(), mean, rtol=1e-4, atol=1e-2)
        moves += len(rows)
    assert moves > 10


@torch.no_grad()
def test_nothing_to_refine():
    network = detector()
    network.score_thresh = 2.0
    found = refined_detections([network], refine=True)(images(), sizes=SIZES)
    assert (found.classes == -1).all()
    assert (found.boxes == 0).all()


# --- Scales ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fpn", "context"])
@torch.no_grad()
def test_each_region_is_judged_at_its_two_nearest_scales(name, monkeypatch):
    monkeypatch.setattr(box_refinement, "SIDE", 40)  # regions of 96 x 128 pixels are small
    network, x, scales = detector(name), images(), (0.5, 1.0, 1.5, 2.0)
    maps = network.features(x)
    rois, _ = network.propose(maps, (96, 128), SIZES)
    seen = scaled_maps(network, maps, x, scales)
    # 48 x 64 pixels are seen as 64 x 64, sides in steps of 32
    assert seen[0][1].tolist() == pytest.approx([0.5, 2 / 3, 0.5, 2 / 3])
    assert seen[1][0] is maps
    assert seen[3][1].tolist() == [2.0] * 4
    probabilities, boxes = multi_scale_scores(network, seen, rois, SIZES)
    chosen = set()
    for i in range(2):
        for r in range(rois.shape[1]):
            roi = rois[i, r]
            area = float((roi[2] - roi[0]) * (roi[3] - roi[1]))
            far = [abs(area * float(ratio[0] * ratio[1]) - 40**2) for _, ratio in seen]
            two = sorted(range(4), key=far.__getitem__)[:2]
            assert abs(two[0] - two[1]) == 1
            chosen.add(tuple(sorted(two)))
            features = [
                network.box_features(
                    {level: m[i : i + 1] for level, m in seen[k][0].items()},
                    (roi * seen[k][1])[None, None],
                    (SIZES[i] * seen[k][1][[1, 0]])[None],
                )
                for k in two
            ]
            wanted = network.predict_boxes(torch.maximum(*features), roi[None, None])
            torch.testing.assert_close(probabilities[i, r], wanted[0][0, 0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(boxes[i, r], wanted[1][0, 0], rtol=1e-4, atol=1e-3)
    assert len(chosen) > 1


@torch.no_grad()
def test_one_scale_is_the_network_on_the_resized_image():
    """At 2 alone, all that changes is where regions are read."""
    network, x = detector(), images()
    maps = network.features(x)
    rois, _ = network.propose(maps, (96, 128), SIZES)
    large = F.interpolate(x, (192, 256), mode="bilinear", antialias=True)
    wanted, moved = network.classify_rois(network.features(large), rois * 2, SIZES * 2)
    found, boxes = multi_scale_scores(network, scaled_maps(network, maps, x, (2.0,)), rois, SIZES)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(boxes * 2, moved, rtol=1e-4, atol=1e-2)


# --- Ensembles ------------------------------------------------------------------------------------


@torch.no_grad()
def test_an_ensemble_judges_all_proposals_and_averages():
    one, other, x = detector(), detector(seed=5), images()
    rois, said = [], []
    for network in (one, other):
        maps = network.features(x)
        rois.append(network.propose(maps, (96, 128), SIZES)[0])
    for network in (one, other):
        said.append(network.classify_rois(network.features(x), torch.cat(rois, 1), SIZES))
    mean = [(a + b) / 2 for a, b in zip(*said, strict=True)]
    wanted = one.postprocess(*mean, SIZES)
    assert (wanted.classes >= 0).sum() > 5
    same(refined_detections([one, other])(x, sizes=SIZES), wanted)


@pytest.mark.parametrize("name", ["fpn", "masks"])
@torch.no_grad()
def test_a_detector_twice_is_itself(name):
    network = detector(name)
    same(
        refined_detections([network, network])(images(), sizes=SIZES),
        network(images(), sizes=SIZES),
    )


@pytest.mark.parametrize("name", ["masks", "c4"])
@torch.no_grad()
def test_all_together_in_bfloat16(name):
    networks = [detector(name), detector(name, seed=5)]
    network = refined_detections(
        networks, refine=True, scales=(0.5, 1.0, 1.5)
    )  # none is judged at 0.5
    with torch.autocast("cpu", torch.bfloat16):
        found = network(images(), sizes=SIZES)
    there = found.classes >= 0
    assert there.any()
    assert found.masks is None or found.masks.shape == (2, 100, 28, 28)
    assert (found.masks is None) == (name == "c4")
    assert torch.isfinite(found.boxes).all()
    assert (found.boxes[..., 2:] <= SIZES.flip(1)[:, None] + 1e-3).all()
    assert (found.scores[there] > 0.05).all()

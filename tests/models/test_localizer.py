"""Per-class proposals: which outputs belong to which anchor and class, and losses by hand."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

from resnets.config.arch import LocalizerArch
from resnets.config.families import ARCHS, TINY
from resnets.data.detection.targets import MASK_SIZE, DetectionTargets
from resnets.errors import UsageError
from resnets.models import build
from resnets.models.detection import boxes as box
from resnets.models.detection.rpn import make_anchors
from resnets.models.localizer import Localizer, RegionFeatures, crop_regions
from tests.data._helpers import targets_of

NARROW = replace(TINY, blocks=(1, 1, 1, 1), widths=(8, 16, 24, 32), stem_width=8)
SMALL = LocalizerArch(backbone=NARROW, anchors=(24, 48), ratios=(0.5, 1.0), classes=5, size=96)
# Four positions with an anchor each, so all are sampled: nothing is by chance.
ALL = LocalizerArch(backbone=NARROW, anchors=(32,), ratios=(1.0,), classes=3, size=64)


def localizer(arch: LocalizerArch, spread: float = 0.1) -> Localizer:
    torch.manual_seed(0)
    network = build(arch)
    assert isinstance(network, Localizer)
    for layer in (network.classification, network.regression):
        torch.nn.init.normal_(layer.weight, std=spread)
        torch.nn.init.normal_(layer.bias, std=spread)
    return network


def look(network: Localizer, images: Tensor) -> list[RegionFeatures]:
    """All of the images, at one scale."""
    return network.multi_scale_features(
        images, torch.tensor([images.shape[2:]]).expand(len(images), 2)
    )


def targets(*rows: tuple[float, ...], images: int = 1, padding: int = 0) -> DetectionTargets:
    """The same objects (x1, y1, x2, y2, class, kind) on each image: (images, M)."""
    one = targets_of(torch.tensor(rows).view(1, -1, 6)).pad(len(rows) + padding)
    return DetectionTargets.cat([one] * images)


# --- Boxes ----------------------------------------------------------------------------------------


def test_scores_and_boxes_are_those_of_the_layers_at_the_anchors() -> None:
    network = localizer(SMALL).eval()
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        last = network.features(images)["layer4"]  # 3 x 2 positions, 4 anchors each
        logits = network.classification(last).view(2, 4, 5, 3, 2)
        deltas = network.regression(last).view(2, 4, 5, 4, 3, 2)
        anchors, _ = make_anchors([last], (96, 64), [SMALL.anchors], SMALL.ratios)
        anchors = anchors.view(3, 2, 4, 4)
        classes = torch.tensor([[3, 0], [1, 4]])
        boxes, scores = network.proposals(look(network, images), classes, 24)
        assert boxes.shape == (2, 2, 24, 4)
        for i in range(2):
            for k in range(2):
                c = int(classes[i, k])
                expected = {}
                for y in range(3):
                    for x in range(2):
                        for a in range(4):
                            moved = box.decode(deltas[i, a, c, :, y, x], anchors[y, x, a])
                            whole = torch.tensor([[96, 64]])
                            clipped = box.clip(moved.view(1, 1, 4), whole)[0, 0]
                            expected[logits[i, a, c, y, x].sigmoid().item()] = clipped
                best = sorted(expected, reverse=True)
                torch.testing.assert_close(scores[i, k], torch.tensor(best))
                right = torch.stack([expected[s] for s in best])
                torch.testing.assert_close(boxes[i, k], right, rtol=1e-4, atol=1e-4)


def test_best_boxes_of_given_classes_and_of_all() -> None:
    network = localizer(SMALL).eval()
    images = torch.randn(3, 3, 100, 70)
    classes = torch.tensor([[2, 1], [0, 4], [3, 3]])
    sizes = torch.tensor([[100, 70], [50, 60], [20, 30]])
    with torch.no_grad():
        boxes, scores = network.best(images, classes, sizes)
        found = network(images, sizes=sizes)
    assert boxes.shape == (3, 2, 4)
    assert found.masks is None
    assert found.boxes.shape == (3, 5, 4)
    assert (found.scores.diff() <= 0).all()
    assert found.classes.sort(1).values.tolist() == [list(range(5))] * 3
    for i in range(3):
        height, width = sizes[i]
        assert (boxes[i] >= 0).all()
        assert (boxes[i] <= torch.tensor([width, height, width, height])).all()
        for k in range(2):
            row = found.classes[i].tolist().index(classes[i, k])
            torch.testing.assert_close(found.boxes[i, row], boxes[i, k])
            torch.testing.assert_close(found.scores[i, row], scores[i, k])


def test_at_first_classes_are_as_likely_as_in_the_sample() -> None:
    network = build(ARCHS["localizer_tiny"]).eval()
    with torch.no_grad():
        scores = network(torch.zeros(1, 3, 96, 96)).scores
    torch.testing.assert_close(scores, torch.full((1, 10), 1 / 20), rtol=0.5, atol=0)


# --- Losses ---------------------------------------------------------------------------------------


def by_hand(network: Localizer, images: Tensor, rows: Tensor) -> Tensor:
    """Losses of `ALL` for images whose one true object matches exactly one anchor or none."""
    (seen,) = look(network, images)
    totals = []
    for i, own in enumerate(rows):
        true = [o for o in own.tolist() if o[5] == 1]
        label, positive = (int(true[0][4]), {}) if true else (0, {})
        for o in true:
            if o[4] == label:
                overlap = box.iou(seen.anchors, torch.tensor([o[:4]]))[:, 0]
                positive |= {int(overlap.argmax()): o[:4]} if overlap.max() > 0 else {}
        classification = regression = 0.0
        for a in range(4):
            for k in range(3):
                p = seen.logits[i, k, a].sigmoid().item()
                classification -= math.log(p if a in positive and k == label else 1 - p)
            if a in positive:
                goal = box.encode(torch.tensor(positive[a]), seen.anchors[a])
                # From the whole layer: position a is row a // 2, column a % 2.
                maps = network.regression(network.features(images)["layer4"])
                said = maps[i].view(3, 4, 4)[label, :, a]
                for d in (said - goal).abs().tolist():
                    regression += d - 0.5 / 9 if d > 1 / 9 else 4.5 * d * d
        totals.append([classification / 4, regression / 4])
    return torch.tensor(totals).mean(0)


def test_losses_by_hand() -> None:
    network = localizer(ALL).eval()
    images = torch.randn(3, 3, 64, 64)
    rows = torch.zeros(3, 2, 6)
    rows[0, 0] = torch.tensor([30.0, 0, 50, 17, 2, 1])  # nearest to the anchor at column 1
    rows[1, 1] = torch.tensor([20.0, 20, 50, 44, 1, 1])  # after a row of padding
    with torch.no_grad():
        found = network(images, targets_of(rows))
        torch.testing.assert_close(found[:2], by_hand(network, images, rows))
        boxes, _ = network.best(images, torch.tensor([[2], [1], [0]]))
    missed = [
        box.iou(boxes[0], rows[0, :1, :4]) < 0.5,
        box.iou(boxes[1], rows[1, 1:, :4]) < 0.5,
    ]
    assert network.loss_names == ("classification", "boxes")
    assert found[2] == pytest.approx(sum(map(float, missed)) / 3)


def test_a_box_that_is_found_is_not_wrong() -> None:
    network = localizer(ALL).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        boxes, _ = network.best(images, torch.tensor([[0], [1]]))
        right = torch.cat([boxes, torch.tensor([[[0.0, 1]], [[1, 1]]])], 2)
        assert network(images, targets_of(right))[2] == 0
        both = torch.cat([torch.tensor([0.0, 0, 3, 3, 0, 1]).expand(2, 1, 6), right], 1)
        both[1, 0, 4] = 1
        assert network(images, targets_of(both))[2] == 0  # any of the class's boxes
        both[:, 1, 4] = 2  # but not those of others
        assert network(images, targets_of(both))[2] == 1
        both[..., :4] += 100
        assert network(images, targets_of(both))[2] == 1


def test_objects_of_other_classes_are_no_background() -> None:
    network = localizer(ALL).eval()
    images = torch.randn(1, 3, 64, 64)
    own, other = (24.0, 24, 40, 40, 1, 1), (-16.0, -16, 16, 16, 2, 1)  # the anchor at the corner
    with torch.no_grad():
        logits = look(network, images)[0].logits[0]
        alone, beside = network(images, targets(own)), network(images, targets(own, other))
        crowd = network(images, targets(own, (*other[:5], 2)))
    assert torch.equal(beside, crowd)
    # Three anchors count and not four: the one that holds the other object is left out.
    left_out = F.softplus(logits[:, 0]).sum()
    torch.testing.assert_close(alone[0] * 4 - left_out, beside[0] * 3)
    torch.testing.assert_close(alone[1] * 4, beside[1] * 3)


def many(count: int, masks: Tensor | None = None) -> DetectionTargets:
    corner = 90 * torch.rand(2, count, 2)
    boxes = torch.cat([corner, corner + 20 * torch.rand(2, count, 2)], 2)
    ones = torch.ones(2, count, dtype=torch.int64)
    return DetectionTargets(boxes, ones, ones, masks)


@pytest.mark.parametrize(
    "objects",
    [
        lambda: DetectionTargets.empty(2, 0),
        lambda: DetectionTargets.empty(2, 3),
        lambda: targets((5.0, 5, 50, 50, 2, 2), images=2),
        lambda: targets((5.0, 5, 5, 5, 2, 1), images=2, padding=1),
        lambda: targets((500.0, 500, 600, 600, 4, 1), images=2),
        lambda: many(500),
        lambda: many(3, torch.ones(2, 3, MASK_SIZE, MASK_SIZE)),
    ],
    ids=["none", "padding", "ignored", "a point", "outside", "500", "with masks"],
)
def test_losses_are_finite(objects: Callable[[], DetectionTargets]) -> None:
    network = localizer(SMALL)
    with torch.autocast("cpu", torch.bfloat16):
        losses = network(torch.randn(2, 3, 96, 96), objects())
    assert losses.dtype == torch.float32
    assert losses.shape == (3,)
    losses[:-1].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_a_batch_in_parts_has_the_same_mean() -> None:
    network = localizer(ALL).eval()
    images = torch.randn(4, 3, 64, 64)
    box = (10.0, 10, 40, 45)
    rows = [(*box, 0, 1), (*box, 1, 1), (*box, 2, 1), (*box, 0, 0)]
    objects = targets_of(torch.tensor(rows)[:, None])
    with torch.no_grad():
        parts = [network(images[i : i + 2], objects[i : i + 2]) for i in (0, 2)]
        torch.testing.assert_close(network(images, objects), torch.stack(parts).mean(0))


def test_where_squares_are_is_learnt() -> None:
    torch.manual_seed(0)
    images, rows = 0.1 * torch.randn(8, 3, 96, 96), torch.zeros(8, 1, 6)
    for i in range(8):
        x, y, side = 8 * i, 60 - 7 * i, 24 + 4 * (i % 3)
        images[i, i % 2, y : y + side, x : x + side] += 1
        rows[i, 0] = torch.tensor([x, y, x + side, y + side, i % 2, 1])
    network = build(replace(SMALL, classes=2, ratios=(1.0,), anchors=(28,)))
    network = network.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), 1e-2)
    for _ in range(60):
        losses = network(images, targets_of(rows))
        optimiser.zero_grad()
        losses[:-1].sum().backward()
        optimiser.step()
    with torch.no_grad():
        boxes, _ = network.eval().best(images, rows[:, :, 4].long())
    assert (box.iou(boxes, rows[..., :4])[:, 0, 0] > 0.5).all()


# --- The R-CNN, and several scales ----------------------------------------------------------------

JUDGED = replace(SMALL, regions=(6, 7), crop=32)


def test_regions_are_cut_out_and_warped() -> None:
    images = torch.rand(2, 3, 40, 64)
    whole = torch.tensor([[0.0, 0, 64, 40]])
    part = torch.tensor([[8.0, 4, 40, 36]])  # 32 x 32: nothing to interpolate
    boxes = torch.stack([torch.cat([whole, part]), torch.cat([part, whole])])
    found = crop_regions(images, boxes, 32)
    assert found.shape == (4, 3, 32, 32)
    torch.testing.assert_close(found[1], images[0, :, 4:36, 8:40])
    torch.testing.assert_close(found[2], images[1, :, 4:36, 8:40])
    for k, i in ((0, 0), (3, 1)):  # as torchvision's operator with one sample a cell
        row = F.pad(whole, (1, 0), value=i)
        torch.testing.assert_close(found[k], roi_align(images, row, 32, 1.0, 1, True)[0])


def test_the_rcnn_judges_the_best_proposals_of_each_class() -> None:
    network = localizer(JUDGED).eval()
    assert network.rcnn is not None
    for layer in (network.rcnn.cls_score, network.rcnn.bbox_pred):
        torch.nn.init.normal_(layer.weight, std=0.1)
    images, classes = torch.randn(2, 3, 96, 64), torch.tensor([[3, 0], [1, 4]])
    with torch.no_grad():
        boxes, scores = network.best(images, classes)
        proposed, _ = network.proposals(look(network, images), classes, 7)
        for i in range(2):
            for k in range(2):
                c = int(classes[i, k])
                crops = crop_regions(images[i : i + 1], proposed[i, k][None], 32)
                x = network.rcnn.body.features(crops)["layer4"].mean((2, 3))
                logits, moves = network.rcnn.cls_score(x), network.rcnn.bbox_pred(x).view(7, 5, 4)
                best = int(logits[:, c].argmax())
                moved = box.decode(moves[best, c], proposed[i, k, best])[None, None]
                right = box.clip(moved, torch.tensor([[96, 64]]))[0, 0]
                torch.testing.assert_close(boxes[i, k], right, rtol=1e-4, atol=1e-3)
                assert scores[i, k].item() == pytest.approx(logits[best, c].sigmoid().item(), 1e-4)
        found = network(images)
    assert found.classes.shape == (2, 5)
    assert (found.scores.diff() <= 0).all()


def test_the_rcnn_learns_of_true_boxes_too() -> None:
    network = localizer(JUDGED)
    assert network.rcnn is not None
    assert network.loss_names == ("classification", "boxes", "rcnn_classification", "rcnn_boxes")
    images, objects = torch.randn(2, 3, 96, 96), targets((30.0, 30, 70, 80, 2, 1), images=2)
    torch.manual_seed(0)
    losses = network(images, objects)
    assert losses.shape == (5,)
    assert (losses[:-1] > 0).all()
    losses[:-1].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    nothing = network(images, DetectionTargets.empty(2, 0))
    assert nothing.isfinite().all()
    assert nothing[3] == 0  # no region is moved
    with pytest.raises(UsageError, match="regions"):
        build(replace(JUDGED, regions=(0, 7)))


def test_one_of_the_scales_is_the_network_on_the_resized_image() -> None:
    network = localizer(SMALL).eval()
    images, classes = torch.randn(2, 3, 96, 64), torch.tensor([[3, 0], [1, 4]])
    images[1] = 12 * F.avg_pool2d(images[1], 9, 1, 4)  # smooth: seen better at twice the size
    sizes = torch.tensor([[96, 64], [90, 50]])
    double = F.interpolate(images, (192, 128), mode="bilinear", antialias=True)
    with torch.no_grad():
        plain = network.best(images, classes, sizes)
        large = network.best(double, classes, 2 * sizes)
        network.scales = (1.0, 2.0)
        boxes, scores = network.best(images, classes, sizes)
    first = plain[1] >= large[1]
    torch.testing.assert_close(scores, torch.where(first, plain[1], large[1]))
    torch.testing.assert_close(boxes, torch.where(first[..., None], plain[0], large[0] / 2))
    assert 0 < first.sum() < 4

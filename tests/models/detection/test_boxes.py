"""Boxes against torchvision and cases computed by hand."""

import math

import pytest
import torch
from torch import Tensor
from torchvision import ops as tv
from torchvision.models.detection._utils import BoxCoder, Matcher

from resnets.data.detection.targets import DetectionTargets, Kind
from resnets.models.detection import boxes
from resnets.models.detection.boxes import (
    area,
    box_voting,
    clip,
    decode,
    encode,
    iou,
    match,
    nms,
    sample,
)

WEIGHTS = [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def some(*shape: int, side: float = 100, room: float = 200) -> Tensor:
    corner = torch.rand(*shape, 2) * room
    return torch.cat([corner, corner + 1 + torch.rand(*shape, 2) * side], -1)


def objects(corners: Tensor, kind: Tensor | int = Kind.OBJECT) -> DetectionTargets:
    """Of class 3."""
    kind = torch.as_tensor(kind).expand(corners.shape[:-1])
    return DetectionTargets(corners, torch.full_like(kind, 3), kind)


def row(*values: float) -> Tensor:
    return torch.tensor([[values]])


def test_area_and_overlap_of_pairs_in_any_leading_shape() -> None:
    one, other = some(2, 5), some(2, 7)
    assert torch.equal(area(one[0]), tv.box_area(one[0]))
    expected = torch.stack([tv.box_iou(a, b) for a, b in zip(one, other, strict=True)])
    torch.testing.assert_close(iou(one, other), expected)
    assert iou(one[:1], other).shape == (2, 5, 7)
    assert iou(torch.zeros(1, 4), torch.zeros(1, 4)).item() == 0


@pytest.mark.parametrize("weights", WEIGHTS)
def test_deltas_are_torchvisions(weights: tuple[float, float, float, float]) -> None:
    target, anchor = some(50), some(50)
    coder = BoxCoder(weights)
    deltas = encode(target, anchor, weights)
    torch.testing.assert_close(deltas, coder.encode_single(target, anchor), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(decode(deltas, anchor, weights), target, rtol=1e-4, atol=1e-4)
    wild = torch.randn(50, 3, 4) * 10  # three classes a box, beyond the largest dw, dh
    expected = coder.decode(wild.flatten(1), [anchor])
    torch.testing.assert_close(decode(wild, anchor[:, None], weights), expected)


def test_empty_boxes_have_finite_deltas() -> None:
    pairs = [(torch.zeros(1, 4), some(1)), (some(1), torch.zeros(1, 4))]
    assert all(encode(a, b).isfinite().all() for a, b in pairs)
    assert encode(torch.zeros(4), torch.zeros(4)).tolist() == [0, 0, 0, 0]


def test_low_precision_deltas_are_decoded_in_the_anchors_precision() -> None:
    deltas, anchor = (torch.randn(20, 4) / 4).bfloat16(), some(20)
    assert torch.equal(decode(deltas, anchor), decode(deltas.float(), anchor))


def test_boxes_are_clipped_to_each_image() -> None:
    given = torch.tensor([[[-5.0, 2, 50, 70]], [[-5.0, 2, 50, 70]]])
    found = clip(given, torch.tensor([[60, 40], [80, 100]]))
    assert found.tolist() == [[[0, 2, 40, 60]], [[0, 2, 50, 70]]]


@pytest.mark.parametrize("rescue", [True, False])
@pytest.mark.parametrize(("low", "high"), [(0.3, 0.7), (0.5, 0.5)])
@pytest.mark.parametrize("chunk", [1, 3 * 2 * 400, 2**20])
def test_matches_are_torchvisions(
    rescue: bool, low: float, high: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boxes, "CHUNK", chunk)
    shared, truth = some(1, 400), some(2, 11)
    truth[:, 7:] = 0  # padding
    truth[:, 6] = truth[:, 2]  # of two alike, the first
    kind = torch.where(torch.arange(11) < 7, Kind.OBJECT, Kind.PADDING)
    found = match(shared, objects(truth, kind), low, high, rescue)
    for image in (0, 1):
        reference = Matcher(high, low, allow_low_quality_matches=rescue)
        assert torch.equal(found[image], reference(tv.box_iou(truth[image, :7], shared[0])))
    each = shared.expand(2, -1, -1)
    assert torch.equal(match(each, objects(truth, kind), low, high, rescue), found)


def test_ignored_empty_and_missed_boxes() -> None:
    corners = torch.tensor([[[0.0, 0, 10, 10], [20, 0, 60, 40], [0, 0, 0, 0]]])
    truth = objects(corners, torch.tensor([[Kind.OBJECT, Kind.IGNORED, Kind.PADDING]]))
    given = torch.tensor(
        [
            [0.0, 0, 10, 8],  # IoU 0.8
            [0, 0, 10, 4],  # IoU 0.4
            [0, 0, 10, 2],  # IoU 0.2
            [30, 0, 34, 4],  # inside the ignored object, of IoU 0.01
            [18, 0, 22, 10],  # half of it is
            [17, 0, 22, 10],  # two fifths
            [8, 0, 28, 20],  # two fifths, and 0.05 with the object
            [0, 5, 0, 5],  # empty
        ]
    )[None]
    expected = [[0, -2, -1, -2, -2, -1, -1, -2]]
    assert match(given, truth, 0.4 + 1e-3, 0.7, False).tolist() == [[0, -1, -1, *expected[0][3:]]]
    assert match(given, truth, 0.4 - 1e-3, 0.7, False).tolist() == [[0, -2, -1, -2, -2, -2, -2, -2]]
    worse = match(given[:, 2:], truth, 0.3, 0.7, True)
    assert worse.tolist() == [[0, -2, -2, -2, -2, -2]]  # rescued: the best there is


def test_an_object_that_nothing_overlaps_rescues_nothing() -> None:
    nothing = DetectionTargets.empty(3, 0)
    far = objects(row(50.0, 50, 60, 60))
    assert match(row(0.0, 0, 5, 5), far, 0.3, 0.7, True).tolist() == [[-1]]
    assert match(some(1, 4), nothing, 0.3, 0.7, True).tolist() == [[-1] * 4] * 3


def test_five_hundred_objects_are_gone_through_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 images, 50,000 anchors, 500 objects: no tensor of pairs has more than CHUNK elements."""
    held, common = [], boxes.intersection_area

    def measured(one: Tensor, other: Tensor) -> Tensor:
        pairs = common(one, other)
        held.append(pairs.numel())
        return pairs

    monkeypatch.setattr(boxes, "intersection_area", measured)
    truth, given = objects(some(2, 500)), some(1, 50_000)
    found = match(given, truth, 0.3, 0.7, False)
    assert max(held) <= boxes.CHUNK
    assert sum(held) == 2 * 500 * 50_000
    expected = Matcher(0.7, 0.3)(tv.box_iou(truth.boxes[1], given[0, :200]))
    assert torch.equal(found[1, :200], expected)


def test_a_sample_has_the_share_of_positives_and_the_rest_negatives() -> None:
    matched = torch.randint(-2, 5, (3, 1000))
    index, chosen = sample(matched, 64, 0.25)
    drawn = matched.gather(1, index)
    assert chosen.all()
    assert ((drawn >= 0).sum(1) == 16).all()
    assert ((drawn == -1).sum(1) == 48).all()
    assert all(len(set(line)) == 64 for line in index.tolist())
    torch.manual_seed(0), torch.randint(-2, 5, (3, 1000))
    assert torch.equal(sample(matched, 64, 0.25)[0], index)
    assert not torch.equal(sample(matched, 64, 0.25)[0], index)


def test_a_sample_of_what_there_is() -> None:
    matched = torch.full((4, 50), -2)
    matched[0, :3] = 1  # few positives, enough negatives
    matched[0, 3:40] = -1
    matched[1, :40] = 0  # many positives, few negatives
    matched[1, 40:44] = -1
    matched[2, 7] = -1  # next to nothing; then nothing
    index, chosen = sample(matched, 20, 0.5)
    assert chosen.sum(1).tolist() == [20, 14, 1, 0]
    drawn = [matched[i][index[i][chosen[i]]].tolist() for i in range(4)]
    assert drawn == [[1] * 3 + [-1] * 17, [0] * 10 + [-1] * 4, [-1], []]
    assert index[2, 0] == 7
    assert (index[~chosen] == 0).all()
    index, chosen = sample(matched[:, :6], 20, 0.5)  # fewer boxes than asked for
    assert index.shape == chosen.shape == (4, 20)
    assert chosen.sum(1).tolist() == [6, 6, 0, 0]
    assert sample(matched, 1, 0.5)[1].sum(1).tolist() == [1, 1, 1, 0]


def test_every_positive_and_negative_is_drawn_alike() -> None:
    matched = torch.tensor([0, -1]).repeat(10).expand(4000, 20)
    index, _ = sample(matched, 10, 0.5)
    share = index.flatten().bincount(minlength=20) / 4000
    assert (share - 0.5).abs().max() < 5 * math.sqrt(0.25 / 4000)


@pytest.mark.parametrize("count", [40, 700])  # torchvision goes two ways by the number of boxes
def test_suppression_is_torchvisions_on_each_image(count: int) -> None:
    given, scores = some(3, count), torch.rand(3, count)
    groups, valid = torch.randint(0, 90, (3, count)) // 30, torch.rand(3, count) < 0.8
    scores[~valid] = -math.inf
    valid[2] = False
    keep = 25
    index, real = nms(given, scores, groups, valid, 0.5, keep)
    assert index.shape == real.shape == (3, keep)
    for i in range(3):
        (places,) = valid[i].nonzero(as_tuple=True)
        kept = tv.batched_nms(given[i][places], scores[i][places], groups[i][places], 0.5)[:keep]
        assert index[i][real[i]].tolist() == places[kept].tolist()
        assert real[i].tolist() == [j < len(kept) for j in range(keep)]
    assert (index[~real] == 0).all()


def test_groups_far_apart_lose_no_digits() -> None:
    """Boxes of 8 pixels in class 4,999, whose overlaps lie 1 % around the threshold."""
    given = torch.tensor([[[0, 0, 8, 8], [0, 0, 8, 4.04]], [[0, 0, 8, 8], [0, 0, 8, 3.96]]]) + 1000
    groups, scores = torch.full((2, 2), 4999), torch.tensor([[2.0, 1]] * 2)
    _, real = nms(given, scores, groups, groups > 0, 0.5, keep=2)
    assert real.tolist() == [[True, False], [True, True]]


def test_nothing_to_suppress() -> None:
    empty = torch.zeros(2, 0)
    index, real = nms(torch.zeros(2, 0, 4), empty, empty.long(), empty.bool(), 0.5, 3)
    assert index.tolist() == [[0] * 3] * 2
    assert not real.any()


def test_votes_are_weighted_by_score_within_a_group() -> None:
    kept = torch.tensor([[[0.0, 0, 10, 10], [50, 50, 60, 60]]])
    voters = torch.tensor([[[0.0, 0, 10, 10], [2, 0, 12, 10], [0, 0, 10, 4], [0, 0, 10, 10]]])
    scores, groups = torch.tensor([[0.75, 0.25, 0.5, 0.9]]), torch.tensor([[1, 1, 1, 2]])
    with torch.autocast("cpu", torch.bfloat16):
        found = box_voting(kept, voters, scores, torch.tensor([[1, 1]]), groups, 0.5)
    assert found.tolist() == [[[0.5, 0, 10.5, 10], [50, 50, 60, 60]]]

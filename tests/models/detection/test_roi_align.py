"""Regions of maps against torchvision."""

import pytest
import torch
from torch import Tensor
from torchvision import ops as tv
from torchvision.ops.poolers import LevelMapper

from resnets.models.detection.roi_align import pyramid_level, roi_align, roi_pool

STRIDES = [4.0, 8.0, 16.0]
IMAGES, ROIS, CHANNELS = 3, 40, 16


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def pyramid(layout: torch.memory_format = torch.channels_last) -> list[Tensor]:
    sides = [(24, 32), (12, 16), (6, 8)]
    maps = [torch.randn(IMAGES, CHANNELS, *side).to(memory_format=layout) for side in sides]
    return [m.requires_grad_() for m in maps]


def rois() -> Tensor:
    """In images of 96 x 128, some reaching out of them by much, some less than a pixel wide."""
    corner = torch.rand(IMAGES, ROIS, 2) * torch.tensor([160, 130]) - 30
    side = torch.rand(IMAGES, ROIS, 2) ** 2 * 100
    side[:, :4] = 0.5
    return torch.cat([corner, corner + side], -1)


def theirs(call, maps: list[Tensor], boxes: Tensor, levels: Tensor, cells: int, *more) -> Tensor:
    """torchvision's operator on the map of each RoI, one RoI at a time."""
    rows = []
    for image, (some, where) in enumerate(zip(boxes, levels, strict=True)):
        for box, i in zip(some, where.tolist(), strict=True):
            m = maps[i][image : image + 1].float()
            rows.append(call(m, [box[None]], cells, 1 / STRIDES[i], *more))
    return torch.cat(rows)


def close(found: Tensor, exact: Tensor, limit: float = 1e-4) -> None:
    torch.testing.assert_close(found, exact, rtol=limit, atol=limit)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(("cells", "samples"), [(7, 2), (14, 2), (3, 1), (2, 3)])
def test_aligned_regions_and_their_gradients_are_torchvisions(
    cells: int, samples: int, layout: torch.memory_format
) -> None:
    maps, boxes = pyramid(layout), rois().requires_grad_()
    levels = torch.randint(0, 3, (IMAGES, ROIS))
    found = roi_align(maps, boxes, STRIDES, levels, cells, samples)
    exact = theirs(tv.roi_align, maps, boxes, levels, cells, samples)
    assert found.shape == (IMAGES * ROIS, CHANNELS, cells, cells)
    close(found, exact)
    weight = torch.randn_like(exact)
    got = torch.autograd.grad((found * weight).sum(), maps, retain_graph=True)
    expected = torch.autograd.grad((exact * weight).sum(), maps)
    for a, b in zip(got, expected, strict=True):
        close(a, b)
    assert torch.autograd.grad(found.sum(), boxes, allow_unused=True) == (None,)


def test_a_pyramid_is_read_as_torchvision_reads_it() -> None:
    maps = pyramid()
    corner = torch.rand(IMAGES, ROIS, 2) * 60
    boxes = torch.cat([corner, corner + 1 + torch.rand(IMAGES, ROIS, 2) * 60], -1)
    levels = pyramid_level(boxes, 3, canonical=28, at=2)
    pooler = tv.MultiScaleRoIAlign(["0", "1", "2"], 7, 2, canonical_scale=28, canonical_level=4)
    named = {str(i): m for i, m in enumerate(maps)}
    exact = pooler(named, list(boxes), [(96, 128)] * IMAGES)
    assert levels.unique().tolist() == [0, 1, 2]
    close(roi_align(maps, boxes, STRIDES, levels, 7), exact)


def test_levels_are_torchvisions() -> None:
    side = torch.cat([torch.rand(500) * 900, 2.0 ** torch.arange(11) * 0.875])
    boxes = torch.stack([0 * side, 0 * side, side, side], -1)
    assert torch.equal(pyramid_level(boxes, 4), LevelMapper(2, 5)([boxes]))
    sides = [(111, 0), (112, 1), (223.9, 1), (224, 2), (447.9999, 3), (448, 3), (2000, 3), (0, 0)]
    for side, at in sides:
        assert pyramid_level(torch.tensor([0.0, 0, side, side]), 4) == at


def test_low_precision_maps() -> None:
    maps, boxes = pyramid(), rois()
    levels = torch.randint(0, 3, (IMAGES, ROIS))
    low = [m.detach().bfloat16().requires_grad_() for m in maps]
    found = roi_align(low, boxes, STRIDES, levels, 7)
    exact = roi_align(maps, boxes, STRIDES, levels, 7)
    assert found.dtype == torch.bfloat16
    close(found.float(), exact, 0.03)
    found.sum().backward()
    exact.sum().backward()
    for a, b in zip(low, maps, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert (a.grad.float() - b.grad).norm() / b.grad.norm() < 0.004
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(roi_align(maps, boxes, STRIDES, levels, 7), exact)


def test_boxes_that_are_no_numbers_show_nothing() -> None:
    boxes = torch.full((1, 2, 4), torch.nan)
    boxes[0, 1] = torch.tensor([0.0, 0, 8, 8])
    found = roi_align([torch.ones(1, 4, 8, 8)], boxes, [4.0], torch.zeros(1, 2).long(), 2)
    assert (found[0] == 0).all()
    assert (found[1] == 1).all()


def test_pooled_regions_and_their_gradients_are_torchvisions() -> None:
    maps, boxes = pyramid(), rois()
    levels = torch.randint(0, 3, (IMAGES, ROIS))
    found = roi_pool(maps, boxes, STRIDES, levels, 7)
    exact = theirs(tv.roi_pool, maps, boxes, levels, 7)
    assert torch.equal(found, exact)
    weight = torch.randn_like(exact)
    got = torch.autograd.grad((found * weight).sum(), maps)
    for a, b in zip(got, torch.autograd.grad((exact * weight).sum(), maps), strict=True):
        close(a, b)
    low = roi_pool([m.bfloat16() for m in maps], boxes, STRIDES, levels, 7)
    assert low.dtype == torch.bfloat16
    close(low.float(), exact, 0.01)


@pytest.mark.parametrize("call", [roi_align, roi_pool])
def test_no_regions(call) -> None:
    empty = call(pyramid(), torch.zeros(IMAGES, 0, 4), STRIDES, torch.zeros(IMAGES, 0).long(), 7)
    assert empty.shape == (0, CHANNELS, 7, 7)
    empty.sum().backward()

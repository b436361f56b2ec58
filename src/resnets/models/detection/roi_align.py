"""RoIAlign and RoI pooling over several levels and images, and grids to warp regions by."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from resnets.models.detection.boxes import TINY, area


def sampling_grid(rois: Tensor, frames: Tensor, cells: int) -> Tensor:
    """The middles of cells x cells cells of each RoI, for `grid_sample` of planes of `frames`.

    rois (*, 4) and the boxes (*, 4) that the planes show -> (*, cells, cells, 2), x and y, -1 to 1
    inside of the frame.
    """
    middles = (torch.arange(cells, device=rois.device) + 0.5) / cells
    corner, size = rois[..., :2, None], (rois[..., 2:] - rois[..., :2])[..., None]
    origin, extent = frames[..., :2, None], (frames[..., 2:] - frames[..., :2])[..., None]
    points = 2 * (corner + size * middles - origin) / extent.clamp(min=TINY) - 1
    x, y = points.unbind(-2)  # (*, cells)
    shape = (*x.shape, cells)
    return torch.stack([x[..., None, :].expand(shape), y[..., :, None].expand(shape)], -1)


def pyramid_level(rois: Tensor, count: int, canonical: float = 224, at: int = 2) -> Tensor:
    """The level of each RoI, int64: (..., 4) -> (...), from 0 to count - 1.

    A RoI of area canonical^2 belongs to level `at`, one of twice the side to the next coarser
    (1612.03144, equation 1, whose P2 is level 0).
    """
    octave = at + (area(rois).sqrt() / canonical).log2() + 1e-6
    return octave.floor().long().clamp(0, count - 1)


def roi_align(
    maps: Sequence[Tensor],
    rois: Tensor,
    strides: Sequence[float],
    levels: Tensor,
    cells: int,
    samples: int = 2,
) -> Tensor:
    """RoIAlign (1703.06870): maps of (B, C, h, w), rois (B, R, 4) -> (B*R, C, cells, cells).

    Each RoI is read from the map of its level, levels int64 (B, R), of a stride in pixels. A cell
    is the mean of samples x samples points, as torchvision's `roi_align` with aligned=False. The
    gradient reaches the maps only.
    """
    index, weight = _taps(maps, rois, strides, levels, cells, samples)
    # In float32, as a pixel's gradient is the sum over many overlapping RoIs.
    pixels = torch.cat([m.permute(0, 2, 3, 1).flatten(0, 2) for m in maps]).float()
    out = F.embedding_bag(index, pixels, per_sample_weights=weight, mode="sum").to(maps[0].dtype)
    return out.view(-1, cells, cells, pixels.shape[1]).permute(0, 3, 1, 2)


@torch.no_grad()
def _taps(
    maps: Sequence[Tensor],
    rois: Tensor,
    strides: Sequence[float],
    levels: Tensor,
    cells: int,
    samples: int,
) -> tuple[Tensor, Tensor]:
    """The pixels of each cell, in maps laid end to end, and their weights: (B*R*cells^2, taps)."""
    n, device, which = cells * samples, rois.device, levels.flatten()
    start, shape = 0, []
    for m in maps:
        shape.append((start, m.shape[2], m.shape[3]))
        start += len(m) * m.shape[2] * m.shape[3]
    # int32 is a fifth faster than int64, as the backward pass sorts the pixels.
    first, height, width = torch.tensor(shape, device=device).int()[which].unbind(1)
    image = torch.arange(len(rois), device=device).int().repeat_interleave(rois.shape[1])
    scaled = rois.flatten(0, 1).float() / torch.tensor(strides, device=device)[which, None]
    corner, side = scaled[:, :2], (scaled[:, 2:] - scaled[:, :2]).clamp(min=1)
    points = (torch.arange(n, device=device) + 0.5) / n
    x, y = (corner[:, :, None] + side[:, :, None] * points).unbind(1)  # (B*R, n)
    column, wx = _bilinear(x, width[:, None])
    row, wy = _bilinear(y, height[:, None])
    vertical, horizontal = (-1, cells, 1, samples, 2, 1, 1), (-1, 1, cells, 1, 1, samples, 2)
    line = (first + image * height * width)[:, None, None] + row * width[:, None, None]
    index = line.view(vertical) + column.view(horizontal)
    weight = wy.view(vertical) * wx.view(horizontal) / samples**2
    return index.view(-1, 4 * samples**2), weight.view(-1, 4 * samples**2)


def _bilinear(at: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """The two pixels beside each point of a line and their weights, (..., 2) each.

    Points more than one pixel outside count as 0, the others as the nearest pixel's.
    """
    inside = (at >= -1) & (at <= length)
    at = at.where(inside, 0).clamp(min=0).minimum(length - 1)
    low = at.floor()
    high = (low + 1).minimum(length - 1)
    share = at - low
    weight = torch.stack([1 - share, share], -1) * inside[..., None]
    return torch.stack([low, high], -1).int(), weight


def roi_pool(
    maps: Sequence[Tensor], rois: Tensor, strides: Sequence[float], levels: Tensor, cells: int
) -> Tensor:
    """RoI pooling (Fast R-CNN, 1504.08083): the largest value of each cell; else as `roi_align`."""
    from torchvision import ops

    image = torch.arange(len(rois), device=rois.device).repeat_interleave(rois.shape[1])
    boxes = torch.cat([image[:, None], rois.detach().flatten(0, 1).float()], 1)
    out = boxes.new_zeros(len(boxes), maps[0].shape[1], cells, cells)
    for i, (m, stride) in enumerate(zip(maps, strides, strict=True)):
        here = levels.flatten() == i
        out[here] = ops.roi_pool(m.float(), boxes[here], cells, 1 / stride)
    return out.to(maps[0].dtype)

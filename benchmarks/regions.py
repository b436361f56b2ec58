"""RoIAlign on a pyramid, forward and backward: torchvision's operator, and ours.

    python benchmarks/regions.py                    # 4 images of 320 x 416, 256 channels
    python benchmarks/regions.py --regions 128 --channels 64
    python benchmarks/regions.py --regions 32 --channels 16 --rounds 1     # a try

Both read the same random regions of the same maps in float32, torchvision's from one level after
the other as its detectors do. They take turns; the figures are medians, after the results and the
gradients of both were found equal.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor
from torchvision import ops

from resnets.models.detection import roi_align

STRIDES, CELLS = (4, 8, 16, 32), 7


def theirs(maps: list[Tensor], rois: Tensor, levels: Tensor) -> Tensor:
    """Level after level, as in torchvision's MultiScaleRoIAlign."""
    image = torch.arange(len(rois)).repeat_interleave(rois.shape[1])
    boxes = torch.cat([image[:, None], rois.flatten(0, 1)], 1)
    found = boxes.new_zeros(len(boxes), maps[0].shape[1], CELLS, CELLS)
    for k, (one, stride) in enumerate(zip(maps, STRIDES, strict=True)):
        here = levels.flatten() == k
        found[here] = ops.roi_align(one, boxes[here], CELLS, 1 / stride, 2)
    return found


def ours(maps: list[Tensor], rois: Tensor, levels: Tensor) -> Tensor:
    return roi_align.roi_align(maps, rois, STRIDES, levels, CELLS)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, nargs=2, default=[320, 416])
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--regions", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.manual_seed(0)
    height, width = args.size
    maps = [
        torch.randn(args.batch, args.channels, height // s, width // s)
        .contiguous(memory_format=torch.channels_last)
        .requires_grad_()
        for s in STRIDES
    ]
    corner = torch.rand(args.batch, args.regions, 2) * torch.tensor([width, height])
    rois = torch.cat([corner, corner + 16 + 200 * torch.rand(args.batch, args.regions, 2)], 2)
    levels = roi_align.pyramid_level(rois, len(STRIDES))

    seen, times = {}, {"torchvision": ([], []), "ours": ([], [])}
    for turn in range(args.rounds + 1):
        for name, read in (("torchvision", theirs), ("ours", ours)):
            began = time.perf_counter()
            found = read(maps, rois, levels)
            middle = time.perf_counter()
            found.square().sum().backward()
            ended = time.perf_counter()
            if turn:
                times[name][0].append(middle - began)
                times[name][1].append(ended - middle)
            else:  # the first turn warms up
                seen[name] = [found.detach(), *(m.grad for m in maps)]
            for m in maps:
                m.grad = None
    for one, other in zip(*seen.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    first = [statistics.median(x) for x in times["torchvision"]]
    for name, both in times.items():
        way = [statistics.median(x) for x in both]
        cells = (f"{1e3 * x:8.1f} ms {y / x:5.2f}" for x, y in zip(way, first, strict=True))
        print(f"{name:12} forward {next(cells)}   backward {next(cells)}")
    print(f"{args.batch} x {args.regions} regions, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()

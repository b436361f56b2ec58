"""A training step and inference of Faster R-CNN on a pyramid: torchvision's network, and ours.

    python benchmarks/detect.py                       # ResNet-18, 4 images of 320 x 416
    python benchmarks/detect.py --backbone resnet50 --batch 2 --size 416 544
    python benchmarks/detect.py --batch 1 --size 96 128 --rounds 1               # a try

Both have the same weights, images and objects; torchvision's normalisation is trained (BatchNorm2d)
as ours is, and its regions an image are as many. Rows take turns: in each round every row makes one
training step (forward, backward, no optimiser) and one inference. The figure is the median over the
rounds. bfloat16 is used where the machine has it; ours in float32 is a row too. `--check` compares
the boxes that both find in float32.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from resnets import models
from resnets.config.families import ARCHS
from resnets.data.detection.targets import DetectionTargets, Kind
from resnets.device import use_bfloat16
from resnets.models.fuse import fuse_conv_bn

CLASSES, REGIONS = 20, 256


def scene(batch: int, size: tuple[int, int]) -> tuple[Tensor, DetectionTargets]:
    """Images, and ten objects on each."""
    draw = torch.Generator().manual_seed(1)
    images = torch.randn(batch, 3, *size, generator=draw)
    corners = torch.rand(batch, 10, 2, generator=draw) * torch.tensor([size[1] - 80, size[0] - 80])
    sides = 24 + 56 * torch.rand(batch, 10, 2, generator=draw)
    boxes = torch.cat([corners, corners + sides], 2)
    classes = torch.randint(CLASSES, (batch, 10), generator=draw)
    return images, DetectionTargets(boxes, classes, torch.full_like(classes, Kind.OBJECT))


def networks(backbone: str, size: tuple[int, int]) -> tuple[nn.Module, nn.Module]:
    """torchvision's and ours, of the same random weights."""
    torch.manual_seed(0)
    trunk = resnet_fpn_backbone(
        backbone_name=backbone, weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )
    theirs = FasterRCNN(
        trunk,
        CLASSES + 1,
        min_size=min(size),
        max_size=max(size),
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        box_batch_size_per_image=REGIONS,
    )
    ours = models.build(
        replace(ARCHS[f"fasterrcnn_{backbone}_fpn"], classes=CLASSES, sampled=REGIONS)
    )
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, nargs=2, default=[320, 416])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    size, device = (args.size[0], args.size[1]), torch.device(args.device)
    images, objects = (x.to(device) for x in scene(args.batch, size))
    theirs, ours = (network.to(device) for network in networks(args.backbone, size))
    targets = [{"boxes": one.boxes, "labels": one.classes + 1} for one in objects]
    if args.check:
        theirs.eval(), ours.eval()
        with torch.inference_mode():
            found, own = theirs(list(images)), ours(images)
        for said, boxes, classes in zip(found, own.boxes, own.classes, strict=True):
            count = int((classes >= 0).sum())
            difference = (said["boxes"] - boxes[: len(said["boxes"])]).abs().max()
            print(f"{len(said['boxes'])} and {count} boxes, greatest difference {difference:.1e}")
        return

    nhwc = images.contiguous(memory_format=torch.channels_last)
    fast = networks(args.backbone, size)[0].to(device).to(memory_format=torch.channels_last)
    ours.to(memory_format=torch.channels_last)
    short = fuse_conv_bn(ours)

    def trained(network: nn.Module, half: bool, own: bool) -> None:
        network.train()
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            if own:
                loss = network(nhwc, objects)[:-1].sum()
            else:
                loss = sum(network(list(nhwc if half else images), targets).values())
        loss.backward()
        network.zero_grad()

    @torch.inference_mode()
    def used(network: nn.Module, half: bool, own: bool) -> None:
        network.eval()
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            network(nhwc if own else list(nhwc if half else images))

    rows: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
        "torchvision float32": (
            lambda: trained(theirs, False, False),
            lambda: used(theirs, False, False),
        ),
        "ours float32": (lambda: trained(ours, False, True), lambda: used(short, False, True)),
    }
    if use_bfloat16("auto", device):
        rows["torchvision bfloat16 NHWC"] = (
            lambda: trained(fast, True, False),
            lambda: used(fast, True, False),
        )
        rows["ours"] = (lambda: trained(ours, True, True), lambda: used(short, True, True))
    times: dict[str, tuple[list[float], list[float]]] = {row: ([], []) for row in rows}
    for number in range(args.rounds + 1):
        for row, steps in rows.items():
            for step, found in zip(steps, times[row], strict=True):
                began = time.perf_counter()
                step()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if number:  # the first round warms up
                    found.append(time.perf_counter() - began)
    middle = {row: [statistics.median(x) for x in both] for row, both in times.items()}
    first = middle["torchvision float32"]
    print(
        f"{args.backbone}, {args.batch} images of {size[0]} x {size[1]}, torch {torch.__version__}"
    )
    for row, both in middle.items():
        cells = (f"{1e3 * x:9.1f} ms {y / x:6.2f}" for x, y in zip(both, first, strict=True))
        print(f"{row:26} training {next(cells)}   inference {next(cells)}")
    print(f"load average {os.getloadavg()[0]:.1f} over a minute, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()

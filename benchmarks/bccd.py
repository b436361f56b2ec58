"""mAP that a detector reaches from random weights in a given time: a plain loop, and ours.

    python benchmarks/bccd.py DATA --budget 480 --rows torchvision ours
    python benchmarks/bccd.py DATA --budget 20     # a try, and the test

DATA is PASCAL VOC's layout with lists of trainval and test images. The plain loop is torchvision's
Faster R-CNN with a ResNet-18, feature pyramid and group normalisation at 300 pixels, bfloat16
autocast where the machine has it, channels last, AdamW with a linear fall and mirrored images: what
a careful user types.
Both see the training and validation images alone, start from random weights, and are tested once,
at the end, on the test list by the same measure. The time is all that training takes, data reading
too; testing is not counted.
"""

from __future__ import annotations

import argparse
import tempfile
import time

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

import resnets
from resnets.data import dataset, splits
from resnets.data.dataset import Split
from resnets.data.decode import decode
from resnets.device import use_bfloat16
from resnets.evaluation.detection import evaluate_predictions
from resnets.evaluation.detections import SplitDetections

HALF = use_bfloat16("auto", torch.device("cpu"))


def plain(split: Split, classes: int, budget: float, batch: int, size: int) -> nn.Module:
    """Torchvision's detector after `budget` seconds of training."""
    began = time.monotonic()
    images = [torch.from_numpy(decode(path, 3)).permute(2, 0, 1) for path in split.images]
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18",
        weights=None,
        norm_layer=lambda channels: nn.GroupNorm(32, channels),
        trainable_layers=5,
    )
    network = FasterRCNN(backbone, classes + 1, min_size=size, max_size=2 * size)
    network.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), 2e-4, weight_decay=0.05)
    step = 0
    while (part := (time.monotonic() - began) / budget) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 2e-4 * min(1, (step + 1) / 100) * (1 - part)
        chosen = torch.randint(len(images), (batch,)).tolist()
        inputs, targets = [], []
        for k in chosen:
            objects = split.objects[k]
            objects = objects[objects.is_object]
            image, boxes = images[k] / 255, objects.boxes.clone()
            if torch.rand(()) < 0.5:
                image = image.flip(2)
                boxes[:, [0, 2]] = image.shape[2] - boxes[:, [2, 0]]
            inputs.append(image)
            targets.append({"boxes": boxes, "labels": objects.classes + 1})
        with torch.autocast("cpu", torch.bfloat16, enabled=HALF):
            losses = network(inputs, targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        step += 1
    print(f"torchvision: {step} steps of {batch}, {step * batch / budget:.1f} images/s")
    return network.eval()


@torch.inference_mode()
def found(network: nn.Module, split: Split) -> SplitDetections:
    """What torchvision's detector finds on a split."""
    rows: list[tuple[Tensor, ...]] = []
    for k, path in enumerate(split.images):
        image = torch.from_numpy(decode(path, 3)).permute(2, 0, 1) / 255
        with torch.autocast("cpu", torch.bfloat16, enabled=HALF):
            (said,) = network([image])
        which = torch.full_like(said["labels"], k)
        rows.append((which, said["labels"] - 1, said["scores"].float(), said["boxes"].float()))
    images, classes, scores, boxes = (torch.cat(parts) for parts in zip(*rows, strict=True))
    return SplitDetections(images, classes, scores, boxes, None, torch.arange(len(split)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("--budget", type=float, default=480, help="seconds")
    parser.add_argument("--rows", nargs="+", default=["torchvision", "ours"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=["trainval=true"], dest="fields")
    parser.add_argument("--model", default=None)
    args = parser.parse_args()
    source = splits.merge_val_into_train(dataset.load(args.data, task="detect"))
    assert source.train is not None
    assert source.test is not None
    for row in args.rows:
        if row == "torchvision":
            torch.manual_seed(args.seed)
            network = plain(source.train, len(source.classes), args.budget, 8, 300)
            result = evaluate_predictions(found(network, source.test), source.test, source.classes)
        else:
            with tempfile.TemporaryDirectory() as folder:
                outcome = resnets.train(
                    args.data,
                    task="detect",
                    model=args.model,
                    budget=args.budget,
                    seed=args.seed,
                    overrides=args.fields,
                    run=f"{folder}/run",
                )
            result = outcome.result
            print(f"ours: {outcome.seconds:.0f} s with testing and report")
        each = "  ".join(f"{r['class']} {r['ap50']:.3f}" for r in result.per_class())
        print(f"{row}: mAP@.5 {result.map50:.3f}, AP@[.5,.95] {result.map:.3f}   {each}")


if __name__ == "__main__":
    main()

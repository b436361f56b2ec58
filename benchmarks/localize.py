"""The localisation error on CIFAR-10 images that are pasted on photographs.

    python benchmarks/localize.py PHOTOGRAPHS --budget 300
    python benchmarks/localize.py PHOTOGRAPHS --budget 10 --images 64 --tested 16   # a try

Each image has one object: a CIFAR-10 image, 32 to 80 pixels wide, on a part of 128 x 128 pixels
of a photograph. Training and test images have other objects and other photographs. Prints what
`resnets localize train` reaches from random weights in the given time, tested plainly and densely,
at three sizes. `--regions 8 20` trains an R-CNN beside the proposals.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import resnets
from resnets.data import dataset
from resnets.data.dataset import Split
from resnets.data.decode import decode
from resnets.data.inputs import expand_inputs

SIDE = 128


def paste(folder: Path, name: str, split: Split, photographs: list[str], count: int) -> list[str]:
    """Images in a folder; the rows of their boxes."""
    draw = np.random.default_rng(len(name))
    backs = [Image.fromarray(decode(path, 3)) for path in photographs]
    rows = []
    for k in range(count):
        back = backs[k % len(backs)]
        scale = draw.uniform(SIDE, 2.5 * SIDE) / min(back.size)
        back = back.resize([max(SIDE, round(scale * side)) for side in back.size])
        left, top = (int(draw.integers(0, side - SIDE + 1)) for side in back.size)
        canvas = back.crop((left, top, left + SIDE, top + SIDE))
        side = int(draw.integers(32, 81))
        x, y = (int(v) for v in draw.integers(0, SIDE - side + 1, 2))
        pixels = split.images[k].permute(1, 2, 0).numpy()
        canvas.paste(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC), (x, y))
        file = f"{name}-{k:05d}.jpg"
        canvas.save(folder / file, quality=92)
        rows.append([file, x, y, x + side, y + side, int(split.labels[k]), name])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photographs")
    parser.add_argument("--budget", type=float, default=300, help="seconds")
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--tested", type=int, default=1000, help="images")
    parser.add_argument("--regions", type=int, nargs=2, help="in training, at test")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    cifar = dataset.load("cifar10")
    assert cifar.train is not None
    assert cifar.test is not None
    files = [path for path, _ in expand_inputs([args.photographs])]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        kept = len(files) // 5
        rows = paste(folder, "train", cifar.train, files[kept:], args.images)
        rows += paste(folder, "test", cifar.test, files[:kept], args.tested)
        with (folder / "boxes.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["path", "x1", "y1", "x2", "y2", "label", "split"], *rows])
        outcome = resnets.train(
            str(folder / "boxes.csv"),
            task="localize",
            budget=args.budget,
            seed=args.seed,
            overrides={"size": SIDE} | ({"arch.regions": args.regions} if args.regions else {}),
            run=folder / "run",
        )
        print("plain:", outcome.result.headline())
        dense = resnets.evaluate(
            folder / "run", str(folder / "boxes.csv"), scales=(0.75, 1.0, 1.5), batch=50
        )
        print("dense:", dense.headline())


if __name__ == "__main__":
    main()

"""CIFAR augmentation: our batches against torchvision's pipeline on Pillow images, one process.

    OMP_NUM_THREADS=1 python benchmarks/augment.py

Both pad by 4, crop, mirror and normalise 32x32 colour images (noise: what the pixels show costs
nothing) in batches of 128, in turns, so that a slow minute of the machine meets both.
"""

import argparse
import statistics
import time

import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms as tv

from resnets.config.recipe import Augment, Preprocess
from resnets.data.loader import train_batches
from resnets.data.splits import Split

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
BATCH = 128


class Pictures(torch.utils.data.Dataset):
    """What torchvision's CIFAR10 does for an image."""

    def __init__(self, images, labels, transform):
        self.images = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels, self.transform = labels.tolist(), transform

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--pairs", type=int, default=9)
    arguments = parser.parse_args()
    n = arguments.images

    images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8)
    split = Split(images, torch.randint(0, 10, (n,)))
    crop_and_mirror = [tv.RandomCrop(32, 4), tv.RandomHorizontalFlip()]
    pipeline = tv.Compose([*crop_and_mirror, tv.ToTensor(), tv.Normalize(MEAN, STD)])
    pictures = Pictures(images, split.labels, pipeline)
    steps = n // BATCH

    def ours(turn):
        return train_batches(
            split,
            preprocess=Preprocess(size=32, mean=MEAN, std=STD),
            augment=Augment(crop="pad", flip=True),
            batch=BATCH,
            seed=0,
            start=turn * steps,
            stop=(turn + 1) * steps,
            device="cpu",
        )

    def torchvisions(turn):
        return DataLoader(pictures, BATCH, shuffle=True, drop_last=True)

    rates = {ours: [], torchvisions: []}
    for turn in range(arguments.pairs + 1):
        for way, seen in rates.items():
            began = time.perf_counter()
            assert sum(1 for _ in way(turn)) == steps
            seen.append(steps * BATCH / (time.perf_counter() - began))
    first, second = ([*seen[1:]] for seen in rates.values())  # the first pair warms up
    ratio = statistics.median(a / b for a, b in zip(first, second, strict=True))
    print(f"threads {torch.get_num_threads()}, pairs {len(first)}, images {n}, batch {BATCH}")
    for name, seen in (("resnets", first), ("torchvision", second)):
        low, high = min(seen), max(seen)
        print(f"{name:12} {statistics.median(seen):10,.0f} images/s  ({low:,.0f} to {high:,.0f})")
    print(f"{'ratio':12} {ratio:10.1f}  (median of the pairs)")


if __name__ == "__main__":
    main()

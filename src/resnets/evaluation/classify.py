"""How often a classifier is right, counted once for each image."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from resnets.data.batches import Batch
from resnets.nets import Network


@dataclass(frozen=True)
class Result:
    """Figures of a classifier on one split. Errors and accuracies are fractions in 0..1."""

    images: int
    loss: float  # mean cross-entropy, nats
    top1: float
    top5: float
    interval: tuple[float, float]  # of top1, 95 %
    confusion: tuple[tuple[int, ...], ...]  # [true class][predicted class]
    classes: tuple[str, ...]
    unreadable: tuple[tuple[Path, str], ...] = ()
    split: str = "test"

    @property
    def error(self) -> float:
        """Top-1 error."""
        return 1 - self.top1

    def per_class(self) -> list[dict[str, str | float | int]]:
        """Precision, recall and F1 of each class; 0 where a ratio has no denominator."""
        true = [sum(row) for row in self.confusion]
        predicted = [sum(column) for column in zip(*self.confusion, strict=True)]
        return [
            {
                "class": name,
                "images": true[k],
                "precision": self.confusion[k][k] / max(1, predicted[k]),
                "recall": self.confusion[k][k] / max(1, true[k]),
                "f1": 2 * self.confusion[k][k] / max(1, true[k] + predicted[k]),
            }
            for k, name in enumerate(self.classes)
        ]


def wilson(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927)."""
    if not trials:
        return 0.0, 1.0
    p, n = successes / trials, trials
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def evaluate(
    network: Network,
    batches: Iterable[Batch],
    classes: tuple[str, ...],
    *,
    bfloat16: bool = False,
    total: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> Result:
    """Run `network` over `batches` in evaluation mode; (N, C, H, W) -> one Result.

    The network's own mode (train or eval) is restored afterwards. Where several ranks have a part
    of the images each, `total` adds up their sums: float64 (2 + classes * classes,).
    """
    training = network.training
    network.eval()
    place = next(network.parameters()).device
    # Counts are exact in float64 up to 2**53.
    sums = torch.zeros(2 + len(classes) ** 2, dtype=torch.float64, device=place)
    unreadable: list[tuple[Path, str]] = []
    for batch in batches:
        unreadable += batch.unreadable
        if not len(batch.labels):
            continue
        logits = predict_batch(network, batch.images, bfloat16=bfloat16)
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        pairs = batch.labels * len(classes) + best[:, 0]
        sums[0] += F.cross_entropy(logits.double(), batch.labels, reduction="sum")
        sums[1] += (best == batch.labels[:, None]).sum()
        sums[2:] += torch.bincount(pairs, minlength=len(classes) ** 2)
    network.train(training)
    loss, top5, *counts = total(sums).tolist()
    images = round(sum(counts))
    confusion = torch.tensor(counts).long().view(len(classes), len(classes))
    right = int(confusion.diagonal().sum())
    return Result(
        images=images,
        loss=loss / max(1, images),
        top1=right / max(1, images),
        top5=top5 / max(1, images),
        interval=wilson(right, images),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        classes=classes,
        unreadable=tuple(unreadable),
    )


@torch.inference_mode()
def predict_batch(network: Network, images: Tensor, *, bfloat16: bool = False) -> Tensor:
    """Logits in float32: (N, C, H, W) -> (N, classes). The network must be in evaluation mode."""
    images = images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bfloat16):
        logits: Tensor = network(images)
    return logits.float()

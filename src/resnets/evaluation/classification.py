"""From batches to what a network says of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from resnets.data.loader import Batch
from resnets.evaluation import metrics
from resnets.evaluation.scores import Scores, mean

Forward = Callable[[Tensor], Tensor]  # images (N, C, H, W) -> logits (N, K)


@torch.inference_mode()
def predict_batch(network: Forward, images: Tensor, *, bfloat16: bool = False) -> Tensor:
    """Logits in float32: (N, C, H, W) -> (N, classes). The network must be in evaluation mode."""
    images = images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bfloat16):
        logits = network(images)
    return logits.float()


def evaluate(
    network: nn.Module,
    batches: Iterable[Batch],
    classes: tuple[str, ...],
    *,
    bfloat16: bool = False,
    total: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> metrics.RunningMeans:
    """Run `network` over `batches` in evaluation mode; its own mode is restored afterwards.

    Where several ranks have a part of the images each, `total` adds up their sums, float64 (4,).
    """
    training = network.training
    said = scores(network.eval(), batches, classes, bfloat16=bfloat16)
    network.train(training)
    place = next(network.parameters()).device  # of messages
    return metrics.means(total(metrics.sums(said).to(place)))


def scores(
    network: Forward,
    batches: Iterable[Batch],
    classes: tuple[str, ...],
    *,
    mirrored: bool = False,
    temperature: float = 1.0,
    bfloat16: bool = False,
) -> Scores:
    """What the network says of each image: the mean over the rows that it has in a batch.

    With `mirrored` each row counts as it is and as its mirror image. The network must be in
    evaluation mode.
    """
    began, unreadable = time.monotonic(), list[tuple[Path, str]]()
    none = torch.empty(0, dtype=torch.int64)
    logits, labels, indices = [torch.empty(0, len(classes))], [none], [none]
    for batch in batches:
        unreadable += batch.unreadable
        if not len(batch.labels):
            continue
        rows = len(batch.indices) // len(set(batch.indices.tolist()))
        sides = (batch.images, batch.images.flip(-1)) if mirrored else (batch.images,)
        said = [predict_batch(network, images, bfloat16=bfloat16) for images in sides]
        views = torch.stack(said).view(len(sides), -1, rows, len(classes))
        views = views.transpose(1, 2).flatten(0, 1) / temperature  # (V, N, K)
        logits.append(mean(views, several=batch.labels.ndim == 2).cpu())
        labels.append(batch.labels[::rows].cpu())
        indices.append(batch.indices[::rows])
    return Scores(
        logits=torch.cat(logits),
        labels=torch.cat(labels),
        indices=torch.cat(indices),
        classes=classes,
        unreadable=tuple(unreadable),
        seconds=time.monotonic() - began,
    )

"""Losses: functions of logits and dense targets, so that there is one path."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

PRESENT = 0.2  # share above which "bce" sees a class in a mixed image: timm's for 2110.00476


def to_one_hot(labels: Tensor, classes: int) -> Tensor:
    """Class indices, int64 (B,), or shares of each class, (B, K), as float32 (B, K)."""
    return (F.one_hot(labels, classes) if labels.ndim == 1 else labels).float()


def classification_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    kind: Literal["cross-entropy", "bce"],
    smoothing: float = 0.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Mean loss over images: logits and targets float32 (B, K), class weights (K,) -> ().

    A target t is smoothed to (1 - smoothing) t + smoothing / K (1512.00567, section 7). Weights
    multiply each image's loss; unlike torch's, the mean is over images and not over their weights,
    so that it does not depend on how a batch is cut into micro-batches. "bce" decides for
    each class by itself, and all that were mixed are present (2110.00476, section 2.2), and is
    the mean over classes too.
    """
    if kind == "bce":
        present = (targets > PRESENT).float()
        smooth = (1 - smoothing) * present + smoothing / targets.shape[1]
        return F.binary_cross_entropy_with_logits(logits, smooth, weights)
    total = F.cross_entropy(logits, targets, weights, reduction="sum", label_smoothing=smoothing)
    return total / len(logits)


def count_errors(logits: Tensor, targets: Tensor, *, multi_label: bool) -> Tensor:
    """The number of wrong predictions: (B, K) twice -> () int64.

    The prediction is the most probable class, the truth the one of the greatest share. With several
    labels an image both are all classes above 0.5, and one wrong class makes it wrong.
    """
    if multi_label:
        return ((logits > 0) != (targets > 0.5)).any(1).sum()
    return (logits.argmax(1) != targets.argmax(1)).sum()


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """Class weights (K,), inverse to the classes' frequencies, with mean 1 over the labels.

    Labels are int64 (N,) or float (N, K). A class that never occurs has weight 1.
    """
    counts = torch.bincount(labels, minlength=classes) if labels.ndim == 1 else labels.sum(0)
    occurs = counts > 0
    return torch.where(occurs, counts.sum() / (occurs.sum() * counts), 1.0).float()


def distillation_loss(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(logits / T)), mean over images: (B, K) twice -> ().

    1503.02531, section 2; T^2 keeps the gradient's size when T changes.
    """
    student, target = (F.log_softmax(x / temperature, 1) for x in (logits, teacher))
    return temperature**2 * F.kl_div(student, target, reduction="batchmean", log_target=True)

"""Mixing the images of a batch, and their targets, in pairs: mixup and CutMix."""

from __future__ import annotations

import torch
from torch import Tensor

from resnets.config.recipe import Augment


def mix_batch(images: Tensor, targets: Tensor, augment: Augment) -> tuple[Tensor, Tensor]:
    """Each image mixed with the one before it, all in one proportion, which is Beta(alpha, alpha).

    Floating (B, C, H, W) and classes' probabilities (B, K) -> the same shapes; the arguments
    themselves if `augment.mixup` (1710.09412) and `cutmix` (1905.04899), the alphas, are both 0.
    With both it is either, half of the time. Draws from torch's generator, which a training step
    seeds for each micro-batch.
    """
    if not (augment.mixup or augment.cutmix):
        return images, targets
    from torchvision.transforms import v2  # here, since it takes 1.7 s to import

    cut = augment.cutmix and (not augment.mixup or torch.rand(()).item() < 0.5)
    transform = v2.CutMix(alpha=augment.cutmix) if cut else v2.MixUp(alpha=augment.mixup)
    mixed: tuple[Tensor, Tensor] = transform(images, targets)
    return mixed

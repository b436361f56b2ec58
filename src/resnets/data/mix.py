"""Mixing the images of a batch, and what they are to be taken for, in pairs: mixup and CutMix."""

from __future__ import annotations

import math

from scipy.special import betaincinv
from torch import Tensor

from resnets.recipe import Augment


def mix(images: Tensor, targets: Tensor, augment: Augment, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Row i mixed with row B - 1 - i, all in one proportion, which is Beta(alpha, alpha).

    Floating (B, C, H, W), classes' probabilities (B, K), and 4 draws of `draws_of_step` -> the
    same shapes; the arguments themselves if `augment.mixup` and `cutmix`, the alphas, are both 0.
    With both it is either, half of the time.
    """
    choice, share, y, x = draws[:4].tolist()
    cut = augment.cutmix and (not augment.mixup or choice < 0.5)
    alpha = augment.cutmix if cut else augment.mixup
    if not alpha:
        return images, targets
    keep = float(betaincinv(alpha, alpha, share))  # the inverse of its distribution
    if cut:
        return cutmix(images, targets, keep, y, x)
    return blended(images, keep), blended(targets, keep)


def blended(x: Tensor, keep: float) -> Tensor:
    """`keep` of each row and the rest of its partner (1710.09412): (B, ...) -> the same shape."""
    return keep * x + (1 - keep) * x.flip(0)


def cutmix(
    images: Tensor, targets: Tensor, keep: float, y: float, x: float
) -> tuple[Tensor, Tensor]:
    """A rectangle of the partner in each image (1905.04899), around the pixel at (y, x) in [0, 1).

    Its sides are sqrt(1 - keep) of the image's; at the borders it is cut off, and targets are
    weighted by the area that is left. (B, C, H, W) and (B, K) -> the same shapes.
    """
    height, width = images.shape[2:]
    half = math.sqrt(1 - keep) / 2
    (top, bottom), (left, right) = (
        (max(0, int(at * side) - int(half * side)), min(side, int(at * side) + int(half * side)))
        for at, side in ((y, height), (x, width))
    )
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = images.flip(0)[..., top:bottom, left:right]
    return mixed, blended(targets, 1 - (bottom - top) * (right - left) / (height * width))

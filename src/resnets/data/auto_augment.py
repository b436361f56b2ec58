"""Random policies of image operations: TrivialAugmentWide, RandAugment, AutoAugment and AugMix.

The operations are torchvision's on uint8 tensors (..., C, S, S) of 1 or 3 channels, bilinear where
pixels move. An image of 32 pixels takes 0.1 to 0.25 ms of a core, one of 224 some 0.7.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

DRAWS = 8  # numbers that a policy takes at most, but for AugMix:
CHAINS, DEPTH, SEVERITY = 3, 3, 3  # 1912.02781, appendix C; severity of 10
MIX_DRAWS = 1 + CHAINS * (2 + 3 * DEPTH)
Fill = list[float] | None  # level of what moves in; None: black, not blended at the border
BILINEAR = InterpolationMode.BILINEAR


def warp(image: Tensor, pixels: list[float], tangents: list[float], fill: Fill) -> Tensor:
    """Moved by (x, y) pixels, and sheared about the top left corner by (x, y) tangents."""
    degrees = [math.degrees(math.atan(tangent)) for tangent in tangents]
    x: Tensor = F.affine(image, 0, pixels, 1, degrees, BILINEAR, fill, center=[0, 0])
    return x


# Image, value and fill -> image.
OPERATIONS: dict[str, Callable[[Tensor, float, Fill], Tensor]] = {
    "identity": lambda x, _, fill: x,
    "autocontrast": lambda x, _, fill: F.autocontrast(x),
    "equalize": lambda x, _, fill: F.equalize(x),
    "invert": lambda x, _, fill: 255 - x,
    "rotate": lambda x, degrees, fill: F.rotate(x, degrees, BILINEAR, fill=fill),
    "posterize": lambda x, bits, fill: F.posterize(x, int(bits)),
    "solarize": lambda x, least, fill: torch.where(x < float(least), x, 255 - x),
    "solarize_add": lambda x, levels, fill: torch.where(x < 128, x + int(levels), x),
    "brightness": lambda x, factor, fill: F.adjust_brightness(x, factor),
    "saturation": lambda x, factor, fill: F.adjust_saturation(x, factor),
    "contrast": lambda x, factor, fill: F.adjust_contrast(x, factor),
    "sharpness": lambda x, factor, fill: F.adjust_sharpness(x, factor),
    "shear_x": lambda x, tangent, fill: warp(x, [0, 0], [tangent, 0], fill),
    "shear_y": lambda x, tangent, fill: warp(x, [0, 0], [0, tangent], fill),
    "translate_x": lambda x, pixels, fill: warp(x, [pixels, 0], [0, 0], fill),
    "translate_y": lambda x, pixels, fill: warp(x, [0, pixels], [0, 0], fill),
}
BLENDS = ("brightness", "saturation", "contrast", "sharpness")

# Strength in -1..1 and the image's side -> value; without a direction the sign does not count.
Values = dict[str, Callable[[float, int], float]]
TRIVIAL: Values = {  # 2103.10158, Table 1 "Wide": 14 operations, with torchvision's values
    **dict.fromkeys(("identity", "autocontrast", "equalize"), lambda s, side: 0),
    **dict.fromkeys(("shear_x", "shear_y"), lambda s, side: 0.99 * s),
    **dict.fromkeys(("translate_x", "translate_y"), lambda s, side: int(32 * s)),
    **dict.fromkeys(BLENDS, lambda s, side: 1 + 0.99 * s),
    "rotate": lambda s, side: 135 * s,
    "posterize": lambda s, side: round(8 - 6 * abs(s)),
    "solarize": lambda s, side: 255 * (1 - abs(s)),
}
RAND: Values = {  # the 15 operations of timm's "inc1", with which 2110.00476 trained
    **dict.fromkeys(("autocontrast", "equalize", "invert"), lambda s, side: 0),
    **dict.fromkeys(("shear_x", "shear_y"), lambda s, side: 0.3 * s),
    **dict.fromkeys(("translate_x", "translate_y"), lambda s, side: 0.45 * s * side),
    **dict.fromkeys(BLENDS, lambda s, side: max(0.1, 1 + 0.9 * s)),
    "rotate": lambda s, side: 30 * s,
    "posterize": lambda s, side: 4 - int(4 * abs(s)),
    "solarize": lambda s, side: 256 - int(256 * abs(s)),
    "solarize_add": lambda s, side: int(110 * abs(s)),
}

SHIFTS: Values = {  # operations of both AutoAugment and AugMix, with torchvision's values
    **dict.fromkeys(("autocontrast", "equalize"), lambda s, side: 0),
    **dict.fromkeys(("shear_x", "shear_y"), lambda s, side: 0.3 * s),
    "rotate": lambda s, side: 30 * s,
    "solarize": lambda s, side: 255 * (1 - abs(s)),
}
AUTO: Values = {
    **SHIFTS,
    **dict.fromkeys(BLENDS, lambda s, side: 1 + 0.9 * s),
    "invert": lambda s, side: 0,
    "posterize": lambda s, side: round(8 - 4 * abs(s)),
}
MIX: Values = {  # 1912.02781, section 3: none of the operations that ImageNet-C has
    **SHIFTS,
    **dict.fromkeys(("translate_x", "translate_y"), lambda s, side: int(side / 3 * s)),
    "posterize": lambda s, side: round(4 - 4 * abs(s)),
}
# 1805.09501, Table 9: two operations, each with its probability and its strength k of 9. Rows that
# stand twice in the paper do so here.
IMAGENET_POLICY = (
    (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 0)),
    (("equalize", 0.8, 0), ("equalize", 0.6, 0)),
    (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
    (("equalize", 0.4, 0), ("solarize", 0.2, 4)),
    (("equalize", 0.4, 0), ("rotate", 0.8, 8)),
    (("solarize", 0.6, 3), ("equalize", 0.6, 0)),
    (("posterize", 0.8, 5), ("equalize", 1.0, 0)),
    (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
    (("equalize", 0.6, 0), ("posterize", 0.4, 6)),
    (("rotate", 0.8, 8), ("saturation", 0.4, 0)),
    (("rotate", 0.4, 9), ("equalize", 0.6, 0)),
    (("equalize", 0.0, 0), ("equalize", 0.8, 0)),
    (("invert", 0.6, 0), ("equalize", 1.0, 0)),
    (("saturation", 0.6, 4), ("contrast", 1.0, 8)),
    (("rotate", 0.8, 8), ("saturation", 1.0, 2)),
    (("saturation", 0.8, 8), ("solarize", 0.8, 7)),
    (("sharpness", 0.4, 7), ("invert", 0.6, 0)),
    (("shear_x", 0.6, 5), ("equalize", 1.0, 0)),
    (("saturation", 0.4, 0), ("equalize", 0.6, 0)),
    (("equalize", 0.4, 0), ("solarize", 0.2, 4)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 0)),
    (("invert", 0.6, 0), ("equalize", 1.0, 0)),
    (("saturation", 0.6, 4), ("contrast", 1.0, 8)),
    (("equalize", 0.8, 0), ("equalize", 0.6, 0)),
)


def trivial_augment(image: Tensor, draws: list[float]) -> Tensor:
    """TrivialAugmentWide: an even choice of operation, strength (k of 30) and direction."""
    pick, strength, direction = draws[:3]
    name = list(TRIVIAL)[int(pick * len(TRIVIAL))]
    signed = math.copysign(int(strength * 31) / 30, direction - 0.5)
    return OPERATIONS[name](image, TRIVIAL[name](signed, image.shape[-1]), None)


def rand_augment(image: Tensor, magnitude: float, deviation: float, draws: list[float]) -> Tensor:
    """RandAugment (1909.13719) as timm does it: two even choices, each done half of the time.

    Their strength is normal around `magnitude` of 10, kept in 0..10.
    """
    for pick, chance, strength, direction in (draws[:4], draws[4:8]):
        if chance < 0.5:
            name = list(RAND)[int(pick * len(RAND))]
            normal = NormalDist().inv_cdf(strength + 2.0**-25)  # the middle of a draw's interval
            level = min(10.0, max(0.0, magnitude + deviation * normal))
            signed = math.copysign(level / 10, direction - 0.5)
            image = OPERATIONS[name](image, RAND[name](signed, image.shape[-1]), [128.0])
    return image


def auto_augment(image: Tensor, draws: list[float]) -> Tensor:
    """AutoAugment's policy for ImageNet (1805.09501): one of 25 pairs of operations."""
    pair = IMAGENET_POLICY[int(draws[0] * len(IMAGENET_POLICY))]
    for (name, probability, level), chance, direction in zip(
        pair, draws[1:3], draws[3:5], strict=True
    ):
        if chance < probability:
            signed = math.copysign(level / 9, direction - 0.5)
            image = OPERATIONS[name](image, AUTO[name](signed, image.shape[-1]), None)
    return image


def augmix(image: Tensor, draws: list[float]) -> Tensor:
    """AugMix (1912.02781, Algorithm 1): a random mean of the image and of three chains' results.

    A chain has one to three operations; the mean's weights are Dirichlet(1, 1, 1) times 1 - m for
    the chains and m, uniform, for the image. Takes MIX_DRAWS numbers.
    """
    kept, *rest = draws
    exponential = [-math.log(draw + 2.0**-25) for draw in rest[:CHAINS]]  # their shares: Dirichlet
    mean = kept * image.float()
    for chain, part in enumerate(exponential):
        start = CHAINS + chain * (1 + 3 * DEPTH)
        result = image
        for number in range(1 + int(rest[start] * DEPTH)):
            pick, strength, direction = rest[start + 1 + 3 * number : start + 4 + 3 * number]
            name = list(MIX)[int(pick * len(MIX))]
            signed = math.copysign(int(strength * SEVERITY) / 9, direction - 0.5)
            result = OPERATIONS[name](result, MIX[name](signed, image.shape[-1]), None)
        mean += (1 - kept) * part / sum(exponential) * result
    return mean.round().to(torch.uint8)

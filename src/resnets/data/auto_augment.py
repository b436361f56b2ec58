"""Random policies of image operations: TrivialAugmentWide and RandAugment.

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

DRAWS = 8  # numbers that a policy takes at most
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

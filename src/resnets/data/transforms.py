"""From uint8 images to a network's input: one test-time view, and what training changes about it.

Training goes: crop "none", "scale" or "area" to the input's side; policy; colour; mean and
deviation; the shift of crop "pad"; mirror; cutout; erasing. Padding after the mean is taken off is
the order of fb.resnet.torch: what is padded is the mean, and the per-pixel mean moves along.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from resnets.config.recipe import Augment, Preprocess
from resnets.config.types import Interpolation
from resnets.errors import UsageError

Crops = Literal["center", "corners", "whole"]

DRAWS = 45  # for each image; which draw is for what:
_CORNER = slice(0, 2)  # top and left of a crop
FLIP = 2
_CUTOUT = slice(3, 5)
_COLOUR = slice(5, 12)
_AREA = slice(12, 32)  # ten attempts at (area, aspect ratio)
_POLICY = slice(32, 40)
_ERASE = slice(40, 45)
_AUGMIX = slice(45, 79)  # with policy "augmix" only

# AlexNet's colour augmentation with the numbers of fb.resnet.torch (datasets/imagenet.lua).
_EIGENVALUES = (0.2175, 0.0188, 0.0045)
_EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)
_GREY = (0.299, 0.587, 0.114)  # ITU-R 601


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where a view lies: `box` of the image is resized to `side`s, then cut at `corner`.

    All in pixels: box (top, left, height, width), sides (height, width), corner (top, left).
    """

    box: tuple[int, int, int, int]
    sides: tuple[int, int]
    corner: tuple[int, int]


def check_crop(preprocess: Preprocess, augment: Augment) -> None:
    """Raise UsageError if images cannot be cropped so."""
    size = preprocess.size
    if augment.crop == "resize":
        raise UsageError("augment.crop=resize is for boxes and masks; for classes: scale, area")
    if augment.crop == "scale" and not size <= augment.scale[0] <= augment.scale[1]:
        raise UsageError(f"augment.scale={augment.scale} must begin at {size} or more")
    if augment.crop == "pad" and augment.reflect and augment.pad >= size:
        raise UsageError(f"augment.pad={augment.pad} is too large to reflect in {size} pixels")


def center_crop(height: int, width: int, preprocess: Preprocess) -> Geometry:
    """The test-time view of an image: shorter side to `resize` (0: to `size`), then the centre.

    Rounding is torchvision's, so that published weights see the pixels they were measured on.
    """
    size = preprocess.size
    sides = _shorter(height, width, max(preprocess.resize or size, size))
    corner = (round((sides[0] - size) / 2), round((sides[1] - size) / 2))
    return Geometry((0, 0, height, width), sides, corner)


def geometry(
    height: int, width: int, preprocess: Preprocess, augment: Augment, draws: list[float]
) -> Geometry:
    """The view that training takes of an image, given the image's DRAWS numbers in [0, 1)."""
    size = preprocess.size
    y, x = draws[_CORNER]
    if augment.crop == "scale":
        low, high = augment.scale
        # column of `_AREA`: that crop and this one are never drawn together
        sides = _shorter(height, width, low + int(draws[_AREA.start] * (high - low + 1)))
        corner = (int(y * (sides[0] - size + 1)), int(x * (sides[1] - size + 1)))
        return Geometry((0, 0, height, width), sides, corner)
    if augment.crop == "area":
        for area, ratio in zip(draws[_AREA][::2], draws[_AREA][1::2], strict=True):
            low_area, high_area = augment.area
            pixels = height * width * (low_area + area * (high_area - low_area))
            aspect = math.exp((2 * ratio - 1) * math.log(4 / 3))  # 3/4 to 4/3, log-uniform
            h, w = round(math.sqrt(pixels / aspect)), round(math.sqrt(pixels * aspect))
            if 0 < h <= height and 0 < w <= width:
                corner = (int(y * (height - h + 1)), int(x * (width - w + 1)))
                return Geometry((*corner, h, w), (size, size), (0, 0))
    return center_crop(height, width, preprocess)


def _shorter(height: int, width: int, side: int) -> tuple[int, int]:
    short = min(height, width)
    return side * height // short, side * width // short


def draw_count(augment: Augment) -> int:
    """How many draws of an image its augmentation takes; the first are the same in any case."""
    return _AUGMIX.stop if augment.policy == "augmix" else DRAWS


def views(
    images: Tensor, draws: Tensor, side: int, preprocess: Preprocess, augment: Augment
) -> Tensor:
    """What training cuts out of images, after the policy, at an input side of `side` pixels.

    uint8 (B, C, H, W) and (B, `draw_count`) -> uint8 (B, channels, side, side).
    """
    images = recolour(images, preprocess.channels)
    height, width = images.shape[2:]
    preprocess, augment = scale_to_side(preprocess, augment, side)
    if augment.crop in ("none", "pad") and augment.policy == "none":  # one view for all
        return crop_resize(images, center_crop(height, width, preprocess), preprocess)
    if augment.policy != "none":
        from resnets.data import auto_augment  # here, since its torchvision takes 1.7 s to import
    rows = []
    for image, row in zip(torch.split(images, 1), draws.tolist(), strict=True):
        x = crop_resize(image, geometry(height, width, preprocess, augment, row), preprocess)
        match augment.policy:
            case "trivialaugment":
                x = auto_augment.trivial_augment(x, row[_POLICY])
            case "randaugment":
                x = auto_augment.rand_augment(x, *augment.randaugment, row[_POLICY])
            case "autoaugment":
                x = auto_augment.auto_augment(x, row[_POLICY])
            case "augmix":
                x = auto_augment.augmix(x, row[_AUGMIX])
        rows.append(x)
    return torch.cat(rows)


def test_view(
    images: Tensor, draws: Tensor, side: int, preprocess: Preprocess, crops: Crops
) -> Tensor:
    """What testing sees of images; the arguments are those of `views`, the draws do not count.

    uint8 (B, C, H, W) -> uint8 (B, channels, side, side) of the "center"; of the "corners" (top
    left, top right, bottom left, bottom right, centre) 5 B rows, those of an image one after
    another; "whole" is resized and not cut.
    """
    images = recolour(images, preprocess.channels)
    where = center_crop(images.shape[2], images.shape[3], preprocess)
    whole = resized(images, where.sides, preprocess.interpolation)
    if crops == "whole":
        return whole
    bottom, right = (length - side for length in where.sides)
    places = [(0, 0), (0, right), (bottom, 0), (bottom, right)] if crops == "corners" else []
    rows = [whole[:, :, y : y + side, x : x + side] for y, x in (*places, where.corner)]
    return torch.stack(rows, 1).flatten(0, 1)


def scale_to_side(
    preprocess: Preprocess, augment: Augment, side: int
) -> tuple[Preprocess, Augment]:
    """The same views at another input side: every length in pixels follows it."""
    lengths = (preprocess.resize, augment.pad, augment.cutout, *augment.scale)
    resize, pad, cutout, low, high = (length * side // preprocess.size for length in lengths)
    return (
        replace(preprocess, size=side, resize=resize),
        replace(augment, pad=pad, cutout=cutout, scale=(low, high)),
    )


def crop_resize(images: Tensor, where: Geometry, preprocess: Preprocess) -> Tensor:
    """uint8 (B, C, H, W) -> uint8 (B, C, size, size), one geometry for all."""
    top, left, height, width = where.box
    part, size = images[:, :, top : top + height, left : left + width], preprocess.size
    x = resized(part, where.sides, preprocess.interpolation)
    top, left = where.corner
    return x[:, :, top : top + size, left : left + size]


def resized(images: Tensor, sides: tuple[int, int], interpolation: Interpolation) -> Tensor:
    """uint8 (B, C, H, W) -> uint8 (B, C, *sides), antialiased as Pillow does it; C is 1 or 3.

    "bilinear" is torch's filter, three times as fast; one level from Pillow's in 0.2 to 0.6 % of
    the values. "bicubic" is Pillow's own: torch's differs by two levels in one value of a million.
    """
    if tuple(images.shape[2:]) == sides:
        return images
    if images.device.type != "cpu":
        return resized_in_float(images, sides, interpolation)
    if interpolation == "bilinear":
        return F.interpolate(images, sides, mode="bilinear", antialias=True)
    rows = [resized_by_pillow(image, sides) for image in images.permute(0, 2, 3, 1)]
    return torch.stack(rows).permute(0, 3, 1, 2)


def resized_by_pillow(image: Tensor, sides: tuple[int, int]) -> Tensor:
    """uint8 (H, W, 1 or 3) -> uint8 (*sides, the same), bicubic."""
    channels = image.shape[2]
    picture = Image.fromarray((image[:, :, 0] if channels == 1 else image).contiguous().numpy())
    pixels = np.array(picture.resize((sides[1], sides[0]), Image.Resampling.BICUBIC))
    return torch.from_numpy(pixels.reshape(*sides, channels))


def resized_in_float(
    images: Tensor, sides: tuple[int, int], interpolation: Interpolation
) -> Tensor:
    """As `resized`, where torch has no kernel for uint8, as on a GPU.

    Rows first, then columns, each rounded to levels: a bicubic filter overshoots, and without the
    clipping between the two a checkerboard is 30 levels from Pillow's. So it is two at the most.
    """
    for intermediate in ((images.shape[2], sides[1]), sides):
        x = F.interpolate(images.float(), intermediate, mode=interpolation, antialias=True)
        images = (x + 0.5).floor().clamp(0, 255)
    return images.to(torch.uint8)


def recolour(images: Tensor, channels: int) -> Tensor:
    """uint8 (N, C, H, W) in `channels` channels: grey is repeated, colour weighted by ITU-R 601."""
    if images.shape[1] == channels:
        return images
    if images.shape[1] == 1:
        return images.expand(-1, channels, -1, -1)
    return grey(images.float()).round().to(torch.uint8)


def grey(images: Tensor) -> Tensor:
    """Floating (B, 3, H, W) -> (B, 1, H, W)."""
    weights = torch.tensor(_GREY, device=images.device).view(3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


def statistics(preprocess: Preprocess, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """`preprocess`'s mean and std: float32 (C, 1, 1), or (C, size, size) where it is per pixel."""

    def shaped(values: tuple[float, ...]) -> Tensor:
        side = 1 if len(values) == preprocess.channels else preprocess.size
        return torch.tensor(values, device=device).view(preprocess.channels, side, side)

    return shaped(preprocess.mean), shaped(preprocess.std)


def colour(preprocess: Preprocess) -> Tensor:
    """The mean colour, which is what fills a view up: uint8 (C,)."""
    mean, _ = statistics(preprocess, "cpu")
    return (mean.mean((1, 2)) * 255).round().clamp(0, 255).to(torch.uint8)


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(B, C, H, W) in 0..255 -> float32 (x / 255 - mean) / std."""
    return (images / 255 - mean) / std


def augment(images: Tensor, choice: Augment, mean: Tensor, std: Tensor, draws: Tensor) -> Tensor:
    """What training does to views that are cut to the input's side.

    uint8 (B, C, S, S), `statistics` and (B, DRAWS) of `uniform` -> float32 (B, C, S, S).
    """
    x: Tensor = images
    colour = draws[:, _COLOUR]
    if "jitter" in choice.colour:
        x = jitter(x / 255, colour) * 255
    if "pca" in choice.colour:
        x = pca(x / 255, colour[:, 4:] if "jitter" in choice.colour else colour) * 255
    x = normalize(x, mean, std)
    if choice.crop == "pad":
        x = shift(x, choice.pad, choice.reflect, draws[:, _CORNER])
    if choice.flip:
        x = torch.where(draws[:, FLIP].view(-1, 1, 1, 1) < 0.5, x.flip(3), x)
    if choice.cutout:
        x = cutout(x, choice.cutout, draws[:, _CUTOUT])
    if choice.random_erasing:
        x = random_erasing(x, choice.random_erasing, draws[:, _ERASE])
    return x


def shift(images: Tensor, pad: int, reflect: bool, draws: Tensor) -> Tensor:
    """Pad each side by `pad` zeros (or by reflection), take a random crop of the old size.

    (B, C, H, W) and (B, 2) -> (B, C, H, W); the crop's corner has (2 pad + 1)^2 places.
    """
    height, width = images.shape[2:]
    padded = F.pad(images, (pad,) * 4, mode="reflect" if reflect else "constant")
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, places, places, H, W)
    top, left = (draws * (2 * pad + 1)).long().unbind(1)
    return windows[torch.arange(len(images), device=images.device), :, top, left]


def cutout(images: Tensor, side: int, draws: Tensor) -> Tensor:
    """Zero a square around a random pixel, in part outside at the borders (1708.04552).

    (B, C, H, W) and (B, 2) -> (B, C, H, W).
    """
    middle = draws * torch.tensor(images.shape[2:], device=draws.device)
    top, left = (middle.long() - side // 2).unbind(1)
    sides = torch.full_like(top, side)
    return zeroed(images, top, left, sides, sides)


def random_erasing(images: Tensor, chance: float, draws: Tensor) -> Tensor:
    """Zero, with that chance, a rectangle of 0.02..0.33 of the area and 0.3..3.3 as high as wide.

    Once in some 700 it would be longer than the image and is as long as that; the paper and
    torchvision draw again. (B, C, H, W) and (B, 5) -> (B, C, H, W).    1708.04896, Algorithm 1
    """
    height, width = images.shape[2:]
    hit, area, ratio, y, x = draws.unbind(1)
    pixels = (0.02 + 0.31 * area) * height * width
    aspect = torch.exp(math.log(0.3) + ratio * math.log(3.3 / 0.3))
    high = (pixels * aspect).sqrt().round().clamp(max=height) * (hit < chance)
    wide = (pixels / aspect).sqrt().round().clamp(max=width)
    top, left = (y * (height - high + 1)).long(), (x * (width - wide + 1)).long()
    return zeroed(images, top, left, high, wide)


def zeroed(images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Each image with a rectangle of zeros: (B, C, H, W) and (B,) each, in pixels."""
    top, left, height, width = (x.view(-1, 1, 1, 1) for x in (top, left, height, width))
    rows = torch.arange(images.shape[2], device=images.device).view(-1, 1) - top
    columns = torch.arange(images.shape[3], device=images.device) - left
    inside = ((rows >= 0) & (rows < height)) & ((columns >= 0) & (columns < width))
    return images.masked_fill(inside, 0.0)


def pca(images: Tensor, draws: Tensor) -> Tensor:
    """Add the colour covariance's eigenvectors, each times its eigenvalue times N(0, 0.1).

    (B, 3, H, W) in 0..1 and (B, >= 3) -> the same shape.    AlexNet section 4.1; fb.resnet.torch
    """
    # u + 2^-25 is the middle of the interval that u stands for, and never 0
    normal = math.sqrt(2) * torch.erfinv(2 * (draws[:, :3] + 2.0**-25) - 1)
    values = torch.tensor(_EIGENVALUES, device=images.device)
    vectors = torch.tensor(_EIGENVECTORS, device=images.device)
    return images + ((0.1 * normal * values) @ vectors.T)[:, :, None, None]


def jitter(images: Tensor, draws: Tensor) -> Tensor:
    """Brightness, contrast and saturation by factors in 0.6..1.4, in a random order.

    Each blends the image with another: with black, with its mean grey, with its own grey.
    (B, 3, H, W) in 0..1 and (B, >= 4) -> the same shape.    fb.resnet.torch (transforms.lua)
    """
    factors = 0.6 + 0.8 * draws[:, :3]
    orders = torch.tensor(list(permutations(range(3))), device=images.device)
    for kind in orders[(draws[:, 3] * 6).long()].unbind(1):  # (B,): what each image undergoes now
        levels = grey(images)
        kinds, column = kind.view(-1, 1, 1, 1), kind[:, None]
        other = torch.where(kinds == 2, levels, levels.mean((2, 3), keepdim=True) * (kinds == 1))
        factor = factors.gather(1, column)[:, :, None, None]
        images = other + factor * (images - other)
    return images

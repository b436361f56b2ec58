"""How a model bears corrupted images: after Hendrycks and Dietterich 2019, arXiv 1903.12261.

The kinds are theirs, the strengths ours. Lengths are parts of the image's height, so that 32 and
224 pixels suffer alike; what is random is a hash of the image's index.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Iterable, Iterator
from statistics import fmean

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as V

from resnets.data.decode import decode
from resnets.data.loader import ImageOp
from resnets.data.rng import uniform
from resnets.evaluation.scores import Scores, error_rate

Row = tuple[str, int, float]  # corruption, strength (1 to 5), error

STRENGTHS = {
    "gaussian-noise": (0.04, 0.08, 0.12, 0.18, 0.26),  # deviation, of white
    "shot-noise": (0.01, 0.03, 0.06, 0.1, 0.2),  # one over the photons of white
    "impulse-noise": (0.01, 0.03, 0.06, 0.1, 0.17),  # part of the values
    "gaussian-blur": (0.012, 0.018, 0.024, 0.03, 0.04),  # deviation
    "motion-blur": (0.03, 0.06, 0.1, 0.13, 0.19),  # half the way
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),  # what is added, of white
    "contrast": (0.6, 0.45, 0.3, 0.2, 0.1),  # what is left
    "saturate": (1.5, 2.0, 3.0, 5.0, 9.0),  # factor
    "pixelate": (0.8, 0.65, 0.5, 0.4, 0.3),  # of the side
    "jpeg": (70, 45, 25, 15, 8),  # quality
}


def corrupt(images: Tensor, indices: Tensor, *, kind: str, strength: int) -> Tensor:
    """uint8 (B, C, H, W) and its int64 (B,) indices -> the same images at a strength of 1 to 5."""
    s, x = STRENGTHS[kind][strength - 1], images.float()
    match kind:
        case "gaussian-noise":
            x = x + 255 * s * torch.special.ndtri(_noise(x, indices))
        case "shot-noise":  # normal, with the variance of counting
            x = x + (255 * s * x).sqrt() * torch.special.ndtri(_noise(x, indices))
        case "impulse-noise":
            u = _noise(x, indices)
            x = x.masked_fill(u < s / 2, 0).masked_fill(u > 1 - s / 2, 255)
        case "gaussian-blur":
            pixels = s * x.shape[2]
            x = V.gaussian_blur(x, 2 * math.ceil(3 * pixels) + 1, pixels)
        case "motion-blur":
            reach = round(s * x.shape[2])
            x = F.avg_pool2d(x, (1, 2 * reach + 1), 1, (0, reach), count_include_pad=False)
        case "brightness":
            x = x + 255 * s
        case "contrast":
            x = V.adjust_contrast(images, s).float()
        case "saturate":
            x = V.adjust_saturation(images, s).float()
        case "pixelate":
            small = F.interpolate(x, scale_factor=s, mode="area")
            x = F.interpolate(small, x.shape[2:], mode="area")
        case "jpeg":
            x = torch.stack([_jpeg(image, int(s)) for image in images.cpu()]).to(images.device)
    return x.round().clamp(0, 255).byte()


def _noise(x: Tensor, indices: Tensor) -> Tensor:
    """Uniform in (0, 1), of the shape of x."""
    draws = uniform(0, torch.tensor(0), indices.to(x.device), x[0].numel())
    return draws.view_as(x) + 2.0**-25


def _jpeg(image: Tensor, quality: int) -> Tensor:
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy().squeeze()).save(file, "JPEG", quality=quality)
    return torch.from_numpy(decode(file.getvalue(), len(image))).permute(2, 0, 1).float()


def robustness(score: Callable[[ImageOp], Scores], channels: int) -> Iterator[Row]:
    """The error under each kind at each strength, as they come; grey images have no saturation.

    `score` is what a model says of images that are changed.
    """
    for kind in STRENGTHS:
        for strength in range(1, 6) if kind != "saturate" or channels > 1 else ():
            scores = score(functools.partial(corrupt, kind=kind, strength=strength))
            yield kind, strength, error_rate(scores)


def mean_corruption_error(rows: Iterable[Row]) -> float:
    """The mean of the errors."""
    return fmean(error for _, _, error in rows)

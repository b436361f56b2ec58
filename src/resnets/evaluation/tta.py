"""The papers' testing protocols: which views of an image are averaged.

The probabilities of the views are averaged. 1512.03385 reports ten-crop testing (Tables 2 and 3)
and its best results by averaging over five sizes (Table 4); 1603.05027 tests at 320 (Table 5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from resnets.config.recipe import Preprocess
from resnets.config.types import ViewName
from resnets.errors import UsageError
from resnets.evaluation.scores import Forward
from resnets.models import Classifier
from resnets.models.densenet import DenseNet
from resnets.models.resnet import ResNet

SIDES = (224, 256, 384, 480, 640)  # of the shorter side, for a network of 224


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over the images; with `mirrored` each view counts as its mirror image too."""

    preprocess: Preprocess
    crops: Literal["center", "corners", "whole"] = "center"
    mirrored: bool = False

    @property
    def load(self) -> int:
        """About how many inputs of the network's size an image is."""
        whole = math.ceil((self.preprocess.resize / self.preprocess.size) ** 2)
        return {"center": 1, "corners": 5, "whole": whole}[self.crops]


def passes(view: ViewName, preprocess: Preprocess, size: int = 0) -> tuple[Pass, ...]:
    """The passes of a view.

    With `size` an image has that side, and "center" and "flip" cut it from a shorter side of as
    much; a mean of each pixel becomes one of each channel, as for "multi-scale".
    """
    if size and size != preprocess.size:
        preprocess = average_over_pixels(replace(preprocess, size=size, resize=size))
    size, resize = preprocess.size, preprocess.resize
    if view == "ten-crop":
        # 256 for 224, where the preprocessing cuts from no more than its size
        resize = resize if resize > size else round(size * 8 / 7)
        return (Pass(replace(preprocess, resize=resize), "corners", mirrored=True),)
    if view == "multi-scale":
        preprocess = average_over_pixels(preprocess)
        sides = (round(size * side / SIDES[0]) for side in SIDES)
        views = (replace(preprocess, resize=side) for side in sides)
        return tuple(Pass(x, "whole", mirrored=True) for x in views)
    return (Pass(preprocess, mirrored=view == "flip"),)


def average_over_pixels(preprocess: Preprocess) -> Preprocess:
    """With one mean and one deviation for each channel: means over the pixels."""
    channels = preprocess.channels
    mean, std = (
        tuple(torch.tensor(values, dtype=torch.float64).view(channels, -1).mean(1).tolist())
        for values in (preprocess.mean, preprocess.std)
    )
    return replace(preprocess, mean=mean, std=std)


def dense_logits(network: ResNet | DenseNet, images: Tensor, size: int) -> Tensor:
    """Logits of every place: (N, C, H, W) -> (N, K, places down, places across).

    At each place stands the head of the network over so much of the last map as an image of `size`
    has: a mean, and a 1x1 convolution (1312.6229; 1409.1556, section 3.2).
    """
    level, (_, stride) = list(network.levels.items())[-1]
    last = network.features(images)[level]
    window = [min(-(-size // stride), side) for side in last.shape[2:]]
    head = network.fc if isinstance(network, ResNet) else network.classifier
    return F.conv2d(F.avg_pool2d(last, window, 1), head.weight[:, :, None, None], head.bias)


def view_forward(
    network: Classifier, view: ViewName, preprocess: Preprocess, size: int = 0
) -> Forward:
    """What gives the logits of the images of a view's passes, (N, C, H, W) -> (N, K).

    "multi-scale" averages the class scores over the places. Raises UsageError for networks whose
    input has one size.
    """
    if isinstance(network, ResNet | DenseNet):
        if view != "multi-scale":
            return network
        return lambda images: dense_logits(network, images, preprocess.size).mean((2, 3))
    if view == "multi-scale" or size not in (0, preprocess.size):
        raise UsageError(
            f"{type(network).__name__} takes images of {preprocess.size} pixels only: choose the "
            "view center, flip or ten-crop, and no other size"
        )
    return network

"""GoogLeNet, Szegedy et al. 2014, arXiv 1409.4842, with batch normalisation, as in torchvision.

The 5x5 branch of a module is a 3x3 there. The auxiliary classifiers, which are for training only,
are left out. The tensors are named as in torchvision.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from resnets.config.arch import GoogLeNetArch
from resnets.models.layers import global_mean, initialise

# Table 1: of each module the channels of the 1x1, of the 3x3 and its 1x1 before it, of the 5x5 and
# its 1x1 before it, and of the 1x1 after the pool.
MODULES = {
    "inception3a": (64, 96, 128, 16, 32, 32),
    "inception3b": (128, 128, 192, 32, 96, 64),
    "inception4a": (192, 96, 208, 16, 48, 64),
    "inception4b": (160, 112, 224, 24, 64, 64),
    "inception4c": (128, 128, 256, 24, 64, 64),
    "inception4d": (112, 144, 288, 32, 64, 64),
    "inception4e": (256, 160, 320, 32, 128, 128),
    "inception5a": (256, 160, 320, 32, 128, 128),
    "inception5b": (384, 192, 384, 48, 128, 128),
}
POOLED = {"inception4a": 3, "inception5a": 2}  # the width of the max pool before a module
LEVELS = {
    "stem": (64, 2),
    "conv3": (192, 4),
    "inception3b": (480, 8),
    "inception4e": (832, 16),
    "inception5b": (1024, 32),
}


class GoogLeNet(nn.Module):
    """Shapes: (N, channels, H, W) -> (N, classes)."""

    def __init__(self, arch: GoogLeNetArch) -> None:
        super().__init__()
        self.arch, self.levels = arch, dict(LEVELS)
        self.conv1 = convolution(arch.channels, 64, 7, 2)
        self.conv2, self.conv3 = convolution(64, 64, 1), convolution(64, 192, 3)
        self.maxpool = nn.MaxPool2d(3, 2, ceil_mode=True)
        c_in = 192
        for name, widths in MODULES.items():
            self.add_module(name, inception := Inception(c_in, *widths))
            c_in = inception.width
        self.pools = nn.ModuleDict(
            {n: nn.MaxPool2d(k, 2, ceil_mode=True) for n, k in POOLED.items()}
        )
        self.dropout = nn.Dropout(arch.dropout)
        self.fc = nn.Linear(c_in, arch.classes)
        initialise(self)

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """(N, channels, H, W) -> {level: (N, C, H / stride, W / stride)}."""
        maps = {"stem": self.conv1(x)}
        maps["conv3"] = self.conv3(self.conv2(self.maxpool(maps["stem"])))
        x = self.maxpool(maps["conv3"])
        for name in MODULES:
            if name in self.pools:
                x = self.pools[name](x)
            x = self.get_submodule(name)(x)
            if name in self.levels:
                maps[name] = x
        return maps

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(global_mean(self.features(x)["inception5b"])))


class Inception(nn.Module):
    """Four branches, whose channels are put together. Shapes: (N, C, H, W) -> (N, width, H, W)."""

    def __init__(
        self, c_in: int, c1: int, before3: int, c3: int, before5: int, c5: int, pooled: int
    ) -> None:
        super().__init__()
        self.width = c1 + c3 + c5 + pooled
        self.branch1 = convolution(c_in, c1, 1)
        self.branch2 = nn.Sequential(convolution(c_in, before3, 1), convolution(before3, c3, 3))
        self.branch3 = nn.Sequential(convolution(c_in, before5, 1), convolution(before5, c5, 3))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1), convolution(c_in, pooled, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


def convolution(c_in: int, c_out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """A convolution with batch normalisation and ReLU."""
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(c_out, eps=1e-3), relu=nn.ReLU()))

"""DenseNet-BC, Huang et al. 2016, arXiv 1608.06993. The tensors are named as in torchvision."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from resnets.config.arch import DenseNetArch
from resnets.models.blocks import make_stage
from resnets.models.layers import LayerFactory, global_mean, initialise


class DenseNet(nn.Module):
    """Shapes: (N, channels, H, W) -> (N, classes)."""

    def __init__(self, arch: DenseNetArch, *, activation_checkpointing: int = 0) -> None:
        super().__init__()
        self.arch = arch
        # A module and not a method, since torchvision's names begin with "features.".
        self.features = Features(arch, activation_checkpointing)
        self.levels = self.features.levels
        self.classifier = nn.Linear(list(self.levels.values())[-1][0], arch.classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.features(x)
        return self.classifier(global_mean(maps[list(self.levels)[-1]]))


class Features(nn.Module):
    """Shapes: (N, channels, H, W) -> {level: (N, C, H / stride, W / stride)}."""

    def __init__(self, arch: DenseNetArch, activation_checkpointing: int) -> None:
        super().__init__()
        make = LayerFactory()
        c, k = arch.stem_width, arch.growth
        pooled = arch.stem == "imagenet"
        self.conv0 = make.conv(arch.channels, c, 7, 2) if pooled else make.conv(arch.channels, c, 3)
        self.norm0 = make.norm(c) if pooled else nn.Identity()
        self.relu0 = nn.ReLU() if pooled else nn.Identity()
        self.pool0 = make.max_pool() if pooled else nn.Identity()
        self.levels = {"stem": (c, 2 if pooled else 1)}

        stride = 4 if pooled else 1
        for block, count in enumerate(arch.blocks, 1):
            if block > 1:
                reduced = int(c * arch.compression)
                self.add_module(f"transition{block - 1}", make_transition(make, c, reduced))
                c, stride = reduced, stride * 2
            layers = {}
            for i in range(1, count + 1):
                layers[f"denselayer{i}"] = DenseLayer(make, c, arch.bottleneck * k, k, arch.dropout)
                c += k
            self.add_module(f"denseblock{block}", make_stage(layers, activation_checkpointing))
            self.levels[f"denseblock{block}"] = (c, stride)
        self.norm5, self.relu5 = make.norm(c), nn.ReLU()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = {"stem": self.relu0(self.norm0(self.conv0(x)))}
        x = self.pool0(maps["stem"])
        blocks = len(self.levels) - 1
        for block in range(1, blocks + 1):
            if block > 1:
                x = self.get_submodule(f"transition{block - 1}")(x)
            maps[f"denseblock{block}"] = x = self.get_submodule(f"denseblock{block}")(x)
        maps[f"denseblock{blocks}"] = self.relu5(self.norm5(x))
        return maps


class DenseLayer(nn.Sequential):
    """y = [x, F(x)], F = BN-ReLU-1x1-BN-ReLU-3x3: the sum of a residual unit made a concatenation.

    Shapes: (N, C, H, W) -> (N, C + k, H, W).
    """

    def __init__(
        self, make: LayerFactory, c_in: int, inner: int, growth: int, dropout: float
    ) -> None:
        super().__init__()
        self.norm1, self.relu1 = make.norm(c_in), nn.ReLU()
        self.conv1 = make.conv(c_in, inner, 1)
        self.norm2, self.relu2 = make.norm(inner), nn.ReLU()
        self.conv2 = make.conv(inner, growth, 3)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return torch.cat([x, y], 1)


def make_transition(make: LayerFactory, c_in: int, c_out: int) -> nn.Sequential:
    """BN-ReLU-1x1, then a 2x2 mean. Shapes: (N, C, H, W) -> (N, C', H // 2, W // 2)."""
    norm, conv = make.norm(c_in), make.conv(c_in, c_out, 1)
    return nn.Sequential(OrderedDict(norm=norm, relu=nn.ReLU(), conv=conv, pool=nn.AvgPool2d(2, 2)))

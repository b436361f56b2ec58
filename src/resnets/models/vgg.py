"""AlexNet and VGG: networks before the residual ones. The tensors are named as in torchvision."""

from __future__ import annotations

import torch.fx
from torch import Tensor, nn
from torch.nn import functional as F

from resnets.config.arch import VggArch
from resnets.models.layers import initialise


class Vgg(nn.Module):
    """Shapes: (N, channels, H, W) -> (N, classes)."""

    def __init__(self, arch: VggArch) -> None:
        super().__init__()
        self.arch = arch
        # A module and not a method, since torchvision's names begin with "features.".
        self.features = Features(arch)
        self.levels = self.features.levels
        self.pool = max_pool(arch)
        self.side = 6 if arch.stem == "alexnet" else 7  # of the map that is classified
        self.classifier = make_classifier(arch, self.side)
        initialise(self)

    def classify(self, x: Tensor) -> Tensor:
        """The map of the last level (N, C, h, w) -> (N, classes)."""
        return self.classifier(resize_map(self.pool(x), self.side).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.features(x)[list(self.levels)[-1]])


def make_classifier(arch: VggArch, side: int) -> nn.Sequential:
    """Three linear layers; dropout follows the first two in VGG, is before them in AlexNet."""
    layers: list[nn.Module] = []
    for c_in in (arch.widths[-1][-1] * side**2, arch.hidden):
        layer = [nn.Linear(c_in, arch.hidden), nn.ReLU()]
        dropout = nn.Dropout(arch.dropout)
        layers += [dropout, *layer] if arch.stem == "alexnet" else [*layer, dropout]
    return nn.Sequential(*layers, nn.Linear(arch.hidden, arch.classes))


class Features(nn.Sequential):
    """Stages of convolutions with a max pool between them; a level is a stage before its pool.

    Shapes: (N, channels, H, W) -> {level: (N, C, H / stride, W / stride)}; AlexNet, whose first
    layers have narrow borders, gives a pixel less.
    """

    def __init__(self, arch: VggArch) -> None:
        super().__init__()
        self.levels = dict[str, tuple[int, int]]()
        self.ends = dict[str, str]()  # the level that ends with the layer of this name
        c_in, stride = arch.channels, 4 if arch.stem == "alexnet" else 1
        for stage, widths in enumerate(arch.widths, 1):
            if stage > 1:
                self.append(max_pool(arch))
                stride *= 2
            for c_out in widths:
                self.append(convolution(arch, c_in, c_out, stage))
                if arch.batch_norm:
                    self.append(nn.BatchNorm2d(c_out))
                self.append(nn.ReLU())
                c_in = c_out
            self.levels[f"stage{stage}"] = (c_in, stride)
            self.ends[str(len(self) - 1)] = f"stage{stage}"

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = {}
        for name, layer in self.named_children():
            x = layer(x)
            if name in self.ends:
                maps[self.ends[name]] = x
        return maps


@torch.fx.wrap  # one call in a traced graph, since it depends on the size
def resize_map(x: Tensor, side: int) -> Tensor:
    """(N, C, h, w) -> (N, C, side, side), by means. At that size nothing is computed.

    On CUDA the gradient of the means is not deterministic.
    """
    if x.shape[2:] == (side, side):
        return x
    return F.adaptive_avg_pool2d(x, side)


def max_pool(arch: VggArch) -> nn.Module:
    """2x2; AlexNet's overlap."""
    return nn.MaxPool2d(3 if arch.stem == "alexnet" else 2, 2)


def convolution(arch: VggArch, c_in: int, c_out: int, stage: int) -> nn.Module:
    """3x3; in AlexNet 11x11 with a stride of 4 in the first stage, 5x5 in the second."""
    if arch.stem == "alexnet" and stage == 1:
        return nn.Conv2d(c_in, c_out, 11, 4, padding=2)
    kernel = 5 if arch.stem == "alexnet" and stage == 2 else 3
    return nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2)

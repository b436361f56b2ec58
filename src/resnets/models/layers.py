"""The layers that networks are made of, for signals, images and volumes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnets.errors import NotFinite

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
MAX_POOL: dict[int, type[nn.Module]] = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVG_POOL: dict[int, type[nn.Module]] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}


@dataclass(frozen=True, slots=True)
class LayerFactory:
    """Makes the layers of one network: for inputs of `dims` dimensions, with its normalisation.

    `norm_layer(channels)`, where it is given, makes the normalisations instead.
    """

    dims: Literal[1, 2, 3] = 2
    norm_kind: Literal["batch", "group"] = "batch"
    norm_layer: Callable[[int], nn.Module] | None = None
    act: Callable[[], nn.Module] = nn.ReLU

    def conv(
        self,
        c_in: int,
        c_out: int,
        k: int,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
        dilation: int = 1,
    ) -> nn.Module:
        """A k-wide convolution, k odd, that keeps the size (or divides it by the stride)."""
        padding = dilation * (k // 2)
        return CONV[self.dims](c_in, c_out, k, stride, padding, dilation, groups, bias)

    def norm(self, channels: int) -> nn.Module:
        if self.norm_layer is not None:
            return self.norm_layer(channels)
        if self.norm_kind == "batch":
            return BATCH_NORM[self.dims](channels)
        # 32 groups (Wu and He 2018), fewer when narrow: groups of one channel would normalise a map
        # of one pixel to zero.
        groups = math.gcd(32, channels // 2) if channels % 2 == 0 else 1
        return nn.GroupNorm(groups, channels)

    def max_pool(self, blur: bool) -> nn.Module:
        """3x3, stride 2; with `blur` the maximum is dense and a blur subsamples it."""
        pool: nn.Module = MAX_POOL[self.dims](3, 1 if blur else 2, padding=1)
        return nn.Sequential(pool, Blur(self.dims, 2)) if blur else pool


def check_finite(x: Tensor) -> Tensor:
    """The same. Raises NotFinite where a value of it is NaN or infinite."""
    if not torch.isfinite(x).all():
        raise NotFinite
    return x


class Blur(nn.Module):
    """The binomial filter [1, 2, 1] along each dimension, then subsampling: Zhang 2019, Blur-3.

    Shapes: (N, C, *S) -> (N, C, *ceil(S / stride)).
    """

    def __init__(self, dims: int, stride: int) -> None:
        super().__init__()
        self.dims, self.stride = dims, stride
        self.conv = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        line = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype, device=x.device)
        kernel = torch.stack(torch.meshgrid(*[line] * self.dims, indexing="ij")).prod(0)
        weight = kernel.expand(channels, 1, *[3] * self.dims)
        # The border is repeated and not reflected: a map may be one pixel wide.
        padded = F.pad(x, (1, 1) * self.dims, mode="replicate")
        return self.conv(padded, weight, None, self.stride, 0, 1, channels)


class SqueezeExcite(nn.Module):
    """x * sigmoid(W2 relu(W1 mean(x))), one factor a channel: Hu et al. 2017, eq. 2-4.

    Shapes: (N, C, *S) -> (N, C, *S).
    """

    def __init__(
        self, make: LayerFactory, channels: int, reduction: int, multiple: int = 1
    ) -> None:
        super().__init__()
        self.spatial_dims = tuple(range(2, 2 + make.dims))
        squeezed = max(multiple, (channels // reduction + multiple // 2) // multiple * multiple)
        self.fc1 = make.conv(channels, squeezed, 1, bias=True)
        self.fc2 = make.conv(squeezed, channels, 1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(self.spatial_dims, keepdim=True)
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(mean))))


def global_mean(x: Tensor) -> Tensor:
    """(N, C, *S) -> (N, C). A plain mean: adaptive pooling is not deterministic on CUDA."""
    return x.flatten(2).mean(2)


def per_image_mean(values: Tensor, counted: Tensor) -> Tensor:
    """The mean over images of the mean over what is counted of each: (B, *S) twice -> ()."""
    axes = tuple(range(1, values.ndim))
    return ((values * counted).sum(axes) / counted.sum(axes).clamp(min=1)).mean()


def initialise(network: nn.Module) -> None:
    """Convolutions ~ N(0, 2 / (k * k * C_out)), the classifier's bias 0, as fb.resnet.torch does.

    Normalisations keep PyTorch's gamma 1 and beta 0.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

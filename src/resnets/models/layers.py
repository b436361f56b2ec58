"""The layers that networks are made of, for signals, images and volumes."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnets.config.arch import SelectiveKernel
from resnets.errors import NotFinite, UsageError

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
MAX_POOL: dict[int, type[nn.Module]] = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVG_POOL: dict[int, type[nn.Module]] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
PAD: dict[int, type[nn.Module]] = {1: nn.ZeroPad1d, 2: nn.ZeroPad2d, 3: nn.ZeroPad3d}


@dataclass(frozen=True, slots=True)
class LayerFactory:
    """Makes the layers of one network: for inputs of `dims` dimensions, with its normalisation.

    `norm_layer(channels)`, where it is given, makes the normalisations instead.
    """

    dims: Literal[1, 2, 3] = 2
    norm_kind: Literal["batch", "group", "group32"] = "batch"
    norm_layer: Callable[[int], nn.Module] | None = None
    act: Callable[[], nn.Module] = nn.ReLU
    weight_standardised: bool = False

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
        kind = CONV[self.dims]
        if self.weight_standardised:
            if self.dims != 2:
                raise UsageError("weight_standardised: defined for images, dims 2")
            kind = StandardisedConv2d
        return kind(c_in, c_out, k, stride, padding, dilation, groups, bias)

    def norm(self, channels: int) -> nn.Module:
        if self.norm_layer is not None:
            return self.norm_layer(channels)
        if self.norm_kind == "batch":
            return BATCH_NORM[self.dims](channels)
        if self.norm_kind == "group32":
            return nn.GroupNorm(32, channels)
        # 32 groups (Wu and He 2018), fewer when narrow: groups of one channel would normalise a map
        # of one pixel to zero.
        groups = math.gcd(32, channels // 2) if channels % 2 == 0 else 1
        return nn.GroupNorm(groups, channels)

    def max_pool(
        self,
        blur: bool | Literal["branch", "mean"] = False,
        border: Literal["pad", "ceil", "zeros"] = "pad",
    ) -> nn.Module:
        """3x3, stride 2. With `blur` the maximum is dense and a blur subsamples it; "mean" is 2x2.

        `border` is that of `ResNetArch.stem_pool`.
        """
        pool = MAX_POOL[self.dims]
        if blur == "mean":
            return AVG_POOL[self.dims](2)
        if blur:
            return nn.Sequential(pool(3, 1, padding=1), self.subsample(2, blur))
        if border == "zeros":
            return nn.Sequential(PAD[self.dims](1), pool(3, 2))
        return pool(3, 2, ceil_mode=True) if border == "ceil" else pool(3, 2, padding=1)

    def subsample(self, stride: int, blur: bool | Literal["branch", "mean"]) -> nn.Module:
        """What `blur` puts in place of a stride."""
        if blur == "mean":
            return AVG_POOL[self.dims](stride, ceil_mode=True, count_include_pad=False)
        return Blur(self.dims, stride, "reflect" if blur == "branch" else "replicate")


def check_finite(x: Tensor) -> Tensor:
    """The same. Raises NotFinite where a value of it is NaN or infinite."""
    if not torch.isfinite(x).all():
        raise NotFinite
    return x


class Blur(nn.Module):
    """The binomial filter [1, 2, 1] along each dimension, then subsampling: Zhang 2019, Blur-3.

    Shapes: (N, C, *S) -> (N, C, *ceil(S / stride)).
    """

    def __init__(
        self, dims: int, stride: int, border: Literal["replicate", "reflect"] = "replicate"
    ) -> None:
        super().__init__()
        self.dims, self.stride, self.border = dims, stride, border
        self.conv = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        line = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype, device=x.device)
        kernel = torch.stack(torch.meshgrid(*[line] * self.dims, indexing="ij")).prod(0)
        weight = kernel.expand(channels, 1, *[3] * self.dims)
        # Repeated and not reflected where nothing asks for it: a map may be one pixel wide.
        padded = F.pad(x, (1, 1) * self.dims, mode=self.border)
        return self.conv(padded, weight, None, self.stride, 0, 1, channels)


class StandardisedConv2d(nn.Conv2d):
    """A convolution whose weights have mean 0 and variance 1 in each output channel.

    Qiao et al. 2019, arXiv 1903.10520; the epsilon is that of BiT in timm.
    """

    def forward(self, x: Tensor) -> Tensor:
        # A batch normalisation over what each output channel reads, so with timm's rounding too.
        flat = F.batch_norm(self.weight.flatten(1)[None], None, None, training=True, eps=1e-8)
        weight = flat.view_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def squeezed_width(channels: int, reduction: int, multiple: int) -> int:
    """channels / reduction, rounded to a multiple and at least one."""
    return max(multiple, (channels // reduction + multiple // 2) // multiple * multiple)


class SqueezeExcite(nn.Module):
    """x * sigmoid(W2 relu(W1 mean(x))), one factor a channel: Hu et al. 2017, eq. 2-4.

    Shapes: (N, C, *S) -> (N, C, *S).
    """

    def __init__(
        self, make: LayerFactory, channels: int, reduction: int, multiple: int = 1
    ) -> None:
        super().__init__()
        self.spatial_dims = tuple(range(2, 2 + make.dims))
        squeezed = squeezed_width(channels, reduction, multiple)
        self.fc1 = make.conv(channels, squeezed, 1, bias=True)
        self.fc2 = make.conv(squeezed, channels, 1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(self.spatial_dims, keepdim=True)
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(mean))))


class EfficientChannelAttention(nn.Module):
    """x * sigmoid(conv(mean(x))), a convolution along channels: Wang et al. 2019, eq. 5 and 12.

    Shapes: (N, C, *S) -> (N, C, *S).
    """

    def __init__(self, channels: int, dims: int) -> None:
        super().__init__()
        half = int((math.log2(channels) + 1) / 2)
        kernel = max(half if half % 2 else half + 1, 3)
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)
        self.spatial_dims = tuple(range(2, 2 + dims))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(self.spatial_dims, keepdim=True)
        return x * torch.sigmoid(self.conv(mean.flatten(1)[:, None])).view_as(mean)


class SelectiveKernelConv(nn.Module):
    """sum_i a_i relu(norm(conv_i(x))), the a_i a softmax by attention: Li et al. 2019, section 3.

    The second of the two 3x3 convolutions is dilated, for a field of 5x5. Names are timm's.
    Shapes: (N, C, *S) -> (N, C', *S / stride).
    """

    def __init__(
        self,
        make: LayerFactory,
        sk: SelectiveKernel,
        c_in: int,
        c_out: int,
        stride: int,
        groups: int,
        dilation: int,
    ) -> None:
        super().__init__()
        self.spatial_dims = tuple(range(2, 2 + make.dims))
        # The channels that each of the two reads.
        self.slices = (slice(c_in // 2), slice(c_in // 2, None)) if sk.split else (slice(None),) * 2
        inputs = c_in // 2 if sk.split else c_in
        paths = nn.ModuleList()
        for factor in (1, 2):
            conv = make.conv(inputs, c_out, 3, stride, groups, dilation=factor * dilation)
            paths.append(
                nn.Sequential(OrderedDict(conv=conv, bn=make.norm(c_out), relu=make.act()))
            )
        width = squeezed_width(c_out, sk.reduction, sk.multiple)
        self.paths = paths
        self.attn = nn.Sequential(
            OrderedDict(
                fc_reduce=make.conv(c_out, width, 1),
                bn=make.norm(width),
                relu=make.act(),
                fc_select=make.conv(width, 2 * c_out, 1),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        pairs = zip(self.paths, self.slices, strict=True)
        outputs = torch.stack([path(x[:, channels]) for path, channels in pairs], 1)
        mean = outputs.sum(1).mean(self.spatial_dims, keepdim=True)
        return (outputs * self.attn(mean).unflatten(1, (2, -1)).softmax(1)).sum(1)


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

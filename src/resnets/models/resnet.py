"""Residual networks and their plain twins, built from a `ResNetArch`.

The tensors are named as in torchvision; the deep stem, the average-pool downsampling and the
attentions, which torchvision does not have, as in timm.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.nn import functional as F

from resnets.config.arch import DenseTaskArch, ResNetArch
from resnets.errors import UsageError
from resnets.models.blocks import (
    ExclusiveGate,
    PreActivation,
    Residual,
    SharedPreActivation,
    make_stage,
)
from resnets.models.layers import (
    AVG_POOL,
    Blur,
    EfficientChannelAttention,
    LayerFactory,
    SelectiveKernelConv,
    SqueezeExcite,
    global_mean,
    initialise,
)

MakeModule = Callable[[int, int, int], nn.Module]  # from input channels, output channels, stride

# By the order of a unit's layers: what stands before its convolutions, and once more after the last
# unit; and what follows the addition.
BEFORE = {"pre": "norm_act", "relu_only_pre": "act"}
AFTER = {"post": "act", "bn_after_add": "norm_act", "relu_twice": "act"}


@dataclass(frozen=True, slots=True)
class UnitShape:
    """Channels and stride of residual unit `number`, from 1; its dilations are timm's.

    `first_dilation` is that of the convolutions up to the one that has, or would have, the stride,
    `dilation` that of those after it.
    """

    number: int
    c_in: int
    c_out: int
    stride: int
    first_dilation: int
    dilation: int

    @property
    def changes_size(self) -> bool:
        """Whether the unit's output has another shape than its input."""
        return self.stride != 1 or self.c_in != self.c_out


def stage_shapes(arch: ResNetArch) -> Iterator[tuple[list[UnitShape], int]]:
    """The shapes of the units of each stage, and the stride of its output against the input."""
    c_in, number, dilation = arch.stem_width, 0, 1
    net_stride = 1 if arch.stem == "cifar" else 4
    coarsest = arch.output_stride if arch.output_stride < 32 else math.inf
    for stage, (count, c_out) in enumerate(zip(arch.blocks, arch.widths, strict=True)):
        shapes = []
        for i in range(count):
            stride, first_dilation = 2 if stage > 0 and i == 0 else 1, dilation
            if net_stride * stride > coarsest:
                stride, dilation = 1, 2 * dilation
            number += 1
            shapes.append(UnitShape(number, c_in, c_out, stride, first_dilation, dilation))
            c_in, net_stride = c_out, net_stride * stride
        yield shapes, net_stride


class ResNet(nn.Module):
    """A residual network, He et al. 2015 and 2016.

    Shapes: (N, channels, *S) -> (N, classes), with `dims` sizes S of any length.

    With an `output_stride` a dilation stands for each stride beyond it: the convolutions after it
    see the pixels that they would see, at all positions (Chen et al. 2016, section 3.1).

    Parts can be handed in. `norm_layer(channels)` and `act_layer()` make the normalisations and
    activations; `shortcut(c_in, c_out, stride)` makes h of each unit, and `block(c_in, c_out,
    stride)` the whole unit: any module (N, c_in, *S) -> (N, c_out, *S / stride). `arch` does not
    record them, so a saved network is loaded by handing them in again.

    Raises UsageError for fields that contradict each other.
    """

    def __init__(
        self,
        arch: ResNetArch,
        *,
        activation_checkpointing: int = 0,
        norm_layer: Callable[[int], nn.Module] | None = None,
        act_layer: Callable[[], nn.Module] = nn.ReLU,
        shortcut: MakeModule | None = None,
        block: MakeModule | None = None,
    ) -> None:
        super().__init__()
        self.arch = arch
        make = LayerFactory(arch.dims, arch.norm, norm_layer, act_layer, arch.weight_standardised)
        c_in = arch.stem_width
        pooled = arch.stem != "cifar"
        if not arch.stem_norm and BEFORE.get(arch.order) != "norm_act":
            raise UsageError(f"stem_norm: order {arch.order!r} has no normalisation in its place")

        self.conv1 = make_stem(arch, make)
        self.bn1 = make.norm(c_in) if arch.stem_norm else nn.Identity()
        self.relu = make.act() if arch.stem_norm else nn.Identity()
        self.maxpool = make.max_pool(arch.blur, arch.stem_pool) if pooled else nn.Identity()
        self.levels = {"stem": (c_in, 2 if pooled else 1)}

        for level, (shapes, net_stride) in enumerate(stage_shapes(arch), 1):
            units: dict[str, nn.Module] = {}
            for i, shape in enumerate(shapes):
                if block is None:
                    units[str(i)] = make_unit(arch, make, shape, shortcut)
                else:
                    units[str(i)] = block(shape.c_in, shape.c_out, shape.stride)
            c_in = arch.widths[level - 1]
            self.add_module(f"layer{level}", make_stage(units, activation_checkpointing))
            self.levels[f"layer{level}"] = (c_in, net_stride)

        self.final = make_activation(BEFORE.get(arch.order), make, c_in)
        self.fc = nn.Linear(c_in, arch.classes)
        initialise(self)

    @property
    def stages(self) -> dict[str, nn.Module]:
        """layer1, layer2, ..."""
        return {name: self.get_submodule(name) for name in self.levels if name != "stem"}

    def stem(self, x: Tensor) -> Tensor:
        """(N, channels, *S) -> (N, C, *S / stride), before any pooling."""
        return self.relu(self.bn1(self.conv1(x)))

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """(N, channels, *S) -> {level: (N, C, *S / stride)}, C and stride as in `levels`."""
        maps = {"stem": self.stem(x)}
        x = self.maxpool(maps["stem"])
        for name, stage in self.stages.items():
            maps[name] = x = stage(x)
        maps[name] = self.final(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.stem(x))
        for stage in self.stages.values():
            x = stage(x)
        return self.fc(global_mean(self.final(x)))


def make_backbone(arch: DenseTaskArch, activation_checkpointing: int) -> ResNet:
    """The residual network below a detector, segmenter or localiser: one without a classifier."""
    body = ResNet(
        replace(arch.backbone, channels=arch.channels),
        activation_checkpointing=activation_checkpointing,
    )
    del body.fc
    return body


def make_stem(arch: ResNetArch, make: LayerFactory) -> nn.Module:
    """The first convolution, or three with normalisation and ReLU between them."""
    width = arch.stem_width
    if arch.stem == "cifar":
        return make.conv(arch.channels, width, 3)
    if arch.stem == "imagenet":
        return make.conv(arch.channels, width, 7, 2)
    half = width // 2  # 32, 32, 64: He et al. 2018, "ResNet-C"; tiered 24, 32, 64
    start = 3 * (half // 4) if arch.stem == "tiered" else half
    first = [make.conv(arch.channels, start, 3, 2), make.norm(start), make.act()]
    second = [make.conv(start, half, 3), make.norm(half), make.act()]
    return nn.Sequential(*first, *second, make.conv(half, width, 3))


def make_activation(kind: str | None, make: LayerFactory, channels: int) -> nn.Module:
    """An activation, or a normalisation and an activation, or nothing."""
    if kind == "norm_act":
        return nn.Sequential(OrderedDict(bn=make.norm(channels), relu=make.act()))
    return make.act() if kind == "act" else nn.Identity()


def make_unit(
    arch: ResNetArch, make: LayerFactory, shape: UnitShape, shortcut: MakeModule | None = None
) -> nn.Module:
    """A residual unit. The order decides the formula and what follows the addition.

    Raises UsageError for exclusive gates in an order that has no f after the addition, and for a
    dilation where a blur or a mean subsamples instead of the convolutions.
    """
    if shape.dilation > 1 and (arch.blur or arch.downsample == "avgpool"):
        field = "blur" if arch.blur else 'downsample="avgpool"'
        raise UsageError(f"output_stride {arch.output_stride}: no dilation is defined with {field}")
    # Where the stem ends in BN and ReLU, the first unit needs no activation of its own.
    activated = arch.stem_norm and shape.number == 1
    pre = make_activation(None if activated else BEFORE.get(arch.order), make, shape.c_in)
    layers = make_branch(arch, make, shape)
    act = make_activation(AFTER.get(arch.order), make, shape.c_out)
    if arch.shortcut == "none":
        return nn.Sequential(OrderedDict(pre=pre, **layers, act=act))
    if shortcut is None:
        skip = make_shortcut(arch, make, shape)
    else:
        skip = shortcut(shape.c_in, shape.c_out, shape.stride)
    if arch.join.kind == "exclusive_gate":
        if arch.order in BEFORE:
            known = "exclusive gates are defined for f(h(x) + F(x))"
            raise UsageError(f"{known}, not for order {arch.order!r}")
        return ExclusiveGate(layers, skip, act, make_gate(arch, make, shape))
    if arch.order not in BEFORE:
        return Residual(layers, skip, act)
    return (SharedPreActivation if shape.changes_size else PreActivation)(pre, layers, skip)


def make_branch(arch: ResNetArch, make: LayerFactory, shape: UnitShape) -> dict[str, nn.Module]:
    """F: convolutions with normalisation and ReLU between them, and the order's ending."""
    layers: dict[str, nn.Module] = {}
    norm, c_in, convolutions = None, shape.c_in, branch_convolutions(arch, shape)
    for i, (c, kernel, stride, groups, dilation) in enumerate(convolutions, 1):
        last = i == len(convolutions)
        conv_stride = 1 if arch.blur else stride  # a blur subsamples instead
        if arch.sk is not None and i == len(convolutions) - 1:
            sizes = (c_in, c, conv_stride, groups, dilation)
            layers[f"conv{i}"] = SelectiveKernelConv(make, arch.sk, *sizes)
        else:
            layers[f"conv{i}"] = make.conv(c_in, c, kernel, conv_stride, groups, False, dilation)
            if not last or arch.order not in ("bn_after_add", "pre"):
                layers[f"bn{i}"] = norm = make.norm(c)
            if not last or arch.order in ("relu_before_add", "relu_twice"):
                layers[f"relu{i}"] = make.act()
        if arch.blur and stride > 1:
            layers[f"blur{i}"] = make.subsample(stride, arch.blur)
        if arch.dropout and not last:
            layers[f"dropout{i}"] = nn.Dropout(arch.dropout)
        c_in = c
    if arch.se_reduction:
        layers["se"] = SqueezeExcite(make, shape.c_out, arch.se_reduction, arch.se_multiple)
    elif arch.eca:
        layers["se"] = EfficientChannelAttention(shape.c_out, arch.dims)
    if arch.join.f_scale != 1:
        layers["scale"] = Scale(arch.join.f_scale)
    if arch.drop_path:
        from torchvision.ops import StochasticDepth  # here, since torchvision takes 1.7 s to import

        probability = arch.drop_path * shape.number / sum(arch.blocks)
        layers["drop_path"] = StochasticDepth(probability, "row")
    if arch.zero_gamma:
        if norm is None:
            raise UsageError(f"zero_gamma: F of a {arch.unit!r} unit has no normalisation here")
        nn.init.zeros_(norm.weight)  # type: ignore[arg-type]
    return layers


def branch_convolutions(arch: ResNetArch, shape: UnitShape) -> list[tuple[int, int, int, int, int]]:
    """Output channels, kernel, stride, groups and dilation of each convolution of F."""
    c, stride, first, after = shape.c_out, shape.stride, shape.first_dilation, shape.dilation
    if arch.unit == "single":
        return [(c, 3, stride, 1, first)]
    if arch.unit == "basic":
        return [(c, 3, stride, 1, first), (c, 3, 1, 1, after)]
    width = round(c / arch.bottleneck_ratio)
    if arch.stride_on == "1x1":
        return [(width, 1, stride, 1, 1), (width, 3, 1, arch.groups, after), (c, 1, 1, 1, 1)]
    return [(width, 1, 1, 1, 1), (width, 3, stride, arch.groups, first), (c, 1, 1, 1, 1)]


def make_shortcut(arch: ResNetArch, make: LayerFactory, shape: UnitShape) -> nn.Module:
    """h: option A, B or C of He et al. 2015, section 3.3, and on it the join's h of 2016."""
    join, extra = arch.join, shape.c_out - shape.c_in
    h: nn.Module = nn.Identity()
    if join.kind == "conv" or arch.shortcut == "C" or (arch.shortcut == "B" and shape.changes_size):
        h = make_projection(arch, make, shape)
    elif shape.changes_size and arch.blur is True:
        h = nn.Sequential(Blur(arch.dims, shape.stride), Pad(arch.dims, 1, extra))
    elif shape.changes_size:
        h = Pad(arch.dims, shape.stride, extra)
    if join.kind == "scale":
        return nn.Sequential(h, Scale(join.x_scale))
    if join.kind == "dropout":
        return nn.Sequential(h, nn.Dropout(0.5))
    if join.kind == "shortcut_gate":
        return ShortcutGate(h, make_gate(arch, make, shape))
    return h


def make_projection(arch: ResNetArch, make: LayerFactory, shape: UnitShape) -> nn.Module:
    """W_s x, a 1x1 convolution; normalised where the last convolution of F is."""
    layers: list[nn.Module] = []
    stride = shape.stride
    if arch.downsample == "avgpool":  # at an odd border over the pixels that are there
        mean = AVG_POOL[arch.dims](stride, stride, ceil_mode=True, count_include_pad=False)
        layers.append(mean if stride > 1 else nn.Identity())
    elif arch.blur is True and stride > 1:
        layers.append(Blur(arch.dims, stride))
    layers.append(make.conv(shape.c_in, shape.c_out, 1, 1 if layers else stride))
    if arch.order not in ("bn_after_add", "pre"):
        layers.append(make.norm(shape.c_out))
    return nn.Sequential(*layers)


def make_gate(arch: ResNetArch, make: LayerFactory, shape: UnitShape) -> nn.Module:
    """g(x) = sigmoid(W x + b), a 1x1 convolution: He et al. 2016, section 3.1."""
    conv = make.conv(shape.c_in, shape.c_out, 1, shape.stride, bias=True)
    nn.init.constant_(conv.bias, arch.join.gate_bias)  # type: ignore[arg-type]
    return nn.Sequential(OrderedDict(conv=conv, sigmoid=nn.Sigmoid()))


class Pad(nn.Module):
    """Option A: every `stride`-th pixel, and zeros for the channels that x lacks, after x's own.

    Shapes: (N, C, *S) -> (N, C + extra, *ceil(S / stride)).
    """

    def __init__(self, dims: int, stride: int, extra: int) -> None:
        super().__init__()
        if extra < 0:
            raise UsageError("shortcut option A pads channels and cannot drop them: widths shrink")
        # Pooling over one pixel is x[:, :, ::stride, ...]. The gradient of slices would come in
        # another memory format, and be slow to add to that of F.
        self.subsample = AVG_POOL[dims](1, stride)
        self.padding = (0, 0) * dims + (0, extra)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(self.subsample(x), self.padding)


class Scale(nn.Module):
    """factor * x."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


class ShortcutGate(nn.Module):
    """(1 - g(x)) h(x): He et al. 2016, section 3.1, shortcut-only gating."""

    def __init__(self, shortcut: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.shortcut, self.gate = shortcut, gate

    def forward(self, x: Tensor) -> Tensor:
        return (1 - self.gate(x)) * self.shortcut(x)

"""Residual networks of ImageNet and what makes others of them: each variant is a function."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from resnets.config.arch import HE2016, ResNetArch, SelectiveKernel

R18 = ResNetArch(blocks=(2, 2, 2, 2), widths=(64, 128, 256, 512))
R50 = ResNetArch(blocks=(3, 4, 6, 3), widths=(256, 512, 1024, 2048), unit="bottleneck")
R101 = replace(R50, blocks=(3, 4, 23, 3))
IMAGENET = {
    "resnet18": R18,
    "resnet34": replace(R18, blocks=(3, 4, 6, 3)),
    "resnet50": R50,
    "resnet101": R101,
    "resnet152": replace(R50, blocks=(3, 8, 36, 3)),
    "resnet200": replace(R50, blocks=(3, 24, 36, 3), source=HE2016),
}
BAG_OF_TRICKS = "He et al. 2018, arXiv 1812.01187"
RESNEXT = "Xie et al. 2016, arXiv 1611.05431"
WIDE = "Zagoruyko and Komodakis 2016, arXiv 1605.07146"
SE = "Hu et al. 2017, arXiv 1709.01507"


def pre(arch: ResNetArch) -> ResNetArch:
    """Full pre-activation: batch normalisation and ReLU before each convolution."""
    return replace(arch, order="pre", source=HE2016)


def plain(arch: ResNetArch) -> ResNetArch:
    """The plain twin: the same layers without shortcuts."""
    return replace(arch, shortcut="none")


def se(arch: ResNetArch) -> ResNetArch:
    """Squeeze-and-excitation at the end of each unit."""
    return replace(arch, se_reduction=16, source=SE)


def deep(arch: ResNetArch) -> ResNetArch:
    """ResNet-D: three 3x3 convolutions first, and a mean before each projection."""
    return replace(arch, stem="deep", downsample="avgpool", source=BAG_OF_TRICKS)


def tiered(arch: ResNetArch) -> ResNetArch:
    """timm's "t": ResNet-D with 24, 32 and 64 channels in the stem."""
    return replace(deep(arch), stem="tiered")


def resnext(arch: ResNetArch, groups: int, width: int) -> ResNetArch:
    """`groups` groups of `width` channels in the first stage."""
    return replace(arch, bottleneck_ratio=256 / (groups * width), groups=groups, source=RESNEXT)


def eca(arch: ResNetArch) -> ResNetArch:
    """Efficient channel attention at the end of each unit."""
    return replace(arch, eca=True, source="Wang et al. 2019, arXiv 1910.03151")


def sk(arch: ResNetArch, kernel: SelectiveKernel) -> ResNetArch:
    """A selective kernel in place of the convolution with the stride."""
    return replace(arch, sk=kernel, source="Li et al. 2019, arXiv 1903.06586")


def antialiased(arch: ResNetArch, blur: Literal["branch", "mean"]) -> ResNetArch:
    """timm's `blur` and `aa`."""
    return replace(arch, blur=blur, source="Zhang 2019, arXiv 1904.11486")


def caffe(arch: ResNetArch) -> ResNetArch:
    """As in Caffe: the stride of a bottleneck on its first 1x1, a max pool without a border."""
    return replace(arch, stride_on="1x1", stem_pool="ceil")


def legacy_se(arch: ResNetArch) -> ResNetArch:
    """The SENet authors' network from Caffe; its basic units have a ReLU before the excitation."""
    if arch.unit == "basic":
        return se(replace(arch, stem_pool="ceil", order="relu_twice"))
    return se(caffe(arch))


def v2(arch: ResNetArch) -> ResNetArch:
    """timm's resnetv2: full pre-activation from the first unit on, which the stem leaves to it."""
    return replace(pre(arch), stem_norm=False)


def bit(arch: ResNetArch, factor: int) -> ResNetArch:
    """Big Transfer: group normalisation, standardised weights, and `factor` times the channels."""
    wide = replace(v2(arch), widths=tuple(factor * w for w in arch.widths), stem_width=64 * factor)
    transfer = replace(wide, norm="group32", weight_standardised=True, stem_pool="zeros")
    return replace(transfer, source="Kolesnikov et al. 2019, arXiv 1912.11370")

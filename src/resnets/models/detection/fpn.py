"""Backbones of detectors: levels of a residual network, and a feature pyramid on them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import (
    ExtraFPNBlock,
    FeaturePyramidNetwork,
    LastLevelMaxPool,
    LastLevelP6P7,
)

from resnets.config.arch import DetectorArch
from resnets.errors import UsageError
from resnets.models.layers import LayerFactory
from resnets.models.resnet import make_backbone

# Of the convolutions of pyramid and heads.
NORMS: dict[str, Callable[[int], nn.Module] | None] = {
    "none": None,
    "group": LayerFactory(norm_kind="group").norm,
    "batch": LayerFactory().norm,
}
EXTRA_LEVELS = {"fpn": ("pool",), "retina": ("p6", "p7"), "c4": ()}  # levels beyond the network's


class FeaturePyramid(nn.Module):
    """`body`, a residual network without its classifier, and `fpn` on some of its levels.

    1612.03144, section 3. "fpn" has one level more, every second pixel of the last; "retina"
    two, by convolutions of stride 2 (1708.02002, section 4); "c4" has the network's level alone,
    and the stages after it are for regions (`run_roi_stages`). With a `norm` (and `pyramid_norm`)
    that follows each convolution of the pyramid but P6 and P7. Names are torchvision's.

    `levels` is {level: (channels, stride)} of what `forward` gives. Shapes: (B, C, H, W) ->
    {level: (B, width, H / stride, W / stride)}. Raises UsageError for levels that the network does
    not have, and anchors that do not fit them.
    """

    def __init__(self, arch: DetectorArch, *, activation_checkpointing: int = 0) -> None:
        super().__init__()
        self.body = body = make_backbone(arch, activation_checkpointing)
        stages = list(body.stages)
        check(arch, stages)
        deepest = stages.index(arch.levels[-1]) + 1
        self.image_stages, self.roi_stages = stages[:deepest], stages[deepest:]
        self.levels = {name: body.levels[name] for name in arch.levels}
        if arch.architecture == "c4":
            self.fpn: nn.Module = nn.Identity()
            return
        if self.roi_stages:  # what nothing learns from must not wait for gradients
            body.add_module("final", nn.Identity())
        for name in self.roi_stages:
            delattr(body, name)
            del body.levels[name]
        inputs = [channels for channels, _ in self.levels.values()]
        extra: ExtraFPNBlock = LastLevelMaxPool()
        if arch.architecture == "retina":
            p6_input = arch.width if arch.p6_from == "pyramid" else inputs[-1]
            extra = LastLevelP6P7(p6_input, arch.width)
            # torchvision takes the pyramid's where the channels are as many.
            extra.use_P5 = arch.p6_from == "pyramid"
        norm = NORMS[arch.norm] if arch.pyramid_norm else None
        self.fpn = FeaturePyramidNetwork(inputs, arch.width, extra, norm)
        strides = [stride for _, stride in self.levels.values()]
        strides += [strides[-1] * 2**i for i, _ in enumerate(EXTRA_LEVELS[arch.architecture], 1)]
        names = (*arch.levels, *EXTRA_LEVELS[arch.architecture])
        self.levels = {n: (arch.width, s) for n, s in zip(names, strides, strict=True)}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        body, maps = self.body, {}
        x = body.maxpool(body.stem(images))
        for name in self.image_stages:
            maps[name] = x = body.get_submodule(name)(x)
        if not self.roi_stages:
            maps[name] = body.final(x)
        return self.fpn({n: maps[n] for n in self.levels if n in maps})

    def run_roi_stages(self, x: Tensor) -> Tensor:
        """The stages after the last level: (N, C, h, w) -> (N, C', h', w')."""
        for name in self.roi_stages:
            x = self.body.get_submodule(name)(x)
        return self.body.final(x)


def check(arch: DetectorArch, stages: list[str]) -> None:
    """Raises UsageError for levels and anchors that do not fit each other or the stages."""
    if list(arch.levels) != [s for s in stages if s in arch.levels] or not arch.levels:
        raise UsageError(f"levels {arch.levels}: choose from {', '.join(stages)}, in that order")
    if arch.architecture == "c4" and (len(arch.levels) > 1 or arch.levels[0] == stages[-1]):
        raise UsageError(
            f"levels {arch.levels}: architecture c4 has one, and a stage after it for regions"
        )
    levels = (*arch.levels, *EXTRA_LEVELS[arch.architecture])
    if len(arch.anchors) != len(levels):
        known = f"{len(levels)} levels ({', '.join(levels)})"
        raise UsageError(f"anchors have {len(arch.anchors)} rows of sizes for {known}")
    if len({len(sizes) for sizes in arch.anchors}) > 1 or not arch.anchors[0] or not arch.ratios:
        raise UsageError("anchors: each level needs the same number of sizes, at least one")

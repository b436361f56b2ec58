"""A class for each pixel: FCN, DeepLabv3, and the levels of a feature pyramid summed.

The tensors of FCN and DeepLabv3 are named as in torchvision.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork

from resnets.config.arch import IGNORE_INDEX, SegmenterArch
from resnets.errors import UsageError
from resnets.models.layers import LayerFactory, initialise, per_image_mean
from resnets.models.resnet import make_backbone

AUX_WEIGHT = 0.4  # the weight of its loss: Zhao et al. 2016, section 3.3
ASPP_DILATIONS = (12, 24, 36)  # at an output stride of 8: Chen et al. 2017, section 3.3


class Segmenter(nn.Module):
    """Images (B, C, H, W), any H and W, to logits (B, classes, H, W).

    With masks, uint8 (B, H, W) of class indices and 255 for pixels that do not count: float32
    (len(loss_names) + 1,), the losses, the auxiliary one weighted, and the share of wrong pixels,
    each the mean over images of the mean over an image's pixels, and 0 for an image without any
    that counts.
    """

    def __init__(self, arch: SegmenterArch, *, activation_checkpointing: int = 0) -> None:
        super().__init__()
        self.arch = arch
        self.loss_names = ("pixels", "auxiliary") if arch.auxiliary else ("pixels",)
        self.backbone = make_backbone(arch, activation_checkpointing)
        widths = [channels for channels, _ in self.backbone.levels.values()][1:]
        make = LayerFactory(norm_kind=arch.backbone.norm)
        self.fpn = FeaturePyramidNetwork(widths, arch.width) if arch.head == "fpn" else None
        if arch.head == "fpn":
            self.classifier: nn.Module = SemanticFPNHead(len(widths), arch.width, arch.classes)
        elif arch.head == "deeplabv3":
            aspp = ASPP(make, widths[-1], arch.width)
            self.classifier = nn.Sequential(
                aspp,
                *conv_norm_relu(make, arch.width, arch.width, 3),
                score_conv(arch.width, arch.classes),
            )
        else:
            self.classifier = fcn_head(make, widths[-1], arch.classes)
        self.aux_classifier = fcn_head(make, widths[-2], arch.classes) if arch.auxiliary else None

    def forward(
        self, images: Tensor, masks: Tensor | None = None, sizes: Tensor | None = None
    ) -> Tensor:
        """Float32 logits, or the losses. `sizes` changes nothing: masks say what is padding."""
        maps = self.features(images)
        del maps["stem"]
        *_, middle, last = maps.values()
        inputs = last if self.fpn is None else list(self.fpn(maps).values())
        logits = upsample_like(self.classifier(inputs).float(), images)
        if masks is None:
            return logits
        known = masks != IGNORE_INDEX
        losses = [per_image_mean(cross_entropy(logits, masks), known)]
        if self.aux_classifier is not None:
            auxiliary = upsample_like(self.aux_classifier(middle).float(), images)
            losses.append(AUX_WEIGHT * per_image_mean(cross_entropy(auxiliary, masks), known))
        wrong = per_image_mean((logits.argmax(1) != masks).float(), known)
        return torch.stack([*losses, wrong])

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """The levels of the backbone."""
        return self.backbone.features(images)


def cross_entropy(logits: Tensor, masks: Tensor) -> Tensor:
    """Of each pixel, 0 where it is `IGNORE_INDEX`: (B, K, H, W), (B, H, W) -> (B, H, W)."""
    return F.cross_entropy(logits, masks.long(), ignore_index=IGNORE_INDEX, reduction="none")


def upsample_like(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear, to the size of another map: (B, C, h, w), (B, D, H, W) -> (B, C, H, W)."""
    if x.shape[2:] == like.shape[2:]:
        return x
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


def conv_norm_relu(
    make: LayerFactory, c_in: int, c_out: int, k: int, dilation: int = 1
) -> list[nn.Module]:
    """Convolution, normalisation and ReLU."""
    layers = [make.conv(c_in, c_out, k, dilation=dilation), make.norm(c_out), nn.ReLU()]
    initialise(layers[0])
    return layers


def score_conv(c_in: int, classes: int) -> nn.Module:
    """The last 1x1 convolution; at first all classes are about equally likely."""
    last = nn.Conv2d(c_in, classes, 1)
    nn.init.normal_(last.weight, std=0.01)
    nn.init.zeros_(last.bias)  # type: ignore[arg-type]
    return last


def fcn_head(make: LayerFactory, c_in: int, classes: int) -> nn.Sequential:
    """The head of torchvision's FCN."""
    inner = c_in // 4
    return nn.Sequential(
        *conv_norm_relu(make, c_in, inner, 3), nn.Dropout(0.1), score_conv(inner, classes)
    )


class ASPP(nn.Module):
    """Parallel dilated convolutions and the mean of the image: Chen et al. 2017, section 3.3.

    Shapes: (B, C, H, W) -> (B, width, H, W). Raises UsageError for one image in training with
    batch normalisation, which has then nothing to compare its mean with.
    """

    def __init__(self, make: LayerFactory, c_in: int, width: int) -> None:
        super().__init__()
        dilated = [nn.Sequential(*conv_norm_relu(make, c_in, width, 3, d)) for d in ASPP_DILATIONS]
        pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), *conv_norm_relu(make, c_in, width, 1))
        self.convs = nn.ModuleList(
            [nn.Sequential(*conv_norm_relu(make, c_in, width, 1)), *dilated, pooled]
        )
        joined = conv_norm_relu(make, width * len(self.convs), width, 1)
        self.project = nn.Sequential(*joined, nn.Dropout(0.5))
        self.batch = make.norm_kind == "batch"

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) == 1 and self.batch:
            raise UsageError("DeepLabv3 with batch normalisation trains on at least two images")
        *local, pooled = [conv(x) for conv in self.convs]
        return self.project(torch.cat([*local, pooled.expand_as(local[0])], 1))


class SemanticFPNHead(nn.Module):
    """Each level of a pyramid brought to the finest one's size in steps of 2, and their sum.

    A step is a 3x3 convolution, group normalisation, ReLU and an enlargement: Kirillov et al.
    2019, section 3. Shapes: levels (B, width, h, w), the finest first -> (B, classes, H, W).
    """

    def __init__(self, levels: int, width: int, classes: int) -> None:
        super().__init__()
        make = LayerFactory(norm_kind="group")
        inner = width // 2
        self.levels = nn.ModuleList(
            nn.ModuleList(
                nn.Sequential(*conv_norm_relu(make, inner if step else width, inner, 3))
                for step in range(max(1, level))
            )
            for level in range(levels)
        )
        self.scores = score_conv(inner, classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        brought = []
        for level, (x, steps) in enumerate(zip(maps, self.levels, strict=True)):
            for step, finer in zip(steps.children(), maps[max(0, level - 1) :: -1], strict=True):
                x = upsample_like(step(x), finer)
            brought.append(x)
        return self.scores(sum(brought))

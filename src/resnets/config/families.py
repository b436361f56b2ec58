"""The families of networks, as tables: a name is a row. No torch here."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Literal, get_args

from resnets.config.arch import (
    HE2015,
    HE2016,
    Arch,
    DenseNetArch,
    DenseTaskArch,
    DetectorArch,
    ExternalArch,
    GoogLeNetArch,
    Join,
    LocalizerArch,
    MlpArch,
    Order,
    ResNetArch,
    SegmenterArch,
    VggArch,
    VitArch,
)
from resnets.config.timm_family import TIMM
from resnets.config.variants import (
    BAG_OF_TRICKS,
    IMAGENET,
    R18,
    R50,
    R101,
    RESNEXT,
    WIDE,
    deep,
    plain,
    pre,
    resnext,
    se,
)
from resnets.errors import UsageError, nearest

BOTTLENECK = {name: arch for name, arch in IMAGENET.items() if arch.unit == "bottleneck"}
SMALL = {name: arch for name, arch in IMAGENET.items() if arch.depth <= 50}


def cifar(n: int) -> ResNetArch:
    """6n+2 layers, 1512.03385 section 4.2: n units at 32, 16 and 8 pixels, option A throughout."""
    units = ResNetArch(blocks=(n, n, n), widths=(16, 32, 64), shortcut="A")
    return replace(units, stem="cifar", stem_width=16, classes=10, size=32)


def cifar_bottleneck(n: int) -> ResNetArch:
    """9n+2 layers, 1603.05027 appendix: [1x1, 16; 3x3, 16; 1x1, 64] and projections."""
    units = replace(cifar(n), widths=(64, 128, 256), unit="bottleneck", stride_on="1x1")
    return replace(units, shortcut="B", source=HE2016)


def wrn(depth: int, k: int) -> ResNetArch:
    """WRN-depth-k; its authors count the three projections and not the classifier: 6n + 4."""
    units = replace(pre(cifar((depth - 4) // 6)), widths=(16 * k, 32 * k, 64 * k))
    return replace(units, shortcut="B", counted=4, source=WIDE)


def resnext29(groups: int) -> ResNetArch:
    """29 layers, `groups` x 64d at the first stage, whose output is 256 wide: section 5.3."""
    units = replace(cifar(3), widths=(256, 512, 1024), unit="bottleneck", shortcut="B")
    return replace(units, bottleneck_ratio=4 / groups, groups=groups, stem_width=64, source=RESNEXT)


def vgg(blocks: tuple[int, ...], batch_norm: bool = False) -> VggArch:
    """Five stages of so many convolutions."""
    widths = tuple((c,) * n for c, n in zip((64, 128, 256, 512, 512), blocks, strict=True))
    return VggArch(widths=widths, batch_norm=batch_norm)


def dense(blocks: tuple[int, ...], growth: int = 32) -> DenseNetArch:
    """DenseNet-BC for ImageNet."""
    return DenseNetArch(blocks=blocks, growth=growth, stem_width=2 * growth)


def densenet_bc(depth: int, growth: int) -> DenseNetArch:
    """DenseNet-BC for CIFAR: three blocks of (depth - 4) / 6 layers, growth rate `growth`."""
    return replace(dense(((depth - 4) // 6,) * 3, growth), stem="cifar", classes=10, size=32)


R110 = replace(cifar(18), source=HE2016)
# A shortcut around each layer instead of each two: 1603.05027 Table 3.
R110_1LAYER = replace(R110, blocks=(36, 36, 36), unit="single")
R164 = cifar_bottleneck(18)

SHORTCUTS = {  # 1603.05027 Table 1, on ResNet-110
    "constant_0_1": Join(kind="scale", x_scale=0.0),
    "constant_0.5_1": Join(kind="scale", x_scale=0.5),
    "constant_0.5_0.5": Join(kind="scale", x_scale=0.5, f_scale=0.5),
    **{
        f"exclusive_gate_{b}": Join(kind="exclusive_gate", gate_bias=float(b))
        for b in (0, -5, -6, -7)
    },
    **{f"shortcut_gate_{b}": Join(kind="shortcut_gate", gate_bias=float(b)) for b in (0, -6)},
    "conv_shortcut": Join(kind="conv"),
    "dropout_shortcut": Join(kind="dropout"),
}
# Table 2 without its ends: "original" is the plain name, "full pre-activation" the `pre` name.
PLACEMENTS = get_args(Order)[1:4]

TRUNKS = {name: IMAGENET[name] for name in ("resnet18", "resnet34", "resnet50", "resnet101")}
# Half as wide as ResNet-18, to train from random weights on a processor.
TINY = replace(R18, widths=(32, 64, 128, 256), stem_width=32)


def c4(backbone: ResNetArch) -> DetectorArch:
    """Faster R-CNN of 1512.03385 appendix A: 91 layers of ResNet-101 are shared."""
    detector = DetectorArch(backbone=backbone, architecture="c4", levels=("layer3",), source=HE2015)
    sides = (64.0, 128.0, 256.0, 512.0)  # Ren et al. 2015 with 64 for COCO
    return replace(detector, anchors=(sides,), pool="max", proposals=(2000, 300), sampled=128)


def retina(backbone: ResNetArch) -> DetectorArch:
    """RetinaNet: pyramid levels 3 to 7, three sizes an octave, in whole pixels as torchvision's."""
    octave = [2 ** (k / 3) for k in range(3)]
    sides = tuple(tuple(float(int(s * o)) for o in octave) for s in (32, 64, 128, 256, 512))
    detector = DetectorArch(backbone=backbone, architecture="retina", anchors=sides)
    levels = ("layer2", "layer3", "layer4")
    return replace(detector, levels=levels, source="Lin et al. 2017, arXiv 1708.02002")


def tiny(detector: DetectorArch) -> DetectorArch:
    """The same for small images and few classes, on `TINY`, with fewer and smaller regions."""
    fewer = replace(detector, sampled=64, proposals=(500, 200), width=64, hidden=256)
    small = replace(fewer, backbone=TINY, size=320)
    if small.architecture == "retina":
        return small
    sides = (24.0, 48.0, 96.0, 192.0)
    if small.architecture == "c4":
        return replace(small, anchors=(sides,), pool="align", sampled=32, proposals=(200, 200))
    levels = ("layer2", "layer3", "layer4")
    return replace(small, levels=levels, anchors=tuple((side,) for side in sides))


def second(detector: DetectorArch) -> DetectorArch:
    """torchvision's `_v2`: normalisations in pyramid and heads, more convolutions (2111.11429)."""
    if detector.architecture == "retina":
        return replace(
            detector, norm="group", pyramid_norm=False, p6_from="backbone", box_loss="giou"
        )
    return replace(detector, norm="batch", rpn_convs=2, box_convs=4)


def dilated(backbone: ResNetArch, stride: Literal[8, 16, 32] = 8) -> ResNetArch:
    """The last stages dilated."""
    return replace(backbone, output_stride=stride)


V2_TRUNKS = ("resnet18", "resnet50")  # torchvision has the second
MASK = "He et al. 2017, arXiv 1703.06870"
DEEPLAB = "Chen et al. 2017, arXiv 1706.05587"
KIRILLOV = "Kirillov et al. 2019, arXiv 1901.02446"
DENSE_TASK_MODELS: dict[str, DenseTaskArch] = {
    **{f"fasterrcnn_{n}_fpn": DetectorArch(backbone=a) for n, a in TRUNKS.items()},
    **{f"fasterrcnn_{n}_c4": c4(a) for n, a in TRUNKS.items()},
    **{
        f"maskrcnn_{n}_fpn": DetectorArch(backbone=a, masks=True, source=MASK)
        for n, a in TRUNKS.items()
    },
    **{f"retinanet_{n}_fpn": retina(a) for n, a in TRUNKS.items()},
    # torchvision's second versions
    **{f"fasterrcnn_{n}_fpn_v2": second(DetectorArch(backbone=TRUNKS[n])) for n in V2_TRUNKS},
    **{
        f"maskrcnn_{n}_fpn_v2": second(DetectorArch(backbone=TRUNKS[n], masks=True, source=MASK))
        for n in V2_TRUNKS
    },
    **{f"retinanet_{n}_fpn_v2": second(retina(TRUNKS[n])) for n in V2_TRUNKS},
    "fasterrcnn_tiny_fpn": tiny(DetectorArch(backbone=TINY)),
    "fasterrcnn_tiny_c4": tiny(c4(TINY)),
    "maskrcnn_tiny_fpn": tiny(DetectorArch(backbone=TINY, masks=True, source=MASK)),
    "retinanet_tiny_fpn": tiny(retina(TINY)),
    **{f"fcn_{n}": SegmenterArch(backbone=dilated(a)) for n, a in TRUNKS.items()},
    **{
        f"deeplabv3_{n}": SegmenterArch(backbone=dilated(a), head="deeplabv3", source=DEEPLAB)
        for n, a in TRUNKS.items()
    },
    **{
        f"semanticfpn_{n}": SegmenterArch(
            backbone=a, head="fpn", width=width, auxiliary=False, source=KIRILLOV
        )
        for n, a, width in [*((n, a, 256) for n, a in TRUNKS.items()), ("tiny", TINY, 64)]
    },
    **{f"localizer_{n}": LocalizerArch(backbone=a) for n, a in TRUNKS.items()},
    "localizer_tiny": LocalizerArch(
        backbone=TINY, anchors=(24, 48, 96), crop=64, classes=10, size=96
    ),
}

ARCHS: dict[str, Arch] = {
    **IMAGENET,
    **{f"{n}_v1": replace(a, stride_on="1x1") for n, a in BOTTLENECK.items()},
    **{
        f"resnet{depth}_option_{o.lower()}": replace(IMAGENET[f"resnet{depth}"], shortcut=o)
        for depth in (18, 34)
        for o in ("A", "C")
    },
    "resnet50_v1_option_c": replace(R50, stride_on="1x1", shortcut="C"),
    **{f"{n}c": replace(a, stem="deep", source=BAG_OF_TRICKS) for n, a in BOTTLENECK.items()},
    **{f"{n}d": deep(a) for n, a in IMAGENET.items()},
    **{f"pre{n}": pre(a) for n, a in IMAGENET.items()},
    **{f"pre{n}_v1": pre(replace(a, stride_on="1x1")) for n, a in BOTTLENECK.items()},
    **{f"se{n}": se(a) for n, a in IMAGENET.items() if a.depth < 200},
    **{f"plain{depth}": plain(IMAGENET[f"resnet{depth}"]) for depth in (18, 34)},
    **TIMM,
    "resnext50_32x4d": resnext(R50, 32, 4),
    "resnext101_32x8d": resnext(R101, 32, 8),
    "resnext101_64x4d": resnext(R101, 64, 4),
    "wide_resnet50_2": replace(R50, bottleneck_ratio=2, source=WIDE),
    "wide_resnet101_2": replace(R101, bottleneck_ratio=2, source=WIDE),
    "densenet121": dense((6, 12, 24, 16)),
    "densenet161": dense((6, 12, 36, 24), growth=48),
    "densenet169": dense((6, 12, 32, 32)),
    "densenet201": dense((6, 12, 48, 32)),
    # Before the residual networks; as in torchvision
    "alexnet": VggArch(
        widths=((64,), (192,), (384, 256, 256)),
        stem="alexnet",
        source="Krizhevsky 2014, arXiv 1404.5997",
    ),
    **{
        f"vgg{sum(blocks) + 3}{'_bn' * batch_norm}": vgg(blocks, batch_norm)
        for blocks in ((1, 1, 2, 2, 2), (2, 2, 2, 2, 2), (2, 2, 3, 3, 3), (2, 2, 4, 4, 4))
        for batch_norm in (False, True)
    },
    "googlenet": GoogLeNetArch(),
    "vit_s_16": VitArch(blocks=12, width=384, heads=6, hidden=1536),
    "vit_b_16": VitArch(blocks=12, width=768, heads=12, hidden=3072),
    # CIFAR
    **{f"resnet{6 * n + 2}": cifar(n) for n in (1, 2, 3, 5, 7, 9, 18, 200)},
    **{f"plain{6 * n + 2}": plain(cifar(n)) for n in (3, 5, 7, 9, 18)},
    **{f"preresnet{6 * n + 2}": pre(cifar(n)) for n in (3, 5, 7, 9, 18)},
    "resnet110_1layer": R110_1LAYER,
    "preresnet110_1layer": pre(R110_1LAYER),
    "resnet164": R164,
    "preresnet164": pre(R164),
    "resnet1001": cifar_bottleneck(111),
    "preresnet1001": pre(cifar_bottleneck(111)),
    **{f"resnet110_{case}": replace(R110, join=join) for case, join in SHORTCUTS.items()},
    **{f"resnet110_{order}": replace(R110, order=order) for order in PLACEMENTS},
    **{f"resnet164_{order}": replace(R164, order=order) for order in PLACEMENTS},
    **{f"seresnet{6 * n + 2}": se(cifar(n)) for n in (3, 5, 9, 18)},
    **{f"wrn_{depth}_{k}": wrn(depth, k) for depth, k in ((16, 8), (28, 10), (40, 4))},
    **{f"resnext29_{groups}x64d": resnext29(groups) for groups in (8, 16)},
    **{f"densenet_bc{d}_{k}": densenet_bc(d, k) for d, k in ((100, 12), (190, 40), (250, 24))},
    # Signals, volumes, tables
    **{f"{n}_1d": replace(a, dims=1, channels=1, size=1000) for n, a in SMALL.items()},
    **{f"{n}_3d": replace(a, dims=3, channels=3, size=112) for n, a in SMALL.items()},
    "mlp_resnet": MlpArch(),
    **DENSE_TASK_MODELS,
}


def label(arch: Arch) -> str:
    """A network's name whatever its input and classes; else the nearest name and what differs."""
    if isinstance(arch, ExternalArch):
        return arch.builder
    free = ("channels", "classes", "size", "counted", "source")

    def differing(known: Arch) -> list[str]:
        names = [f.name for f in fields(arch) if f.name not in free]
        return [n for n in names if getattr(known, n) != getattr(arch, n)]

    same = {name: differing(known) for name, known in ARCHS.items() if type(known) is type(arch)}
    name = min(same, key=lambda name: len(same[name]))
    if not same[name]:
        return name
    values = (f"{n} {getattr(arch, n)}" for n in same[name] if n != "backbone")
    inner = [f"backbone {label(arch.backbone)}"] if "backbone" in same[name] else []  # type: ignore[union-attr]
    return f"{name}-like ({', '.join([*inner, *values])})"


@cache
def read_counts() -> dict[str, tuple[int, int]]:
    """Parameters and multiply-adds of every network of `ARCHS`, as `models.cost` counts them.

    They are kept in a file, which benchmarks/network_counts.py writes: counting takes seconds.
    """
    table = Path(__file__).with_name("counts.json")
    return {name: (row[0], row[1]) for name, row in json.loads(table.read_bytes()).items()}


def get_arch(name: str) -> Arch:
    """The Arch of that name. Raises UsageError with the nearest known names."""
    if name in ARCHS:
        return ARCHS[name]
    raise UsageError(
        f"unknown model {name!r}: {nearest(name, ARCHS)}\n`resnets models` lists them all."
    )

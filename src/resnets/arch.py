"""Networks as data: frozen dataclasses, and the families as tables. No torch here.

Depth follows from the table (`arch.depth`); parameters and multiply-adds are counted from the
network that the data describes (`resnets.nets.cost`), and both are tested against the papers.

The papers' details that differ from today's habit are fields here, so a row says which it is:
the stride of a bottleneck sits on its first 1x1 convolution in He et al. 2015 (`stride_on="1x1"`,
the `_v1` names) and on the 3x3 in fb.resnet.torch, torchvision and timm (`stride_on="3x3"`, the
plain names, "v1.5"). No convolution that a normalisation follows has a bias; the authors' Caffe
ResNet-50 alone has one on conv1, which is not reproduced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

import pydantic

from resnets.errors import UsageError, nearest

JoinKind = Literal["identity", "scale", "exclusive_gate", "shortcut_gate", "conv", "dropout"]
Order = Literal["post", "bn_after_add", "relu_before_add", "relu_only_pre", "pre"]
LAYERS = {"single": 1, "basic": 2, "bottleneck": 3}  # of a residual unit

HE2015 = "He et al. 2015, arXiv 1512.03385"
HE2016 = "He et al. 2016, arXiv 1603.05027"


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """How a unit joins its input x with F(x): 1603.05027, section 3.1 and Table 1.

    kind "identity" is x + F(x). "scale" is `x_scale * x + f_scale * F(x)`. With
    g(x) = sigmoid(W x + gate_bias), a 1x1 convolution, "exclusive_gate" is (1 - g) x + g F(x) and
    "shortcut_gate" is (1 - g) x + F(x). "conv" puts a 1x1 convolution and "dropout" a dropout of
    0.5 on the shortcut.
    """

    kind: JoinKind = "identity"
    x_scale: float = 1.0
    f_scale: float = 1.0
    gate_bias: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ResNetArch:
    """A residual network, or with `shortcut="none"` its plain twin.

    `order` is the placement of normalisation and ReLU, 1603.05027 Table 2 from top to bottom.
    """

    blocks: tuple[int, ...]  # residual units in each stage
    widths: tuple[int, ...]  # output channels of each stage
    unit: Literal["single", "basic", "bottleneck"] = "basic"  # one 3x3; two; 1x1, 3x3, 1x1
    order: Order = "post"
    # Option A pads with zeros, B projects where the shape changes, C projects everywhere.
    shortcut: Literal["A", "B", "C", "none"] = "B"
    join: Join = Join()
    # 7x7/2 and a max pool; three 3x3 and a max pool (C, D); one 3x3 and no pool.
    stem: Literal["imagenet", "deep", "cifar"] = "imagenet"
    stem_width: int = 64
    squeeze: float = 4  # a bottleneck's inner width is its stage's width / squeeze
    groups: int = 1  # of the 3x3 convolution of a bottleneck (ResNeXt)
    stride_on: Literal["3x3", "1x1"] = "3x3"  # of a bottleneck
    downsample: Literal["conv", "avgpool"] = "conv"  # D: average pool, then a 1x1 of stride 1
    norm: Literal["batch", "group"] = "batch"
    se_reduction: int = 0  # squeeze-and-excitation: 16 in its paper, 0 is none
    drop_path: float = 0.0  # 1 - p_L: the last unit's chance to be dropped, linear from 0
    dropout: float = 0.0  # between the convolutions of a unit (Wide ResNets)
    blur: bool = False  # blur before subsampling (Zhang 2019)
    # Smaller than 32: the last stages are dilated and keep their size (1606.00915).
    output_stride: Literal[8, 16, 32] = 32
    zero_gamma: bool = False  # the last gamma of each unit starts at 0 (Goyal et al. 2017)
    dims: Literal[1, 2, 3] = 2
    channels: int = 3
    classes: int = 1000
    size: int = 224  # of the side of an input, for which cost is counted
    counted: int = 2  # layers that the name counts besides the units': here stem and classifier
    source: str = field(default=HE2015, compare=False)

    @property
    def depth(self) -> int:
        return sum(self.blocks) * LAYERS[self.unit] + self.counted


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseNetArch:
    """Densely connected blocks, "BC" form: 1x1 to 4k, 3x3 to k; transitions halve the channels."""

    blocks: tuple[int, ...]  # layers in each dense block
    growth: int  # k
    stem_width: int  # 2k
    stem: Literal["imagenet", "cifar"] = "imagenet"
    bottleneck: int = 4
    compression: float = 0.5
    dropout: float = 0.0
    channels: int = 3
    classes: int = 1000
    size: int = 224
    source: str = field(default="Huang et al. 2016, arXiv 1608.06993", compare=False)

    @property
    def depth(self) -> int:
        return 2 * sum(self.blocks) + (len(self.blocks) - 1) + 2  # units, transitions, ends


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpArch:
    """A residual network for tables, input (N, channels): Gorishniy et al., section 3.2."""

    blocks: int = 4
    width: int = 256
    hidden: int = 512  # of the two linear layers in a unit
    dropout: float = 0.0
    channels: int = 64  # columns of the table
    classes: int = 10
    size: int = 1
    source: str = field(default="Gorishniy et al. 2021, arXiv 2106.11959", compare=False)

    @property
    def depth(self) -> int:
        return 2 * self.blocks + 2


@dataclass(frozen=True, slots=True, kw_only=True)
class VitArch:
    """A transformer encoder: each block is two residual additions."""

    blocks: int
    width: int
    heads: int
    hidden: int  # of the two linear layers in a block
    patch: int = 16
    dropout: float = 0.0
    channels: int = 3
    classes: int = 1000
    size: int = 224  # fixes the position embedding
    source: str = field(default="Dosovitskiy et al. 2020, arXiv 2010.11929", compare=False)

    @property
    def depth(self) -> int:
        return self.blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorArch:
    """A detector on the levels of a residual network.

    "c4" is Faster R-CNN as in 1512.03385 appendix A: proposals on conv4, conv5 on each region;
    "fpn" has a feature pyramid (1612.03144), and with `masks` is Mask R-CNN (1703.06870); "retina"
    is the one-stage detector on a pyramid (1708.02002).
    """

    backbone: ResNetArch
    form: Literal["fpn", "c4", "retina"] = "fpn"
    levels: tuple[str, ...] = ("layer1", "layer2", "layer3", "layer4")  # c4: ("layer3",)
    width: int = 256  # channels of the pyramid and of the proposals' 3x3 convolution
    hidden: int = 1024  # of the two fully connected layers on a region
    norm: Literal["none", "group"] = "none"  # of the convolutions of the pyramid
    # Sides of the anchors in pixels, of each level; a pyramid has a further, coarser one.
    anchors: tuple[tuple[float, ...], ...] = ((32,), (64,), (128,), (256,), (512,))
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # height / width
    pool: Literal["align", "max"] = "align"  # RoIAlign, or the RoI pooling of Fast R-CNN
    masks: bool = False
    context: bool = False  # the whole image beside each region: 1512.03385 appendix B
    proposals: tuple[int, int] = (2000, 1000)  # kept of an image in training, at test
    sampled: int = 512  # regions of an image that training learns from
    channels: int = 3
    classes: int = 80  # without background
    size: int = 800  # of the shorter side of an image
    source: str = field(default="Lin et al. 2016, arXiv 1612.03144", compare=False)

    @property
    def depth(self) -> int:
        return self.backbone.depth

    @property
    def blocks(self) -> tuple[int, ...]:
        return self.backbone.blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmenterArch:
    """A class for each pixel: FCN and DeepLabv3 on dilated stages, or a pyramid's levels summed."""

    backbone: ResNetArch
    head: Literal["fcn", "deeplabv3", "fpn"] = "fcn"
    width: int = 256  # channels of DeepLabv3's head, of the pyramid
    auxiliary: bool = True  # a second FCN on layer3 in training, at 0.4 of the loss
    channels: int = 3
    classes: int = 21  # with background where the masks have one
    size: int = 520
    source: str = field(default="Long et al. 2014, arXiv 1411.4038", compare=False)

    @property
    def depth(self) -> int:
        return self.backbone.depth

    @property
    def blocks(self) -> tuple[int, ...]:
        return self.backbone.blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalizerArch:
    """Where the object of a class is: per-class proposals of 1512.03385, appendix C."""

    backbone: ResNetArch
    anchors: tuple[float, ...] = (64, 128, 224)  # sides in pixels
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    channels: int = 3
    classes: int = 1000
    size: int = 224
    source: str = field(default=HE2015, compare=False)

    @property
    def depth(self) -> int:
        return self.backbone.depth

    @property
    def blocks(self) -> tuple[int, ...]:
        return self.backbone.blocks


SceneArch = DetectorArch | SegmenterArch | LocalizerArch
ClassifierArch = ResNetArch | DenseNetArch | MlpArch | VitArch
Arch = ClassifierArch | SceneArch
KINDS: dict[str, type[Arch]] = {
    "resnet": ResNetArch,
    "densenet": DenseNetArch,
    "mlp": MlpArch,
    "vit": VitArch,
    "detector": DetectorArch,
    "segmenter": SegmenterArch,
    "localizer": LocalizerArch,
}


Task = Literal["classify", "detect", "localize", "segment"]


def task(arch: Arch) -> Task:
    """What a network is for."""
    match arch:
        case DetectorArch():
            return "detect"
        case LocalizerArch():
            return "localize"
        case SegmenterArch():
            return "segment"
    return "classify"


def to_dict(arch: Arch) -> dict[str, Any]:
    """JSON-ready, with the kind; `from_dict` is the inverse."""
    kind = next(name for name, cls in KINDS.items() if isinstance(arch, cls))
    return {"kind": kind, **asdict(arch)}


def from_dict(data: Mapping[str, Any]) -> Arch:
    """Rebuild an Arch from `to_dict`. Raises ValueError that names an unknown kind or field."""
    kind = KINDS.get(str(data.get("kind")))
    if kind is None:
        raise ValueError(f"unknown kind of network {data.get('kind')!r}; known: {', '.join(KINDS)}")
    values = {key: value for key, value in data.items() if key != "kind"}
    if unknown := sorted(set(values) - {f.name for f in fields(kind)}):
        raise ValueError(f"unknown fields of a {data['kind']}: {', '.join(unknown)}")
    rebuilt: Arch = pydantic.TypeAdapter(kind).validate_python(values)
    return rebuilt


def changed(arch: Arch, values: Mapping[str, Any]) -> Arch:
    """The arch with some fields replaced; texts are converted. Raises UsageError."""
    try:
        return from_dict({**to_dict(arch), **values})
    except pydantic.ValidationError as error:
        raise UsageError(f"arch.{wrong(error)[0]}") from None
    except ValueError as error:
        raise UsageError(f"arch: {error}") from None


def wrong(error: pydantic.ValidationError) -> list[str]:
    """What is wrong with each field, for a person: "drops.0: ... (got 'x')"."""
    return [
        f"{'.'.join(map(str, e['loc']))}: {e['msg']} (got {e['input']!r})" for e in error.errors()
    ]


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
BOTTLENECK = {name: arch for name, arch in IMAGENET.items() if arch.unit == "bottleneck"}
SMALL = {name: arch for name, arch in IMAGENET.items() if arch.depth <= 50}
BAG = "He et al. 2018, arXiv 1812.01187"
RESNEXT = "Xie et al. 2016, arXiv 1611.05431"
WIDE = "Zagoruyko and Komodakis 2016, arXiv 1605.07146"
SE = "Hu et al. 2017, arXiv 1709.01507"


def cifar(n: int) -> ResNetArch:
    """6n+2 layers, 1512.03385 section 4.2: n units at 32, 16 and 8 pixels, option A throughout."""
    units = ResNetArch(blocks=(n, n, n), widths=(16, 32, 64), shortcut="A")
    return replace(units, stem="cifar", stem_width=16, classes=10, size=32)


def cifar_bottleneck(n: int) -> ResNetArch:
    """9n+2 layers, 1603.05027 appendix: [1x1, 16; 3x3, 16; 1x1, 64] and projections."""
    units = replace(cifar(n), widths=(64, 128, 256), unit="bottleneck", stride_on="1x1")
    return replace(units, shortcut="B", source=HE2016)


def pre(arch: ResNetArch) -> ResNetArch:
    """Full pre-activation: batch normalisation and ReLU before each convolution."""
    return replace(arch, order="pre", source=HE2016)


def plain(arch: ResNetArch) -> ResNetArch:
    """The plain twin: the same layers without shortcuts."""
    return replace(arch, shortcut="none")


def wrn(depth: int, k: int) -> ResNetArch:
    """WRN-depth-k; its authors count the three projections and not the classifier: 6n + 4."""
    units = replace(pre(cifar((depth - 4) // 6)), widths=(16 * k, 32 * k, 64 * k))
    return replace(units, shortcut="B", counted=4, source=WIDE)


def resnext29(groups: int) -> ResNetArch:
    """29 layers, `groups` x 64d at the first stage, whose output is 256 wide: section 5.3."""
    units = replace(cifar(3), widths=(256, 512, 1024), unit="bottleneck", shortcut="B")
    return replace(units, squeeze=4 / groups, groups=groups, stem_width=64, source=RESNEXT)


def se(arch: ResNetArch) -> ResNetArch:
    """Squeeze-and-excitation at the end of each unit."""
    return replace(arch, se_reduction=16, source=SE)


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
    detector = DetectorArch(backbone=backbone, form="c4", levels=("layer3",), source=HE2015)
    sides = (64.0, 128.0, 256.0, 512.0)  # Ren et al. 2015 with 64 for COCO
    return replace(detector, anchors=(sides,), pool="max", proposals=(2000, 300), sampled=128)


def retina(backbone: ResNetArch) -> DetectorArch:
    """RetinaNet: pyramid levels 3 to 7, three sizes an octave, in whole pixels as torchvision's."""
    octave = [2 ** (k / 3) for k in range(3)]
    sides = tuple(tuple(float(int(s * o)) for o in octave) for s in (32, 64, 128, 256, 512))
    detector = DetectorArch(backbone=backbone, form="retina", anchors=sides)
    levels = ("layer2", "layer3", "layer4")
    return replace(detector, levels=levels, source="Lin et al. 2017, arXiv 1708.02002")


def tiny(detector: DetectorArch) -> DetectorArch:
    """The same for small images and few classes, on `TINY`, with fewer and smaller regions."""
    fewer = replace(detector, sampled=64, proposals=(500, 200), width=64, hidden=256)
    small = replace(fewer, backbone=TINY, size=320)
    if small.form == "retina":
        return small
    sides = (24.0, 48.0, 96.0, 192.0)
    if small.form == "c4":
        return replace(small, anchors=(sides,), pool="align", sampled=32, proposals=(200, 200))
    levels = ("layer2", "layer3", "layer4")
    return replace(small, levels=levels, anchors=tuple((side,) for side in sides))


def dilated(backbone: ResNetArch, stride: Literal[8, 16, 32] = 8) -> ResNetArch:
    """The last stages dilated."""
    return replace(backbone, output_stride=stride)


MASK = "He et al. 2017, arXiv 1703.06870"
DEEPLAB = "Chen et al. 2017, arXiv 1706.05587"
KIRILLOV = "Kirillov et al. 2019, arXiv 1901.02446"
SCENES: dict[str, SceneArch] = {
    **{f"fasterrcnn_{n}_fpn": DetectorArch(backbone=a) for n, a in TRUNKS.items()},
    **{f"fasterrcnn_{n}_c4": c4(a) for n, a in TRUNKS.items()},
    **{
        f"maskrcnn_{n}_fpn": DetectorArch(backbone=a, masks=True, source=MASK)
        for n, a in TRUNKS.items()
    },
    **{f"retinanet_{n}_fpn": retina(a) for n, a in TRUNKS.items()},
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
    "localizer_tiny": LocalizerArch(backbone=TINY, anchors=(24, 48, 96), classes=10, size=96),
}

FAMILY: dict[str, Arch] = {
    **IMAGENET,
    **{f"{n}_v1": replace(a, stride_on="1x1") for n, a in BOTTLENECK.items()},
    **{
        f"resnet{depth}_option_{o.lower()}": replace(IMAGENET[f"resnet{depth}"], shortcut=o)
        for depth in (18, 34)
        for o in ("A", "C")
    },
    "resnet50_v1_option_c": replace(R50, stride_on="1x1", shortcut="C"),
    **{f"{n}c": replace(a, stem="deep", source=BAG) for n, a in BOTTLENECK.items()},
    **{
        f"{n}d": replace(a, stem="deep", downsample="avgpool", source=BAG)
        for n, a in IMAGENET.items()
    },
    **{f"pre{n}": pre(a) for n, a in IMAGENET.items()},
    **{f"pre{n}_v1": pre(replace(a, stride_on="1x1")) for n, a in BOTTLENECK.items()},
    **{f"se{n}": se(a) for n, a in IMAGENET.items() if a.depth < 200},
    **{f"plain{depth}": plain(IMAGENET[f"resnet{depth}"]) for depth in (18, 34)},
    "resnext50_32x4d": replace(R50, squeeze=2, groups=32, source=RESNEXT),
    "resnext101_32x8d": replace(R101, squeeze=1, groups=32, source=RESNEXT),
    "resnext101_64x4d": replace(R101, squeeze=1, groups=64, source=RESNEXT),
    "wide_resnet50_2": replace(R50, squeeze=2, source=WIDE),
    "wide_resnet101_2": replace(R101, squeeze=2, source=WIDE),
    "densenet121": dense((6, 12, 24, 16)),
    "densenet161": dense((6, 12, 36, 24), growth=48),
    "densenet169": dense((6, 12, 32, 32)),
    "densenet201": dense((6, 12, 48, 32)),
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
    **SCENES,
}


def arch(name: str) -> Arch:
    """The Arch of that name. Raises UsageError with the nearest known names."""
    if name in FAMILY:
        return FAMILY[name]
    raise UsageError(
        f"unknown model {name!r}: {nearest(name, FAMILY)}\n`resnets models` lists them all."
    )

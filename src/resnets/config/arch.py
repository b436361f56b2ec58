"""Networks as data: frozen dataclasses. The tables are `resnets.config.families`. No torch here.

Depth follows from the table (`arch.depth`); parameters and multiply-adds are counted from the
network that the data describes (`resnets.models.cost`), and both are tested against the papers.

Where the papers differ from today's practice a row says so: the stride of a bottleneck is on its
first 1x1 convolution in He et al. 2015 (`stride_on="1x1"`, the `_v1` names) and on the 3x3 in
fb.resnet.torch, torchvision and timm (the plain names, "v1.5"). A convolution before a
normalisation has no bias; that of others' files moves into the normalisation's mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import pydantic

from resnets.errors import UsageError

JoinKind = Literal["identity", "scale", "exclusive_gate", "shortcut_gate", "conv", "dropout"]
# 1603.05027, Table 2; "relu_twice" is before and after the addition, in SENet's basic units.
Order = Literal["post", "bn_after_add", "relu_before_add", "relu_only_pre", "pre", "relu_twice"]
LAYERS = {"single": 1, "basic": 2, "bottleneck": 3}  # convolutions of a residual unit

if TYPE_CHECKING:
    from resnets.config.types import TaskName

OLD_FIELDS = {"squeeze": "bottleneck_ratio", "form": "architecture"}  # in files of 0.1.0
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
class SelectiveKernel:
    """Two 3x3 convolutions, one dilated, mixed by attention: Li et al. 2019, 1903.06586.

    The attention is `channels / reduction` wide, in multiples of `multiple`. With `split` each
    convolution gets half of the input's channels, as in timm's skresnet.
    """

    reduction: int = 16
    multiple: int = 8
    split: bool = True


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
    # 7x7/2, a max pool; three 3x3, a max pool (C, D), the first narrower (T); one 3x3, no pool.
    stem: Literal["imagenet", "deep", "tiered", "cifar"] = "imagenet"
    stem_width: int = 64
    stem_norm: bool = True  # False: the first unit of order "pre" has its own (BiT, resnetv2)
    stem_pool: Literal["pad", "ceil", "zeros"] = "pad"  # its border; ceil in Caffe, zeros in BiT
    bottleneck_ratio: float = 4  # stage width / inner width of a bottleneck, as in RegNet
    groups: int = 1  # of the 3x3 convolution of a bottleneck (ResNeXt)
    stride_on: Literal["3x3", "1x1"] = "3x3"  # of a bottleneck
    downsample: Literal["conv", "avgpool"] = "conv"  # D: average pool, then a 1x1 of stride 1
    norm: Literal["batch", "group", "group32"] = "batch"  # "group": fewer than 32 where narrow
    weight_standardised: bool = False  # convolutions (Qiao et al. 2019, 1903.10520), as in BiT
    se_reduction: int = 0  # squeeze-and-excitation: 16 in its paper, 0 is none
    se_multiple: int = 1  # the width of the excitation is a multiple of it: 8 in timm
    eca: bool = False  # efficient channel attention (Wang et al. 2019, 1910.03151)
    sk: SelectiveKernel | None = None  # in place of the convolution with the stride
    drop_path: float = 0.0  # 1 - p_L: the probability that the last unit is dropped, linear from 0
    dropout: float = 0.0  # between the convolutions of a unit (Wide ResNets)
    blur: bool | Literal["branch", "mean"] = False  # not strides (Zhang 2019), timm's: in F only
    # Smaller than 32: the last stages are dilated and keep their size (1606.00915).
    output_stride: Literal[8, 16, 32] = 32
    zero_gamma: bool = False  # the last gamma of each unit starts at 0 (Goyal et al. 2017)
    dims: Literal[1, 2, 3] = 2
    channels: int = 3
    classes: int = 1000
    size: int = 224  # side of an input, for which cost is counted
    counted: int = 2  # layers in the name besides those of the units: stem and classifier
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
class VggArch:
    """AlexNet and VGG: convolutions in stages, a max pool after each, and three linear layers."""

    widths: tuple[tuple[int, ...], ...]  # of the convolutions of each stage
    stem: Literal["vgg", "alexnet"] = "vgg"  # 3x3; 11x11/4 and 5x5 first, and pools that overlap
    batch_norm: bool = False
    hidden: int = 4096  # of the first two linear layers
    dropout: float = 0.5
    channels: int = 3
    classes: int = 1000
    size: int = 224
    source: str = field(default="Simonyan and Zisserman 2014, arXiv 1409.1556", compare=False)

    @property
    def blocks(self) -> tuple[int, ...]:
        return tuple(map(len, self.widths))

    @property
    def depth(self) -> int:
        return sum(self.blocks) + 3


@dataclass(frozen=True, slots=True, kw_only=True)
class GoogLeNetArch:
    """The first Inception network, with batch normalisation."""

    dropout: float = 0.2
    channels: int = 3
    classes: int = 1000
    size: int = 224
    source: str = field(default="Szegedy et al. 2014, arXiv 1409.4842", compare=False)

    @property
    def blocks(self) -> tuple[int, ...]:
        return (2, 5, 2)

    @property
    def depth(self) -> int:
        return 22


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
    """A detector on the feature levels of a residual network.

    "c4" is Faster R-CNN as in 1512.03385 appendix A: proposals on conv4, conv5 on each region;
    "fpn" has a feature pyramid (1612.03144), and with `masks` is Mask R-CNN (1703.06870); "retina"
    is the one-stage detector on a pyramid (1708.02002).
    """

    backbone: ResNetArch
    architecture: Literal["fpn", "c4", "retina"] = "fpn"
    levels: tuple[str, ...] = ("layer1", "layer2", "layer3", "layer4")  # c4: ("layer3",)
    width: int = 256  # channels of the pyramid and of the proposals' 3x3 convolution
    hidden: int = 1024  # of the fully connected layers on a region
    norm: Literal["none", "group", "batch"] = "none"  # of the convolutions of pyramid and heads
    pyramid_norm: bool = True  # False: of those of the heads alone
    p6_from: Literal["pyramid", "backbone"] = "pyramid"  # what RetinaNet's level P6 reads
    box_loss: Literal["l1", "giou"] = "l1"  # RetinaNet's: of deltas, or of boxes (1902.09630)
    rpn_convs: int = 1  # 3x3, before the scores of proposals
    box_convs: int = 0  # 3x3, before one linear layer on a region instead of two
    # Sides of the anchors in pixels, of each level; a pyramid has a further, coarser one.
    anchors: tuple[tuple[float, ...], ...] = ((32,), (64,), (128,), (256,), (512,))
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # height / width
    pool: Literal["align", "max"] = "align"  # RoIAlign, or the RoI pooling of Fast R-CNN
    masks: bool = False
    context: bool = False  # the whole image beside each region: 1512.03385 appendix B
    proposals: tuple[int, int] = (2000, 1000)  # of an image, in training and at test
    sampled: int = 512  # regions of an image that are sampled for the loss
    channels: int = 3
    classes: int = 80  # without background
    size: int = 800  # of the shorter side of an image
    source: str = field(default="Lin et al. 2016, arXiv 1612.03144", compare=False)

    @property
    def depth(self) -> int:
        return self.backbone.depth


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmenterArch:
    """A class per pixel: FCN and DeepLabv3 on dilated stages, or the sum of a pyramid's levels."""

    backbone: ResNetArch
    head: Literal["fcn", "deeplabv3", "fpn"] = "fcn"
    width: int = 256  # channels of DeepLabv3's head, of the pyramid
    auxiliary: bool = True  # a second FCN on layer3 in training, at 0.4 of the loss
    channels: int = 3
    classes: int = 21  # with background, if the masks have one
    size: int = 520
    source: str = field(default="Long et al. 2014, arXiv 1411.4038", compare=False)

    @property
    def depth(self) -> int:
        return self.backbone.depth


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalizerArch:
    """The box of an object of a known class: per-class proposals, 1512.03385, appendix C."""

    backbone: ResNetArch
    anchors: tuple[float, ...] = (64, 128, 224)  # sides in pixels
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    # Proposals of a class for an R-CNN, in training and at test (the paper: 200); 0: no R-CNN.
    regions: tuple[int, int] = (0, 0)
    crop: int = 224  # side in pixels that such a region is warped to
    channels: int = 3
    classes: int = 1000
    size: int = 224
    source: str = field(default=HE2015, compare=False)

    @property
    def depth(self) -> int:
        return self.backbone.depth


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalArch:
    """A classifier of custom code, which is at hand in `make` or has to be given again.

    A file notes where it came from and never runs it.
    """

    builder: str  # my_module:function, or the class of a module
    digest: str = ""  # SHA-256 of the file that it is defined in
    channels: int = 3
    classes: int = 0
    size: int = 0
    depth: int = 0  # convolutions and linear layers
    parameters: int = 0
    macs: int = 0  # multiply-adds of one input
    source: str = field(default="", compare=False)
    make: Callable[[], Any] | None = field(default=None, compare=False, repr=False)


STRIDE = 32  # of a network's coarsest level
IGNORE_INDEX = 255  # class of a pixel to ignore
DenseTaskArch = DetectorArch | SegmenterArch | LocalizerArch
ClassifierArch = (
    ResNetArch | DenseNetArch | VggArch | GoogLeNetArch | MlpArch | VitArch | ExternalArch
)
Arch = ClassifierArch | DenseTaskArch
DENSE_TASKS: dict[type[Arch], TaskName] = {
    DetectorArch: "detect",
    LocalizerArch: "localize",
    SegmenterArch: "segment",
}
ARCH_TYPES: dict[str, type[Arch]] = {
    "resnet": ResNetArch,
    "densenet": DenseNetArch,
    "vgg": VggArch,
    "googlenet": GoogLeNetArch,
    "mlp": MlpArch,
    "vit": VitArch,
    "detector": DetectorArch,
    "segmenter": SegmenterArch,
    "localizer": LocalizerArch,
    "external": ExternalArch,
}


def task_for_arch(arch: Arch) -> TaskName:
    """What a network is for."""
    return DENSE_TASKS.get(type(arch), "classify")


def to_dict(arch: Arch) -> dict[str, Any]:
    """JSON-ready, with the kind; `from_dict` is the inverse."""
    kind = next(name for name, cls in ARCH_TYPES.items() if isinstance(arch, cls))
    return {"kind": kind, **{name: x for name, x in asdict(arch).items() if name != "make"}}


def from_dict(data: Mapping[str, Any]) -> Arch:
    """Rebuild an Arch from `to_dict`. Raises ValueError that names an unknown kind or field."""
    kind = ARCH_TYPES.get(str(data.get("kind")))
    if kind is None:
        raise ValueError(
            f"unknown kind of network {data.get('kind')!r}; known: {', '.join(ARCH_TYPES)}"
        )
    values = {key: value for key, value in rename_old_fields(data).items() if key != "kind"}
    if unknown := sorted(set(values) - {f.name for f in fields(kind) if f.name != "make"}):
        raise ValueError(f"unknown fields of a {data['kind']}: {', '.join(unknown)}")
    rebuilt: Arch = _adapter(data["kind"]).validate_python(values)
    return rebuilt


@cache
def _adapter(kind: str) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(ARCH_TYPES[kind])


def rename_old_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a network, and of its backbone, under the names of today."""
    return {
        OLD_FIELDS.get(key, key): rename_old_fields(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
    }


def with_fields(arch: Arch, values: Mapping[str, Any]) -> Arch:
    """The arch with some fields replaced; texts are converted. Raises UsageError.

    A field that a detector, localiser or segmenter does not have is one of its backbone.
    """
    if isinstance(arch, ExternalArch):
        if values:
            raise UsageError(f"arch.{min(values)}: {arch.builder} is custom: leave it out")
        return arch
    data = to_dict(arch)
    try:
        values = rename_old_fields(values)
        # A Literal of numbers takes no text.
        new = {k: int(v) if isinstance(v, str) and v.isdecimal() else v for k, v in values.items()}
        if isinstance(arch, DenseTaskArch):
            names = {f.name for f in fields(ResNetArch)} - set(data)
            trunk = {key: new.pop(key) for key in names & set(new)}
            new = {"backbone": data["backbone"] | trunk} | new
        return from_dict({**data, **new})
    except pydantic.ValidationError as error:
        raise UsageError(f"arch.{field_problem(error)[0]}") from None
    except ValueError as error:
        raise UsageError(f"arch: {error}") from None


def field_problem(error: pydantic.ValidationError) -> list[str]:
    """A message for each wrong field: "milestones.0: ... (got 'x')"."""
    return [
        f"{'.'.join(map(str, e['loc']))}: {e['msg']} (got {e['input']!r})" for e in error.errors()
    ]

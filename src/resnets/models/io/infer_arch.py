"""The network that has tensors of these names and shapes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from resnets.config.arch import (
    Arch,
    DenseNetArch,
    DenseTaskArch,
    DetectorArch,
    GoogLeNetArch,
    MlpArch,
    ResNetArch,
    SegmenterArch,
    SelectiveKernel,
    VggArch,
    VitArch,
)
from resnets.config.families import ARCHS, dilated, retina
from resnets.config.timm_family import SELECTIVE_KERNELS
from resnets.config.variants import legacy_se
from resnets.errors import CheckpointError, ResnetsError
from resnets.escape import shorten
from resnets.models import Network, build
from resnets.models.io.network_names import BLURRED, implied_fields, known_name
from resnets.models.io.tensor_names import from_foreign, move_zeros_last
from resnets.models.layers import squeezed_width

Shape = tuple[int, ...]
COUNTER = "num_batches_tracked"  # absent before PyTorch 0.4.1, and no part of what is computed


def meta_model(arch: Arch) -> Network:
    """The network with shapes and no memory (on the meta device)."""
    with torch.device("meta"):
        return build(arch)


def differences(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str:
    """Missing, unexpected and wrongly shaped tensors, in one line; "" if there are none."""
    shapes, missing = list[str](), list[str]()
    for name, tensor in expected.items():
        if name not in tensors:
            missing += [] if name.endswith(COUNTER) else [f"no {name}"]
        elif tensors[name].shape != tensor.shape:
            shapes.append(f"{name} is {(*tensors[name].shape,)}, not {(*tensor.shape,)}")
    others = [name for name in tensors if name not in expected and not name.endswith(COUNTER)]
    unexpected = [f"unexpected {shorten(name, 60)}" for name in others]
    examples = [*shapes[:2], *missing[:2], *unexpected[:2]]
    more = len(shapes) + len(missing) + len(unexpected) - len(examples)
    return "; ".join(examples) + (f"; and {more} more" if more else "")


def infer_arch(
    tensors: Mapping[str, Tensor], arch: Arch | None = None, name: str = ""
) -> tuple[Arch, dict[str, Tensor]]:
    """The network that has these tensors, and the tensors under our names, in float32.

    Known are our own names, torchvision's (its ResNets, DenseNets and ViTs; detectors on a pyramid
    and segmenters on a ResNet, and their names of 2019), timm's ResNets (`legacy_` and selective
    kernels too), and the CIFAR ResNets of akamaster/pytorch_resnet_cifar10 (`linear`, and option A
    with zeros half before and half after: channels are moved so that our zeros, all after, compute
    the same).

    Names and shapes do not show everything (`assumed_fields`). Where several networks of
    `ARCHS` have them, the one called `name` is given, else the first: the stride of a bottleneck
    on its 3x3 convolution ("v1.5"), option A and not a plain network where nothing projects, ReLU
    after the addition, ViT heads 64 wide, an output stride of 8 below FCN and DeepLabv3. What a
    name says of pools without tensors (`implied_fields`) holds for every residual network. With
    `arch` the tensors are taken for that network.

    Raises CheckpointError: no network has them (the message describes them); `arch` has not (it
    names differences); `name` is that of a network with layers without tensors, not known here.
    """
    renamed = from_foreign(tensors)
    shapes = {name: tuple(tensor.shape) for name, tensor in renamed.items()}
    legacy = any(name.startswith("layer0.") for name in tensors)  # by the authors of SENet
    for candidate in [arch] if arch else candidates(shapes, name, legacy):
        try:
            expected = meta_model(candidate).state_dict()
        except (ResnetsError, ValueError, ArithmeticError, RuntimeError):
            if arch:
                raise
            continue
        problems = differences(expected, renamed)
        if arch and problems:
            raise CheckpointError(f"the tensors are not those of the given network: {problems}")
        if not problems:
            zero = torch.zeros(())  # of the counters that a file may lack
            fitted = {name: renamed.get(name, zero).to(x.dtype) for name, x in expected.items()}
            if "linear.weight" in tensors and isinstance(candidate, ResNetArch):
                fitted = move_zeros_last(fitted, candidate)
            return candidate, fitted
    raise CheckpointError(
        f"not a known network: {describe_shapes(shapes)}.\n"
        "Give its description (`arch`), or rename its tensors as torchvision does."
    )


# What a row of the family has to share with a guess.
VISIBLE_FIELDS = (
    *("blocks", "widths", "unit", "stem", "groups", "dims", "growth", "width", "patch"),
    *("backbone", "norm", "eca", "sk", "blur", "stem_norm", "stem_pool"),
    "weight_standardised",
)


def candidates(shapes: Mapping[str, Shape], name: str = "", legacy: bool = False) -> Iterator[Arch]:
    """Networks that may have these tensors: `name`, the family, then what the shapes say.

    Raises CheckpointError where the name is of a network with layers that are not known here.
    """
    try:
        guess = guess_arch(shapes)
    except (KeyError, IndexError, ValueError, ArithmeticError):
        return
    if legacy and isinstance(guess, ResNetArch):
        guess = legacy_se(guess) if guess.groups == 1 else replace(guess, stem_pool="ceil")
    implied = implied_fields(name)
    if isinstance(guess, ResNetArch):
        guess = replace(guess, **implied)
    elif isinstance(guess, DenseTaskArch):
        guess = replace(guess, backbone=replace(guess.backbone, **implied))
    elif BLURRED.search(name):
        raise CheckpointError(
            f"{shorten(name, 60)} has blur or average pools without tensors: not known here.\n"
            "Take another network, or name the true one in a config.json beside the file: "
            '{"architecture": "NAME"}'
        )
    named = ARCHS.get(known_name(name))
    for known in sorted(ARCHS.values(), key=lambda arch: arch is not named):
        if type(known) is type(guess) and all(
            getattr(known, name, None) == getattr(guess, name, None) for name in VISIBLE_FIELDS
        ):
            same = replace(known, classes=guess.classes, channels=guess.channels)
            yield replace(same, size=guess.size) if isinstance(guess, VitArch) else same
    yield guess
    if isinstance(guess, ResNetArch):  # A and "none" have the same tensors, B and C may have
        yield replace(guess, shortcut="none" if guess.shortcut == "A" else "C")


def guess_arch(shapes: Mapping[str, Shape]) -> Arch:
    """What the shapes say of the network, by the first tensor of its kind.

    Raises KeyError, IndexError, ValueError or ArithmeticError where they are of none.
    """
    if any(name in shapes for name in ("layer1.0.conv1.weight", "layer1.0.conv1.attn.bn.weight")):
        return guess_resnet(shapes)
    if "backbone.body.layer1.0.conv1.weight" in shapes:
        return guess_detector(shapes)
    if "backbone.layer1.0.conv1.weight" in shapes:
        return guess_segmenter(shapes)
    if "features.conv0.weight" in shapes:
        return guess_densenet(shapes)
    if "features.0.weight" in shapes:
        return guess_vgg(shapes)
    if "inception3a.branch1.conv.weight" in shapes:
        channels = shapes["conv1.conv.weight"][1]
        return GoogLeNetArch(channels=channels, classes=shapes["fc.weight"][0])
    if "class_token" in shapes:
        return guess_vit(shapes)
    width, channels = shapes["first.weight"]
    return MlpArch(
        blocks=count_units(shapes, r"(units)\.(\d+)\.")[0],
        width=width,
        hidden=shapes["units.0.linear1.weight"][0],
        channels=channels,
        classes=shapes["fc.weight"][0],
    )


def guess_densenet(shapes: Mapping[str, Shape]) -> DenseNetArch:
    """A DenseNet with torchvision's names."""
    first = "features.denseblock1.denselayer1"
    growth = shapes[f"{first}.conv2.weight"][0]
    transition = shapes.get("features.transition1.conv.weight", (1, 2))
    return DenseNetArch(
        blocks=count_units(shapes, r"features\.denseblock(\d+)\.denselayer(\d+)\."),
        growth=growth,
        stem_width=shapes["features.conv0.weight"][0],
        stem="imagenet" if "features.norm0.weight" in shapes else "cifar",
        bottleneck=shapes[f"{first}.conv1.weight"][0] // growth,
        compression=transition[0] / transition[1],
        channels=shapes["features.conv0.weight"][1],
        classes=shapes["classifier.weight"][0],
        size=224 if "features.norm0.weight" in shapes else 32,
    )


def guess_vgg(shapes: Mapping[str, Shape]) -> VggArch:
    """AlexNet or a VGG; the numbers of its layers show where pools are, which have no tensors."""
    convs = {}
    for name, shape in shapes.items():
        if len(shape) == 4 and (match := re.fullmatch(r"features\.(\d{1,3})\.weight", name)):
            convs[int(match[1])] = shape
    batch_norm = "features.1.running_mean" in shapes
    widths: list[tuple[int, ...]] = []
    before = -10
    for number in sorted(convs):
        if number - before > (3 if batch_norm else 2):
            widths.append(())
        widths[-1] += (convs[number][0],)
        before = number
    first, *_, last = [s for n, s in shapes.items() if n.startswith("classifier.") and len(s) == 2]
    return VggArch(
        widths=tuple(widths),
        stem="alexnet" if convs[0][2] == 11 else "vgg",
        batch_norm=batch_norm,
        hidden=first[0],
        channels=convs[0][1],
        classes=last[0],
    )


def guess_vit(shapes: Mapping[str, Shape]) -> VitArch:
    """A transformer; the tensors do not show the number of heads, taken as 64 wide."""
    width, channels, patch, _ = shapes["patches.weight"]
    return VitArch(
        blocks=count_units(shapes, r"(blocks)\.(\d+)\.")[0],
        width=width,
        heads=max(1, width // 64),
        hidden=shapes["blocks.0.mlp.linear1.weight"][0],
        patch=patch,
        channels=channels,
        classes=shapes["fc.weight"][0],
        size=patch * math.isqrt(shapes["positions"][1] - 1),
    )


def guess_detector(shapes: Mapping[str, Shape]) -> DetectorArch:
    """RetinaNet, or Faster and Mask R-CNN on a pyramid; torchvision's second versions too."""
    trunk, channels = guess_backbone(shapes, "backbone.body.")
    width = shapes["backbone.fpn.inner_blocks.0.0.weight"][0]
    logits, box_head = "head.classification_head.cls_logits.weight", "roi_heads.box_head"
    pyramid_norm = "backbone.fpn.inner_blocks.0.1.weight" in shapes
    if logits in shapes:
        p6 = shapes["backbone.fpn.extra_blocks.p6.weight"]
        guess = retina(trunk)
        if p6[1] != width:  # as in torchvision's second version
            guess = replace(guess, p6_from="backbone", box_loss="giou")
        normed = pyramid_norm or "head.classification_head.conv.0.1.weight" in shapes
        classes = shapes[logits][0] // (shapes["head.regression_head.bbox_reg.weight"][0] // 4)
    else:
        convs = count_units(shapes, rf"({box_head})\.(\d+)\.0\.weight") or (0,)
        linear = f"{box_head}.{convs[0] + 1}.weight" if convs[0] else f"{box_head}.fc6.weight"
        guess = DetectorArch(
            backbone=trunk,
            hidden=shapes[linear][0],
            masks="roi_heads.mask_predictor.conv5_mask.weight" in shapes,
            rpn_convs=count_units(shapes, r"(rpn\.head\.conv)\.(\d+)\.0\.weight")[0],
            box_convs=convs[0],
        )
        normed = pyramid_norm
        classes = shapes["roi_heads.box_predictor.cls_score.weight"][0] - 1  # background
    statistics = "backbone.fpn.inner_blocks.0.1.running_mean" in shapes
    return replace(
        guess,
        width=width,
        norm="none" if not normed else "batch" if statistics else "group",
        pyramid_norm=pyramid_norm or not normed,
        channels=channels,
        classes=classes,
    )


def guess_segmenter(shapes: Mapping[str, Shape]) -> SegmenterArch:
    """A network for semantic segmentation, with torchvision's names or a pyramid's."""
    trunk, channels = guess_backbone(shapes, "backbone.")
    pyramid, aspp = "fpn.inner_blocks.0.0.weight", "classifier.0.project.0.weight"
    summed = pyramid in shapes
    return SegmenterArch(
        backbone=trunk if summed else dilated(trunk),
        head="fpn" if summed else "deeplabv3" if aspp in shapes else "fcn",
        width=shapes.get(pyramid, shapes.get(aspp, (256,)))[0],
        auxiliary="aux_classifier.4.weight" in shapes,
        channels=channels,
        classes=shapes["classifier.scores.weight" if summed else "classifier.4.weight"][0],
    )


def guess_backbone(shapes: Mapping[str, Shape], prefix: str) -> tuple[ResNetArch, int]:
    """The backbone of a detector or segmenter, and how many channels its images have."""
    inner = {n.removeprefix(prefix): s for n, s in shapes.items() if n.startswith(prefix)}
    backbone = guess_resnet(inner)
    return replace(backbone, channels=3), backbone.channels


def guess_resnet(shapes: Mapping[str, Shape]) -> ResNetArch:
    """A residual network with torchvision's names; a plain one has those of option A."""
    blocks = count_units(shapes, r"layer(\d+)\.(\d+)\.")
    convs = max(i for i in (1, 2, 3) if f"layer1.0.conv{i}.weight" in shapes)
    widths = tuple(shapes[f"layer{i + 1}.0.conv{convs}.weight"][0] for i in range(len(blocks)))
    inner = shapes[f"layer1.0.conv{convs}.weight"][1]
    stem, first, width = guess_stem(shapes)
    stem_norm = "bn1.weight" in shapes
    squeezed = [s for name, s in shapes.items() if name.endswith(".se.fc1.weight")]
    reduction = squeezed[-1][1] // squeezed[-1][0] if squeezed else 0
    projected = any(".downsample." in name for name in shapes)
    averaged = projected and not any(name.endswith(".downsample.0.weight") for name in shapes)
    sk = guess_kernel(shapes)
    path = f"layer1.0.conv{max(1, convs - 1)}"
    grouped = shapes[f"{path}.paths.0.conv.weight" if sk else f"{path}.weight"][1]
    grouped *= 2 if sk is not None and sk.split else 1
    norm = "group" if stem_norm and stem in ("imagenet", "cifar") else "group32"  # timm's
    norm = "batch" if any(name.endswith(".running_mean") for name in shapes) else norm
    transfer = norm == "group32" and not stem_norm and stem == "imagenet"  # BiT
    return ResNetArch(
        blocks=blocks,
        widths=widths,
        unit={1: "single", 2: "basic", 3: "bottleneck"}[convs],  # type: ignore[arg-type]
        order="pre" if "final.bn.weight" in shapes else "post",
        shortcut="B" if projected else "A",
        stem=stem,
        stem_width=width,
        stem_norm=stem_norm,
        stem_pool="zeros" if transfer else "pad",
        bottleneck_ratio=widths[0] / inner if convs == 3 else 4,
        groups=inner // grouped if convs == 3 else 1,
        downsample="avgpool" if averaged else "conv",
        norm=norm,  # type: ignore[arg-type]
        weight_standardised=transfer,
        se_reduction=reduction,
        se_multiple=8 if squeezed and squeezed[0][0] != squeezed[0][1] // reduction else 1,
        eca="layer1.0.se.conv.weight" in shapes,
        sk=sk,
        dims=len(shapes[first]) - 2,  # type: ignore[arg-type]
        channels=shapes[first][1],
        classes=shapes.get("fc.weight", (1000,))[0],  # a backbone has none
        size=32 if stem == "cifar" else 224,
    )


Stem = Literal["imagenet", "deep", "tiered", "cifar"]


def guess_stem(shapes: Mapping[str, Shape]) -> tuple[Stem, str, int]:
    """The kind of stem, the name of its first convolution, and its width."""
    if "conv1.0.weight" in shapes:
        rising = shapes["conv1.0.weight"][0] != shapes["conv1.3.weight"][0]
        return "tiered" if rising else "deep", "conv1.0.weight", shapes["conv1.6.weight"][0]
    width, _, kernel, *_ = shapes["conv1.weight"]
    return "cifar" if kernel == 3 else "imagenet", "conv1.weight", width


def guess_kernel(shapes: Mapping[str, Shape]) -> SelectiveKernel | None:
    """The selective kernel of timm's with these widths of its attentions."""
    attentions = [s for name, s in shapes.items() if name.endswith(".attn.fc_reduce.weight")]
    for sk in SELECTIVE_KERNELS if attentions else ():
        if all(w == squeezed_width(c, sk.reduction, sk.multiple) for w, c, *_ in attentions):
            return sk
    return None


def count_units(shapes: Mapping[str, Shape], pattern: str) -> tuple[int, ...]:
    """How many units each stage has. Names are counted, so a number in a name allocates nothing."""
    units: dict[str, set[str]] = {}
    for name in shapes:
        if match := re.match(pattern, name):
            units.setdefault(match[1], set()).add(match[2])
    return tuple(len(units[stage]) for stage in sorted(units, key=lambda s: (len(s), s)))


UNSUPPORTED = {  # by a layer that the others do not have
    "roi_heads.keypoint_predictor.kps_score_lowres.weight": "Keypoint R-CNN",
    "head.regression_head.bbox_ctrness.weight": "FCOS",
}


def describe_shapes(shapes: Mapping[str, Shape]) -> str:
    """For a message: how many layers, in which stages, from where to where."""
    for layer, network in UNSUPPORTED.items():
        if layer in shapes:
            return f"{network}, of {len(shapes)} tensors"
    weights = {name: shape for name, shape in shapes.items() if len(shape) > 1}
    if not weights:
        return f"{len(shapes)} tensors, no layer among them"
    stages = "-".join(str(n) for n in count_units(shapes, r"layer(\d+)\.(\d+)\."))
    ends = [f"{shorten(name, 50)} {shorten(weights[name], 30)}" for name in weights]
    return f"{len(weights)} layers, stages {stages or 'none'}, from {ends[0]} to {ends[-1]}"

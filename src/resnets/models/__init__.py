"""Networks from their description: `build(arch)`, or `create("resnet50", classes=10)`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias, overload

from torch import nn

from resnets.config.arch import (
    Arch,
    ClassifierArch,
    DenseNetArch,
    DetectorArch,
    ExternalArch,
    GoogLeNetArch,
    LocalizerArch,
    MlpArch,
    ResNetArch,
    SegmenterArch,
    VggArch,
    VitArch,
)
from resnets.config.families import get_arch as named
from resnets.errors import UsageError
from resnets.models import external
from resnets.models.densenet import DenseNet
from resnets.models.external import ExternalNetwork
from resnets.models.googlenet import GoogLeNet
from resnets.models.mlp import Mlp
from resnets.models.resnet import MakeModule, ResNet
from resnets.models.transformer import VisionTransformer
from resnets.models.vgg import Vgg

if TYPE_CHECKING:
    from resnets.models.detection.faster_rcnn import FasterRCNN
    from resnets.models.detection.retinanet import RetinaNet
    from resnets.models.localizer import Localizer
    from resnets.models.segmentation import Segmenter

# Each has `arch`, maps an input to logits (N, classes), and has `levels`, {level: (channels,
# stride)} from the finest to the coarsest, and `features(x)`, {level: map (N, channels, *S /
# stride)}. These two are all that detectors, segmenters, Grad-CAM and embeddings know of a network.
Classifier: TypeAlias = (
    ResNet | DenseNet | Vgg | GoogLeNet | Mlp | VisionTransformer | ExternalNetwork
)
CLASSIFIERS = (ResNet, DenseNet, Vgg, GoogLeNet, Mlp, VisionTransformer, ExternalNetwork)
# Each has `arch` and `loss_names`, and gives these losses for images and targets.
DenseTaskNetwork: TypeAlias = "FasterRCNN | RetinaNet | Segmenter | Localizer"
Network: TypeAlias = "Classifier | DenseTaskNetwork"


@overload
def build(arch: ClassifierArch, *, activation_checkpointing: int = 0) -> Classifier: ...
@overload
def build(arch: Arch, *, activation_checkpointing: int = 0) -> Network: ...
def build(arch: Arch, *, activation_checkpointing: int = 0) -> Network:
    """The network that the data describes, with fresh weights.

    With `activation_checkpointing`, training keeps the input of each segment of that many residual
    units and recomputes the rest in the backward pass; 0 keeps everything.

    Raises UsageError for fields that contradict each other.
    """
    match arch:
        case ResNetArch():
            return ResNet(arch, activation_checkpointing=activation_checkpointing)
        case DenseNetArch():
            return DenseNet(arch, activation_checkpointing=activation_checkpointing)
        case VggArch():
            return Vgg(arch)
        case GoogLeNetArch():
            return GoogLeNet(arch)
        case MlpArch():
            return Mlp(arch, activation_checkpointing=activation_checkpointing)
        case VitArch():
            return VisionTransformer(arch, activation_checkpointing=activation_checkpointing)
        case ExternalArch():
            return external.build(arch)
        # Here, since they need torchvision, which takes 1.7 s to import.
        case DetectorArch(architecture="retina"):
            from resnets.models.detection.retinanet import RetinaNet

            return RetinaNet(arch, activation_checkpointing=activation_checkpointing)
        case DetectorArch():
            from resnets.models.detection.faster_rcnn import FasterRCNN

            return FasterRCNN(arch, activation_checkpointing=activation_checkpointing)
        case SegmenterArch():
            from resnets.models.segmentation import Segmenter

            return Segmenter(arch, activation_checkpointing=activation_checkpointing)
        case LocalizerArch():
            from resnets.models.localizer import Localizer

            return Localizer(arch, activation_checkpointing=activation_checkpointing)


def create(
    model: str | Arch,
    *,
    classes: int | None = None,
    channels: int | None = None,
    activation_checkpointing: int = 0,
    norm_layer: Callable[[int], nn.Module] | None = None,
    act_layer: Callable[[], nn.Module] | None = None,
    shortcut: MakeModule | None = None,
    block: MakeModule | None = None,
) -> Network:
    """A network by name or description, with other numbers of classes or input channels.

    A residual network takes custom parts: `norm_layer(channels)` and `act_layer()` make its
    normalisations and activations, `shortcut(c_in, c_out, stride)` the shortcut of each unit, and
    `block(c_in, c_out, stride)` the whole unit, a module (N, c_in, H, W) ->
    (N, c_out, H / stride, W / stride).

    Raises UsageError with the nearest known names, and for parts of another kind of network.
    """
    arch = named(model) if isinstance(model, str) else model
    arch = replace(arch, classes=arch.classes if classes is None else classes)
    arch = replace(arch, channels=arch.channels if channels is None else channels)
    if not (norm_layer or act_layer or shortcut or block):
        return build(arch, activation_checkpointing=activation_checkpointing)
    if not isinstance(arch, ResNetArch):
        raise UsageError("only residual networks take norm_layer, act_layer, shortcut and block")
    return ResNet(
        arch,
        activation_checkpointing=activation_checkpointing,
        norm_layer=norm_layer,
        act_layer=act_layer or nn.ReLU,
        shortcut=shortcut,
        block=block,
    )

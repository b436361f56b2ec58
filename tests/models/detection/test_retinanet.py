"""RetinaNet: torchvision's outputs and losses, and losses that are always finite."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import (
    RetinaNet,
    retinanet_resnet50_fpn,
    retinanet_resnet50_fpn_v2,
)
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead, _default_anchorgen
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from resnets.config.families import ARCHS, TINY
from resnets.data.detection.targets import DetectionTargets, Kind
from resnets.errors import UsageError
from resnets.models import build

K = 5
SIZES = [(128, 160), (100, 150)]  # of the images inside the input, height and width


class Given(nn.Module):
    """Stands for torchvision's transform: the images are one padded tensor already."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.images = ImageList(images, SIZES)

    def forward(self, images: object, targets: object = None) -> tuple[ImageList, object]:
        return self.images, targets

    def postprocess(self, result: object, *_: object) -> object:
        return result


def resnet18(num_classes: int, **options: None) -> RetinaNet:
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18",
        weights=None,
        norm_layer=FrozenBatchNorm2d,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    return RetinaNet(backbone, num_classes)


def resnet18_v2(num_classes: int, **options: None) -> RetinaNet:
    """torchvision's `retinanet_resnet50_fpn_v2` on ResNet-18."""
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18",
        weights=None,
        norm_layer=nn.BatchNorm2d,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(512, 256),
    )
    head = RetinaNetHead(256, 9, num_classes, norm_layer=partial(nn.GroupNorm, 32))
    head.regression_head._loss_type = "giou"
    return RetinaNet(backbone, num_classes, anchor_generator=_default_anchorgen(), head=head)


NETWORKS = {
    "retinanet_resnet18_fpn": resnet18,
    "retinanet_resnet18_fpn_v2": resnet18_v2,
    "retinanet_resnet50_fpn_v2": partial(retinanet_resnet50_fpn_v2, weights_backbone=None),
    "retinanet_resnet50_fpn": partial(retinanet_resnet50_fpn, weights_backbone=None),
}


def twins(name: str, images: Tensor) -> tuple[nn.Module, nn.Module]:
    """torchvision's network on these images, and ours with its tensors."""
    torch.manual_seed(0)
    theirs = NETWORKS[name](weights=None, num_classes=K).eval()
    theirs.transform = Given(images)
    for tensor_name, tensor in theirs.state_dict().items():
        if tensor_name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor_name.endswith("running_mean"):
            tensor.normal_(0, 0.2)
        elif ".conv." in tensor_name and tensor.ndim > 1:  # else nothing is left of the input
            nn.init.kaiming_normal_(tensor)
    with torch.no_grad():
        deviation = theirs.backbone(images)["0"].std()
        for weight in theirs.backbone.fpn.layer_blocks.parameters():
            weight.div_(deviation)  # else each score is 0 or 1
    ours = build(replace(ARCHS[name], classes=K)).eval()
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return theirs, ours


@pytest.mark.parametrize(
    "name",
    [
        *("retinanet_resnet18_fpn", "retinanet_resnet18_fpn_v2"),
        pytest.param("retinanet_resnet50_fpn", marks=pytest.mark.slow),
        pytest.param("retinanet_resnet50_fpn_v2", marks=pytest.mark.slow),
    ],
)
def test_same_as_torchvision(name: str) -> None:
    images = torch.randn(2, 3, 128, 160, generator=torch.Generator().manual_seed(1))
    theirs, ours = twins(name, images)
    theirs.score_thresh = ours.score_thresh = 0.02
    with torch.no_grad():
        found = ours(images, sizes=torch.tensor(SIZES))
        expected = theirs(list(images))
    assert found.boxes.shape == (2, 300, 4)
    assert found.masks is None
    for i, other in enumerate(expected):
        many = len(other["boxes"])
        assert many > 20
        assert (found.classes[i, many:] == -1).all()
        torch.testing.assert_close(found.boxes[i, :many], other["boxes"], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.scores[i, :many], other["scores"], rtol=1e-4, atol=1e-4)
        assert torch.equal(found.classes[i, :many], other["labels"])

    per_image = [BOXES, BOXES[:1]]
    targets = [{"boxes": objects(s).boxes, "labels": objects(s).classes} for s in per_image]
    theirs.train().backbone.eval()
    losses = theirs(list(images), targets)
    own = ours(images, batch([objects(s) for s in per_image]))
    torch.testing.assert_close(own[0], losses["classification"])
    torch.testing.assert_close(own[1], losses["bbox_regression"])


BOXES = [[10.0, 20.0, 70.0, 90.0], [40.0, 5.0, 150.0, 60.0], [90.0, 70.0, 120.0, 100.0]]


def objects(boxes: list[list[float]], kind: Kind = Kind.OBJECT) -> DetectionTargets:
    """Objects (M,) of classes 0, 1, ..."""
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    kinds = torch.full((len(boxes),), kind, dtype=torch.uint8)
    return DetectionTargets(corners, torch.arange(len(boxes)) % K, kinds)


def batch(per_image: list[DetectionTargets]) -> DetectionTargets:
    return DetectionTargets.stack(per_image)


def tiny(norm: str) -> nn.Module:
    torch.manual_seed(0)
    trunk = replace(TINY, blocks=(1, 1, 1, 1), widths=(16, 16, 32, 32))
    arch = replace(ARCHS["retinanet_tiny_fpn"], backbone=trunk, width=16, classes=K, norm=norm)
    return build(arch)


TARGETS = {
    "none": [objects([]), objects([])],
    "one empty": [objects(BOXES), objects([])],
    "ignored": [objects(BOXES, kind=Kind.IGNORED)] * 2,
    "degenerate": [objects([[5.0, 5, 5, 5], [9.0, 0, 9, 30]]), objects([[0.0] * 4])],
    "crowded": [objects([[x, y, x + 9, y + 7] for y in range(0, 60, 3) for x in range(25)])] * 2,
}


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("norm", ["none", "group"])
def test_losses_are_finite(norm: str, bfloat16: bool) -> None:
    network = tiny(norm).train()
    images = torch.randn(2, 3, 64, 96).contiguous(memory_format=torch.channels_last)
    for case, per_image in TARGETS.items():
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            losses = network(images, batch(per_image))
        assert losses.shape == (len(network.loss_names) + 1,)
        assert losses.dtype == torch.float32
        assert losses.isfinite().all(), case
        losses[:-1].sum().backward()
        for parameter, p in network.named_parameters():
            assert p.grad is not None, (case, parameter)
            assert p.grad.isfinite().all(), (case, parameter)


def test_losses_of_halves() -> None:
    network = tiny("group").eval()
    images = torch.randn(4, 3, 64, 96)
    targets = batch([objects(BOXES), objects(BOXES[:1]), objects([]), objects(BOXES[1:])])
    with torch.no_grad():
        halves = [network(images[i : i + 2], targets[i : i + 2]) for i in (0, 2)]
        torch.testing.assert_close(network(images, targets), sum(halves) / 2)


def test_ignored_objects_are_no_background() -> None:
    """Anchors on an object to ignore count neither for nor against any class."""
    network = tiny("group").eval()
    images = torch.randn(1, 3, 64, 96)
    whole = [[0.0, 0.0, 96.0, 64.0]]
    with torch.no_grad():
        background = network(images, objects([])[None])[0]
        ignored = network(images, objects(whole, kind=Kind.IGNORED)[None])[0]
    assert 0 < ignored < background


def test_prior() -> None:
    """Untrained, each class has probability 0.01 everywhere: 1708.02002, section 4.1."""
    network = tiny("none")
    bias = network.head.classification_head.cls_logits.bias
    torch.testing.assert_close(bias.sigmoid(), torch.full_like(bias, 0.01))


def test_anchors() -> None:
    """torchvision's sizes, in whole pixels; and as many rows as levels."""
    arch = ARCHS["retinanet_resnet50_fpn"]
    sizes = retinanet_resnet50_fpn(weights=None, weights_backbone=None).anchor_generator.sizes
    assert arch.anchors == sizes
    assert AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5).num_anchors_per_location() == [9] * 5
    with pytest.raises(UsageError, match=r"5 levels .*p6, p7"):
        build(replace(arch, anchors=arch.anchors[:4]))

"""torchvision's detectors and segmenters are recognised, loaded and given back."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection, segmentation
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.retinanet import _default_anchorgen
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from resnets.config.arch import DetectorArch, SegmenterArch
from resnets.config.families import ARCHS, DENSE_TASK_MODELS, TINY, dilated, retina
from resnets.errors import CheckpointError
from resnets.models import build
from resnets.models.io.infer_arch import infer_arch, meta_model
from resnets.models.io.model_file import open_model
from resnets.models.io.tensor_names import to_torchvision


def taken_over(theirs: nn.Module, name: str, **fields: object) -> None:
    """Recognised as that member of the family; all tensors go over, and back."""
    state = theirs.state_dict()
    arch, tensors = infer_arch(state)
    assert arch == replace(ARCHS[name], **fields)
    assert list(tensors) == list(meta_model(arch).state_dict())
    assert all(tensors[key] is tensor for key, tensor in state.items())
    added = tensors.keys() - state.keys()
    assert all(key.endswith("num_batches_tracked") for key in added)
    theirs.load_state_dict(to_torchvision(tensors, arch), strict=True, assign=True)


def slow(name: str) -> object:
    return pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize("aux", [True, False])
@pytest.mark.parametrize("depth", ["resnet50", slow("resnet101")])
@pytest.mark.parametrize("head", ["fcn", "deeplabv3"])
def test_segmenters(head: str, depth: str, aux: bool) -> None:
    with torch.device("meta"):
        theirs = getattr(segmentation, f"{head}_{depth}")(
            weights=None, weights_backbone=None, aux_loss=aux, num_classes=7
        )
    taken_over(theirs, f"{head}_{depth}", auxiliary=aux, classes=7)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("fasterrcnn_resnet50_fpn", {"classes": 90}),  # 91 with background
        ("maskrcnn_resnet50_fpn", {"classes": 90}),
        *((f"{kind}_resnet50_fpn_v2", {"classes": 90}) for kind in ("fasterrcnn", "maskrcnn")),
        ("retinanet_resnet50_fpn_v2", {"classes": 91}),
        ("retinanet_resnet50_fpn", {"classes": 91}),  # it counts background, and never finds it
    ],
)
def test_detectors(name: str, fields: dict[str, int]) -> None:
    with torch.device("meta"):
        theirs = getattr(detection, name)(weights=None, weights_backbone=None)
    taken_over(theirs, name, **fields)


def small(kind: str, norm: type[nn.Module] = nn.BatchNorm2d) -> nn.Module:
    """One of torchvision's detectors on its ResNet-18, of 4 classes."""
    retina = kind == "RetinaNet"
    trunk = resnet_fpn_backbone(
        backbone_name="resnet18",
        weights=None,
        norm_layer=norm,
        trainable_layers=5,
        returned_layers=[2, 3, 4] if retina else [1, 2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256) if retina else None,
    )
    if retina:
        return detection.RetinaNet(trunk, 4, anchor_generator=_default_anchorgen()).eval()
    return getattr(detection, kind)(trunk, 5).eval()


SMALL = {
    "FasterRCNN": "fasterrcnn_resnet18_fpn",
    "MaskRCNN": "maskrcnn_resnet18_fpn",
    "RetinaNet": "retinanet_resnet18_fpn",
}


@pytest.mark.parametrize("kind", SMALL)
def test_fixed_statistics_have_no_counters(kind: str) -> None:
    with torch.device("meta"):
        theirs = small(kind, FrozenBatchNorm2d)
    assert not any("num_batches" in name for name in theirs.state_dict())
    taken_over(theirs, SMALL[kind], classes=4)


def of_2019(name: str) -> str:
    """The name of a tensor in the files that torchvision published in 2019."""
    name = re.sub(r"(_blocks\.\d)\.0\.", r"\1.", name)
    name = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
    name = re.sub(r"mask_head\.(\d)\.0", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}", name)
    return re.sub(r"(_head\.conv)\.(\d)\.0\.", lambda m: f"{m[1]}.{2 * int(m[2])}.", name)


OLD = {
    "FasterRCNN": {"backbone.fpn.inner_blocks.3.weight", "rpn.head.conv.bias"},
    "MaskRCNN": {"roi_heads.mask_head.mask_fcn1.weight", "roi_heads.mask_head.mask_fcn4.bias"},
    "RetinaNet": {"head.classification_head.conv.0.bias", "head.regression_head.conv.6.weight"},
}


@pytest.mark.parametrize("kind", [slow("FasterRCNN"), "MaskRCNN", "RetinaNet"])
def test_names_of_2019_in_a_file(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = small(kind)
    for tensor in theirs.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape))
    old = {of_2019(name): tensor.clone() for name, tensor in theirs.state_dict().items()}
    assert OLD[kind] <= old.keys()
    for tensor in theirs.state_dict().values():
        tensor.zero_()
    theirs.load_state_dict(old, strict=True)  # torchvision's own reading of these names
    torch.save({"model": old}, tmp_path / "old.pth")
    ours, card = open_model(tmp_path / "old.pth")
    assert card is None
    assert ours.arch == replace(ARCHS[SMALL[kind]], classes=4)
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.slow
def test_a_segmenter_from_a_file(tmp_path: Path) -> None:
    theirs = segmentation.fcn_resnet50(
        weights=None, weights_backbone=None, aux_loss=False, num_classes=3
    ).eval()
    torch.save(theirs.state_dict(), tmp_path / "fcn.pth")
    ours, _ = open_model(tmp_path / "fcn.pth")
    images = torch.randn(1, 3, 40, 40)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images), theirs(images)["out"], rtol=1e-4, atol=1e-4)


# --- Ours -----------------------------------------------------------------------------------------

OURS = [
    name
    for name, arch in DENSE_TASK_MODELS.items()
    if (isinstance(arch, DetectorArch) and arch.architecture != "c4")
    or isinstance(arch, SegmenterArch)
]


@pytest.mark.parametrize(
    "name", [name if "18" in name or "tiny" in name else slow(name) for name in OURS]
)
def test_the_family_is_recognised(name: str) -> None:
    arch = replace(ARCHS[name], classes=5, channels=1)
    found, tensors = infer_arch(meta_model(arch).state_dict())
    assert found == arch
    assert list(tensors) == list(meta_model(arch).state_dict())


def test_others_than_the_family() -> None:
    trunk = replace(TINY, widths=(8, 16, 24, 32), stem="deep", se_reduction=4)
    for arch in (
        SegmenterArch(backbone=dilated(trunk), channels=2),
        SegmenterArch(backbone=dilated(trunk), head="deeplabv3", width=24, auxiliary=False),
        SegmenterArch(backbone=trunk, head="fpn", width=24),
        DetectorArch(backbone=trunk, width=24, hidden=40, norm="group", masks=True, channels=2),
        replace(retina(trunk), width=32, norm="group", classes=3),
    ):
        assert infer_arch(meta_model(arch).state_dict())[0] == arch


def test_a_localizer_is_loaded_with_its_arch() -> None:
    network = build(ARCHS["localizer_tiny"])
    arch, tensors = infer_arch(network.state_dict(), ARCHS["localizer_tiny"])
    assert arch == network.arch
    network.load_state_dict(tensors, strict=True)


@pytest.mark.parametrize(
    "tensors",
    [
        {"backbone.body.layer1.0.conv1.weight": torch.zeros(1)},
        {"backbone.layer1.0.conv1.weight": torch.zeros(3, 3, 3, 3)},
        {"backbone.body.layer1.0.conv1.weight": torch.zeros(4, 4, 3, 3), "x": torch.zeros(2)},
    ],
)
def test_strange_tensors_are_refused(tensors: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match="not a known network"):
        infer_arch(tensors)


@pytest.mark.parametrize(
    ("name", "said"),
    [("keypointrcnn_resnet50_fpn", "Keypoint R-CNN"), ("fcos_resnet50_fpn", "FCOS")],
)
def test_detectors_that_are_not_known_are_named(name: str, said: str) -> None:
    with torch.device("meta"):
        theirs = getattr(detection, name)(weights=None, weights_backbone=None)
    with pytest.raises(CheckpointError, match=f"not a known network: {said}"):
        infer_arch(theirs.state_dict())


def test_one_tensor_of_another_shape_is_refused() -> None:
    state = meta_model(ARCHS["maskrcnn_resnet18_fpn"]).state_dict()
    state["roi_heads.box_head.fc7.weight"] = torch.zeros(7, 7)
    with pytest.raises(CheckpointError, match="not a known network"):
        infer_arch(state)
    with pytest.raises(CheckpointError, match=r"fc7\.weight is \(7, 7\), not \(1024, 1024\)"):
        infer_arch(state, ARCHS["maskrcnn_resnet18_fpn"])

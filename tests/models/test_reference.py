"""With the same tensors, the same outputs as torchvision and timm."""

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from resnets.config.arch import VggArch
from resnets.config.families import ARCHS
from resnets.models import build
from resnets.models.io.infer_arch import infer_arch, meta_model
from resnets.models.transformer import NAMES, rename_parts

FAST = ["resnet18", "resnet34", "resnet50", "resnext50_32x4d", "densenet121"]
SLOW = [
    "resnet101",
    "resnet152",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
    "densenet161",
    "densenet169",
    "densenet201",
    *("vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn"),
]
TIMM = [
    "seresnet50",
    "resnet50c",
    "resnet50d",
    "resnet18d",
    "resnet34d",
    "resnet10t",
    "resnet50_gn",
]
TIMM += ["ecaresnet26t", "skresnet18", "resnetblur18", "resnetaa34d", "legacy_seresnet18"]
TIMM += ["resnetv2_18d", "resnetv2_50x1_bit"]
SLOW_TIMM = [
    *("resnet101d", "resnet14t", "resnet26", "resnet26t", "resnet50s", "resnet50t"),
    *("resnet152d", "resnet200d", "resnext50d_32x4d", "resnext101_32x4d", "seresnet152d"),
    *("timm_seresnet18", "timm_seresnet34", "seresnext26d_32x4d", "seresnext26t_32x4d"),
    *("seresnext50_32x4d", "seresnet50t", "ecaresnet50d", "ecaresnet50t", "ecaresnetlight"),
    *("ecaresnext26t_32x4d", "ecaresnext50t_32x4d", "skresnet34", "skresnet50", "skresnet50d"),
    *("skresnext50_32x4d", "resnetblur50", "resnetblur50d", "resnetaa50", "resnetaa50d"),
    *(
        "vgg11",
        "vgg13_bn",
        "resnetv2_18",
        "resnetv2_34",
        "resnetv2_50",
        "resnetv2_50d",
        "resnetv2_50t",
    ),
    *("resnetv2_50d_gn", "resnetv2_101", "resnetv2_101x1_bit", "resnetv2_50x3_bit"),
    *("seresnetaa50d", "legacy_seresnet34", "legacy_seresnet50", "legacy_seresnext26_32x4d"),
]


OURS = {theirs: ours for ours, theirs in NAMES.items()}


def slow(names: list[str]) -> list[object]:
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


def randomised(network: nn.Module) -> nn.Module:
    """Fresh tensors for a network that was built on meta; statistics of normalisations too."""
    network = network.to_empty(device="cpu").eval()
    random = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.zero_()
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 2, generator=random)
        elif tensor.ndim > 1:
            tensor.uniform_(-1, 1, generator=random).mul_((3 / tensor[0].numel()) ** 0.5)
        else:
            tensor.uniform_(-0.2, 0.2, generator=random)
            if name.endswith("weight"):
                tensor.add_(0.5)
    return network


@torch.no_grad()
def check(theirs: nn.Module, ours: nn.Module, images: Tensor) -> None:
    """Strict loading both ways, and equal outputs."""
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    theirs.load_state_dict(ours.state_dict(), strict=True, assign=True)
    compare(theirs, ours, images)


@torch.no_grad()
def compare(theirs: nn.Module, ours: nn.Module, images: Tensor) -> None:
    expected = theirs(images)
    assert expected.isfinite().all()
    assert expected.std() > 1e-3
    torch.testing.assert_close(ours.eval()(images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [*FAST, *slow(SLOW)])
def test_torchvision(name: str) -> None:
    with torch.device("meta"):
        theirs, ours = torchvision.models.get_model(name), build(ARCHS[name])
    check(randomised(theirs), ours, torch.randn(2, 3, 64, 64))


@pytest.mark.parametrize("name", [*TIMM, *slow(SLOW_TIMM)])
def test_timm(name: str) -> None:
    """Recognised by its name and tensors, and equal outputs."""
    with torch.device("meta"):
        theirs = timm.create_model(name.removeprefix("timm_"))
    theirs = randomised(theirs)
    for module in theirs.modules():  # the kernels of blurs
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()
    arch, tensors = infer_arch(theirs.state_dict(), name=name)
    assert arch == ARCHS[name]
    ours = meta_model(arch)
    ours.load_state_dict(tensors, strict=True, assign=True)
    side = 224 if name.startswith("vgg") else 64  # timm's resizes another map than torchvision's
    compare(theirs, ours, torch.randn(2, 3, side, side))


@pytest.mark.parametrize("side", [64, 224])
def test_googlenet(side: int) -> None:
    """Without its auxiliary classifiers, which are for training alone."""
    with torch.device("meta"):
        theirs = torchvision.models.googlenet(init_weights=False, aux_logits=False)
        ours = build(ARCHS["googlenet"])
    check(randomised(theirs), ours, torch.randn(1, 3, side, side))


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_narrow_vgg(batch_norm: bool) -> None:
    """Also of another size than 224, for which the last map is resized."""
    layers = [8, "M", 16, "M", 16, 24, "M"]
    with torch.device("meta"):
        theirs = torchvision.models.VGG(torchvision.models.vgg.make_layers(layers, batch_norm))
        theirs.classifier = nn.Sequential(
            *(nn.Linear(24 * 49, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 32), nn.ReLU()),
            *(nn.Dropout(), nn.Linear(32, 7)),
        )
    arch, tensors = infer_arch(randomised(theirs).state_dict())
    widths = ((8,), (16,), (16, 24))
    assert arch == VggArch(widths=widths, batch_norm=batch_norm, hidden=32, classes=7)
    ours = build(arch)
    ours.load_state_dict(tensors, strict=True)
    compare(theirs, ours, torch.randn(2, 3, 60, 52))


def test_alexnet() -> None:
    with torch.device("meta"):
        theirs = torchvision.models.alexnet()
    theirs = randomised(theirs)
    arch, tensors = infer_arch(theirs.state_dict())
    assert arch == ARCHS["alexnet"]
    ours = meta_model(arch)
    ours.load_state_dict(tensors, strict=True, assign=True)
    compare(theirs, ours, torch.randn(1, 3, 224, 224))


def test_vision_transformer() -> None:
    with torch.device("meta"):
        theirs, ours = torchvision.models.vit_b_16(), build(ARCHS["vit_b_16"])
    theirs = randomised(theirs)
    ours.load_state_dict(rename_parts(theirs.state_dict(), OURS), strict=True, assign=True)
    theirs.load_state_dict(rename_parts(ours.state_dict(), NAMES), strict=True, assign=True)
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images), theirs(images), rtol=1e-5, atol=1e-5)


def test_names_of_the_transformer_go_both_ways() -> None:
    with torch.device("meta"):
        state = build(ARCHS["vit_s_16"]).state_dict()
    back = rename_parts(rename_parts(state, NAMES), OURS)
    assert list(back) == list(state)
    assert all(back[name] is state[name] for name in state)
    with pytest.raises(KeyError):
        rename_parts({"fc.weight": torch.empty(0)}, OURS)
    with pytest.raises(KeyError):
        rename_parts({"heads.head.weight": torch.empty(0)}, NAMES)

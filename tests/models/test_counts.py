"""Depths, parameters and multiply-adds against the papers' tables and torchvision's own counts."""

import re
from dataclasses import replace

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from resnets.config.arch import DenseNetArch, ExternalArch, ResNetArch
from resnets.config.families import ARCHS, read_counts
from resnets.errors import UsageError
from resnets.models import build
from resnets.models.cost import Cost, cost, has_narrow_input, measure

# name: (millions of parameters, millions of multiply-adds), to the digits that are known from
# elsewhere: 1512.03385 Table 1 and section 4.2, 1603.05027 appendix, the papers of later families.
PRINTED = {
    "resnet18": ("11.690", "1814"),
    "resnet34": ("21.798", "3664"),
    "resnet50": ("25.557", "4089"),
    "resnet101": ("44.549", "7801"),
    "resnet152": ("60.193", "11514"),
    "resnet50_v1": ("25.557", "3858"),
    "resnet101_v1": ("44.549", "7570"),
    "resnet152_v1": ("60.193", "11282"),
    "preresnet200": ("64.67", ""),
    "preresnet200_v1": ("64.67", "14776"),
    "resnet200_v1": ("64.67", "14776"),
    "resnet18_option_a": ("11.516", "1795"),
    "resnet18_option_c": ("12.044", ""),
    "resnet34_option_a": ("21.624", "3644"),
    "resnet34_option_c": ("22.717", "3831"),
    "resnet50_v1_option_c": ("40.13", "6324"),
    "resnet20": ("0.2697", "40.55"),
    "resnet32": ("0.4642", "68.86"),
    "resnet44": ("0.6586", "97.17"),
    "resnet56": ("0.8530", "125.49"),
    "resnet110": ("1.728", "252.9"),
    "resnet1202": ("19.42", "2829"),
    "resnet164": ("1.704", "244.5"),
    "preresnet164": ("1.703", "244.5"),
    "preresnet1001": ("10.33", "1487.8"),
    "resnext50_32x4d": ("25.03", "4230"),
    "resnext29_8x64d": ("34.4", ""),
    "seresnet50": ("28.09", ""),
    "wrn_28_10": ("36.48", "5243"),
    "wrn_16_8": ("11.0", ""),
    "wrn_40_4": ("8.9", ""),
    "alexnet": ("61.101", ""),
    "vgg16": ("138.358", ""),
    "vgg19": ("143.667", ""),
    "googlenet": ("6.625", ""),
    "resnetv2_50x1_bit": ("25.55", ""),
    "densenet_bc100_12": ("0.769", "288"),
    "densenet_bc250_24": ("15.3", ""),
    "densenet_bc190_40": ("25.6", ""),
}

TORCHVISION = {
    "resnet18": torchvision.models.ResNet18_Weights.IMAGENET1K_V1,
    "resnet34": torchvision.models.ResNet34_Weights.IMAGENET1K_V1,
    "resnet50": torchvision.models.ResNet50_Weights.IMAGENET1K_V1,
    "resnet101": torchvision.models.ResNet101_Weights.IMAGENET1K_V1,
    "resnet152": torchvision.models.ResNet152_Weights.IMAGENET1K_V1,
    "resnext50_32x4d": torchvision.models.ResNeXt50_32X4D_Weights.IMAGENET1K_V1,
    "resnext101_32x8d": torchvision.models.ResNeXt101_32X8D_Weights.IMAGENET1K_V1,
    "resnext101_64x4d": torchvision.models.ResNeXt101_64X4D_Weights.IMAGENET1K_V1,
    "wide_resnet50_2": torchvision.models.Wide_ResNet50_2_Weights.IMAGENET1K_V1,
    "wide_resnet101_2": torchvision.models.Wide_ResNet101_2_Weights.IMAGENET1K_V1,
    "densenet121": torchvision.models.DenseNet121_Weights.IMAGENET1K_V1,
    "densenet161": torchvision.models.DenseNet161_Weights.IMAGENET1K_V1,
    "densenet169": torchvision.models.DenseNet169_Weights.IMAGENET1K_V1,
    "densenet201": torchvision.models.DenseNet201_Weights.IMAGENET1K_V1,
    "vit_b_16": torchvision.models.ViT_B_16_Weights.IMAGENET1K_V1,
}


class Costs(dict[str, Cost]):
    """The cost of each network by name, counted when it is first asked for."""

    def __missing__(self, name: str) -> Cost:
        self[name] = cost(ARCHS[name])
        return self[name]


@pytest.fixture(scope="module")
def costs() -> dict[str, Cost]:
    return Costs()


UNNUMBERED = ("vit_", "mlp_", "alexnet", "googlenet", "ecaresnetlight")
NUMBERED = [n for n in ARCHS if not n.startswith(UNNUMBERED) and "tiny" not in n]


@pytest.mark.parametrize("name", NUMBERED)
def test_the_first_number_of_a_name_is_its_depth(name: str) -> None:
    assert int(re.search(r"(?<!v)\d+", name)[0]) == ARCHS[name].depth


def test_the_kept_counts_are_of_all_networks(costs: dict[str, Cost]) -> None:
    counts = read_counts()
    assert counts.keys() == ARCHS.keys()
    for name in PRINTED:
        assert counts[name] == (costs[name].parameters, costs[name].macs), name


@pytest.mark.slow
def test_the_kept_counts_are_what_is_counted(costs: dict[str, Cost]) -> None:
    counted = {name: (costs[name].parameters, costs[name].macs) for name in ARCHS}
    assert read_counts() == counted, "run benchmarks/network_counts.py"


@pytest.mark.parametrize("name", PRINTED)
def test_counts_are_the_printed_ones(name: str, costs: dict[str, Cost]) -> None:
    for count, printed in zip(
        (costs[name].parameters, costs[name].macs), PRINTED[name], strict=True
    ):
        digits = len(printed.partition(".")[2])
        assert printed in ("", f"{count / 1e6:.{digits}f}")


@pytest.mark.parametrize("name", TORCHVISION)
def test_counts_are_torchvisions(name: str, costs: dict[str, Cost]) -> None:
    meta = TORCHVISION[name].meta
    assert costs[name].parameters == meta["num_params"]
    assert round(costs[name].macs / 1e9, 3) == pytest.approx(meta["_ops"], abs=0.0011)


@pytest.mark.parametrize(
    ("name", "exact"),
    [
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
        ("wrn_28_10", 36_479_194),
        ("vit_b_16", 86_567_656),
    ],
)
def test_exact_parameters(name: str, exact: int, costs: dict[str, Cost]) -> None:
    assert costs[name].parameters == exact


def test_the_count_is_of_the_tensors_that_are_built(costs: dict[str, Cost]) -> None:
    for name in ("resnet20", "densenet_bc100_12", "mlp_resnet", "preresnet110"):
        network = build(ARCHS[name])
        assert costs[name].parameters == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(("name", "millions"), [("preresnet164", 1.68), ("preresnet1001", 10.18)])
def test_parameters_without_normalisation(name: str, millions: float) -> None:
    with torch.device("meta"):
        network = build(ARCHS[name])
    weights = [p for n, p in network.named_parameters() if p.ndim > 1 or n.startswith("fc.")]
    assert round(sum(p.numel() for p in weights) / 1e6, 2) == millions


@pytest.mark.parametrize("depth", [18, 34])
def test_a_plain_net_costs_what_its_option_a_twin_costs(depth: int, costs: dict[str, Cost]) -> None:
    assert costs[f"plain{depth}"] == costs[f"resnet{depth}_option_a"]


@pytest.mark.parametrize("n", [3, 5, 7, 9, 18])
def test_order_and_shortcut_cost_nothing_on_cifar(n: int, costs: dict[str, Cost]) -> None:
    depth = 6 * n + 2
    assert costs[f"plain{depth}"] == costs[f"resnet{depth}"] == costs[f"preresnet{depth}"]


def test_option_b_adds_three_projections_and_c_thirteen_more(costs: dict[str, Cost]) -> None:
    def projection(c_in: int, c_out: int) -> int:
        return c_in * c_out + 2 * c_out  # a 1x1 convolution and gamma, beta

    a, b, c = (costs[f"resnet34{o}"].parameters for o in ("_option_a", "", "_option_c"))
    growing = [projection(64, 128), projection(128, 256), projection(256, 512)]
    equal = 3 * [projection(64, 64)] + 3 * [projection(128, 128)]
    equal += 5 * [projection(256, 256)] + 2 * [projection(512, 512)]
    assert len(equal) == 13
    assert b - a == sum(growing)
    assert c - b == sum(equal)


def test_stride_on_the_3x3_costs_the_same_at_every_depth(costs: dict[str, Cost]) -> None:
    for depth in (50, 101, 152, 200):
        extra = costs[f"resnet{depth}"].macs - costs[f"resnet{depth}_v1"].macs
        assert round(extra / 1e9, 3) == 0.231


def test_a_gate_is_a_1x1_convolution_with_bias_on_every_unit(costs: dict[str, Cost]) -> None:
    gates = 18 * (16 * 17 + 32 * 33 + 64 * 65) - (16 * 32 + 32 * 64)  # two take half the channels
    for case in ("exclusive_gate_-6", "shortcut_gate_0"):
        extra = costs[f"resnet110_{case}"].parameters - costs["resnet110"].parameters
        assert extra == gates


def test_both_terms_of_an_exclusive_gate_share_one_gate(costs: dict[str, Cost]) -> None:
    one = costs["resnet110_shortcut_gate_0"].macs
    assert costs["resnet110_exclusive_gate_-6"].macs == one


def test_every_family_entry_has_a_source() -> None:
    assert all(arch.source for arch in ARCHS.values())
    assert sum(isinstance(a, ResNetArch | DenseNetArch) for a in ARCHS.values()) > 100


@pytest.mark.parametrize(
    ("name", "size", "narrow"),
    [
        ("resnet18", 16, True),  # 8, 4, 2, 1: the last stage halves a map of one pixel
        ("resnet18", 32, False),
        ("resnet20", 8, False),  # 8, 4, 2
        ("resnet20", 2, True),
        ("densenet121", 32, False),  # it halves by pooling
        ("resnet50", 16, True),
        ("fasterrcnn_tiny_fpn", 64, False),
    ],
)
def test_a_convolution_whose_stride_is_wider_than_its_input_is_found(name, size, narrow):
    assert has_narrow_input(replace(ARCHS[name], size=size)) is narrow


def test_inputs_that_shrink_to_nothing_are_refused():
    with pytest.raises(UsageError, match=r"(?s)cannot take inputs of 16 pixels: .*larger --size"):
        cost(replace(ARCHS["densenet121"], size=16))


class Strided(nn.Module):
    """Calls a convolution by keywords, with numbers for pairs."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(5, 3, 3, 3))

    def forward(self, x):
        return F.conv2d(x, weight=self.weight, stride=2, padding=1).mean((2, 3))


def test_convolutions_are_counted_however_they_are_called():
    arch = measure(ExternalArch(builder="mine:build", size=4, classes=5, make=Strided))
    assert arch.macs == 2 * 2 * 5 * 27
    assert not has_narrow_input(arch)
    assert has_narrow_input(replace(arch, size=1))
    blurred = replace(ARCHS["resnet18"], blur=True, size=32)
    assert not has_narrow_input(blurred)

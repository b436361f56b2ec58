"""Every entry of the family runs, and says the truth about its levels."""

import math
from dataclasses import replace

import pytest
import torch

from resnets import models
from resnets.config.arch import Join, MlpArch, ResNetArch, VitArch
from resnets.config.families import ARCHS, DENSE_TASK_MODELS
from resnets.errors import UsageError
from resnets.models.cost import input_shape
from resnets.models.heads import classify, head_parameters

TINY = ResNetArch(
    blocks=(1, 2),
    widths=(8, 16),
    shortcut="A",
    stem="cifar",
    stem_width=8,
    bottleneck_ratio=2,
    classes=5,
    size=8,
)


@pytest.mark.parametrize("name", sorted(ARCHS.keys() - DENSE_TASK_MODELS))
def test_logits_and_levels(name: str) -> None:
    arch = ARCHS[name]
    if isinstance(arch, ResNetArch):  # the levels of long stages are those of short ones
        arch = replace(arch, blocks=tuple(min(n, 2) for n in arch.blocks))
    with torch.device("meta"), torch.no_grad():
        network = models.build(arch).eval()
        images = torch.empty(input_shape(arch, batch=2))
        maps = network.features(images)
        assert network(images).shape == (2, arch.classes)
    assert list(maps) == list(network.levels)
    for level, (channels, stride) in network.levels.items():
        sides = images.shape[2:]
        less = name == "alexnet"  # its first layers have narrow borders
        expected = [math.ceil(s / stride) - less for s in sides]
        assert maps[level].shape == (2, channels, *expected), level


def test_odd_sizes_and_other_channels_and_classes() -> None:
    network = models.create("resnet18", channels=5, classes=3).eval()
    images = torch.randn(1, 5, 33, 47)
    with torch.no_grad():
        assert network(images).shape == (1, 3)
        for level, map_ in network.features(images).items():
            stride = network.levels[level][1]
            assert map_.shape[2:] == (math.ceil(33 / stride), math.ceil(47 / stride))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("stem", ["imagenet", "deep", "cifar"])
@pytest.mark.parametrize("blur", [False, True])
def test_signals_images_and_volumes(dims: int, stem: str, blur: bool) -> None:
    arch = replace(TINY, dims=dims, stem=stem, channels=2, blur=blur, shortcut="B")
    assert models.build(arch)(torch.randn(2, 2, *(9,) * dims)).shape == (2, 5)


@pytest.mark.parametrize(
    "order", ["post", "bn_after_add", "relu_before_add", "relu_only_pre", "pre"]
)
@pytest.mark.parametrize("unit", ["single", "basic", "bottleneck"])
@pytest.mark.parametrize("shortcut", ["A", "B", "C", "none"])
def test_every_unit_in_every_order_learns(order: str, unit: str, shortcut: str) -> None:
    arch = replace(
        TINY, order=order, unit=unit, shortcut=shortcut, se_reduction=4, drop_path=0.1, dropout=0.1
    )
    network = models.build(arch)
    network(torch.randn(2, 3, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("order", ["relu_only_pre", "pre"])
def test_exclusive_gates_need_an_f(order: str) -> None:
    with pytest.raises(UsageError, match="exclusive gates"):
        models.build(replace(TINY, order=order, join=Join(kind="exclusive_gate")))


def test_fields_that_contradict_each_other() -> None:
    with pytest.raises(UsageError, match="widths shrink"):
        models.build(replace(TINY, widths=(16, 8)))
    with pytest.raises(UsageError, match="no normalisation"):
        models.build(replace(TINY, unit="single", order="pre", zero_gamma=True))
    with pytest.raises(UsageError, match="size divisible by patch"):
        models.build(VitArch(blocks=1, width=8, heads=3, hidden=8))


def test_a_transformer_names_the_size_that_it_takes() -> None:
    network = models.build(VitArch(blocks=1, width=8, heads=2, hidden=8, patch=4, size=8))
    with pytest.raises(UsageError, match="takes 8 x 8 pixels, not 16 x 12"):
        network(torch.randn(1, 3, 16, 12))


def test_create_takes_a_name_or_a_description() -> None:
    assert models.create("mlp_resnet", channels=3, classes=2)(torch.randn(4, 3)).shape == (4, 2)
    assert models.create(MlpArch(blocks=1)).arch == MlpArch(blocks=1)
    with pytest.raises(UsageError, match="did you mean resnet"):
        models.create("resnet19")


@pytest.mark.parametrize(
    ("name", "last"),
    [("vgg11_bn", "classifier.6"), ("alexnet", "classifier.6"), ("googlenet", "fc")],
)
def test_the_last_layer_alone_depends_on_the_classes(name: str, last: str) -> None:
    with torch.device("meta"):
        network, other = models.create(name, classes=3), models.create(name, classes=5)
    pairs = zip(network.named_parameters(), other.parameters(), strict=True)
    differing = {key for (key, p), q in pairs if p.shape != q.shape}
    assert differing == head_parameters(network) == {f"{last}.weight", f"{last}.bias"}
    image = torch.empty(1, 3, 64, 64, device="meta")
    assert classify(network, network.features(image)[list(network.levels)[-1]]).shape == (1, 3)

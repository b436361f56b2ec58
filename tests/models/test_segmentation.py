"""Dilated stages, FCN, DeepLabv3 and the summed pyramid: torchvision's numbers, and by hand."""

from dataclasses import replace

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from resnets.config.arch import ResNetArch, SegmenterArch
from resnets.config.families import ARCHS, TINY, dilated
from resnets.errors import UsageError
from resnets.models import build
from resnets.models.segmentation import AUX_WEIGHT, Segmenter, upsample_like

NARROW = replace(TINY, blocks=(1, 1, 1, 1), widths=(8, 16, 24, 32), stem_width=8)
SMALL = SegmenterArch(backbone=dilated(NARROW), width=16, classes=3)


def randomised(network: nn.Module) -> nn.Module:
    """Random weights, and statistics of normalisations that are not those of a new one."""
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif name.endswith(("running_mean", "bias")):
            tensor.normal_(0, 0.1)
    return network.eval()


def segmenter(head: str, auxiliary: bool = True) -> Segmenter:
    torch.manual_seed(0)
    network = build(replace(SMALL, head=head, auxiliary=auxiliary))
    assert isinstance(network, Segmenter)
    return network


# --- Dilated stages -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stride", "replaced"), [(8, [False, True, True]), (16, [False, False, True])]
)
def test_a_dilated_resnet_is_torchvisions(stride: int, replaced: list[bool]) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.resnet50(replace_stride_with_dilation=replaced)
    randomised(theirs)
    with torch.device("meta"):
        ours = build(dilated(ARCHS["resnet50"], stride)).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    getter = torchvision.models._utils.IntermediateLayerGetter
    stages = {f"layer{i}": f"layer{i}" for i in (1, 2, 3, 4)}
    x = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        maps, expected = ours.features(x), getter(theirs, stages)(x)
        for name in stages:
            torch.testing.assert_close(maps[name], expected[name], rtol=1e-4, atol=1e-4)
            level = ours.levels[name][1]
            assert maps[name].shape[2:] == (-(-65 // level), -(-97 // level))
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)
    assert [s for _, s in ours.levels.values()] == [2, 4, 8, min(16, stride), min(32, stride)]


SHORT = ResNetArch(blocks=(1, 2, 2, 2), widths=(8, 16, 24, 32), stem_width=8, classes=4)


@pytest.mark.parametrize(
    "arch",
    [
        SHORT,
        replace(SHORT, unit="single"),
        replace(SHORT, unit="bottleneck"),
        replace(SHORT, unit="bottleneck", stride_on="1x1"),
        replace(SHORT, shortcut="A"),
        replace(SHORT, shortcut="none"),
        replace(SHORT, order="pre"),
        replace(SHORT, order="bn_after_add", stem="cifar"),
        replace(SHORT, dims=1),
        replace(SHORT, dims=3),
    ],
    ids=lambda arch: f"{arch.unit}-{arch.stride_on}-{arch.shortcut}-{arch.order}-{arch.dims}d",
)
@pytest.mark.parametrize("stride", [8, 16])
def test_dilation_gives_the_strided_maps_at_their_positions(arch: ResNetArch, stride: int) -> None:
    torch.manual_seed(0)
    strided, dense = build(arch), build(dilated(arch, stride))
    dense.load_state_dict(randomised(strided).state_dict(), strict=True)
    x = torch.randn(1, 3, *(33, 40, 16)[: arch.dims])
    with torch.no_grad():
        few, many = strided.features(x), dense.eval().features(x)
    for name, (channels, coarse) in strided.levels.items():
        fine = dense.levels[name][1]
        assert dense.levels[name] == (channels, min(coarse, stride))
        taken = many[name][(..., *[slice(None, None, coarse // fine)] * arch.dims)]
        torch.testing.assert_close(taken, few[name], rtol=1e-4, atol=1e-4)


def test_only_the_stages_beyond_the_stride_are_dilated() -> None:
    def rates(arch: ResNetArch) -> set[int]:
        with torch.device("meta"):
            modules = build(arch).modules()
        return {m.dilation[0] for m in modules if isinstance(m, nn.Conv2d)}

    shallow = replace(SHORT, blocks=(1, 1), widths=(8, 16))
    assert rates(SHORT) == rates(dilated(shallow)) == {1}
    assert rates(dilated(SHORT, 16)) == {1, 2}
    assert rates(dilated(SHORT)) == {1, 2, 4}
    deep = replace(SHORT, blocks=(1,) * 5, widths=(8, 8, 8, 8, 16))
    assert build(deep).levels["layer5"][1] == 64  # 32 is no limit, but the default


@pytest.mark.parametrize("field", [{"blur": True}, {"downsample": "avgpool"}])
def test_no_dilation_where_no_convolution_takes_the_pixels(field: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="output_stride 8: no dilation is defined"):
        build(replace(SHORT, output_stride=8, **field))


# --- Outputs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_resnet50"])
def test_the_logits_are_torchvisions(name: str) -> None:
    torch.manual_seed(0)
    make = getattr(torchvision.models.segmentation, name)
    theirs = randomised(make(weights=None, weights_backbone=None, aux_loss=True))
    with torch.device("meta"):
        ours = build(ARCHS[name])
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    images = torch.randn(2, 3, 49, 81)
    with torch.no_grad():
        expected = theirs(images)
        logits = ours.eval()(images)
        aux = upsample_like(ours.aux_classifier(ours.features(images)["layer3"]), images)
    assert expected["out"].std() > 0.01
    assert logits.shape == (2, 21, 49, 81)
    torch.testing.assert_close(logits, expected["out"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(aux, expected["aux"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", ["fcn", "deeplabv3", "fpn"])
@pytest.mark.parametrize("size", [(64, 96), (33, 50)])
def test_any_size_and_number_of_channels(head: str, size: tuple[int, int]) -> None:
    network = build(replace(SMALL, head=head, channels=2, backbone=NARROW)).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 2, *size)).shape == (1, 3, *size)


def test_a_pyramid_is_summed_at_a_quarter_of_the_size() -> None:
    network = segmenter("fpn", auxiliary=False).eval()
    seen: dict[str, Tensor] = {}
    network.classifier.scores.register_forward_hook(
        lambda module, inputs, output: seen.update(summed=inputs[0], logits=output)
    )
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = network.features(images)
        levels = list(network.fpn({n: m for n, m in maps.items() if n != "stem"}).values())
        total = network.classifier.levels[0][0](levels[0])
        for i in (1, 2, 3):
            x = levels[i]
            for step, finer in zip(network.classifier.levels[i], levels[i - 1 :: -1], strict=False):
                x = F.interpolate(step(x), finer.shape[2:], mode="bilinear")
            total = total + x
        out = network(images)
    assert seen["summed"].shape == (1, 8, 16, 16)
    torch.testing.assert_close(seen["summed"], total)
    torch.testing.assert_close(out, F.interpolate(seen["logits"], scale_factor=4, mode="bilinear"))


# --- Losses ---------------------------------------------------------------------------------------


@pytest.fixture
def images_and_masks() -> tuple[Tensor, Tensor]:
    """Four images: all pixels known, half of them, one, none."""
    torch.manual_seed(1)
    masks = torch.randint(0, 3, (4, 32, 40), dtype=torch.uint8)
    masks[1, :16] = 255
    masks[2].fill_(255)[5, 7] = 2
    masks[3] = 255
    return torch.randn(4, 3, 32, 40), masks


@pytest.mark.parametrize("head", ["fcn", "deeplabv3", "fpn"])
def test_losses_by_hand(head: str, images_and_masks: tuple[Tensor, Tensor]) -> None:
    images, masks = images_and_masks
    network = segmenter(head).eval()  # without dropout
    with torch.no_grad():
        found = network(images, masks)
        logits = network(images)
        aux = upsample_like(network.aux_classifier(network.features(images)["layer3"]), images)

    def mean(of: Tensor) -> float:
        parts = []
        for i in range(4):
            lost = [
                -of[i, :, y, x].log_softmax(0)[masks[i, y, x].item()].item()
                for y, x in (masks[i] != 255).nonzero().tolist()
            ]
            parts.append(sum(lost) / max(1, len(lost)))
        return sum(parts) / 4

    known = masks != 255
    wrong = [(logits[i].argmax(0) != masks[i])[known[i]].float().mean().item() for i in range(3)]
    expected = torch.tensor([mean(logits), AUX_WEIGHT * mean(aux), sum(wrong) / 4])
    assert network.loss_names == ("pixels", "auxiliary")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_batch_in_parts_has_the_same_mean(images_and_masks: tuple[Tensor, Tensor]) -> None:
    images, masks = images_and_masks
    network = segmenter("fcn").eval()
    with torch.no_grad():
        whole = network(images, masks)
        parts = [network(images[i : i + 2], masks[i : i + 2]) for i in (0, 2)]
    torch.testing.assert_close(whole, torch.stack(parts).mean(0))


@pytest.mark.parametrize("head", ["fcn", "deeplabv3", "fpn"])
def test_images_without_any_pixel_that_counts(head: str) -> None:
    network = segmenter(head)
    losses = network(torch.randn(2, 3, 32, 32), torch.full((2, 32, 32), 255, dtype=torch.uint8))
    assert losses.tolist() == [0, 0, 0]
    losses[:-1].sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


def test_every_weight_learns_and_losses_are_float32_under_autocast(
    images_and_masks: tuple[Tensor, Tensor],
) -> None:
    for head in ("fcn", "deeplabv3", "fpn"):
        network = segmenter(head)
        with torch.autocast("cpu", torch.bfloat16):
            losses = network(*images_and_masks)
        assert losses.dtype == torch.float32
        losses[:-1].sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_the_mean_of_one_image_has_no_batch_statistics() -> None:
    batch = replace(SMALL, head="deeplabv3", backbone=replace(SMALL.backbone, norm="batch"))
    images, masks = torch.randn(1, 3, 32, 32), torch.zeros(1, 32, 32, dtype=torch.uint8)
    with pytest.raises(UsageError, match="at least two images"):
        build(batch)(images, masks)
    assert build(batch).eval()(images).isfinite().all()
    groups = replace(SMALL.backbone, norm="group")
    few = build(replace(SMALL, head="deeplabv3", backbone=groups))
    assert few(images, masks).isfinite().all()


def test_a_small_mask_is_learnt() -> None:
    torch.manual_seed(0)
    masks = torch.zeros(2, 64, 64, dtype=torch.uint8)
    masks[0, 10:40, 5:30], masks[0, 30:60, 40:60], masks[1, :20], masks[1, 50:] = 1, 2, 3, 255
    images = 0.3 * torch.randn(2, 3, 64, 64) + 0.5 * masks[:, None]
    network = build(replace(ARCHS["semanticfpn_tiny"], classes=4))
    optimiser = torch.optim.AdamW(network.parameters(), 2e-3)
    for _ in range(40):
        losses = network(images, masks)
        optimiser.zero_grad()
        losses[:-1].sum().backward()
        optimiser.step()
    said, known = network.eval()(images).argmax(1), masks != 255
    ious = [
        ((said == c) & (masks == c)).sum() / (((said == c) | (masks == c)) & known).sum()
        for c in range(4)
    ]
    assert sum(ious) / 4 > 0.9

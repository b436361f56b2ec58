"""Heat maps: against captum on the same network, by hand, and whether they can be trusted."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from captum.attr import LayerGradCam, Occlusion
from torch.nn import functional as F

from resnets.analysis.cam import (
    check_randomization,
    grad_cam,
    normalize_heatmap,
    occlusion,
    overlay,
)
from resnets.config.arch import MlpArch, VitArch
from resnets.config.families import get_arch
from resnets.errors import UsageError
from resnets.models import build

SMALL = replace(get_arch("resnet20"), blocks=(1, 1, 1), widths=(4, 8, 16), stem_width=4, classes=5)
SIDES = {1: (40,), 2: (20, 28), 3: (12, 10, 14)}


def made(description, seed=0):
    """A network whose normalisations do something, as after training."""
    torch.manual_seed(seed)
    network = build(description)
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(std=0.1), module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5), module.bias.data.normal_(std=0.3)
    return network.eval()


def images(dims, count=3):
    torch.manual_seed(1)
    return torch.randn(count, 3, *SIDES[dims]), torch.tensor([4, 0, 2])[:count]


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("level", ["layer1", "layer2", "layer3"])
def test_grad_cam_is_captums(dims, level):
    network, (x, targets) = made(replace(SMALL, dims=dims)), images(dims)
    # The last level's map is what the classifier sees, after the final activation (here none).
    reference = LayerGradCam(network, getattr(network, level)).attribute(
        x, targets, relu_attributions=True
    )
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[dims]
    expected = F.interpolate(reference, x.shape[2:], mode=mode)[:, 0].detach()
    most = expected.flatten(1).amax(1).view(-1, *(1,) * dims)
    assert most.any()
    expected = expected / most.where(most > 0, 1)  # an image may have nothing for its class
    torch.testing.assert_close(grad_cam(network, x, targets, level=level), expected)


def test_at_the_last_level_the_weights_are_the_classifiers():
    """The gradient of a mean is 1 / pixels everywhere: CAM of Zhou et al. 2016."""
    dense = replace(get_arch("densenet_bc100_12"), blocks=(2, 2, 2), classes=5)
    for description in (SMALL, replace(SMALL, order="pre"), dense):
        network, (x, targets) = made(description), images(2)
        last = list(network.levels)[-1]
        maps = network.features(x)[last].detach()
        head = network.classifier if hasattr(network, "classifier") else network.fc
        heat = torch.einsum("nchw,nc->nhw", maps, head.weight.detach()[targets]).relu()
        expected = normalize_heatmap(
            F.interpolate(heat[:, None], x.shape[2:], mode="bilinear")[:, 0]
        )
        torch.testing.assert_close(grad_cam(network, x, targets), expected)


def test_an_image_is_explained_alone_and_nothing_is_left_behind():
    network, (x, targets) = made(SMALL), images(2)
    network.requires_grad_(False)  # as a frozen network comes
    together = grad_cam(network, x, targets, level="stem")
    alone = [grad_cam(network, x[k : k + 1], targets[k : k + 1], level="stem") for k in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))
    assert together.amax((1, 2)).tolist() == [1, 1, 1]
    assert not together.requires_grad
    assert not x.requires_grad
    with torch.no_grad():
        assert torch.equal(grad_cam(network, x, targets, level="stem"), together)


def test_a_transformers_patches_are_weighted_where_they_still_count():
    vit = VitArch(
        size=16, patch=4, blocks=2, width=8, heads=2, hidden=16, classes=5, channels=3, dropout=0.0
    )
    torch.manual_seed(0)
    network = build(vit).eval()
    torch.nn.init.normal_(network.fc.weight)
    x, targets = torch.randn(2, 3, 16, 16), torch.tensor([1, 3])
    patches = network.patches(x).flatten(2).mT
    tokens = torch.cat([network.class_token.expand(2, -1, -1), patches], 1) + network.positions
    tokens = network.blocks[0](tokens).detach().requires_grad_()
    logits = network.fc(network.norm(network.blocks[1](tokens))[:, 0])
    (gradient,) = torch.autograd.grad(logits[0, 1] + logits[1, 3], tokens)
    weights = gradient[:, 1:].mean(1)  # (N, width)
    heat = torch.einsum("npd,nd->np", tokens[:, 1:], weights).relu().reshape(2, 1, 4, 4).detach()
    expected = normalize_heatmap(F.interpolate(heat, (16, 16), mode="bilinear")[:, 0])
    assert expected.any()
    torch.testing.assert_close(grad_cam(network, x, targets), expected)


@pytest.mark.parametrize(
    ("dims", "window", "stride"), [(1, 7, 3), (2, 6, 4), (2, 5, 5), (3, 5, 4), (2, 0, 0)]
)
def test_occlusion_is_captums(dims, window, stride):
    network, (x, targets) = made(replace(SMALL, dims=dims)), images(dims, 2)
    w, s = window or 5, stride or 2  # a quarter of 20, and half of that
    reference = Occlusion(lambda x: network(x).softmax(1)).attribute(
        x,
        sliding_window_shapes=(3, *(w,) * dims),
        strides=(3, *(s,) * dims),
        target=targets,
        perturbations_per_eval=64,
    )
    heat = occlusion(network, x, targets, window=window, stride=stride)
    torch.testing.assert_close(heat, reference[:, 0].float(), rtol=1e-4, atol=1e-6)


def test_what_cannot_be_drawn_is_refused():
    network, (x, targets) = made(SMALL), images(2)
    with pytest.raises(UsageError, match="'layer9': did you mean layer"):
        grad_cam(network, x, targets, level="layer9")
    table = build(MlpArch(channels=4, width=8, hidden=8, blocks=1, classes=3, dropout=0.0)).eval()
    with pytest.raises(UsageError, match="no feature maps"):
        grad_cam(table, torch.randn(2, 4), torch.tensor([0, 1]))


def test_a_map_without_heat_is_empty_and_not_nan():
    assert normalize_heatmap(torch.tensor([[-1.0, 0], [-2, -3]])[None]).tolist() == [
        [[0, 0], [0, 0]]
    ]
    assert normalize_heatmap(torch.tensor([[-1.0, 2], [1, 4]])[None]).tolist() == [
        [[0, 0.5], [0.25, 1]]
    ]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_picture_is_grey_where_nothing_is_hot(channels):
    image = torch.full((channels, 8, 16), 102, dtype=torch.uint8)
    heat = torch.zeros(8, 16)
    heat[:, 12:] = 1
    picture = overlay(image, heat, side=80)
    assert (picture.mode, picture.size) == ("RGB", (160, 80))
    assert picture.getpixel((5, 40)) == (102, 102, 102)
    red, green, blue = picture.getpixel((155, 40))  # the hot end of "inferno" is a light yellow
    assert red > 200
    assert green > 200
    assert 100 < blue < red


def trained():
    """A network that finds which quarter holds a bright square, in a few steps."""
    torch.manual_seed(0)
    network = build(replace(SMALL, classes=4))
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        x, y = squares(32, generator)
        loss = F.cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    return network.eval(), squares(8, generator)


def squares(count, generator):
    """Noise with a square whose colours, not its place, are the class."""
    x = 0.3 * torch.randn(count, 3, 16, 16, generator=generator)
    y = torch.randint(4, (count,), generator=generator)
    tops, lefts = torch.randint(0, 11, (2, count), generator=generator)
    colours = torch.tensor([[2.0, -2, -2], [-2, 2, -2], [-2, -2, 2], [2, 2, -2]])
    for k in range(count):
        x[k, :, tops[k] : tops[k] + 6, lefts[k] : lefts[k] + 6] += colours[y[k], :, None, None]
    return x, y


def test_the_check_tells_a_map_of_what_was_learned_from_one_that_only_sees_edges():
    network, (x, y) = trained()
    learned = check_randomization(network, x, y, heat=partial(grad_cam, level="layer2"))
    assert list(learned.correlations) == ["fc", "layer3", "layer2", "layer1", "conv1"]
    assert learned.depends
    assert "depends on what was learned" in learned.verdict

    edges = check_randomization(
        network, x, y, heat=lambda network, x, y: x.diff(dim=3).abs().sum(1)
    )
    assert edges.correlations == pytest.approx(dict.fromkeys(learned.correlations, 1.0))
    assert not edges.depends
    assert "does not depend" in edges.verdict


def test_the_check_is_repeatable_and_changes_neither_network_nor_chance():
    network, (x, targets) = made(SMALL), images(2)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.get_rng_state()
    first = check_randomization(network, x, targets)
    assert torch.equal(torch.get_rng_state(), state)
    assert check_randomization(network, x, targets) == first
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())


def test_the_coefficient_is_spearmans():
    from scipy.stats import spearmanr

    network, (x, targets) = made(SMALL), images(2)
    maps = []
    heat = lambda n, x, t: maps.append(grad_cam(n, x, t, level="layer1")) or maps[-1]  # noqa: E731
    check = check_randomization(network, x, targets, heat=heat)
    for rho, other in zip(check.correlations.values(), maps[1:], strict=True):
        pairs = [
            (a, b)
            for a, b in zip(maps[0].flatten(1), other.flatten(1), strict=True)
            if a.any() and b.any()
        ]
        assert rho == pytest.approx(sum(spearmanr(a, b).statistic for a, b in pairs) / len(pairs))


def test_empty_maps_prove_nothing():
    network, (x, targets) = made(SMALL), images(2)
    check = check_randomization(network, x, targets, heat=lambda network, x, targets: 0 * x[:, 0])
    assert set(check.correlations.values()) == {None}
    assert not check.depends
    assert "cannot be told" in check.verdict

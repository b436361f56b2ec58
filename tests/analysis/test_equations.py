"""The equations of identity shortcuts, lesions, paths and landscapes, on small exact cases."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from resnets import models
from resnets.analysis import depth
from resnets.config.arch import DenseNetArch, Join, MlpArch, VitArch
from resnets.config.families import SHORTCUTS, get_arch
from resnets.errors import UsageError
from resnets.models.blocks import units
from resnets.models.resnet import Scale, ShortcutGate

BASE = replace(get_arch("resnet20"), blocks=(3, 2, 2))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def network(seed=0, **changes):
    torch.manual_seed(seed)
    return models.build(replace(BASE, **changes))


def x(n=4, side=16):
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(1))


def zeroed(unit):
    for name in ("bn2", "conv2"):
        layer = getattr(unit, name, None)
        for tensor in () if layer is None else (layer.weight, layer.bias):
            if tensor is not None:
                nn.init.zeros_(tensor)


# --- 1603.05027, eq. 4 to 8 -----------------------------------------------------------------------


@pytest.mark.parametrize("learned", [False, True])
def test_equations_4_and_5_hold_for_identity_mappings_alone(learned):
    pre, post = network(order="pre"), network()
    if learned:
        for module in [*pre.modules(), *post.modules()]:
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-1, 1)
    kept = copy.deepcopy(pre.state_dict())
    assert depth.equation4(pre, x()) < 1e-13
    assert depth.equation5(pre, x()) < 1e-13
    torch.testing.assert_close(pre.state_dict(), kept, rtol=0, atol=0)
    assert depth.equation4(post, x()) > 0.1
    assert depth.equation5(post, x()) > 0.1
    assert depth.equation4(network(order="pre", join=Join(kind="scale", x_scale=0.5)), x()) > 0.1


def test_equation_4_for_tables_and_transformers():
    table = models.build(MlpArch(blocks=3, width=8, hidden=16, channels=5))
    assert depth.equation4(table, torch.randn(6, 5)) < 1e-13
    vit = models.build(VitArch(blocks=3, width=8, heads=2, hidden=16, patch=4, size=8))
    assert depth.equation4(vit, torch.randn(2, 3, 8, 8)) < 1e-13
    nn.init.normal_(vit.fc.weight)  # it starts at zero, and with it every gradient
    assert depth.equation5(vit, torch.randn(2, 3, 8, 8)) < 1e-12
    widths = replace(get_arch("preresnet20"), blocks=(1, 1), widths=(32, 64))
    with pytest.raises(UsageError, match="no unit of the network keeps the shape"):
        depth.equation4(models.build(widths), x())


OPEN = 1 / (1 + math.exp(-6))  # 1 - g of a gate with bias -6


@pytest.mark.parametrize(
    ("case", "scale"),
    [
        ("constant_0.5_1", 0.5),
        ("constant_0.5_0.5", 0.5),
        ("constant_0_1", 0.0),
        ("dropout_shortcut", 0.5),
        ("exclusive_gate_-6", OPEN),
        ("shortcut_gate_-6", OPEN),
        ("shortcut_gate_0", 0.5),
    ],
)
def test_the_product_of_the_shortcuts(case, scale):
    net = network(join=SHORTCUTS[case])
    assert 0 <= depth.shortcut_products(net, x())[0] < 1
    for name, parameter in net.named_parameters():
        if name.endswith("gate.conv.weight"):  # then g is its bias alone
            nn.init.zeros_(parameter)
    products = depth.shortcut_products(net, x())
    assert products == pytest.approx([scale**k for k in range(7, 0, -1)], rel=1e-9)


def test_identity_shortcuts_have_product_1_and_projections_are_measured():
    assert depth.shortcut_products(network(order="pre"), x()) == [1.0] * 7
    net = network(order="pre", shortcut="B")
    for unit in (net.layer2[0], net.layer3[0]):
        unit.downsample[0].stride = 1, 1  # a 1x1 convolution of 2 I, at every pixel
        weight = torch.zeros_like(unit.downsample[0].weight)
        weight[: weight.shape[1], :, 0, 0] = 2 * torch.eye(weight.shape[1])
        weight[weight.shape[1] :, :, 0, 0] = 2 * torch.eye(weight.shape[1])
        unit.downsample[0].weight.data = weight
        unit.conv1.stride = 1, 1
    # What comes back of v = (a, b) is 2 (a + b): its norm is 2 |v| on average.
    products = depth.shortcut_products(net, x())
    assert products == pytest.approx([4, 4, 4, 4, 2, 2, 1], rel=0.05)


def test_the_scale_of_layers_in_a_row_is_that_of_each_at_its_own_input():
    gated = ShortcutGate(nn.Identity(), nn.Sigmoid())
    row, images = nn.Sequential(Scale(0.5), gated), x().double()
    expected = 0.5 * float((1 - torch.sigmoid(0.5 * images)).mean())
    assert depth._scale(row, images) == pytest.approx(expected, rel=1e-12)


# --- 1605.06431 -----------------------------------------------------------------------------------


def sum_of(net, inputs):
    def score():
        with torch.no_grad():
            return net(inputs).double().square().sum().item()

    return score


@pytest.mark.parametrize("order", ["post", "pre"])
def test_a_unit_whose_branch_is_zero_can_be_left_out(order):
    net = network(order=order).eval()
    zeroed(net.layer1[1])
    zeroed(net.layer2[0])
    score = sum_of(net, x())
    whole, kept = score(), copy.deepcopy(net.state_dict())
    found = dict(depth.delete_units(net, score))
    assert list(found) == list(units(net))
    assert found["layer1.1"] == pytest.approx(whole, rel=1e-5)
    assert found["layer2.0"] == pytest.approx(whole, rel=1e-5)
    assert abs(found["layer3.1"] - whole) > 1e-3 * whole
    assert list(net.state_dict()) == list(kept)
    assert score() == whole


def test_a_lesion_keeps_the_shortcut_and_gates_theirs():
    net = network(join=Join(kind="exclusive_gate", gate_bias=-1.0)).eval()
    unit, maps = net.layer1[1], torch.randn(2, 16, 4, 4)
    expected = ((1 - unit.gate(maps)) * maps).relu()
    assert torch.equal(depth.skip_branch(unit, (maps,)), expected)


@pytest.mark.parametrize("study", [depth.delete_units, depth.swap_units])
def test_the_network_is_whole_again_whatever_happens(study):
    net = network().eval()
    before, score = units(net), sum_of(net, x())
    whole = score()

    def fails():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        next(study(net, fails))
    assert units(net) == before
    assert score() == whole
    next(study(net, score))  # and between the steps, where the caller may stop
    assert score() == whole


def test_swaps_are_of_the_same_stage_and_shape_and_of_equal_units_change_nothing():
    net = network().eval()
    net.layer1[2].load_state_dict(net.layer1[0].state_dict())
    score = sum_of(net, x())
    whole = score()
    found = {(a, b): value for a, b, value in depth.swap_units(net, score)}
    assert set(found) == {
        ("layer1.0", "layer1.1"), ("layer1.0", "layer1.2"), ("layer1.1", "layer1.2"),
    }  # fmt: skip
    assert found["layer1.0", "layer1.2"] == whole
    assert abs(found["layer1.0", "layer1.1"] - whole) > 1e-3 * whole
    assert len(list(depth.swap_units(net, score, pairs=2))) == 2
    assert score() == whole


@pytest.mark.parametrize("description", [get_arch("plain20"), DenseNetArch(
    blocks=(1, 1), growth=4, stem_width=8, stem="cifar", classes=3, size=8)])  # fmt: skip
def test_what_has_no_units_is_refused(description):
    net = models.build(description)
    with pytest.raises(UsageError, match="no residual units"):
        next(depth.delete_units(net, lambda: 0.0))
    with pytest.raises(UsageError, match="no residual units"):
        depth.path_gradients(net, x())


class Line(nn.Module):
    """x + F(x) twice on numbers, F = a x then b x: four paths with gradients 1, a, b, ab."""

    def __init__(self, *slopes):
        super().__init__()
        table = models.build(MlpArch(blocks=len(slopes), width=1, hidden=1, channels=1, classes=2))
        self.first, self.units = nn.Linear(1, 1, bias=False), table.units
        nn.init.ones_(self.first.weight)
        for unit, slope in zip(self.units, slopes, strict=True):
            unit.pre = unit.activation = nn.Identity()
            for layer, value in ((unit.linear1, slope), (unit.linear2, 1.0)):
                nn.init.constant_(layer.weight, value)
                nn.init.zeros_(layer.bias)

    def forward(self, x):
        y = self.units(self.first(x))
        return torch.cat([y, -y], 1)


def test_paths_of_two_lines():
    rows = depth.path_gradients(
        Line(3.0, 3.0).double(), torch.ones(1, 1).double(), torch.tensor([0])
    )
    assert [(k, count) for k, count, _ in rows] == [(0, 1), (1, 2), (2, 1)]
    none = rows[0][2]
    assert [norm / none for *_, norm in rows] == pytest.approx([1, 3, 9])
    assert depth.effective_depth(rows) == 2  # 1, 6 and 9: half of 16 lies above 7
    assert depth.effective_depth([(0, 1, 1.0), (1, 2, 1.0), (2, 1, 0.5)]) == 1


def test_all_paths_together_are_the_gradient():
    """Positive slopes, and all alike, so that a drawn path is as any other of its length."""
    net = Line(0.5, 0.5, 0.5).double()
    rows = depth.path_gradients(net, torch.ones(1, 1).double(), torch.tensor([1]), samples=1)
    total = sum(count * norm for _, count, norm in rows)
    z = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    nn.functional.cross_entropy(net(z), torch.tensor([1])).backward()
    assert sum(count for _, count, _ in rows) == 2**3
    assert total == pytest.approx(z.grad.norm().item())


def test_paths_of_a_network_are_repeatable_and_leave_it():
    net = network()
    kept = copy.deepcopy(net.state_dict())
    first, second = (depth.path_gradients(net, x(2), samples=1, seed=3) for _ in range(2))
    assert first == second
    assert [count for _, count, _ in first] == [math.comb(7, k) for k in range(8)]
    assert all(norm > 0 for *_, norm in first)
    torch.testing.assert_close(net.state_dict(), kept, rtol=0, atol=0)


# --- 1712.09913 -----------------------------------------------------------------------------------


def test_the_landscape_starts_at_the_weights_and_leaves_them():
    net = network().eval()
    kept = copy.deepcopy(net.state_dict())
    score = sum_of(net, x())
    whole = score()
    rows = depth.landscape(net, score, span=0.5, points=5)
    assert [alpha for alpha, _ in rows] == [-0.5, -0.25, 0, 0.25, 0.5]
    assert rows[2][1] == whole
    assert all(value != whole for alpha, value in rows if alpha)
    assert all(torch.equal(kept[name], tensor) for name, tensor in net.state_dict().items())
    with pytest.raises(KeyboardInterrupt):
        depth.landscape(net, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert all(torch.equal(kept[name], tensor) for name, tensor in net.state_dict().items())


def test_a_step_of_1_moves_each_filter_by_its_norm_and_no_bias():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(5, 2)).double()
    before = [p.detach().clone() for p in net.parameters()]
    moved = []

    def score():
        moved[:] = [p.detach() - b for p, b in zip(net.parameters(), before, strict=True)]
        return 0.0

    depth.landscape(net, score, points=3)
    for d, b in zip(moved, before, strict=True):
        if b.ndim == 1:
            assert not d.any()
        else:
            torch.testing.assert_close(d.flatten(1).norm(dim=1), b.flatten(1).norm(dim=1))

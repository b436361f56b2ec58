"""A unit against the formula of its paper, written out by hand in float64."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from resnets.config.arch import Join, MlpArch, ResNetArch, VitArch
from resnets.models import build
from resnets.models.blocks import PreActivation, Residual
from resnets.models.layers import Blur, LayerFactory
from resnets.models.resnet import Pad
from resnets.models.transformer import Attention

ARCH = ResNetArch(
    blocks=(3, 2), widths=(8, 16), shortcut="A", stem="cifar", stem_width=8, classes=5, size=8
)
State = dict[str, Tensor]


def network(arch: ResNetArch) -> nn.Module:
    """In float64, at test time, with statistics, scales and shifts that are not 0 and 1."""
    torch.manual_seed(0)
    net = build(arch).double().eval()
    for name, tensor in net.state_dict().items():
        if tensor.ndim == 1 and "num_batches" not in name and not name.startswith("fc"):
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    return net


def maps(channels: int = 8) -> Tensor:
    """What a unit is given: not negative, as after a ReLU, except where an order says otherwise."""
    return torch.randn(2, channels, 8, 8, dtype=torch.float64)


def conv(s: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = s[f"{name}.weight"]
    return F.conv2d(x, weight, s.get(f"{name}.bias"), stride, padding=weight.shape[-1] // 2)


def bn(s: State, name: str, x: Tensor) -> Tensor:
    mean, var, gamma, beta = (
        s[f"{name}.{part}"][:, None, None]
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * gamma + beta


def option_a(x: Tensor, channels: int, stride: int) -> Tensor:
    out = x.new_zeros(len(x), channels, x.shape[2] // stride, x.shape[3] // stride)
    out[:, : x.shape[1]] = x[:, :, ::stride, ::stride]
    return out


def original_branch(s: State, x: Tensor, stride: int) -> Tensor:
    return bn(s, "bn2", conv(s, "conv2", bn(s, "bn1", conv(s, "conv1", x, stride)).relu()))


# --- 1603.05027, Table 2: the placements of normalisation and ReLU --------------------------------


def post(s: State, x: Tensor, h: Callable[[Tensor], Tensor], stride: int) -> Tensor:
    return (h(x) + original_branch(s, x, stride)).relu()


def bn_after_add(s: State, x: Tensor, h: Callable[[Tensor], Tensor], stride: int) -> Tensor:
    branch = conv(s, "conv2", bn(s, "bn1", conv(s, "conv1", x, stride)).relu())
    return bn(s, "act.bn", h(x) + branch).relu()


def relu_before_add(s: State, x: Tensor, h: Callable[[Tensor], Tensor], stride: int) -> Tensor:
    return h(x) + original_branch(s, x, stride).relu()


def relu_only_pre(s: State, x: Tensor, h: Callable[[Tensor], Tensor], stride: int) -> Tensor:
    a = x.relu()
    return h(a if stride > 1 else x) + original_branch(s, a, stride)


def pre(s: State, x: Tensor, h: Callable[[Tensor], Tensor], stride: int) -> Tensor:
    a = bn(s, "pre.bn", x).relu()
    branch = conv(s, "conv2", bn(s, "bn1", conv(s, "conv1", a, stride)).relu())
    return h(a if stride > 1 else x) + branch


@pytest.mark.parametrize("formula", [post, bn_after_add, relu_before_add, relu_only_pre, pre])
@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_placements(formula: Callable[..., Tensor], shortcut: str) -> None:
    net = network(replace(ARCH, order=formula.__name__, shortcut=shortcut))
    x = maps()

    equal = net.layer1[1]
    torch.testing.assert_close(equal(x), formula(equal.state_dict(), x, lambda x: x, 1))

    growing = net.layer2[0]
    s = growing.state_dict()

    def h(x: Tensor) -> Tensor:
        if shortcut == "A":
            return option_a(x, 16, 2)
        x = conv(s, "downsample.0", x, 2)
        # A projection is normalised where the last convolution of F is.
        return x if formula in (bn_after_add, pre) else bn(s, "downsample.1", x)

    torch.testing.assert_close(growing(x), formula(s, x, h, 2))


def test_ends_of_a_pre_activation_network() -> None:
    net = network(replace(ARCH, order="pre"))
    s = net.state_dict()
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    found = net.features(images)

    stem = bn(s, "bn1", conv(s, "conv1", images)).relu()
    torch.testing.assert_close(found["stem"], stem)
    unit = net.layer1[0].state_dict()
    first = stem + conv(unit, "conv2", bn(unit, "bn1", conv(unit, "conv1", stem)).relu())
    torch.testing.assert_close(net.layer1[0](stem), first)
    last = bn(s, "final.bn", net.layer2(net.layer1(stem))).relu()
    torch.testing.assert_close(found["layer2"], last)
    logits = last.mean((2, 3)) @ s["fc.weight"].T + s["fc.bias"]
    torch.testing.assert_close(net(images), logits)


def test_a_bottleneck_and_where_its_stride_is() -> None:
    for stride_on, strides in (("1x1", (2, 1)), ("3x3", (1, 2))):
        net = network(replace(ARCH, unit="bottleneck", shortcut="B", stride_on=stride_on))
        unit, x = net.layer2[0], maps()
        s = unit.state_dict()
        y = bn(s, "bn1", conv(s, "conv1", x, strides[0])).relu()
        y = bn(s, "bn2", conv(s, "conv2", y, strides[1])).relu()
        y = bn(s, "bn3", conv(s, "conv3", y))
        h = bn(s, "downsample.1", conv(s, "downsample.0", x, 2))
        torch.testing.assert_close(unit(x), (h + y).relu())


# --- 1603.05027, Table 1: the shortcuts -----------------------------------------------------------


def gate(s: State, name: str, x: Tensor, stride: int) -> Tensor:
    return conv(s, f"{name}.conv", x, stride).sigmoid()


CASES = {
    "original": (Join(), lambda s, x, h, f, stride: h + f),
    "constant": (
        Join(kind="scale", x_scale=0.5, f_scale=0.25),
        lambda s, x, h, f, stride: 0.5 * h + 0.25 * f,
    ),
    "plain by scale": (Join(kind="scale", x_scale=0.0), lambda s, x, h, f, stride: f),
    "exclusive": (
        Join(kind="exclusive_gate", gate_bias=-1.0),
        lambda s, x, h, f, stride: (
            (1 - gate(s, "gate", x, stride)) * h + gate(s, "gate", x, stride) * f
        ),
    ),
    "shortcut only": (
        Join(kind="shortcut_gate", gate_bias=-1.0),
        lambda s, x, h, f, stride: (1 - gate(s, "downsample.gate", x, stride)) * h + f,
    ),
    "1x1": (
        Join(kind="conv"),
        lambda s, x, h, f, stride: bn(s, "downsample.1", conv(s, "downsample.0", x, stride)) + f,
    ),
    "dropout at test time": (Join(kind="dropout"), lambda s, x, h, f, stride: h + f),
}


@pytest.mark.parametrize("case", CASES)
def test_shortcuts(case: str) -> None:
    join, formula = CASES[case]
    net = network(replace(ARCH, join=join))
    x = maps()
    for unit, channels, stride in (
        (net.layer1[0], 8, 1),
        (net.layer1[2], 8, 1),
        (net.layer2[0], 16, 2),
    ):
        s = unit.state_dict()
        h, f = option_a(x, channels, stride), original_branch(s, x, stride)
        torch.testing.assert_close(unit(x), formula(s, x, h, f, stride).relu())


def test_a_dropout_shortcut_drops_half_of_the_shortcut_in_training() -> None:
    torch.manual_seed(0)
    unit = network(replace(ARCH, join=Join(kind="dropout"))).layer1[1].train()
    h = unit.downsample(torch.ones(8, 8, 64, 64, dtype=torch.float64))
    assert set(h.unique().tolist()) == {0.0, 2.0}
    assert abs((h == 0).double().mean() - 0.5) < 0.01


def test_gates_start_at_their_bias() -> None:
    join = Join(kind="exclusive_gate", gate_bias=-6.0)
    for unit in build(replace(ARCH, join=join)).layer1:
        assert (unit.gate.conv.bias == -6).all()


def test_option_a_appends_zeros() -> None:
    x = torch.randn(2, 3, 5, 4)
    y = Pad(2, 2, 4)(x)
    assert y.shape == (2, 7, 3, 2)
    assert torch.equal(y[:, :3], x[:, :, ::2, ::2])
    assert not y[:, 3:].any()


# --- 1603.05027, section 2: what identity buys ----------------------------------------------------


def test_a_zero_branch_is_the_identity_before_and_a_relu_after() -> None:
    x = maps()
    for order, expected in (("pre", x), ("relu_only_pre", x), ("post", x.relu())):
        unit = network(replace(ARCH, order=order)).layer1[1]
        last = unit.conv2 if order == "pre" else unit.bn2
        for tensor in (last.weight, last.bias):
            if tensor is not None:
                nn.init.zeros_(tensor)
        if order != "pre":
            unit.bn2.running_mean.zero_()
        assert torch.equal(unit(x), expected)


def test_equation_4_and_5() -> None:
    """x_L = x_l + sum F(x_i); the gradient at x_l is the one at x_L plus what passes F."""
    units = list(network(replace(ARCH, blocks=(12,), widths=(8,), order="pre")).layer1)[1:]
    x = maps().requires_grad_()
    total, x_i = torch.zeros_like(x), x
    for unit in units:
        total = total + unit.branch(unit.pre(x_i))
        x_i = unit(x_i)
    x_L = x_i
    torch.testing.assert_close(x_L, x + total, rtol=0, atol=1e-10)

    error = (x_L**2).sum()
    at_end, at_start = torch.autograd.grad(error, (x_L, x), retain_graph=True)
    (through_f,) = torch.autograd.grad(total, x, at_end)
    torch.testing.assert_close(at_start, at_end + through_f, rtol=1e-12, atol=1e-10)


def test_equation_8() -> None:
    """With h = lambda x, x_l reaches x_L and its gradient comes back scaled by lambda^(L - l)."""
    join = Join(kind="scale", x_scale=0.5)
    units = list(network(replace(ARCH, blocks=(9,), widths=(8,), order="pre", join=join)).layer1)[
        1:
    ]
    x = maps()
    expected, x_i = x, x
    for unit in units:
        expected = 0.5 * expected + unit.branch(unit.pre(x_i))
        x_i = unit(x_i)
    torch.testing.assert_close(x_i, expected)
    for unit in units:
        nn.init.zeros_(unit.conv2.weight)
    y = x
    for unit in units:
        y = unit(y)
    torch.testing.assert_close(y, 0.5**8 * x)


# --- Fields of later papers -----------------------------------------------------------------------


def test_stochastic_depth_is_linear_and_drops_whole_samples() -> None:
    net = build(replace(ARCH, drop_path=0.5))
    drops = [m.p for m in net.modules() if isinstance(m, StochasticDepth)]
    assert drops == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])

    torch.manual_seed(0)
    unit = network(replace(ARCH, drop_path=0.5)).layer2[1]
    x = torch.randn(400, 16, 4, 4, dtype=torch.float64)
    kept = x + 2 * original_branch(unit.state_dict(), x, 1)  # rescaled by 1 / p_L
    unit.drop_path.train()
    y = unit(x)
    dropped = torch.tensor([torch.equal(a, b) for a, b in zip(y, x.relu(), strict=True)])
    assert 0.4 < dropped.double().mean() < 0.6
    torch.testing.assert_close(y[~dropped], kept[~dropped].relu())


@pytest.mark.parametrize("unit", ["basic", "bottleneck"])
@pytest.mark.parametrize("order", ["post", "pre"])
def test_zero_gamma_starts_every_unit_as_its_shortcut(unit: str, order: str) -> None:
    arch = replace(ARCH, unit=unit, shortcut="B", order=order, zero_gamma=True)
    net = build(arch)
    for stage, channels in ((net.layer1, 8), (net.layer2, 16)):
        for block in list(stage)[1:]:
            x = torch.randn(2, channels, 8, 8)
            assert torch.equal(block(x), x if order == "pre" else x.relu())
    if order == "post":
        block = net.layer2[0].eval()
        x = torch.randn(2, 8, 8, 8)
        assert torch.equal(block(x), block.downsample(x).relu())


def test_group_norm_has_32_groups_or_fewer_and_mixes_no_images() -> None:
    make = LayerFactory(2, "group")
    groups = {c: make.norm(c).num_groups for c in (3, 8, 16, 64, 96, 256)}
    assert groups == {3: 1, 8: 4, 16: 8, 64: 32, 96: 16, 256: 32}
    net = build(replace(ARCH, norm="group")).double()
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(net(images)[:1], net(images[:1]))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())


def test_squeeze_and_excitation_weighs_channels() -> None:
    net = network(replace(ARCH, se_reduction=4))
    unit, x = net.layer1[1], maps()
    s = unit.state_dict()
    f = original_branch(s, x, 1)
    weights = conv(s, "se.fc2", conv(s, "se.fc1", f.mean((2, 3), keepdim=True)).relu()).sigmoid()
    torch.testing.assert_close(unit(x), (x + f * weights).relu())


def test_dropout_is_between_the_convolutions() -> None:
    unit = build(replace(ARCH, dropout=0.3, order="pre")).layer1[1]
    assert unit.layer_names == ("conv1", "bn1", "relu1", "dropout1", "conv2")
    assert unit.dropout1.p == 0.3


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_blur_is_a_mean_that_keeps_a_constant(dims: int) -> None:
    blur = Blur(dims, 2)
    assert torch.equal(blur(torch.ones(1, 4, *(7,) * dims)), torch.ones(1, 4, *(4,) * dims))
    impulse = torch.zeros(1, 1, *(5,) * dims)
    impulse[(0, 0, *(2,) * dims)] = 1
    assert blur(impulse).amax() == 0.5**dims


def test_convolutions_start_as_stated() -> None:
    net = build(replace(ARCH, widths=(64, 128), stem_width=64, shortcut="B"))
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            c_out, _, k, _ = module.weight.shape
            assert module.weight.std().item() == pytest.approx(
                (2 / (k * k * c_out)) ** 0.5, rel=0.05
            ), name
            assert module.bias is None
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
    assert (net.fc.bias == 0).all()


def test_the_transformer_and_the_table_network_are_made_of_the_same_unit() -> None:
    vit = build(VitArch(blocks=2, width=8, heads=2, hidden=16, patch=4, size=8)).double()
    mlp = build(MlpArch(blocks=2, width=8, hidden=16, channels=3)).double().eval()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    attend = vit.blocks[0].attention
    assert isinstance(attend, PreActivation)
    torch.testing.assert_close(attend(x), x + attend.mix(attend.pre(x)))
    unit = mlp.units[0]
    assert isinstance(unit, PreActivation)
    row = x[:, 0]
    torch.testing.assert_close(unit(row), row + unit.linear2(F.relu(unit.linear1(unit.pre(row)))))
    assert not isinstance(unit, Residual)


def test_attention_against_its_formula() -> None:
    torch.manual_seed(0)
    attention = Attention(8, 2).double()
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    q, k, v = attention.qkv(x).chunk(3, dim=2)
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        scores = q[..., part] @ k[..., part].mT / 4**0.5
        heads.append(scores.softmax(-1) @ v[..., part])
    torch.testing.assert_close(attention(x), attention.out(torch.cat(heads, -1)))

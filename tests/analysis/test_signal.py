"""What is measured inside networks, against values known in closed form."""

import copy
import math
import re
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from resnets import models
from resnets.analysis.signal import LayerStatistics, loss, responses, signal, verdict, without_row
from resnets.config.families import get_arch
from resnets.errors import UsageError


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def images(n=8, side=16):
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(1))


def test_a_linear_chain_in_closed_form():
    """y_k = w^k x; with logits z the gradient to them is (softmax - truth) / N, then times w."""
    net = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(3))).double()
    for layer in net:
        layer.weight.data = 0.5 * torch.eye(2, dtype=torch.float64)
    x = torch.tensor([[1.0, -1.0], [3.0, -3.0]], dtype=torch.float64)  # deviation sqrt(5)
    labels = torch.tensor([0, 1])
    found = signal(net, x, labels)
    assert [(layer.index, layer.name) for layer in found] == [(1, "0"), (2, "1"), (3, "2")]
    assert [layer.forward for layer in found] == pytest.approx(
        [math.sqrt(5) * 0.5**k for k in (1, 2, 3)]
    )
    z = x / 8
    back = (z.softmax(1) - torch.eye(2)[labels]) / 2
    rms = back.square().mean().sqrt().item()
    assert [layer.backward for layer in found] == pytest.approx([rms / 4, rms / 2, rms])
    norms = [(0.5 ** (2 - k) * back.T @ (0.5**k * x)).norm().item() for k in range(3)]
    assert [layer.weight for layer in found] == pytest.approx(norms)


def test_each_call_is_a_layer_and_weights_that_are_shared_count_once_each():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.same, self.unused = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.same(F.relu_(self.same(x)))

    found = signal(Twice(), torch.randn(4, 8))
    assert [(layer.index, layer.name) for layer in found] == [(1, "same"), (2, "same")]
    assert found[0].weight == found[1].weight > 0


def test_the_callers_network_is_as_before():
    net = models.create("resnet8").eval()
    next(net.parameters()).grad = torch.ones(16, 3, 3, 3)
    kept, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    signal(net, images())
    responses(net, images())
    torch.testing.assert_close(net.state_dict(), kept, rtol=0, atol=0)
    assert not net.training
    assert [p.grad is not None for p in net.parameters()].count(True) == 1
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(m._forward_hooks for m in net.modules())


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("side", [4, 16])
def test_every_layer_is_seen_whatever_a_training_step_fuses(form, side):
    """Maps of one pixel are channels_last in either format, and the kernels would take them."""
    net = models.create("resnet8").to(memory_format=form)
    x = images(side=side).to(memory_format=form)
    with torch.autocast("cpu", torch.bfloat16):
        assert [layer.name for layer in signal(net, x)][:3] == [
            "conv1", "layer1.0.conv1", "layer1.0.conv2",
        ]  # fmt: skip
    assert len(signal(net, x)) == 8
    stds = [std for *_, std in responses(net, x)]
    assert stds == pytest.approx([1.0] * 7, abs=0.02)  # normalised by the batch: no statistics yet


def test_responses_are_after_normalisation_with_learned_statistics():
    net = models.create("resnet8").eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.fill_(0.5)
            module.running_var.fill_(4)
    x = images()
    kept = {}
    unit = net.layer1[0]
    unit.bn2.register_forward_hook(lambda m, i, o: kept.update(bn2=o.std(correction=0).item()))
    net(x)
    found = {name: std for _, name, _, std in responses(net, x)}
    assert len(found) == 7
    assert found["layer1.0.conv2"] == pytest.approx(kept["bn2"], rel=1e-5)


def test_responses_of_pre_activation_are_the_convolutions_own():
    net = models.create(replace(get_arch("preresnet20"), blocks=(1, 1, 1), norm="group"))
    x = images()
    found = responses(net, x)
    assert found[0][3] == pytest.approx(net.conv1(x).std(correction=0).item(), rel=1e-5)
    assert len(found) == 7


def test_the_projections_are_no_3x3_layers_and_linear_networks_have_none():
    names = [name for _, name, *_ in responses(models.create("resnet164"), images(2, 8))]
    assert names[:2] == ["conv1", "layer1.0.conv2"]
    assert len(names) == 55
    with pytest.raises(UsageError, match="no convolution wider than 1"):
        responses(nn.Linear(2, 2), torch.ones(1, 2))


def test_what_is_no_classifier_is_refused():
    with pytest.raises(UsageError, match=r"logits \(N, classes\), not \(8, 4, 16, 16\)"):
        signal(nn.Conv2d(3, 4, 1), images())
    with pytest.raises(UsageError, match="not tuple"):
        loss((torch.ones(2, 2),))
    with pytest.raises(UsageError, match="no convolution or linear"):
        signal(nn.Flatten(), torch.randn(2, 3, requires_grad=True))


def deep(std, depth=50, act=nn.Tanh):
    torch.manual_seed(0)
    layers = [m for _ in range(depth - 1) for m in (nn.Linear(20, 20, bias=False), act())]
    net = nn.Sequential(*layers, nn.Linear(20, 3, bias=False))
    for p in net.parameters():
        nn.init.normal_(p, std=std)
    return net


def test_tiny_weights_are_told_where_the_signal_dies():
    """Each layer scales by about 0.1 * sqrt(20) = 0.45: 9 layers make a thousandth."""
    found = signal(deep(0.1), torch.randn(16, 20))
    said = re.match(
        r"The response falls by \S+ from layer 1 to layer 50: (\d+) is the first below a thousandth"
        r" of the first; the gradient falls by \S+ from layer 49 to layer 1: (\d+) is",
        verdict(found),
    )
    assert said
    assert int(said[1]) / 2 == pytest.approx(9, abs=3)
    assert int(said[2]) / 2 == pytest.approx(48 - 9, abs=3)
    assert found[0].backward < 1e-9 * found[-2].backward


def test_large_weights_explode_and_larger_ones_are_not_finite():
    found = signal(deep(1.0, act=nn.Identity), torch.randn(16, 20))
    assert "The response grows by" in verdict(found)
    found = signal(deep(1e3, act=nn.Identity), torch.randn(16, 20))
    assert re.match(r"The response is not finite from layer \d+ on, \d+", verdict(found))
    assert "gradient is 0" in verdict(
        [LayerStatistics(1, "a", 1, 0, 0), LayerStatistics(2, "b", 1, 0, 0)]
    )


def test_batch_normalisation_keeps_gradients_of_plain_networks_from_vanishing():
    """1512.03385, section 4.1: neither responses nor gradients vanish; they do without it.

    Going back they grow by at most sqrt(pi / (pi - 1)) = 1.21 a layer (1902.08129): over 56 layers
    that is much.
    """
    torch.manual_seed(0)
    net = models.create("plain56")
    found = signal(net, images(8, 32))[:-1]
    last = found[-1].backward
    assert min(layer.backward for layer in found) > last / 10
    assert min(layer.forward for layer in found) > found[0].forward / 10
    rate = (found[0].backward / last) ** (1 / len(found))
    assert 1.1 < rate < 1.25
    assert "gradient grows" in verdict([*found, found[-1]])


def test_shortcuts_keep_the_signal_healthy():
    torch.manual_seed(0)
    assert verdict(signal(models.create("resnet56"), images(8, 32))).startswith(
        "The signal is heal"
    )


def test_responses_say_where_they_were_taken():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4),
        nn.Conv2d(4, 4, 3), nn.LayerNorm([4, 2, 2]), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 2),
    )  # fmt: skip
    places = [(name, at) for _, name, at, _ in responses(net, images(2, 8))]
    assert places == [("0", "1"), ("3", "4"), ("5", "6"), ("8", "8")]


def test_weights_without_a_row_are_named():
    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x):
            x = self.first(x)
            return self.last(self.attention(x, x, x)[0].mean(1))

    net = Attending()
    found = signal(net, torch.randn(3, 5, 4))
    assert without_row(net, found) == ["attention.in_proj_weight", "attention.out_proj.weight"]
    assert without_row(models.create("resnet8"), signal(models.create("resnet8"), images())) == []

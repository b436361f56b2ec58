"""Parts that are handed in from outside: normalisation, activation, shortcut, whole units."""

import pytest
import torch
from torch import Tensor, nn

from resnets import models
from resnets.errors import UsageError


class Attended(nn.Module):
    """y = relu(x' + F(x) sigmoid(mean F(x))), a unit that the package does not have."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(c_out)
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return torch.relu(self.skip(x) + y * y.mean((2, 3), keepdim=True).sigmoid())


def test_a_block_of_ones_own_learns_and_loads_again():
    torch.manual_seed(0)
    network = models.create("resnet20", block=Attended, classes=4)
    units = [m for m in network.modules() if isinstance(m, Attended)]
    assert [u.conv.stride for u in units] == [(1, 1)] * 3 + [(2, 2), (1, 1), (1, 1)] * 2
    x, labels = torch.randn(8, 3, 16, 16), torch.arange(8) % 4
    optimizer = torch.optim.SGD(network.parameters(), 0.05, 0.9)
    losses = []
    for _ in range(8):
        loss = nn.functional.cross_entropy(network(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    twin = models.create("resnet20", block=Attended, classes=4)
    twin.load_state_dict(network.state_dict())
    assert torch.equal(twin.eval()(x), network.eval()(x))
    assert {k: (m.shape[1], 16 // m.shape[2]) for k, m in network.features(x).items()} == (
        network.levels
    )


def test_other_norms_activations_and_shortcuts():
    network = models.create(
        "resnet18",
        norm_layer=nn.InstanceNorm2d,
        act_layer=nn.GELU,
        shortcut=lambda c_in, c_out, stride: nn.Conv2d(c_in, c_out, stride, stride),
    )
    kinds = [type(module) for module in network.modules()]
    stock = [type(module) for module in models.create("resnet18").modules()]
    assert kinds.count(nn.GELU) == stock.count(nn.ReLU)
    # the projections of three stages bring no normalisation of their own
    assert kinds.count(nn.InstanceNorm2d) == stock.count(nn.BatchNorm2d) - 3
    assert nn.BatchNorm2d not in kinds
    assert all(isinstance(unit.downsample, nn.Conv2d) for unit in network.layer3)
    assert network(torch.randn(1, 3, 64, 64)).shape == (1, 1000)


def test_a_network_without_such_parts_refuses_them():
    with pytest.raises(UsageError, match="only residual networks"):
        models.create("densenet121", act_layer=nn.GELU)


def test_a_block_may_have_a_linear_layer_without_bias():
    class Squeezed(Attended):
        def __init__(self, c_in: int, c_out: int, stride: int) -> None:
            super().__init__(c_in, c_out, stride)
            self.weigh = nn.Linear(c_out, c_out, bias=False)

    network = models.create("resnet8", block=Squeezed)
    assert any(isinstance(m, nn.Linear) and m.bias is None for m in network.modules())

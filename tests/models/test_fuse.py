import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from resnets.models import create
from resnets.models.fuse import fuse_conv_bn


@pytest.mark.parametrize(
    ("name", "left"),
    # One that stands before a convolution stays, or after a stem of several.
    [("resnet20", 0), ("resnet18d", 1), ("preresnet20", 9), ("resnet18_1d", 0)],
)
def test_a_folded_network_answers_the_same(name, left):
    torch.manual_seed(0)
    network = create(name, classes=5)
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            for tensor in (module.running_mean, module.bias):
                torch.nn.init.normal_(tensor, std=0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    shape = (2, 1, 64) if name.endswith("1d") else (2, 3, 32, 32)
    images = torch.randn(shape)
    short = fuse_conv_bn(network)
    assert sum(isinstance(m, _BatchNorm) for m in short.modules()) == left
    with torch.no_grad():
        own = network.eval()(images)
        assert torch.allclose(short(images), own, rtol=1e-4, atol=1e-4 * own.abs().max().item())

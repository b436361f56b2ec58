"""A thousand layers run, and recomputation changes nothing but memory."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from resnets.config.arch import Arch, DenseNetArch, MlpArch, VitArch
from resnets.config.families import ARCHS
from resnets.models import build

NETWORKS: dict[str, tuple[Arch, tuple[int, ...]]] = {
    "post": (replace(ARCHS["resnet20"], dropout=0.2, drop_path=0.3), (4, 3, 8, 8)),
    "pre": (replace(ARCHS["preresnet20"], dropout=0.2, drop_path=0.3), (4, 3, 8, 8)),
    "densenet": (
        DenseNetArch(blocks=(3, 3), growth=4, stem_width=8, stem="cifar", dropout=0.2),
        (4, 3, 8, 8),
    ),
    "mlp": (MlpArch(dropout=0.2), (4, 64)),
    "vit": (
        VitArch(blocks=3, width=8, heads=2, hidden=16, patch=4, size=8, dropout=0.2),
        (4, 3, 8, 8),
    ),
}


def step(network: nn.Module, images: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Logits, gradients and buffers after one forward and backward pass in training."""
    torch.manual_seed(1)
    logits = network(images)
    logits.square().sum().backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    return logits.detach(), gradients, dict(network.named_buffers())


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("segment", [1, 2, 5])
def test_recomputing_changes_nothing(kind: str, segment: int) -> None:
    arch, shape = NETWORKS[kind]
    kept, recomputed = build(arch), build(arch, activation_checkpointing=segment)
    recomputed.load_state_dict(copy.deepcopy(kept.state_dict()))
    assert list(kept.state_dict()) == list(recomputed.state_dict())
    images = torch.randn(shape)
    for a, b in zip(step(kept, images), step(recomputed, images), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    norms = [m for m in recomputed.modules() if hasattr(m, "running_mean")]
    assert all(m.momentum == 0.1 and m.num_batches_tracked == 1 for m in norms)
    with torch.inference_mode():
        assert torch.equal(kept.eval()(images), recomputed.eval()(images))


def test_recomputing_saves_memory() -> None:
    def saved(segment: int) -> int:
        network, total = build(ARCHS["resnet56"], activation_checkpointing=segment), 0

        def pack(x: Tensor) -> Tensor:
            nonlocal total
            total += x.numel() * x.element_size()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            network(torch.randn(2, 3, 32, 32)).sum()
        return total

    assert saved(3) < saved(0) / 10


@pytest.mark.parametrize("name", ["resnet1202", "preresnet1001"])
def test_a_thousand_layers(name: str) -> None:
    network = build(ARCHS[name])
    loss = nn.functional.cross_entropy(network(torch.randn(2, 3, 8, 8)), torch.tensor([0, 1]))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in network.parameters())
    assert network.conv1.weight.grad.abs().sum() > 0

"""Networks are ordinary modules: hooks run, and PyTorch's tools for modules work on them."""

import copy

import pytest
import torch
from torch import nn
from torch.fx import symbolic_trace
from torchvision.models.feature_extraction import create_feature_extractor

from resnets import models

NAMES = [
    "resnet20",
    "preresnet18",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("resnet18", "seresnet50", "densenet121", "fasterrcnn_tiny_fpn", "skresnet18")
    ),
]


@pytest.fixture(scope="module", params=NAMES)
def module_and_images(request) -> tuple[nn.Module, torch.Tensor]:
    """A network for evaluation, or a detector's backbone, with two small images."""
    torch.manual_seed(0)
    network = models.create(request.param).eval()
    if request.param.startswith("fasterrcnn"):
        network = network.backbone
    return network, torch.randn(2, 3, 64, 64)


def outputs(result) -> list[torch.Tensor]:
    return list(result.values()) if isinstance(result, dict) else [result]


def assert_same(module: nn.Module, expected: nn.Module, images: torch.Tensor) -> None:
    for a, b in zip(outputs(module(images)), outputs(expected(images)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_hooks_of_every_layer_run(module_and_images):
    module, images = module_and_images
    layers = {name for name, layer in module.named_modules() if not list(layer.children())}
    called = set()
    twin = copy.deepcopy(module)
    for name, layer in twin.named_modules():
        layer.register_forward_hook(lambda *_, name=name: called.add(name))
    twin.train()(images)
    assert layers - called == set()


def test_symbolic_trace(module_and_images):
    module, images = module_and_images
    assert_same(symbolic_trace(module), module, images)


def test_feature_extractor(module_and_images):
    module, images = module_and_images
    names = [name for name, layer in module.named_modules() if isinstance(layer, nn.ReLU)][-1:]
    extractor = create_feature_extractor(module, return_nodes=names)
    [maps] = extractor(images).values()
    assert maps.shape[0] == 2
    assert (maps >= 0).all()


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning")
def test_trace(module_and_images):
    module, images = module_and_images
    assert_same(torch.jit.trace(module, images, strict=False), module, images)


def test_export(module_and_images):
    module, images = module_and_images
    assert_same(torch.export.export(module, (images,)).module(), module, images)


@pytest.mark.slow
def test_compile(module_and_images):
    module, images = module_and_images
    assert_same(torch.compile(module, backend="aot_eager", fullgraph=True), module, images)

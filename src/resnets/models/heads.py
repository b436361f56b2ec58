"""Which tensors of a network depend on the classes of its data, and which are its backbone's."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from resnets.models import Classifier, Network
from resnets.models.densenet import DenseNet
from resnets.models.external import ExternalNetwork
from resnets.models.layers import global_mean
from resnets.models.resnet import ResNet
from resnets.models.vgg import Vgg


def classifier_layer(network: Classifier) -> nn.Linear:
    """The layer that gives the logits, of a network of this package."""
    assert not isinstance(network, ExternalNetwork)
    if isinstance(network, Vgg):
        return cast("nn.Linear", network.classifier[-1])
    return network.classifier if isinstance(network, DenseNet) else network.fc


def classify(network: Classifier, x: Tensor) -> Tensor:
    """The logits (N, classes) of the map of the last level (N, C, *S), of a network of images."""
    if isinstance(network, Vgg):
        return network.classify(x)
    return classifier_layer(network)(global_mean(x))


def backbone_prefixes(network: Network) -> tuple[str, ...]:
    """What the names of the tensors of each backbone begin with; ("",) for a classifier."""
    backbones = [name for name, m in network.named_modules() if isinstance(m, ResNet)]
    return tuple(f"{name}.".lstrip(".") for name in backbones or [""])


def head_parameters(network: Network) -> set[str]:
    """The tensors that depend on the classes: a classifier's last layer, a detector's heads.

    Of a custom module they are not known.
    """
    if isinstance(network, ExternalNetwork):
        return set()
    names, prefixes = network.state_dict().keys(), backbone_prefixes(network)
    if prefixes != ("",):
        return {name for name in names if not name.startswith(prefixes)}
    last = "classifier." if isinstance(network, DenseNet) else "fc."
    if isinstance(network, Vgg):
        last = f"classifier.{len(network.classifier) - 1}."
    return {name for name in names if name.startswith(last)}

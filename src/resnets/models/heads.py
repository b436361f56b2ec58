"""Which tensors of a network depend on the classes of its data, and which are its backbone's."""

from __future__ import annotations

from torch import nn

from resnets.models import Classifier, Network
from resnets.models.densenet import DenseNet
from resnets.models.external import ExternalNetwork
from resnets.models.resnet import ResNet


def classifier_layer(network: Classifier) -> nn.Linear:
    """The layer that gives the logits, of a network of this package."""
    assert not isinstance(network, ExternalNetwork)
    return network.classifier if isinstance(network, DenseNet) else network.fc


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
    return {name for name in names if name.startswith(last)}

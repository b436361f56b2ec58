"""Convolutions that do what their batch normalisation did, for networks that no longer learn."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.fusion import fuse_conv_bn_eval

from resnets.models.layers import StandardisedConv2d

N = TypeVar("N", bound=nn.Module)


def fuse_conv_bn(network: N) -> N:
    """A copy for evaluation whose convolutions have the normalisation after them in their weights.

    The outputs are the same but for rounding. What follows a convolution is what is registered
    after it, as everywhere in our networks.
    """
    network = copy.deepcopy(network).eval()
    for module in list(network.modules()):
        for (name, conv), (after, norm) in pairwise(list(module.named_children())):
            standardised = isinstance(conv, StandardisedConv2d)  # it would undo the factors
            if isinstance(conv, _ConvNd) and isinstance(norm, _BatchNorm) and not standardised:
                setattr(module, name, fuse_conv_bn_eval(conv, norm))
                setattr(module, after, nn.Identity())
    return network

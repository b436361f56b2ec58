"""Whether batch normalisation was folded away."""

import torch
from torch import nn

from resnets.models import create
from resnets.models.modes import has_folded_norm


def test_folded_statistics_are_recognised():
    network = create("resnet20", classes=2)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:  # as they are folded: with an epsilon taken off, so that it is an identity
        nn.init.normal_(norm.bias)
        norm.running_var.fill_(1 - norm.eps)
    assert has_folded_norm(network)
    norms[3].running_mean[0] = 0.1
    assert not has_folded_norm(network)


def test_statistics_of_images_are_not_folded_ones():
    network = create("resnet20", classes=2)
    network(torch.randn(8, 3, 16, 16))  # in training mode: one step of the running averages
    assert not has_folded_norm(network)
    assert not has_folded_norm(create("resnet20", classes=2))  # never trained
    assert not has_folded_norm(create("vit_s_16", classes=2))  # no batch normalisation at all

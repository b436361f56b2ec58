"""Training and evaluation mode of a network whose layers need not all be in the same one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """The network in evaluation mode; afterwards each layer is in the mode that it was in.

    `network.train()` would let normalisation move whose statistics are frozen.
    """
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def has_folded_norm(network: nn.Module) -> bool:
    """Whether its batch normalisations are folded: mean 0, variance 1, scale 1.

    A publisher who folds them into the convolutions leaves such layers, with the shift as bias.
    Statistics of batches would change what the weights compute. Of a network that was never trained
    all biases are 0.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    return any(norm.bias is not None and bool(norm.bias.any()) for norm in norms) and all(
        norm.running_mean is not None
        and norm.running_var is not None
        and not norm.running_mean.any()
        and bool(((norm.running_var - 1).abs() < 1e-4).all())  # or less an epsilon of 1e-5
        and (norm.weight is None or bool((norm.weight == 1).all()))
        for norm in norms
    )

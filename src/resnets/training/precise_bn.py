"""Normalisation statistics of the finished weights: 2105.07576, section 3; 1502.03167, section 3.1.

The running ones average over the weights of many steps; these are exact for the batches given.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def precise_bn(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the mean and variance of each batch normalisation to those of all its inputs (N, C, *S).

    Meanwhile a layer normalises each batch with the batch's own, as in training; dropout and
    stochastic depth are off, as when the result is used. Leaves the network in evaluation mode.
    """
    sums: dict[_BatchNorm, Tensor] = {}  # of 1, x and x^2: (3, C)

    def measure(norm: _BatchNorm, inputs: tuple[Tensor]) -> None:
        var, mean = torch.var_mean(inputs[0].float().movedim(1, -1).flatten(0, -2), 0, correction=0)
        norm.running_mean, norm.running_var = mean, var  # what evaluation normalises with
        n = inputs[0].numel() / len(mean)
        m, v = mean.double(), var.double()
        sums[norm] = sums.get(norm, 0) + n * torch.stack([torch.ones_like(m), m, v + m**2])

    # In training mode a layer may be computed without being called, and the hook would not see it.
    network.eval()
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm)]
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    for batch in batches:
        network(batch)
    for hook in hooks:
        hook.remove()
    for norm, (n, x, squares) in sums.items():
        norm.running_mean = (x / n).float()
        norm.running_var = ((squares - x**2 / n) / (n - 1)).float()

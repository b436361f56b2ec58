"""Batch normalisation with the statistics of all ranks; PyTorch's own knows GPUs only."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

M = TypeVar("M", bound=nn.Module)


def convert_sync_batch_norm(network: M) -> M:
    """The network itself, each batch normalisation of it made synchronous."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            # Another class for the same object: names, tensors and references to it stay right.
            module.__class__ = SyncBatchNorm
    return network


class SyncBatchNorm(_BatchNorm):
    """`nn.BatchNorm2d` of the images of all ranks, for inputs (N, C, *S).

    The plain one in evaluation mode and without a process group. Gradients are those of the sum of
    the ranks' losses: averaged over the ranks they belong to the mean loss.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        pass  # any number of dimensions

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and dist.is_available() and dist.is_initialized()):
            return super().forward(x)
        mean, var, n = moments(x.detach().float())
        count = self.get_buffer("num_batches_tracked").add_(1)
        momentum = 1 / int(count) if self.momentum is None else self.momentum
        self.get_buffer("running_mean").lerp_(mean, momentum)
        self.get_buffer("running_var").lerp_(var * n / (n - 1), momentum)
        return _Normalise.apply(x, self.weight, self.bias, mean, var, n, self.eps)


def moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance and count of (N, C, *S) over all ranks, each (C,).

    Merged from the ranks' own; sums of squares would lose digits where the mean is large.
    """
    var, mean = torch.var_mean(x, [0, *range(2, x.ndim)], correction=0)
    local = torch.stack([torch.full_like(mean, x.numel() / len(mean)), mean, var])
    ranks = [torch.empty_like(local) for _ in range(dist.get_world_size())]
    dist.all_gather(ranks, local)
    counts, means, variances = torch.stack(ranks, 1)  # each (ranks, C)
    n = counts.sum(0)
    mean = (counts * means).sum(0) / n
    return mean, (counts * (variances + (means - mean) ** 2)).sum(0) / n, n


class _Normalise(torch.autograd.Function):
    """1502.03167, section 3: with moments of all ranks, and gradients through them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> Tensor:
        mean, var, n, eps = rest
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt(), n)
        return F.batch_norm(x, mean, var, weight, bias, eps=eps)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse, n = ctx.saved_tensors
        g, normal = dy.movedim(1, -1).float(), (x.movedim(1, -1) - mean) * inverse
        local = torch.stack([g, g * normal]).flatten(1, -2).sum(1)  # gradients of beta and gamma
        total = local.clone()
        dist.all_reduce(total)
        dx = weight * inverse * (g - (total[0] + normal * total[1]) / n)
        return dx.movedim(-1, 1).to(x.dtype), local[1], local[0], None, None, None, None

"""What a network costs: exact counts from the network itself, on the meta device."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from resnets.config.arch import Arch, ExternalArch, MlpArch, ResNetArch
from resnets.errors import UsageError
from resnets.escape import shorten
from resnets.models import CLASSIFIERS, external
from resnets.models.io.infer_arch import meta_model


@dataclass(frozen=True, slots=True)
class Cost:
    """Trainable parameters, and multiply-adds of one forward pass for one input of `arch.size`."""

    parameters: int
    macs: int


@lru_cache(64)  # plan, report, card and ledger ask for the same one
def cost(arch: Arch) -> Cost:
    """Count. Multiply-adds are those of convolutions, linear layers and attention, as in papers.

    Of detectors, localisers and segmenters they are those of `features`, the rest depends on what
    is found.
    """
    if isinstance(arch, ExternalArch):
        return Cost(arch.parameters, arch.macs)
    with _MacCounter() as counter:
        network = _run(arch)
    return Cost(sum(p.numel() for p in network.parameters()), counter.macs)


def measure(arch: ExternalArch) -> ExternalArch:
    """The description with the counts of a network that can be trained. Raises as `build`."""
    network = external.build(arch).eval()
    if not copy.deepcopy(network).check_output(training=True).requires_grad:
        raise UsageError(f"{arch.builder} has nothing to train: its logits have no gradient")
    with torch.no_grad(), _MacCounter() as counter:
        network(torch.zeros(1, arch.channels, arch.size, arch.size))
    layers = sum(isinstance(m, _ConvNd | nn.Linear) for m in network.modules())
    count = sum(p.numel() for p in network.parameters())
    return replace(arch, depth=layers, parameters=count, macs=counter.macs)


def has_narrow_input(arch: Arch) -> bool:
    """Whether a strided convolution gets a map that is narrower than its stride.

    In bfloat16 the gradient of such weights is arbitrary memory on processors with AVX512-BF16
    (PyTorch 2.14): the gradient of what no output touches is never written.
    """
    with _NarrowInputs() as convolutions:
        _run(arch)
    return convolutions.narrow


@torch.no_grad()
def _run(arch: Arch) -> Any:
    """The network after a forward pass, without memory unless it is custom."""
    network: Any
    if isinstance(arch, ExternalArch):
        network, device = external.build(arch).eval(), "cpu"
    else:
        network, device = meta_model(arch).eval(), "meta"
    forward = network if isinstance(network, CLASSIFIERS) else network.features
    try:
        forward(torch.empty(input_shape(arch), device=device))
    except RuntimeError as error:
        raise UsageError(
            f"the network cannot take inputs of {arch.size} pixels: {shorten(str(error))}\n"
            "Its feature maps shrink to nothing; choose a larger --size."
        ) from error
    return network


def input_shape(arch: Arch, batch: int = 1) -> tuple[int, ...]:
    """The shape of a batch that `arch` is counted for."""
    if isinstance(arch, MlpArch):
        return (batch, arch.channels)
    dims = arch.dims if isinstance(arch, ResNetArch) else 2
    return (batch, arch.channels, *(arch.size,) * dims)


CONVOLUTIONS = {torch.conv1d, torch.conv2d, torch.conv3d}
WEIGHTED = {*CONVOLUTIONS, F.linear}
# Shapes are all that is wanted here. The meta kernels of normalisations take up to a millisecond a
# call to answer with the shape that they got, and random numbers are drawn for nothing.
KEEP_SHAPE = {
    *(F.batch_norm, F.group_norm, F.layer_norm, F.relu, F.gelu, F.dropout),
    *(torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.fill_, torch.Tensor.zero_),
    nn.init.kaiming_uniform_,
}


class _MacCounter(TorchFunctionMode):
    """Adds up the `macs` of a forward pass, in which shapes alone are computed."""

    macs = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in KEEP_SHAPE:
            return args[0] if args else kwargs["tensor"]
        out = func(*args, **kwargs or {})
        if func in WEIGHTED:
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            self.macs += out.numel() * math.prod(weight.shape[1:])
        elif func is F.scaled_dot_product_attention:
            query: Tensor = args[0]
            self.macs += 2 * query.numel() * args[1].shape[-2]  # q k^T, and its weights times v
        return out


class _NarrowInputs(TorchFunctionMode):
    """Notes whether the input of a convolution is `narrow`, shorter somewhere than its stride."""

    narrow = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in CONVOLUTIONS:
            self.narrow |= _is_narrow(*args, **kwargs or {})
        return func(*args, **kwargs or {})


def _is_narrow(
    input: Tensor,
    weight: Tensor,
    bias: object = None,
    stride: Any = 1,
    *_: object,
    **others: object,
) -> bool:
    """Whether a convolution with these arguments has an input narrower than its stride."""
    dims = weight.ndim - 2
    strides = (stride,) * dims if isinstance(stride, int) else stride
    sides = zip(input.shape[-dims:], weight.shape[2:], strides, strict=True)
    return any(side < step and kernel > 1 for side, kernel, step in sides)

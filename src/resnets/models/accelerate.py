"""Faster training steps on the CPU, by the fused kernels of `ops.cpu_fused`."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType

import torch
from torch import Tensor, nn

from resnets.config.arch import Arch
from resnets.models.blocks import ExclusiveGate, PreActivation, Residual, SharedPreActivation, Unit
from resnets.models.external import ExternalNetwork
from resnets.models.io.infer_arch import meta_model
from resnets.models.resnet import ResNet
from resnets.ops import cpu_fused
from resnets.ops.cpu_fused import Plus, run_layers


def accelerate(network: nn.Module) -> None:
    """Let convolution, normalisation, addition and activation in a row be one call, in place.

    Only methods of the modules are replaced: parameters, names and results stay, and so does what
    happens at test time or where the kernels do not fit. Hooks of layers inside such a call do not
    run in training. Without kernels for this machine nothing changes.
    """
    if cpu_fused.library() is None or isinstance(network, ExternalNetwork):
        return  # custom modules may have hooks or other methods
    for module in network.modules():
        if type(module) not in FUSED:
            continue
        name, method = FUSED[type(module)]
        if name == "forward" and isinstance(module, Residual) and _draws(module.downsample):
            name, method = "branch", _branch  # the branch draws its random numbers first
        setattr(module, name, MethodType(method, module))


def describe_kernels(arch: Arch, device: torch.device, bfloat16: bool) -> str:
    """Which kernels compute a training step of such a network, and why not the fused ones."""
    if device.type != "cpu":
        return "PyTorch's own kernels (the fused ones are for the CPU)"
    return cpu_fused.describe(meta_model(arch), bfloat16)


def _draws(shortcut: nn.Module) -> bool:
    return any(isinstance(layer, nn.Dropout) for layer in shortcut.modules())


def _residual(unit: Residual, x: Tensor) -> Tensor:
    return run_layers([*unit.layers(), Plus(unit.shortcut(x)), unit.act], x)


def _branch(unit: Unit, x: Tensor) -> Tensor:
    return run_layers(unit.layers(), x)


def _sequence(layers: nn.Sequential, x: Tensor) -> Tensor:
    return run_layers(layers, x)


def _stem(network: ResNet, x: Tensor) -> Tensor:
    return run_layers([network.conv1, network.bn1, network.relu], x)


# The method of each type that is replaced, and by what. Types of others stay as they are.
FUSED: dict[type[nn.Module], tuple[str, Callable[..., Tensor]]] = {
    Residual: ("forward", _residual),
    ExclusiveGate: ("branch", _branch),
    PreActivation: ("branch", _branch),
    SharedPreActivation: ("branch", _branch),
    nn.Sequential: ("forward", _sequence),
    ResNet: ("stem", _stem),
}

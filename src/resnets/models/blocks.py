"""The two residual units, and stages whose units are recomputed instead of kept in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from resnets.errors import UsageError


class Unit(nn.Module):
    """What both residual units have: a branch F of named layers, and a shortcut h.

    The layers are registered under their own names and the shortcut as `downsample`, so that the
    tensors are named as in torchvision.
    """

    def __init__(self, layers: Mapping[str, nn.Module], shortcut: nn.Module) -> None:
        super().__init__()
        self.layer_names = tuple(layers)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.downsample = shortcut

    def layers(self) -> list[nn.Module]:
        """The layers of the branch, in order."""
        return [self.get_submodule(name) for name in self.layer_names]

    def branch(self, x: Tensor) -> Tensor:
        """F(x)."""
        for layer in self.layers():
            x = layer(x)
        return x

    def shortcut(self, x: Tensor) -> Tensor:
        """h(x)."""
        return self.downsample(x)


class Residual(Unit):
    """y = act(F(x) + h(x)): He et al. 2015, eq. 1 and 2; He et al. 2016, eq. 1.

    Shapes: (N, C, *S) -> (N, C', *S').
    """

    def __init__(
        self, layers: Mapping[str, nn.Module], shortcut: nn.Module, act: nn.Module
    ) -> None:
        super().__init__(layers, shortcut)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.branch(x) + self.shortcut(x))


class ExclusiveGate(Residual):
    """y = act((1 - g(x)) h(x) + g(x) F(x)): He et al. 2016, section 3.1, exclusive gating."""

    def __init__(
        self, layers: Mapping[str, nn.Module], shortcut: nn.Module, act: nn.Module, gate: nn.Module
    ) -> None:
        super().__init__(layers, shortcut, act)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        g = self.gate(x)
        return self.act(g * self.branch(x) + (1 - g) * self.shortcut(x))


class PreActivation(Unit):
    """y = h(x) + F(pre(x)), with nothing after the addition: He et al. 2016, eq. 3 and 9.

    Shapes: (N, C, ...) -> (N, C', ...).
    """

    def __init__(
        self, pre: nn.Module, layers: Mapping[str, nn.Module], shortcut: nn.Module
    ) -> None:
        super().__init__(layers, shortcut)
        self.pre = pre

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.branch(self.pre(x))


class SharedPreActivation(PreActivation):
    """y = h(a) + F(a), a = pre(x): where the shape changes, as in He's released code.

    Shapes: (N, C, ...) -> (N, C', ...).
    """

    def forward(self, x: Tensor) -> Tensor:
        a = self.pre(x)
        return self.shortcut(a) + self.branch(a)


def units(network: nn.Module) -> dict[str, Residual | PreActivation]:
    """The residual units by name, from the input on. Raises UsageError where there are none."""
    residual_units = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, Residual | PreActivation)
    }
    if not residual_units:
        raise UsageError(
            "the network has no residual units: plain and dense ones have none to remove"
        )
    return residual_units


class CheckpointedStage(nn.Sequential):
    """Units in order. Only the input of each `segment` of them is kept for the backward pass.

    The rest is computed a second time when it is needed: Chen et al. 2016, arXiv 1604.06174.
    """

    def __init__(self, units: Mapping[str, nn.Module], segment: int) -> None:
        super().__init__(OrderedDict(units))
        self.segment = segment

    def forward(self, x: Tensor) -> Tensor:
        units = list(self)
        for start in range(0, len(units), self.segment):
            segment = units[start : start + self.segment]
            contexts = lambda segment=segment: (nullcontext(), _freeze_statistics(segment))  # noqa: E731
            x = checkpoint(_run_units, segment, x, use_reentrant=False, context_fn=contexts)
        return x


def make_stage(units: Mapping[str, nn.Module], segment: int) -> nn.Sequential:
    """The units in order, recomputed in segments of that many; 0 keeps everything."""
    if segment:
        return CheckpointedStage(units, segment)
    return nn.Sequential(OrderedDict(units))


def _run_units(units: Sequence[nn.Module], x: Tensor) -> Tensor:
    for unit in units:
        x = unit(x)
    return x


@contextmanager
def _freeze_statistics(units: Iterable[nn.Module]) -> Iterator[None]:
    # The second forward must not move the running statistics a second time. It cannot switch them
    # off either: it has to save the same tensors for the backward pass as the first.
    norms = [m for unit in units for m in unit.modules() if isinstance(m, _BatchNorm)]
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, _, count in before:
        norm.momentum = 0.0
        norm.num_batches_tracked = None if count is None else count.clone()
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum, norm.num_batches_tracked = momentum, count

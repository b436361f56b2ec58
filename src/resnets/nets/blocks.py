"""The two laws of a residual unit, and units that are recomputed instead of remembered."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from resnets.errors import UsageError
from resnets.ops.fused import Plus, chained


class Residual(nn.Module):
    """y = f(h(x) + F(x)): He et al. 2015, eq. 1 and 2; He et al. 2016, eq. 1.

    F is the chain of `layers`; f is the ReLU of He et al. 2015. The layers are registered under
    their own names and the shortcut h as `downsample`, as in torchvision.

    Shapes: (N, C, *S) -> (N, C', *S').
    """

    def __init__(self, layers: Mapping[str, nn.Module], h: nn.Module, f: nn.Module) -> None:
        super().__init__()
        self.names = _register(self, layers)
        self.downsample = h
        self.f = f

    def branch(self, x: Tensor) -> Tensor:
        """F(x)."""
        return chained(_layers(self), x)

    def terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What is added: the shortcut's part and the branch's."""
        return self.downsample(x), self.branch(x)

    def forward(self, x: Tensor) -> Tensor:
        return chained([*_layers(self), Plus(self.downsample(x)), self.f], x)


class ExclusiveGate(Residual):
    """y = f((1 - g(x)) h(x) + g(x) F(x)): He et al. 2016, section 3.1, exclusive gating."""

    def __init__(
        self, layers: Mapping[str, nn.Module], h: nn.Module, f: nn.Module, gate: nn.Module
    ) -> None:
        super().__init__(layers, h, f)
        self.gate = gate

    def terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        g = self.gate(x)
        return (1 - g) * self.downsample(x), g * self.branch(x)

    def forward(self, x: Tensor) -> Tensor:
        h, r = self.terms(x)
        y: Tensor = self.f(h + r)
        return y


class PreActivation(nn.Module):
    """y = h(x) + F(a), a = pre(x), with nothing after the addition: He et al. 2016, eq. 3 and 9.

    A shortcut that changes the shape is `shared`: it takes a too, as in He's released code.

    Shapes: (N, C, ...) -> (N, C', ...).
    """

    def __init__(
        self, pre: nn.Module, layers: Mapping[str, nn.Module], h: nn.Module, shared: bool = False
    ) -> None:
        super().__init__()
        self.pre = pre
        self.names = _register(self, layers)
        self.downsample = h
        self.f = nn.Identity()
        self.shared = shared

    def branch(self, a: Tensor) -> Tensor:
        """F(a)."""
        return chained(_layers(self), a)

    def terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What is added: the shortcut's part and the branch's."""
        a = self.pre(x)
        return self.downsample(a if self.shared else x), self.branch(a)

    def forward(self, x: Tensor) -> Tensor:
        h, r = self.terms(x)
        return h + r


def units(network: nn.Module) -> dict[str, Residual | PreActivation]:
    """The residual units by name, from the input on. Raises UsageError where there are none."""
    found = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, Residual | PreActivation)
    }
    if not found:
        raise UsageError("the network has no residual units: a plain or dense one has none to take")
    return found


def _register(unit: nn.Module, layers: Mapping[str, nn.Module]) -> tuple[str, ...]:
    for name, layer in layers.items():
        unit.add_module(name, layer)
    return tuple(layers)


def _layers(unit: Residual | PreActivation) -> list[nn.Module]:
    return [unit.get_submodule(name) for name in unit.names]


class Recomputed(nn.Sequential):
    """Units in order. Only the input of each `segment` of them is kept for the backward pass.

    The rest is computed a second time when it is needed: Chen et al. 2016, arXiv 1604.06174.
    """

    def __init__(self, units: Mapping[str, nn.Module], segment: int) -> None:
        super().__init__(OrderedDict(units))
        self.segment = segment

    def forward(self, x: Tensor) -> Tensor:
        units = list(self)
        for start in range(0, len(units), self.segment):
            part = units[start : start + self.segment]
            twice = lambda part=part: (nullcontext(), _statistics_kept(part))  # noqa: E731
            x = checkpoint(chained, part, x, use_reentrant=False, context_fn=twice)
        return x


def chain(units: Mapping[str, nn.Module], segment: int) -> nn.Sequential:
    """The units in order, recomputed in segments of that many; 0 keeps everything."""
    return Recomputed(units, segment) if segment else nn.Sequential(OrderedDict(units))


@contextmanager
def _statistics_kept(units: Iterable[nn.Module]) -> Iterator[None]:
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

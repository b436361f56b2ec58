"""What depth does in a residual network: the equations, lesions, lengths of paths, the loss around.

The units are those of `nets.blocks.units`, which raises UsageError where there are none.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, combinations
from operator import mul

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from resnets.analysis.signal import eval_copy, loss
from resnets.errors import UsageError
from resnets.models.blocks import ExclusiveGate, PreActivation, Residual, SharedPreActivation, units
from resnets.models.resnet import Pad, Scale, ShortcutGate

Unit = Residual | PreActivation
Score = Callable[[], float]
Call = tuple[Unit, Tensor, Tensor]  # a unit, its input and its output


def capture_unit_io(network: nn.Module, images: Tensor) -> tuple[list[Call], Tensor]:
    """The calls of the residual units in one forward pass, in order, and its logits."""
    calls = list[Call]()
    hooks = [
        unit.register_forward_hook(lambda unit, inputs, y: calls.append((unit, *inputs, y)))
        for unit in units(network).values()
    ]
    logits = network(images)
    for hook in hooks:
        hook.remove()
    return calls, logits


def same_shape_runs(calls: Sequence[Call]) -> list[list[Call]]:
    """Units in a row that keep their input's shape: the parts of stages in which x can stay x.

    Raises UsageError where there are none.
    """
    runs = list[list[Call]]()
    for unit, x, y in calls:
        if x.shape == y.shape:
            if not runs or runs[-1][-1][2] is not x:
                runs.append([])
            runs[-1].append((unit, x, y))
    if not runs:
        raise UsageError("no unit of the network keeps the shape of its input")
    return runs


@torch.no_grad()
def equation4(network: nn.Module, x: Tensor) -> float:
    """max |x_L - x_l - sum F(x_i)| / max |x_L|, over any two units of a run: 1603.05027, eq. 4.

    In float64; it is rounding where shortcuts are identities and nothing follows the addition.
    """
    calls, _ = capture_unit_io(eval_copy(network, torch.float64), x.double())
    worst = 0.0
    for run in same_shape_runs(calls):
        (_, start, _), (_, _, end) = run[0], run[-1]
        total = low = high = torch.zeros_like(start)
        for unit, x_i, y in run:
            total = total + skip_and_branch(unit, x_i)[1]
            residual = y - start - total  # from unit l to L it is the difference of two of these
            low, high = torch.minimum(low, residual), torch.maximum(high, residual)
        worst = max(worst, ((high - low).max() / end.abs().max()).item())
    return worst


def equation5(
    network: nn.Module, x: Tensor, labels: Tensor | None = None, *, seed: int = 0
) -> float:
    """max |dE/dx_l - (dE/dx_L + dE/dx_L d(sum F)/dx_l)| / max |dE/dx_l|: 1603.05027, eq. 5.

    From the first unit of a run to its last, in float64; E is `signal.loss`. The second term is
    a vector-Jacobian product of its own, from x_l through F alone to the sum.
    """
    network = eval_copy(network, torch.float64).requires_grad_()
    worst = 0.0
    with torch.enable_grad():
        calls, logits = capture_unit_io(network, x.double())
        error = loss(logits, labels, seed)
        for run in same_shape_runs(calls):
            (_, start, _), (_, _, end) = run[0], run[-1]
            at_start, at_end = torch.autograd.grad(error, (start, end), retain_graph=True)
            x_l = x_i = start.detach().requires_grad_()
            total = torch.zeros_like(x_l)
            for unit, _, _ in run:
                total, x_i = total + skip_and_branch(unit, x_i)[1], unit(x_i)
            (through,) = torch.autograd.grad(total, x_l, at_end)
            residual = (at_start - at_end - through).abs().max() / at_start.abs().max()
            worst = max(worst, residual.item())
    return worst


def shortcut_products(network: nn.Module, x: Tensor) -> list[float]:
    """The product of the shortcuts' scales from each unit to the last: 1603.05027, eq. 6 to 8.

    A scale is 1 for the identity, lambda for a constant, the mean of 1 - g for a gate, 1 - p for
    dropout (section 3.1, its expectation there); for a projection the factor by which it changes
    the norm of a random gradient.
    """
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        calls, _ = capture_unit_io(eval_copy(network, torch.float64), x.double())
        scales = [_scale(unit, x_i) for unit, x_i, _ in calls]
    return [*accumulate(reversed(scales), mul)][::-1]


def _scale(h: nn.Module, x: Tensor) -> float:
    match h:
        case SharedPreActivation():
            return _scale(h.downsample, h.pre(x))
        case ExclusiveGate():
            return float((1 - h.gate(x)).mean()) * _scale(h.downsample, x)
        case Residual() | PreActivation():
            return _scale(h.downsample, x)
        case nn.Identity() | Pad():
            return 1.0
        case Scale():
            return h.factor
        case nn.Dropout():
            return 1 - h.p
        case ShortcutGate():
            return float((1 - h.gate(x)).mean()) * _scale(h.shortcut, x)
        case nn.Sequential() if not any(isinstance(layer, _ConvNd) for layer in h):
            factor = 1.0
            for layer in h:
                factor *= _scale(layer, x)
                x = layer(x)
            return factor
    with torch.enable_grad():
        y = h(x := x.detach().requires_grad_())
        v = torch.randn_like(y)
        (back,) = torch.autograd.grad(y, x, v)
    return float(back.norm() / v.norm())


def skip_branch(unit: Unit, inputs: tuple[Tensor], _: object = None) -> Tensor:
    """The output of a unit without its branch, as of a forward hook: y = act(h(x))."""
    return after_addition(unit, skip_and_branch(unit, *inputs)[0])


def skip_and_branch(unit: Unit, x: Tensor) -> tuple[Tensor, Tensor]:
    """The two terms of the sum in a unit's formula."""
    match unit:
        case ExclusiveGate():
            g = unit.gate(x)
            return (1 - g) * unit.shortcut(x), g * unit.branch(x)
        case SharedPreActivation():
            a = unit.pre(x)
            return unit.shortcut(a), unit.branch(a)
        case PreActivation():
            return unit.shortcut(x), unit.branch(unit.pre(x))
    return unit.shortcut(x), unit.branch(x)


def after_addition(unit: Unit, y: Tensor) -> Tensor:
    """What follows the addition in a unit: nothing where the activation stands before it."""
    z: Tensor = unit.act(y) if isinstance(unit, Residual) else y
    return z


def delete_units(network: nn.Module, score: Score) -> Iterator[tuple[str, float]]:
    """(unit, score of the network without its branch), each unit in turn: 1605.06431, section 4.1.

    The unit's shortcut stays. The network is whole again before each is given.
    """
    for name, unit in units(network).items():
        with unit.register_forward_hook(skip_branch):
            value = score()
        yield name, value


def swap_units(
    network: nn.Module, score: Score, *, pairs: int = 20, seed: int = 0
) -> Iterator[tuple[str, str, float]]:
    """(unit, unit, score of the network with the two exchanged): 1605.06431, section 4.3.

    The pairs are drawn from all of the same stage and shape; there may be fewer. The network is
    whole again before each is given. Raises UsageError where no two units are alike.
    """
    alike, all_units = dict[object, list[str]](), units(network)
    for name, unit in all_units.items():
        shapes = tuple(tensor.shape for tensor in unit.state_dict().values())
        strides = tuple(getattr(module, "stride", 1) for module in unit.modules())
        alike.setdefault((name.partition(".")[0], type(unit), shapes, strides), []).append(name)
    candidates = [pair for names in alike.values() for pair in combinations(names, 2)]
    if not candidates:
        raise UsageError("no two units of a stage have the same shape: nothing can be exchanged")
    for a, b in random.Random(seed).sample(candidates, min(pairs, len(candidates))):
        first, second = all_units[a], all_units[b]
        with (
            first.register_forward_hook(lambda _, x, y, second=second: second.forward(*x)),
            second.register_forward_hook(lambda _, x, y, first=first: first.forward(*x)),
        ):
            value = score()
        yield a, b, value


def path_gradients(
    network: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    samples: int = 4,
    seed: int = 0,
) -> list[tuple[int, int, float]]:
    """(k, number of paths through k of the n branches, mean norm of the gradient over one of them).

    1605.06431, section 5: the forward pass is whole; the gradient of `signal.loss` goes back to the
    first unit's input through the branch of k units that are drawn, and past those of the others.
    """
    network, generator = eval_copy(network, images.dtype).requires_grad_(), random.Random(seed)
    with torch.enable_grad():
        calls, logits = capture_unit_io(network, images)
        (at_end,) = torch.autograd.grad(loss(logits, labels, seed), calls[-1][2])
        links = []
        for unit, x_i, _ in calls:
            x = x_i.detach().requires_grad_()
            h, r = skip_and_branch(unit, x)
            z = (h + r).detach().requires_grad_()
            links.append((x, h, r, z, after_addition(unit, z)))

    def length(taken: list[int]) -> float:
        g = at_end
        for k, (x, h, r, z, y) in reversed([*enumerate(links)]):
            (g,) = torch.autograd.grad(y, z, g, retain_graph=True)
            (g,) = torch.autograd.grad(r if k in taken else h, x, g, retain_graph=True)
        return float(g.double().norm())

    n = len(links)
    rows = []
    for k in range(n + 1):
        count = math.comb(n, k)
        norms = [length(generator.sample(range(n), k)) for _ in range(min(samples, count))]
        rows.append((k, count, sum(norms) / len(norms)))
    return rows


def effective_depth(rows: Sequence[tuple[int, int, float]]) -> int:
    """The least length up to which paths carry half of the gradient: count times mean norm."""
    carried = [*accumulate(count * norm for _, count, norm in rows)]
    return next(k for (k, *_), x in zip(rows, carried, strict=True) if 2 * x >= carried[-1])


@torch.no_grad()
def landscape(
    network: nn.Module, score: Score, *, span: float = 1.0, points: int = 21, seed: int = 0
) -> list[tuple[float, float]]:
    """(alpha, score at the weights + alpha d), alpha from -span to span: 1712.09913, section 4.

    d is drawn from a normal distribution, and each filter of it scaled to the norm of the network's
    own; parameters of one dimension stay. Afterwards the weights are the same bits as before.
    """
    weights = [p for p in network.parameters() if p.ndim > 1]
    generator = torch.Generator().manual_seed(seed)
    before, direction = [w.clone() for w in weights], []
    for w in weights:
        d = torch.randn(w.shape, generator=generator).to(w)
        size, norm = (t.flatten(1).norm(dim=1).view(-1, *(1,) * (w.ndim - 1)) for t in (d, w))
        direction.append(d * norm / size)
    rows = []
    try:
        for alpha in torch.linspace(-span, span, points, dtype=torch.float64).tolist():
            for w, b, d in zip(weights, before, direction, strict=True):
                w.copy_(b + alpha * d)
            rows.append((alpha, score()))
    finally:
        for w, b in zip(weights, before, strict=True):
            w.copy_(b)
    return rows

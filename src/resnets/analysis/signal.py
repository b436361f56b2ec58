"""The signal inside a deep network: the responses of its layers, and the gradients at them.

For any torch module, on a copy: weights, gradients and statistics of the caller's stay.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd

from resnets.errors import UsageError

FAR = 1e3  # a signal that is so many times smaller or larger is reported


@dataclass(frozen=True, slots=True)
class LayerStatistics:
    """One call of a convolution or linear layer."""

    index: int  # in the order of the calls, from 1
    name: str
    forward: float  # standard deviation of its response
    backward: float  # root mean square of the loss's gradient to its response
    weight: float  # norm of the gradient of its weights, over all its calls


def eval_copy(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy in evaluation mode; where no statistics are learned yet, the batch's normalise."""
    network = copy.deepcopy(network).to(dtype).eval()
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm)]
    if not any(norm.running_mean is not None and norm.running_mean.any() for norm in norms):
        for norm in norms:
            norm.train().momentum = None
    return network


def loss(logits: Tensor, labels: Tensor | None = None, seed: int = 0) -> Tensor:
    """The mean cross-entropy, in nats; of random labels of that seed where none are given.

    Raises UsageError for an output that is not logits (N, K).
    """
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UsageError(f"the network must return logits (N, classes), not {got}")
    if labels is None:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(logits.shape[1], (len(logits),), generator=generator)
    return F.cross_entropy(logits, labels.to(logits.device))


@torch.no_grad()
def responses(network: nn.Module, images: Tensor) -> list[tuple[int, str, str, float]]:
    """(number from 1, name, where taken, standard deviation) of each layer of kernel above 1.

    1512.03385, Fig. 7: after the layer's normalisation, before ReLU or addition. Where it stands
    before the convolution (order "pre"), or nothing normalises the convolution's very output, the
    response is that output; "where taken" is the name of the layer whose output it is. Statistics
    as in `eval_copy`. Raises UsageError where there is no such layer.
    """
    network = eval_copy(network, images.dtype)
    names = {module: name for name, module in network.named_modules()}
    pre_activation = getattr(getattr(network, "arch", None), "order", None) == "pre"
    rows, last = list[tuple[int, str, str, float]](), None

    def record(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal last
        if isinstance(layer, _ConvNd):
            last = output if max(layer.kernel_size) > 1 else None
            if last is not None:
                name = names[layer]
                rows.append((len(rows) + 1, name, name, standard_deviation(output)))
        elif inputs[0] is last and not pre_activation:
            rows[-1] = (*rows[-1][:2], names[layer], standard_deviation(output))

    for module in names:
        if isinstance(module, _ConvNd | _NormBase | nn.GroupNorm | nn.LayerNorm):
            module.register_forward_hook(record)
    network(images)
    if not rows:
        raise UsageError(
            "the network has no convolution wider than 1; `signal` measures linear layers"
        )
    return rows


def signal(
    module: nn.Module, images: Tensor, labels: Tensor | None = None, *, seed: int = 0
) -> list[LayerStatistics]:
    """Response and gradient of each convolution and linear layer in a step of training.

    In training mode, with the batch's statistics; labels and errors as in `loss`. Raises UsageError
    too where no such layer is called.
    """
    module = copy.deepcopy(module).train().requires_grad_()
    calls, gradients = list[tuple[str, nn.Module, float]](), dict[int, float]()

    def record_gradient(call: int, gradient: Tensor) -> None:
        gradients[call] = gradient.double().square().mean().sqrt().item()

    def record(name: str, layer: nn.Module, _: object, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(partial(record_gradient, len(calls)))  # type: ignore[no-untyped-call]
        calls.append((name, layer, standard_deviation(output.detach())))

    hooks = [
        layer.register_forward_hook(partial(record, name))
        for name, layer in module.named_modules()
        if isinstance(layer, _ConvNd | nn.Linear)
    ]
    float32 = torch.autocast(images.device.type, enabled=False)
    with torch.random.fork_rng(), torch.enable_grad(), float32:
        torch.manual_seed(seed)  # of dropout
        error = loss(module(images), labels, seed)
        for hook in hooks:  # what recomputes in the backward pass calls its layers again
            hook.remove()
        if not calls:
            raise UsageError("the network has no convolution or linear layer")
        error.backward()  # type: ignore[no-untyped-call]
    return [
        LayerStatistics(k + 1, name, forward, gradients.get(k, 0.0), _weight_gradient_norm(layer))
        for k, (name, layer, forward) in enumerate(calls)
    ]


def without_row(module: nn.Module, layers: Sequence[LayerStatistics]) -> list[str]:
    """Matrices and kernels that no row of `signal` is of, as those of nn.MultiheadAttention."""
    rows = {f"{layer.name}.weight".removeprefix(".") for layer in layers}
    return [n for n, p in module.named_parameters() if p.ndim > 1 and n not in rows]


def standard_deviation(x: Tensor) -> float:
    """Standard deviation of all values."""
    return x.double().std(correction=0).item()


def verdict(layers: Sequence[LayerStatistics]) -> str:
    """One sentence: where the signal vanishes, explodes or is not finite, or that it is healthy.

    Responses are compared with the first layer's, gradients with those of the last layer before
    the classifier: healthy is what stays within a factor of 1,000 of it.
    """
    backward = list(reversed(layers[:-1] if len(layers) > 2 else layers))
    problems = [
        _describe_problem("response", "first", [(x.forward, x) for x in layers]),
        _describe_problem("gradient", "last", [(x.backward, x) for x in backward]),
    ]
    text = "; ".join(problem for problem in problems if problem)
    if text:
        return f"{text[0].upper()}{text[1:]}."
    gradients = [layer.backward for layer in backward]
    ratio = max(gradients) / min(gradients)
    return f"The signal is healthy: its gradients differ {ratio:.2g}-fold."


def _describe_problem(name: str, end: str, values: Sequence[tuple[float, LayerStatistics]]) -> str:
    """What is wrong with values in the order in which they are computed; empty if nothing is."""
    start, origin = values[0]
    for value, layer in values:
        if not math.isfinite(value):
            return f"the {name} is not finite from layer {layer.index} on, {layer.name}"
    if not start:
        return f"the {name} is 0 at layer {origin.index}, {origin.name}"
    ratios = [(value / start, layer) for value, layer in values]
    far = next(((r, layer) for r, layer in ratios if not 1 / FAR <= r <= FAR), None)
    if far is None:
        return ""
    falls = far[0] < 1
    worst, layer = (min if falls else max)(ratios, key=lambda pair: pair[0])
    by = f"by {worst ** (-1 if falls else 1):.2g}" if worst else "to 0"
    bound = "below a thousandth of" if falls else "above a thousand times"
    return (
        f"the {name} {'falls' if falls else 'grows'} {by} from layer {origin.index} to layer "
        f"{layer.index}: {far[1].name} is the first {bound} the {end}"
    )


def _weight_gradient_norm(layer: nn.Module) -> float:
    gradient = layer.weight.grad if isinstance(layer.weight, Tensor) else None
    return 0.0 if gradient is None else gradient.double().norm().item()

"""Which weights learn, how fast, and by which rule.

All that an optimiser keeps is tensors in `state[parameter]`, so a checkpoint can hold it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from resnets.config.recipe import Recipe
from resnets.models import Network
from resnets.models.external import ExternalNetwork
from resnets.models.heads import head_parameters

Tensors = list[Tensor] | tuple[Tensor, ...]
ParamStates = list[dict[str, Tensor]]
Rule = Callable[[ParamStates, Tensors, Tensors, dict[str, Any]], Tensors]

# What has one rate under `layer_decay`: a stage; in networks without stages, a unit.
LR_STAGE = re.compile(r"^(?:features\.)?((?:layer|denseblock|units\.|blocks\.)\d+|fc|classifier)\.")


def build(network: Network, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser of all parameters, frozen ones too.

    The loop sets a group's "lr" to the step's rate times the group's "scale".
    """
    lr, momentum, nesterov, betas = recipe.lr, recipe.momentum, recipe.nesterov, recipe.betas
    groups = parameter_groups(network, recipe)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr, momentum, nesterov=nesterov, foreach=True)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr, betas, foreach=True)
    eps = 1e-6 if recipe.optimizer == "lamb" else 1e-8  # of the papers
    defaults = {"momentum": momentum, "nesterov": nesterov, "betas": betas, "eps": eps}
    return Layerwise(groups, defaults)


def parameter_groups(network: Network, recipe: Recipe) -> list[dict[str, Any]]:
    """Parameters by weight decay, rate and rule; vectors have no decay without `decay_all`."""
    heads = head_parameters(network)
    matrices = {m.weight for m in network.modules() if isinstance(m, _ConvNd | nn.Linear)}
    matrices -= {p for name, p in network.named_parameters() if name in heads}
    scale = lr_scales(network, recipe.layer_decay)
    groups: dict[tuple[float, float, Rule | None], list[nn.Parameter]] = {}
    for name, p in network.named_parameters():
        decay = recipe.weight_decay if recipe.decay_all or p.ndim > 1 else 0.0
        rules = {"lamb": lamb, "lars": lars, "muon": muon if p in matrices else adamw}
        groups.setdefault((decay, scale[name], rules.get(recipe.optimizer)), []).append(p)
    return [
        {"params": ps, "weight_decay": w, "lr": recipe.lr * s, "scale": s, "rule": rule}
        for (w, s, rule), ps in groups.items()
    ]


def stage_numbers(network: Network) -> dict[str, int]:
    """How many stages begin before each parameter or in it, by name.

    What follows a stage belongs to it; what precedes the first has the number 0.
    """
    stages, numbers = set[str](), dict[str, int]()
    for name, _ in network.named_parameters():  # from the input to the output
        stages.update(LR_STAGE.findall(name))
        numbers[name] = len(stages)
    return numbers


def lr_scales(network: Network, decay: float) -> dict[str, float]:
    """decay^(stages from a parameter to the classifier), by name: 1801.06146, section 3.2."""
    numbers = stage_numbers(network)
    last = max(numbers.values(), default=0)
    return {name: decay ** (last - number) for name, number in numbers.items()}


def set_training_mode(
    network: Network, heads_only: bool, frozen_norm: bool, frozen_stages: int = 0
) -> None:
    """Training mode, in which all, or the heads alone, learn, but for the first `frozen_stages`.

    Frozen normalisation, and that of these stages, keeps its statistics.
    """
    heads, numbers = head_parameters(network), stage_numbers(network)
    early = {name for name, number in numbers.items() if number < frozen_stages}
    fixed = early - heads
    if isinstance(network, ExternalNetwork):
        fixed = set(network.frozen)
    for name, p in network.train().named_parameters():
        p.requires_grad_((not heads_only or name in heads) and name not in fixed)
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm):
            module.train(not frozen_norm and f"{name}.weight" not in fixed)


class Layerwise(torch.optim.Optimizer):
    """x -= lr * rule(x), where a group's "rule" moves the state of x on by gradients g."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            if x := [p for p in group["params"] if p.grad is not None]:
                state = [self.state[p] for p in x]
                move = group["rule"](state, x, [p.grad for p in x], group)
                torch._foreach_add_(x, move, alpha=-group["lr"])


def adamw(state: ParamStates, x: Tensors, g: Tensors, group: dict[str, Any]) -> Tensors:
    """1711.05101, algorithm 2: m / (sqrt(v) + eps), corrected for bias, and the decay."""
    m, v = (optimizer_buffers(state, x, name) for name in ("exp_avg", "exp_avg_sq"))
    beta1, beta2 = group["betas"]
    torch._foreach_lerp_(m, g, 1 - beta1)
    torch._foreach_mul_(v, beta2)
    torch._foreach_addcmul_(v, g, g, 1 - beta2)
    # Counted for each parameter, since frozen ones start later; on the CPU, where reading is free.
    t = [int(buffers.setdefault("step", torch.zeros(())).add_(1)) for buffers in state]
    root = torch._foreach_sqrt(v)
    torch._foreach_div_(root, [math.sqrt(1 - beta2**n) for n in t])
    torch._foreach_add_(root, group["eps"])
    r = torch._foreach_div(m, [1 - beta1**n for n in t])
    torch._foreach_div_(r, root)
    torch._foreach_add_(r, x, alpha=group["weight_decay"])
    return r


def lamb(state: ParamStates, x: Tensors, g: Tensors, group: dict[str, Any]) -> Tensors:
    """1904.00962, algorithm 2, phi(x) = x, with bias correction, as timm has it for 2110.00476.

    Without decay it is Adam's step. The paper clips the gradient to norm 1: `Recipe.clip`.
    """
    r = adamw(state, x, g, group)
    return scale_in_place(r, norms(x) / norms(r)) if group["weight_decay"] else r


def lars(state: ParamStates, x: Tensors, g: Tensors, group: dict[str, Any]) -> Tensors:
    """1708.03888, algorithm 1, with its coefficient 0.001; without decay it is SGD's step."""
    if decay := group["weight_decay"]:
        ratio = 0.001 * norms(x) / (norms(g) + decay * norms(x))
        g = scale_in_place(torch._foreach_add(g, x, alpha=decay), ratio)
    v = optimizer_buffers(state, x, "momentum_buffer")
    torch._foreach_mul_(v, group["momentum"])
    torch._foreach_add_(v, g)
    return torch._foreach_add(g, v, alpha=group["momentum"]) if group["nesterov"] else v


def muon(state: ParamStates, x: Tensors, g: Tensors, group: dict[str, Any]) -> Tensors:
    """The momentum of a weight matrix, made orthogonal: Jordan et al. 2024, "Muon".

    As its authors advise, convolutions are matrices (C_out, C_in * k * k), and AdamW moves vectors
    and the classifier; they use momentum 0.95 and Nesterov's step. It is as long as AdamW's, so one
    rate serves both (2502.16982, section 2.2). `torch.optim.Muon` refuses convolutions.
    """
    v = optimizer_buffers(state, x, "momentum_buffer")
    torch._foreach_lerp_(v, g, 1 - group["momentum"])
    m = torch._foreach_lerp(g, v, group["momentum"]) if group["nesterov"] else v
    o = [orthogonal(y.flatten(1)).reshape(y.shape) for y in m]
    torch._foreach_mul_(o, [0.2 * math.sqrt(max(y.flatten(1).shape)) for y in m])
    torch._foreach_add_(o, x, alpha=group["weight_decay"])
    return o


def orthogonal(x: Tensor) -> Tensor:
    """About U V^T of x = U S V^T (rows, columns): five Newton-Schulz steps of Jordan et al."""
    wide = x.shape[0] <= x.shape[1]
    y: Tensor = (x if wide else x.T).bfloat16()  # enough: singular values end near 1, not at 1
    y = y / y.norm().clamp(min=1e-7)  # singular values up to 1, where the steps converge
    for _ in range(5):
        a = y @ y.T
        b = torch.addmm(a, a, a, beta=-4.7750, alpha=2.0315)
        y = torch.addmm(y, b, y, beta=3.4445)  # 3.4445 y - 4.7750 (y y^T) y + 2.0315 (y y^T)^2 y
    return (y if wide else y.T).to(x.dtype)


def optimizer_buffers(state: ParamStates, x: Tensors, name: str) -> Tensors:
    """The tensors of that name in the state, zeros at first."""
    for buffers, p in zip(state, x, strict=True):
        if name not in buffers:
            buffers[name] = torch.zeros_like(p)
    return [buffers[name] for buffers in state]


def norms(x: Tensors) -> Tensor:
    """The Euclidean norm of each tensor: (tensors,)."""
    return torch.stack(torch._foreach_norm(x))


def scale_in_place(x: Tensors, ratios: Tensor) -> Tensors:
    """x times (tensors,) ratios, in place; as it is where a norm of zero leaves no ratio."""
    usable = ratios.isfinite() & (ratios > 0)
    torch._foreach_mul_(x, torch.where(usable, ratios, 1.0).unbind())
    return x

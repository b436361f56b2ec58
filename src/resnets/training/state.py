"""What is trained, which is exactly what a checkpoint holds.

Nothing else is needed to go on: the order of the images, their augmentation, the learning rate and
every random draw of a step are functions of the recipe and the step.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resnets import nets
from resnets.arch import Arch
from resnets.errors import CheckpointError
from resnets.nets import Network
from resnets.recipe import Recipe


@dataclass
class State:
    """One run's network, its averaged twin, the optimiser and the position."""

    network: Network
    average: Network  # evaluated and saved as the result; equals `network` when ema is 0
    optimizer: torch.optim.SGD
    totals: Tensor  # (3,) float64: loss sum, wrong, images since the last logged row
    step: int = 0

    @classmethod
    def start(cls, recipe: Recipe, arch: Arch, device: torch.device) -> State:
        """A fresh state: initial weights are a function of the recipe's seed."""
        torch.manual_seed(recipe.seed)
        network = nets.build(arch, checkpoint=recipe.checkpoint_blocks)
        # Initialised in float32 NCHW on the CPU, so every device starts from the same weights.
        network = network.to(device)
        if getattr(arch, "dims", 2) == 2:
            network = network.to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(
            parameter_groups(network, recipe),
            lr=recipe.lr,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            foreach=True,
        )
        totals = torch.zeros(3, dtype=torch.float64, device=device)
        return cls(network, copy.deepcopy(network), optimizer, totals)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the run under one flat name, for a checkpoint."""
        flat = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        flat |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            buffer = self.optimizer.state[parameter].get("momentum_buffer")
            if buffer is not None:
                flat[f"momentum.{name}"] = buffer
        flat["totals"] = self.totals
        return flat

    def restore(self, tensors: dict[str, Tensor], step: int) -> None:
        """Take over what `tensors()` gave. Raises CheckpointError on another network's tensors."""
        parts: dict[str, dict[str, Tensor]] = {"network": {}, "average": {}, "momentum": {}}
        for key, value in tensors.items():
            part, _, name = key.partition(".")
            if part in parts:
                parts[part][name] = value
        try:
            self.network.load_state_dict(parts["network"])
            self.average.load_state_dict(parts["average"])
        except RuntimeError as error:
            first = str(error).splitlines()[1].strip()
            raise CheckpointError(f"the checkpoint belongs to another network: {first}") from None
        for name, parameter in self.network.named_parameters():
            if name in parts["momentum"]:
                buffer = torch.empty_like(parameter).copy_(parts["momentum"][name])
                self.optimizer.state[parameter]["momentum_buffer"] = buffer
        self.totals.copy_(tensors["totals"])
        self.step = step


def parameter_groups(network: nn.Module, recipe: Recipe) -> list[dict[str, object]]:
    """All parameters in two groups: with weight decay, and without (norms and biases)."""
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for parameter in network.parameters():
        (decayed if recipe.decay_all or parameter.ndim > 1 else exempt).append(parameter)
    groups = [(decayed, recipe.weight_decay), (exempt, 0.0)]
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]


@torch.no_grad()
def blend(average: nn.Module, network: nn.Module, keep: float) -> None:
    """average = keep * average + (1 - keep) * network; `keep` 0 copies, so there is no second path.

    Normalisation statistics are averaged like weights; counters are copied.
    """
    mine, theirs = average.state_dict().values(), network.state_dict().values()
    floats = [(a, b) for a, b in zip(mine, theirs, strict=True) if a.is_floating_point()]
    torch._foreach_lerp_([a for a, _ in floats], [b for _, b in floats], 1 - keep)
    for a, b in zip(mine, theirs, strict=True):
        if not a.is_floating_point():
            a.copy_(b)

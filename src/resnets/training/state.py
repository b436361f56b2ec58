"""What is trained, which is exactly what a checkpoint holds.

Nothing else is needed to resume: the order of the images, their augmentation, the learning rate and
every random draw of a step are functions of the recipe and the step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from resnets import models
from resnets.config.arch import Arch
from resnets.errors import CheckpointError
from resnets.models import Network
from resnets.models.heads import backbone_prefixes, head_parameters
from resnets.models.io.infer_arch import differences
from resnets.training.distributed import full_tensor, shard_like

SMALL = 2**16  # values; smaller tensors are summed together


@dataclass
class TrainProgress:
    """Where a run stands, in numbers; the JSON part of a checkpoint."""

    step: int = 0
    steps: int = 0  # of the whole run; a budget or early stopping changes it
    last_logged_step: int = 0
    micro_batch: int = 0  # images of a forward pass; halved when memory runs out
    lr_scale: float = 1.0  # halved at each rollback
    skipped_in_a_row: int = 0  # steps that were not finite
    rollbacks: int = 0  # returns to a checkpoint
    lr_drops: int = 0  # plateaus so far
    # The lowest on the monitored images, and its step: the error, with select=lowest-loss the loss.
    best_figure: float | None = None
    best_step: int | None = None  # None too in checkpoints of before
    evals_since_best: int = 0
    evals_since_drop: int = 0  # since the best one or the last plateau
    seconds: float = 0.0  # spent, over all resumes
    # Of each log, as it was when the state was saved: its bytes, and their SHA-256.
    logs: dict[str, tuple[int, str]] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether the last step is done."""
        return self.step >= self.steps


@dataclass
class State:
    """One run's network, its averaged twin, the optimiser and the progress so far."""

    network: Network
    average: Network  # evaluated and saved as the result; equals `network` when ema is 0
    optimizer: torch.optim.Optimizer
    totals: Tensor  # (3,) float64: loss sum, wrong, images since the last logged row
    progress: TrainProgress

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the run under one flat name, for a checkpoint."""
        flat = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        flat |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                flat[f"optimizer.{name}.{key}"] = value
        flat["totals"] = self.totals
        return {name: full_tensor(value) for name, value in flat.items()}

    def whole_average(self, arch: Arch) -> Network:
        """The averaged network, whole where it is sharded over the ranks."""
        if not any(isinstance(p, DTensor) for p in self.average.parameters()):
            return self.average
        network = models.build(arch).to(self.totals.device)
        load_state_dict(network, {k: full_tensor(v) for k, v in self.average.state_dict().items()})
        return network

    def restore(self, tensors: dict[str, Tensor], progress: TrainProgress) -> None:
        """Load what `tensors()` gave. Raises CheckpointError on another network's tensors."""
        try:
            load_state_dict(self.network, with_prefix(tensors, "network."))
            load_state_dict(self.average, with_prefix(tensors, "average."))
        except RuntimeError as error:
            difference = str(error).splitlines()[1].strip()
            raise CheckpointError(
                f"the checkpoint belongs to another network: {difference}"
            ) from None
        buffers = with_prefix(tensors, "optimizer.")
        parameters = dict(self.network.named_parameters())
        unknown = [key for key in buffers if key.rpartition(".")[0] not in parameters]
        totals = tensors.get("totals", torch.empty(0))
        if unknown or totals.shape != self.totals.shape:
            name = f"optimizer.{unknown[0]}" if unknown else "totals"
            raise CheckpointError(f"the checkpoint belongs to another network: {name} differs")
        self.optimizer.state.clear()
        for key, value in buffers.items():
            name, _, buffer = key.rpartition(".")
            weight = parameters[name]
            # A moment has its weight's device and layout; a counter stays on the processor.
            if value.shape == weight.shape:
                value = torch.empty_like(weight).copy_(shard_like(value, weight))
            self.optimizer.state[weight][buffer] = value
        self.totals.copy_(totals)
        self.progress = progress


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, under the rest of their names."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def load_state_dict(network: nn.Module, values: Mapping[str, Tensor]) -> None:
    """`load_state_dict` of whole tensors, also where the network's are sharded over the ranks."""
    current = network.state_dict()
    network.load_state_dict(
        {k: shard_like(v, current[k]) if k in current else v for k, v in values.items()}
    )


def floating(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The tensors of floating-point numbers."""
    return [t for t in tensors if t.is_floating_point()]


def local_tensor(tensor: Tensor) -> Tensor:
    """This rank's shard of a tensor, or all of it, without a copy."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def flat_view(tensor: Tensor) -> Tensor:
    """The same memory in one dimension, whatever the order of a dense tensor's dimensions."""
    local = local_tensor(tensor.detach())
    return local.as_strided((local.numel(),), (1,))


@torch.no_grad()
def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every value is finite, and the sum of all too.

    One number comes back from the device; small tensors are added up together.
    """
    tensors = list(tensors)
    small = torch.cat([t.reshape(-1) for t in tensors if t.numel() < SMALL])
    sums = [t.sum() for t in tensors if t.numel() >= SMALL]
    return math.isfinite(float(torch.stack([*sums, small.sum()]).sum()))


@torch.no_grad()
def ema_update(average: list[Tensor], current: list[Tensor], keep: float) -> None:
    """average = keep * average + (1 - keep) * current; `keep` 0 copies, so there is no second path.

    Normalisation statistics are averaged like weights; counters are copied.
    """
    pairs = list(zip(average, current, strict=True))
    numbers = [(a, b) for a, b in pairs if a.is_floating_point()]
    counters = [(a, b) for a, b in pairs if not a.is_floating_point()]
    torch._foreach_lerp_([a for a, _ in numbers], [b for _, b in numbers], 1 - keep)
    if counters:
        torch._foreach_copy_([a for a, _ in counters], [b for _, b in counters])


def load_pretrained(network: Network, weights: Mapping[str, Tensor]) -> None:
    """Load the tensors of a trained network, except for a classifier or heads of another shape.

    The weights of a classifier become the backbones of a network for detection or segmentation, as
    do those of such a network with fewer. Raises CheckpointError that names other differences.
    """
    current = network.state_dict()
    prefixes, may_differ = backbone_prefixes(network), head_parameters(network)
    present = [prefix for prefix in prefixes if any(name.startswith(prefix) for name in weights)]
    backbone = with_prefix(weights, present[0] if present else "")
    weights = dict(weights)
    for prefix in prefixes:
        if prefix not in present:
            weights |= {prefix + name: tensor for name, tensor in backbone.items()}
            may_differ |= {f"{prefix}fc.weight", f"{prefix}fc.bias"}
    same = {
        name: tensor
        for name, tensor in weights.items()
        if name in current and current[name].shape == tensor.shape
    }
    others = {
        name
        for name in (current.keys() | weights.keys()) - same.keys() - may_differ
        if name.startswith(prefixes)
    }
    expected, given = ({n: x for n, x in t.items() if n in others} for t in (current, weights))
    if problems := differences(expected, given):
        raise CheckpointError(f"the weights belong to another network: {problems}")
    load_state_dict(network, current | same)

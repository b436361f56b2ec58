"""What a training step needs, known before it runs: a kernel ends a process that asks for more."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from resnets import nets
from resnets.training.plan import Plan
from resnets.training.world import launched

MARGIN = 0.8  # of the free memory that may be planned with
MOMENTS = {"sgd": 1, "lars": 1, "muon": 2, "adamw": 2, "lamb": 2}  # at most, in weights


@dataclass(frozen=True)
class Need:
    """Bytes of a step of n images: `fixed` + n * `image`."""

    fixed: int
    image: int

    def of(self, images: int) -> int:
        """Bytes of a step with forward passes of that many images."""
        return self.fixed + images * self.image


def need(plan: Plan) -> Need:
    """Count what forward passes of 2 and of 3 images keep for the backward pass.

    `fixed` is what both have (weights in bfloat16, statistics), and in float32 the weights, their
    average, the moments, all three copied and as a file while a checkpoint is written, the gradient
    and the optimiser's own copy of it.
    """
    with torch.device("meta"):
        network = nets.build(plan.arch)
    # Zeros instead of the initial weights, whose random numbers are the longest part.
    network = network.to_empty(device=plan.device).train()
    weights = list(network.parameters())
    two, three = (saved(network, inputs(plan, n), plan.bfloat16) for n in (2, 3))
    copies = 3 * (2 + MOMENTS[plan.recipe.optimizer]) + 2
    size = sum(p.numel() * p.element_size() for p in weights)
    return Need(copies * size + 3 * two - 2 * three, three - two)


def inputs(plan: Plan, images: int) -> Tensor:
    """Zeros of the largest input in training, (images, C, H, W)."""
    side = plan.recipe.train_size or plan.preprocess.size
    x = torch.zeros(images, plan.preprocess.channels, side, side, device=plan.device)
    return x.contiguous(memory_format=torch.channels_last)


def saved(network: torch.nn.Module, images: Tensor, bfloat16: bool) -> int:
    """Bytes that a forward pass keeps for the backward pass, besides the network itself."""
    own = {p.untyped_storage().data_ptr() for p in (*network.parameters(), *network.buffers())}
    found: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        found[x.untyped_storage().data_ptr()] = x
        return x

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
        torch.autocast(images.device.type, torch.bfloat16, enabled=bfloat16),
    ):
        network(images)
    return sum(x.untyped_storage().nbytes() for at, x in found.items() if at not in own)


def available(device: torch.device) -> int | None:
    """Bytes that this process may still take: of the GPU, else of the machine and its cgroup.

    None where the system does not say.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limits = []
    try:
        table = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        limits.append(int(table["MemAvailable"].split()[0]) * 1024)
        own = Path("/proc/self/cgroup").read_text().partition("::")[2].strip()
        group = Path("/sys/fs/cgroup") / own.lstrip("/")
        most, used = ((group / name).read_text() for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        # Pages of files that were read are given back when memory is wanted.
        limits.append(int(most) - int(used) + int(stat["inactive_file"]))
    except (OSError, ValueError, KeyError):
        pass  # no Linux, or no limit: memory.max is "max"
    return min(limits, default=None)


def fitting(plan: Plan, available: int, needed: Need) -> int:
    """The largest micro-batch, halved from a rank's share, that the available bytes hold."""
    micro = plan.micro
    while micro > 1 and needed.of(micro) > MARGIN * available:
        micro = (micro + 1) // 2
    return micro

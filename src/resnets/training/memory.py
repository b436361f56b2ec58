"""What a training step needs, known before it runs: a kernel ends a process that asks for more."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

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
    """Count what a forward pass of 2 images keeps for the backward pass, in the plan's precision.

    `fixed` is what has the shape of a parameter (weights in bfloat16, statistics), and in float32
    weights, average and moments, all of them copied and as a file while a checkpoint is written,
    the gradient and the optimiser's own copy of it.
    """
    with torch.device("meta"):
        network = nets.build(plan.arch)
    # Zeros instead of the initial weights, whose random numbers would take the longest.
    network = network.to_empty(device=plan.device).train()
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data.zero_()
    weights = list(network.parameters())
    shapes = {p.shape for p in weights}
    side = plan.recipe.train_size or plan.preprocess.size
    images = torch.zeros(2, plan.preprocess.channels, side, side, device=plan.device)
    kept = saved(network, images.contiguous(memory_format=torch.channels_last), plan.bfloat16)
    fixed = sum(x.untyped_storage().nbytes() for x in kept if x.shape in shapes)
    image = sum(x.untyped_storage().nbytes() for x in kept if x.shape not in shapes) // 2
    copies = 3 * (2 + MOMENTS[plan.recipe.optimizer]) + 2
    return Need(fixed + copies * sum(p.numel() * p.element_size() for p in weights), image)


def saved(network: nn.Module, images: Tensor, bfloat16: bool) -> list[Tensor]:
    """What a forward pass keeps for the backward pass, each storage once, without the network's."""
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
    return [x for at, x in found.items() if at not in own]


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


def fitting(needed: Need, images: int, available: int) -> int:
    """The largest micro-batch, halved from `images`, that fits; 1 where nothing does."""
    while images > 1 and needed.of(images) > MARGIN * available:
        images = (images + 1) // 2
    return images


def fitted(plan: Plan) -> Plan:
    """The plan with a smaller micro-batch where the processor's memory holds no larger one.

    On a GPU the loop finds it, since there an allocation that fails can be tried again. What
    activation checkpointing saves is not counted, so such a recipe stays as it is.
    """
    free = available(plan.device)
    chosen = plan.recipe.micro or plan.recipe.checkpoint_blocks
    if free is None or chosen or plan.device.type != "cpu":
        return plan
    micro = fitting(need(plan), plan.share, free // plan.world.size)
    if launched():  # all ranks alike
        micro = -plan.world.wishes([-micro])[0]
    return replace(plan, recipe=replace(plan.recipe, micro=micro if micro < plan.share else 0))

"""What a training step needs, known before it runs: a kernel ends a process that asks for more."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resnets import models
from resnets.training.distributed import launched
from resnets.training.plan import Plan

MARGIN = 0.8  # of the available memory that may be planned with
MOMENTS = {"sgd": 1, "lars": 1, "muon": 2, "adamw": 2, "lamb": 2}  # at most, in weights


def need(plan: Plan) -> tuple[int, int]:
    """Bytes of a step: those that are fixed, and those of each image of a forward pass.

    An image's are what a forward pass of two keeps for the backward pass, in the plan's precision.
    Fixed is what it keeps in the shape of a parameter (weights in bfloat16, statistics); weights,
    average and moments, three times, since a checkpoint copies them and writes them into a file;
    the gradient and the optimiser's own copy of it.
    """
    with torch.device("meta"):
        network = models.build(plan.arch)
    # Zeros, since drawing the initial weights would take the longest.
    network = network.to_empty(device=plan.device).train()
    weights = list(network.parameters())
    for tensor in (*weights, *network.buffers()):
        tensor.data.zero_()
    shapes = {p.shape for p in weights}
    side = plan.recipe.train_size or plan.preprocess.size
    kept = saved(network, plan.task.example_inputs(plan, 2, side), plan.bfloat16)
    sizes = [(x.untyped_storage().nbytes(), x.shape in shapes) for x in kept]
    copies = 3 * (2 + MOMENTS[plan.recipe.optimizer]) + 2
    fixed = copies * sum(p.numel() * p.element_size() for p in weights)
    fixed += sum(size for size, of_weights in sizes if of_weights)
    return fixed, sum(size for size, of_weights in sizes if not of_weights) // 2


def saved(network: nn.Module, inputs: Sequence[Any], bfloat16: bool) -> list[Tensor]:
    """What a forward pass keeps for the backward pass, each storage once, without the network's."""
    own = {p.untyped_storage().data_ptr() for p in (*network.parameters(), *network.buffers())}
    found: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        found[x.untyped_storage().data_ptr()] = x
        return x

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
        torch.autocast(inputs[0].device.type, torch.bfloat16, enabled=bfloat16),
    ):
        network(*inputs)
    return [x for at, x in found.items() if at not in own]


def available(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take, of the machine and of its cgroup (version 2).

    None where the system does not say.
    """
    limits = []
    try:
        lines = (root / "proc/meminfo").read_text("utf-8").splitlines()
        limits += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvail")]
        own = (root / "proc/self/cgroup").read_text("utf-8").partition("::")[2].strip("/\n")
        group = root / "sys/fs/cgroup" / own
        most, used = (
            (group / name).read_text("utf-8") for name in ("memory.max", "memory.current")
        )
        stat = dict(
            line.split() for line in (group / "memory.stat").read_text("utf-8").splitlines()
        )
        # Pages of files that were read are given back when memory is wanted.
        limits.append(int(most) - int(used) + int(stat["inactive_file"]))
    except (OSError, ValueError, KeyError):
        pass  # no Linux, or no limit: memory.max is "max"
    return min(limits, default=None)


def peak(device: torch.device) -> int | None:
    """Bytes of this process at the most, of the GPU if it is on one. None where nothing tells."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource  # POSIX alone
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def fitting(images: int, fixed: int, image: int, available: int) -> int:
    """The largest micro-batch, halved from `images`, that fits; 1 where nothing does."""
    while images > 1 and fixed + images * image > MARGIN * available:
        images = (images + 1) // 2
    return images


def fitted(plan: Plan) -> Plan:
    """The plan with a smaller micro-batch where the processor's memory would not hold its own.

    On a GPU the loop finds it, since an allocation that fails there can be tried again. What
    activation checkpointing saves is not counted, so such a recipe stays as it is.
    """
    free = available()
    chosen = plan.recipe.micro_batch or plan.recipe.activation_checkpointing
    if free is None or chosen or plan.device.type != "cpu":
        return plan
    fixed, image = need(plan)
    free //= plan.world.size
    micro = fitting(plan.local_batch, fixed, image, free)
    if launched():  # all ranks alike
        micro = -plan.world.all_reduce_max([-micro])[0]
    if micro == plan.local_batch:
        return plan
    wanted = (fixed + plan.local_batch * image) / 2**30
    why = f"; {plan.local_batch} would need {wanted:.1f} GiB of {free / 2**30:.1f}"
    return replace(plan, recipe=replace(plan.recipe, micro_batch=micro), memory_note=why)

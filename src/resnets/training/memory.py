"""The memory of a training step, estimated before it runs: Linux kills what takes too much."""

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

MARGIN = 0.8  # of the available memory that may be used
# At the most, as many values as there are weights each.
MOMENTS = {"sgd": 1, "lars": 1, "muon": 2, "adamw": 2, "lamb": 2}


def step_bytes(plan: Plan) -> tuple[int, int]:
    """Bytes of a step: those that are fixed, and those of each image of a forward pass.

    An image needs what a forward pass keeps for the backward pass, in the plan's precision; it is
    measured with two. Fixed are: what has the shape of a parameter there (weights in bfloat16,
    statistics); weights, average and moments, three times, since a checkpoint copies them and
    writes them to a file; the gradient, and the optimiser's copy of it.
    """
    with torch.device("meta"):
        network = models.build(plan.arch)
    # Zeros, since drawing initial weights would take most of the time.
    network = network.to_empty(device=plan.device).train()
    weights = list(network.parameters())
    for tensor in (*weights, *network.buffers()):
        tensor.data.zero_()
    shapes = {p.shape for p in weights}
    side = plan.recipe.train_size or plan.preprocess.size
    kept = saved_for_backward(network, plan.task.example_inputs(plan, 2, side), plan.bfloat16)
    sizes = [(x.untyped_storage().nbytes(), x.shape in shapes) for x in kept]
    copies = 3 * (2 + MOMENTS[plan.recipe.optimizer]) + 2
    fixed = copies * sum(p.numel() * p.element_size() for p in weights)
    fixed += sum(size for size, of_weights in sizes if of_weights)
    return fixed, sum(size for size, of_weights in sizes if not of_weights) // 2


def saved_for_backward(network: nn.Module, inputs: Sequence[Any], bfloat16: bool) -> list[Tensor]:
    """What a forward pass keeps for the backward pass, each storage once; no weights or buffers."""
    tensors = (*network.parameters(), *network.buffers())
    of_network = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    by_storage: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        by_storage[x.untyped_storage().data_ptr()] = x
        return x

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
        torch.autocast(inputs[0].device.type, torch.bfloat16, enabled=bfloat16),
    ):
        network(*inputs)
    return [x for storage, x in by_storage.items() if storage not in of_network]


def available_bytes(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take, of the machine and of its cgroup (version 2).

    None where the system does not say.
    """
    limits = []
    try:
        lines = (root / "proc/meminfo").read_text("utf-8").splitlines()
        limits += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvail")]
        name = (root / "proc/self/cgroup").read_text("utf-8").partition("::")[2].strip("/\n")
        group = root / "sys/fs/cgroup" / name
        files = ("memory.max", "memory.current", "memory.stat")
        most, used, stat = ((group / file).read_text("utf-8") for file in files)
        # Pages of files that were read are given back when memory is wanted.
        cached = dict(line.split() for line in stat.splitlines())["inactive_file"]
        limits.append(int(most) - int(used) + int(cached))
    except (OSError, ValueError, KeyError):
        pass  # no Linux, or no limit: memory.max is "max"
    return min(limits, default=None)


def peak_bytes(device: torch.device) -> int | None:
    """The most bytes that this process had, on the GPU if it uses one; None where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource  # POSIX alone
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def largest_fitting(images: int, fixed: int, image: int, available: int) -> int:
    """The largest micro-batch, halved from `images`, that fits; 1 where nothing does."""
    while images > 1 and fixed + images * image > MARGIN * available:
        images = (images + 1) // 2
    return images


def fit_to_memory(plan: Plan) -> Plan:
    """The plan, with a smaller micro-batch where the processor's memory is too small for it.

    On a GPU `Step` does this, since an allocation that fails there can be tried again. What
    activation checkpointing saves is not known, so such a recipe stays as it is.
    """
    free = available_bytes()
    chosen = plan.recipe.micro_batch or plan.recipe.activation_checkpointing
    if free is None or chosen or plan.device.type != "cpu":
        return plan
    fixed, image = step_bytes(plan)
    free //= plan.world.size
    micro = largest_fitting(plan.local_batch, fixed, image, free)
    if launched():  # all ranks alike
        micro = -plan.world.all_reduce_max([-micro])[0]
    if micro == plan.local_batch:
        return plan
    needed = (fixed + plan.local_batch * image) / 2**30
    why = f"; {plan.local_batch} would need {needed:.1f} GiB of {free / 2**30:.1f}"
    return replace(plan, recipe=replace(plan.recipe, micro_batch=micro), memory_note=why)

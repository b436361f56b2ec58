"""A look at the machine: what it has, and how fast it really is."""

from __future__ import annotations

import importlib.util
import os
import shutil


def describe_machine(quick: bool) -> dict[str, str]:
    """`api.doctor`."""
    from resnets.device import environment, pick_device, processor_flags, use_bfloat16
    from resnets.ops import cpu_fused
    from resnets.training.memory import available

    flags = processor_flags()
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")
    facts = {name: value for name, value in environment().items() if name != "gpu"}
    facts["processor"] += f", {os.cpu_count()} cores"
    facts["features"] = ", ".join(f for f in wanted if f in flags) or "none known"
    facts["gpu"] = gpu()
    facts["memory"] = "unknown"
    if free := available():
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        facts["memory"] = f"{free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
    facts["disk"] = f"{shutil.disk_usage('.').free / 2**30:.0f} GiB free here"
    there = importlib.util.find_spec("tensorboard") is not None
    facts["tensorboard"] = "installed" if there else "missing: pip install 'resnets[track]'"
    facts["precision"] = "bfloat16" if use_bfloat16("auto", pick_device()) else "float32"
    if cpu_fused.library() is None and cpu_fused.problems:
        facts["fused kernels"] = f"not used: {cpu_fused.problems[0]}"
    for precision in () if quick else ("float32", "bfloat16"):
        rate = training_rate(precision)
        facts[f"ResNet-20 {precision}"] = f"{rate:,.0f} images/s in training, 32 px, batch 128"
    return facts


def gpu() -> str:
    """The GPU and its memory; why there is none that can be used."""
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        return f"{name}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
    if torch.version.cuda is None:
        return "none: this PyTorch is a CPU-only build"
    return f"none found by PyTorch (built for CUDA {torch.version.cuda}); is the driver installed?"


def training_rate(precision: str) -> float:
    """Images a second of training ResNet-20 at batch 128 on 32 pixels: enlarged digits."""
    from resnets.config import recipes
    from resnets.data import dataset
    from resnets.device import pick_device
    from resnets.training.loop import estimate
    from resnets.training.resolve import resolve

    wanted = {"model": "resnet20", "size": 32, "batch": 128, "steps": 100, "precision": precision}
    recipe = recipes.merged(recipes.digits(), wanted)
    run = resolve(recipe, dataset.load("digits"), pick_device(), 0)
    return run.steps * run.recipe.batch / estimate(run, seconds=4)

"""A look at the machine: what it has, and how fast it really is."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import time

import torch
from torch.nn import functional as F

from resnets import arch, listing, nets
from resnets.training.plan import pick_device, processor_flags, use_bfloat16

EXTRAS = {"tensorboard": "track"}


def examine(*, speed: bool = True) -> dict[str, str]:
    """Facts about this machine by name, in the order of reading; the speed check takes 10 s."""
    flags = processor_flags()
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")
    facts = {name: value for name, value in listing.environment().items() if name != "gpu"}
    facts["processor"] = f"{processor_name()}, {os.cpu_count()} cores"
    facts["features"] = ", ".join(f for f in wanted if f in flags) or "none known"
    facts["gpu"] = gpu()
    facts["memory"] = memory()
    facts["disk"] = f"{shutil.disk_usage('.').free / 2**30:.0f} GiB free here"
    for package, extra in EXTRAS.items():
        there = importlib.util.find_spec(package) is not None
        facts[package] = "installed" if there else f"missing: pip install 'resnets[{extra}]'"
    device = pick_device()
    facts["precision"] = "bfloat16" if use_bfloat16("auto", device) else "float32"
    if speed:
        for precision in ("float32", "bfloat16"):
            rate = training_rate(device, bfloat16=precision == "bfloat16", seconds=4.0)
            facts[f"ResNet-20 {precision}"] = f"{rate:,.0f} images/s in training, 32 px, batch 128"
    return facts


def processor_name() -> str:
    """The processor's own name, where the system tells."""
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def gpu() -> str:
    """The GPU and its memory; why there is none that can be used."""
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        return f"{name}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
    if torch.version.cuda is None:
        return "none: this PyTorch is a CPU-only build"
    return f"none found by PyTorch (built for CUDA {torch.version.cuda}); is the driver installed?"


def memory() -> str:
    """Memory that is free and there, where the system tells."""
    try:
        with open("/proc/meminfo") as file:
            sizes = {line.split(":")[0]: int(line.split()[1]) for line in file}
    except (OSError, ValueError, IndexError):
        return "unknown"
    return f"{sizes['MemAvailable'] / 2**20:.0f} of {sizes['MemTotal'] / 2**20:.0f} GiB free"


def training_rate(device: torch.device, *, bfloat16: bool, seconds: float) -> float:
    """Images a second of forward, backward and step of ResNet-20 at batch 128; the best half."""
    network = nets.build(arch.arch("resnet20")).to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, foreach=True)
    images = torch.rand(128, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (128,), device=device)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 4:
        began = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            loss = F.cross_entropy(network(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss.item()
        times.append(time.perf_counter() - began)
    best = sorted(times)[: max(1, len(times) // 2)]
    return 128 * len(best) / sum(best)

"""The machine: the device to use, what its processor can do, installed versions.

torch is imported inside, since a command that only names the processor should start at once.
"""

from __future__ import annotations

import hashlib
import platform
import subprocess
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from resnets.errors import UsageError

if TYPE_CHECKING:
    import torch


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name; `auto` is the GPU if there is one. Raises UsageError."""
    import torch

    if name != "auto":
        try:
            return torch.empty(0, device=name).device
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"--device {name} cannot be used: {reason}") from None
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def cpuinfo(field: str) -> str:
    """A field of Linux's /proc/cpuinfo, of the first core; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def processor_flags() -> set[str]:
    """Instruction sets of this processor as Linux lists them; empty elsewhere."""
    return set(cpuinfo("flags").split())


def use_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether to compute in bfloat16: asked for, or `auto` where the hardware has it."""
    import torch

    if precision == "auto" and device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if precision == "auto" and device.type == "cpu":
        return not processor_flags().isdisjoint({"avx512_bf16", "amx_bf16"})
    return precision == "bfloat16"


def environment() -> dict[str, str]:
    """Versions and machine, for the record."""
    import torch

    return {
        "resnets": version("resnets"),
        "code": package_digest(),
        "commit": git_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "system": platform.platform(),
        "processor": processor_name(),
        "threads": str(torch.get_num_threads()),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def package_digest() -> str:
    """The start of the SHA-256 of the package's files, so that a change between releases shows."""
    root, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def git_commit() -> str:
    """The commit of the checkout that this package runs from; "none" where it is installed."""
    root = Path(__file__).parents[2]
    git = ["git", "-C", str(root), "rev-parse", "HEAD"]
    with suppress(OSError, subprocess.CalledProcessError):
        if (root / ".git").exists():
            return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    return "none"


def processor_name() -> str:
    """The processor's model, as far as the system tells it."""
    return cpuinfo("model name") or platform.processor() or platform.machine() or "CPU"

"""What there is: networks, data, runs, and this machine."""

from __future__ import annotations

import fnmatch
import platform
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from resnets import arch as archs
from resnets.data import sources
from resnets.errors import ResnetsError
from resnets.nets.cost import cost
from resnets.training.run import Run


def models(pattern: str = "*") -> Iterator[dict[str, Any]]:
    """Name, depth, parameters, multiply-adds, input and source of each known network, sorted."""
    if not any(sign in pattern for sign in "*?["):
        pattern = f"*{pattern}*"
    for name in sorted(fnmatch.filter(archs.FAMILY, pattern), key=natural):
        arch = archs.FAMILY[name]
        price = cost(arch)
        yield {
            "name": name,
            "depth": arch.depth,
            "parameters": price.parameters,
            "multiply_adds": price.macs,
            "channels": arch.channels,
            "size": arch.size,
            "source": arch.source,
        }


def natural(name: str) -> list[tuple[int, str]]:
    """A sort key by which resnet18 comes before resnet110."""
    return [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", name)]


def data_info(data: str, *, max_unreadable: float = 1.0) -> dict[str, Any]:
    """What a data set holds: splits, classes, sizes, digest, unreadable files."""
    source = sources.load(data, max_unreadable=max_unreadable)
    return {
        "name": source.name,
        "digest": source.digest,
        "channels": source.channels,
        "size": source.size,
        "mean": source.mean,
        "std": source.std,
        "classes": list(source.classes),
        "images": {
            name: torch.bincount(split.labels, minlength=len(source.classes)).tolist()
            for name, split in source.splits.items()
        },
        "unreadable": [(str(path), reason) for path, reason in source.unreadable],
    }


def runs(root: str | Path = "runs") -> list[dict[str, Any]]:
    """Every run below a folder: path, model, data, progress, error."""
    rows = []
    for path in sorted(Path(root).glob("*/recipe.json")):
        run = Run(path.parent)
        try:
            recipe = run.read_json("recipe.json")
        except ResnetsError:
            recipe = {"data": "unreadable recipe.json", "model": "?"}
        metrics = run.rows("metrics.jsonl")
        error = run.read_json("result.json").get("error") if run.finished else None
        rows.append(
            {
                "run": str(run.path),
                "data": recipe["data"],
                "model": recipe["model"],
                "epoch": metrics[-1]["epoch"] if metrics else 0.0,
                "train_error": metrics[-1]["train_error"] if metrics else None,
                "test_error": error,
                "finished": run.finished,
            }
        )
    return rows


def environment() -> dict[str, str]:
    """Versions and machine, for the record."""
    return {
        "resnets": version("resnets"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "system": platform.platform(),
        "threads": str(torch.get_num_threads()),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }

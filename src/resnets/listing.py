"""What there is: networks, data, runs, and this machine. torch is imported where it is needed."""

from __future__ import annotations

import fnmatch
import platform
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from resnets.errors import ResnetsError


def models(pattern: str = "*", /) -> Iterator[dict[str, Any]]:
    """List the networks: name, depth, parameters, multiply-adds, input, source."""
    from resnets.arch import FAMILY
    from resnets.nets.cost import cost

    if not any(sign in pattern for sign in "*?["):
        pattern = f"*{pattern}*"
    for name in sorted(fnmatch.filter(FAMILY, pattern), key=natural):
        arch = FAMILY[name]
        price = cost(arch)
        row = {"name": name, "depth": arch.depth, "parameters": price.parameters}
        row |= {"multiply_adds": price.macs, "channels": arch.channels, "size": arch.size}
        yield row | {"source": arch.source}


def natural(name: str) -> list[tuple[int, str]]:
    """A sort key by which resnet18 comes before resnet110."""
    return [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", name)]


def data_info(data: str, /) -> dict[str, Any]:
    """Show what DATA holds: splits, classes, sizes, digest, unreadable files."""
    from resnets.data import sources

    source = sources.load(data, max_unreadable=1.0)
    names = ("name", "digest", "channels", "size", "mean", "std")
    return {
        **{name: getattr(source, name) for name in names},
        "classes": list(source.classes),
        "images": {
            name: split.counts(len(source.classes)).tolist()
            for name, split in source.splits.items()
        },
        "unreadable": [(str(path), reason) for path, reason in source.unreadable],
    }


def runs(root: str | Path = "runs", /) -> list[dict[str, Any]]:
    """List the runs below a folder: path, model, data, progress, error on which images."""
    from resnets.training.run import Run

    rows = []
    for run in (Run(path.parent) for path in sorted(Path(root).glob("*/recipe.json"))):
        try:
            recipe = run.read_json("recipe.json")
        except ResnetsError:
            recipe = {"data": "unreadable recipe.json", "model": "?"}
        last = (run.rows("metrics.jsonl") or [{"epoch": 0.0, "train_error": None}])[-1]
        result = run.read_json("result.json") if run.finished else {}
        errors = {result.get("split", "test"): result.get("error")}
        row = {"run": str(run.path), "data": recipe["data"], "model": recipe["model"]}
        row |= {"epoch": last["epoch"], "train_error": last["train_error"]}
        row |= {f"{split}_error": errors.get(split) for split in ("val", "test")}
        rows.append(row | {"finished": run.finished})
    return rows


def environment() -> dict[str, str]:
    """Versions and machine, for the record."""
    import torch

    return {
        "resnets": version("resnets"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "system": platform.platform(),
        "threads": str(torch.get_num_threads()),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }

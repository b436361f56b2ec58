"""What there is, as functions: networks, data, runs, reports, this machine."""

from __future__ import annotations

import fnmatch
import importlib.util
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnets.api import checks
from resnets.api.checks import public
from resnets.config.types import DownloadName, TaskName
from resnets.errors import ResnetsError

if TYPE_CHECKING:
    from torch.nn import Module

    from resnets.config.arch import ExternalArch
    from resnets.data.dataset import Source
    from resnets.data.torch_dataset import Data
    from resnets.training.run import Run
else:  # so that the annotations can be read without torch
    Data, Module = str | Path | Any, Any


@public
def list_models(pattern: str = "*", /, *, pretrained: bool = False) -> list[dict[str, Any]]:
    """List networks: name, depth, parameters, multiply-adds, input, source.

    Args:
        pattern: A pattern such as 'resnet*', or part of a name.
        pretrained: Only networks that have published weights, with the best free ones.
    """
    from resnets.config import weights
    from resnets.config.families import ARCHS, read_counts

    if not any(sign in pattern for sign in "*?["):
        pattern = f"*{pattern}*"
    rows = []
    for name in sorted(fnmatch.filter(ARCHS, pattern), key=natural):
        arch, usual = ARCHS[name], weights.best_or_none(name) if pretrained else None
        if pretrained and usual is None:
            continue
        parameters, macs = read_counts()[name]
        row = {"name": name, "depth": arch.depth, "parameters": parameters}
        row |= {"multiply_adds": macs, "channels": arch.channels, "size": arch.size}
        last = {"weights": usual.name, "published": usual.score} if usual else {}
        rows.append(row | (last or {"source": arch.source}))
    return rows


def natural(name: str) -> list[tuple[int, str]]:
    """A sort key by which resnet18 comes before resnet110."""
    return [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", name)]


@public
def data_get(
    name: DownloadName, /, *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:  # fmt: skip
    """Download a data set into the cache (RESNETS_DATA, else the user's cache folder).

    Args:
        name: cifar10 or cifar100.
        on_progress: Called with the bytes received so far and their total, 0 if unknown.
    """
    from resnets.data import download

    return download.download(name, on_progress)


@public
def data_info(data: Data, /, *, task: TaskName | None = None) -> dict[str, Any]:
    """Show what DATA holds: splits, classes, sizes, digest, unreadable files, problems.

    Args:
        task: What the labels are for; guessed from the files by default.
    """
    checks.check_data(data)
    from resnets.data.dataset import describe

    return describe(data, task)


@public
def data_check(data: Data, /, *, task: TaskName | None = None) -> list[dict[str, Any]]:
    """List the problems of DATA and where they are; exit code 3 if training would refuse it.

    Args:
        task: What the labels are for; guessed from the files by default.
    """
    checks.check_data(data)
    from resnets.config.recipe import Recipe
    from resnets.data.dataset import list_problems

    return list_problems(data, task, Recipe(model="resnet18").max_unreadable)


@public
def runs(root: str | Path = "runs", /) -> list[dict[str, Any]]:
    """List the runs in a folder: path, model, data, progress, error and the images it is of.

    Args:
        root: The folder that contains the run folders.
    """
    from resnets.training.run import Run

    rows: list[dict[str, Any]] = []
    for folder in sorted(path.parent for path in Path(root).glob("*/recipe.json")):
        try:
            rows.append(_run_row(Run(folder)))
        except (ResnetsError, KeyError) as error:
            reason = str(error).partition("\n")[0]
            row = {"run": str(folder), "data": f"unreadable: {reason}", "model": "?"}
            figures = ("epoch", "train_error", "val_error", "test_error")
            rows.append(row | dict.fromkeys(figures) | {"error_is": "?", "finished": False})
    return rows


def _run_row(run: Run) -> dict[str, Any]:
    from resnets.config.tasks import TASK_TEXTS

    recipe = run.read_json("recipe.json")
    source = run.read_json("source.json") if (run.path / "source.json").exists() else {}
    last = (run.rows("metrics.jsonl") or [{"epoch": 0.0, "train_error": None}])[-1]
    result = run.read_json("result.json") if run.finished else {}
    errors = {"val": last.get("val_error")}  # of held-out images beside a test split
    errors[result.get("split", "test")] = result.get("error")
    name = source.get("task") or "classify"
    return {
        "run": str(run.path), "data": recipe["data"], "model": recipe["model"],
        "epoch": last["epoch"], "train_error": last["train_error"],
        **{f"{split}_error": errors.get(split) for split in ("val", "test")},
        "error_is": TASK_TEXTS[name].error if name in TASK_TEXTS else "?",
        "finished": run.finished,
    }  # fmt: skip


@public
def runs_compare(*runs: str | Path) -> dict[str, Any]:
    """Compare runs: their figures, and what differs in recipe, data, code and machine.

    Runs that differ only in the seed form one group: mean, standard deviation and confidence
    interval of their errors.
    """
    from resnets.training.run import Run

    folders = [Run(Path(run)) for run in runs]
    for folder in folders:
        folder.read_json("recipe.json")
    from resnets.reporting.compare import compare

    return compare(folders)


@public
def report(
    run: str | Path, /, *, data: str | Path | None = None, network: str | Module | None = None
) -> Path:
    """Write report.html and the model card README.md of RUN again.

    In Python returns the path of the report.

    Args:
        data: Where the data is now, if it was moved.
        network: The code of a custom network, as my_module:build.
    """
    from resnets.training.run import Run

    folder = Run(Path(run))
    folder.read_json("source.json")
    if data is not None:
        checks.check_data(data)
    return write_report(folder, data=None if data is None else str(data), network=network)


def write_report(
    run: Run,
    source: Source | None = None,
    data: str | None = None,
    network: str | Module | ExternalArch | None = None,
) -> Path:
    """Write the model card README.md and report.html of a run; returns the latter.

    The images come from `source`, from `data`, or from where the recipe says.
    """
    from resnets.reporting import card, facts, report  # here, since matplotlib delays every start

    run_facts = facts.read_facts(run)
    if data is not None:
        run_facts = replace(run_facts, recipe=replace(run_facts.recipe, data=data))
    card.write(run_facts)
    return report.write(run_facts, source, network)


@public
def doctor(*, quick: bool = False) -> dict[str, str]:
    """Show this machine's versions, processor, GPU, memory and disk, and its speed in ten seconds.

    Args:
        quick: Skip the speed check.
    """
    from resnets.config.families import ARCHS
    from resnets.device import environment, pick_device, processor_flags, use_bfloat16
    from resnets.models.accelerate import describe_kernels
    from resnets.training.memory import available_bytes

    flags = processor_flags()
    useful = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")
    facts = {name: value for name, value in environment().items() if name != "gpu"}
    facts["processor"] += f", {os.cpu_count()} cores"
    facts["features"] = ", ".join(f for f in useful if f in flags) or "none known"
    facts["gpu"] = describe_gpu()
    facts["memory"] = "unknown"
    if free := available_bytes():
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        facts["memory"] = f"{free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
    facts["disk"] = f"{shutil.disk_usage('.').free / 2**30:.0f} GiB free here"
    missing = importlib.util.find_spec("tensorboard") is None
    facts["tensorboard"] = "missing: pip install 'resnets[track]'" if missing else "installed"
    facts["precision"] = "bfloat16" if use_bfloat16("auto", pick_device()) else "float32"
    facts["training kernels"] = describe_kernels(
        ARCHS["resnet20"], pick_device(), facts["precision"] == "bfloat16"
    )
    for precision in () if quick else ("float32", "bfloat16"):
        rate = training_rate(precision)
        facts[f"ResNet-20 {precision}"] = f"{rate:,.0f} images/s in training, 32 px, batch 128"
    return facts


def describe_gpu() -> str:
    """The GPU and its memory, or why none can be used."""
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        return f"{name}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
    if torch.version.cuda is None:
        return "none: this PyTorch is a CPU-only build"
    return f"none found by PyTorch (built for CUDA {torch.version.cuda}); is the driver installed?"


def training_rate(precision: str) -> float:
    """Images per second in training: ResNet-20, batch 128, digits enlarged to 32 pixels."""
    from resnets.config import recipes
    from resnets.data import dataset
    from resnets.device import pick_device
    from resnets.training.clock import estimate_duration
    from resnets.training.resolve import resolve

    fields = {"model": "resnet20", "size": 32, "batch": 128, "steps": 100, "precision": precision}
    recipe = recipes.replace_fields(recipes.digits(), fields)
    run = resolve(recipe, dataset.load("digits"), pick_device(), 0)
    return run.steps * run.recipe.batch / estimate_duration(run, seconds=4)

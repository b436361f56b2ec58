"""How far the runs of experiments are, and when they started, stopped and went on."""

from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, get_args

from resnets.device import processor_name
from resnets.errors import ResnetsError
from resnets.papers.budgets import Budget

if TYPE_CHECKING:
    from resnets.training.run import Run


def log_start(folder: Run, device: str) -> None:
    """Log in starts.jsonl that a run begins or goes on: when, at which step, by which code, where.

    The starts of a run that an older version began are taken from its TensorBoard files, of which
    each start makes one.
    """
    from resnets.device import package_digest

    if not (folder.path / "starts.jsonl").exists():
        for date in start_times(folder):
            folder.append("starts.jsonl", {"date": date})
    step = newest_progress(folder).get("step", 0)
    row = {"date": iso_time(time.time()), "step": step, "code": package_digest()}
    folder.append("starts.jsonl", row | {"machine": machine_name(device)})


def start_times(folder: Run) -> list[str]:
    """When a run began and went on, oldest first, as far as its folder says."""
    if rows := folder.rows("starts.jsonl"):
        return [row["date"] for row in rows]
    events = (folder.path / "tensorboard").glob("events.out.tfevents.*")
    seconds = (path.name.split(".")[3] for path in events)
    return [iso_time(int(text)) for text in sorted(seconds) if text.isdigit()]


def iso_time(seconds: float) -> str:
    """A time as ISO 8601, UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def machine_name(device: str = "auto") -> str:
    """The GPU, or the processor and its cores, as the ledger names it."""
    if device != "cpu" and shutil.which("nvidia-smi"):  # torch takes a second to ask
        import torch

        if torch.cuda.is_available():
            return torch.cuda.get_device_name()
    return f"{processor_name()}, {os.cpu_count()} cores"


def newest_progress(folder: Run) -> dict[str, Any]:
    """Step, steps and seconds of a run's newest checkpoint; {} without one that can be read."""
    for path in sorted((folder.path / "checkpoints").glob("step-*/state.json"), reverse=True):
        with suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
            # It may just have been replaced.
            state = json.loads(path.read_text(encoding="utf-8"))
            progress: dict[str, Any] = state["course" if "course" in state else "progress"]
            return progress
    return {}


def status(root: Path = Path()) -> list[dict[str, Any]]:
    """The runs below ROOT/runs that are not finished: how far each is, its errors, the time left.

    `written` is how long ago it last wrote something: a run that trains does so every minute or so.
    """
    from resnets.training.run import Run

    budgets: tuple[Budget, ...] = get_args(Budget)
    recipes = [path for budget in budgets for path in root.glob(f"runs/{budget}/*/recipe.json")]
    folders = [Run(path.parent) for path in sorted(recipes)]
    return [run_status(folder, root) for folder in folders if not folder.finished]


def run_status(folder: Run, root: Path) -> dict[str, Any]:
    """A row of `status`; what a damaged folder does not say is None."""
    recipe, last_row = dict[str, Any](), dict[str, Any]()
    speeds, started = list[float](), list[str]()
    with suppress(ResnetsError):
        recipe, started = folder.read_json("recipe.json"), start_times(folder)
        last_row = (folder.rows("metrics.jsonl") or [{}])[-1]
        speeds = [row["images_per_second"] for row in folder.rows("timing.jsonl")[-3:]]
    progress = newest_progress(folder)
    step, steps = progress.get("step", 0), progress.get("steps") or recipe.get("steps", 0)
    step_seconds = progress["seconds"] / step if step else None
    if speeds and median(speeds) > 0:
        step_seconds = recipe["batch"] / median(speeds)
    written = [folder.path.stat().st_mtime]
    for path in folder.path.rglob("*"):
        with suppress(OSError):  # a checkpoint that is just being replaced
            written.append(path.stat().st_mtime)
    return {
        "run": str(folder.path.relative_to(root)),
        "seed": recipe.get("seed"),
        "precision": recipe.get("precision"),
        "step": step,
        "steps": steps,
        "train_error": last_row.get("train_error"),
        "test_error": last_row.get("test_error"),
        "left": None if step_seconds is None else step_seconds * (steps - step),
        "interruptions": max(0, len(started) - 1),
        "written": max(0.0, time.time() - max(written)),
    }

"""Run the experiments at a budget, each arm in a run folder, and write what came out."""

from __future__ import annotations

import gzip
import shlex
import shutil
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnets.config import arch as archs
from resnets.config.families import get_arch
from resnets.config.recipe import Recipe
from resnets.errors import Diverged, Interrupted, ResnetsError, UsageError
from resnets.files import write_whole
from resnets.papers import ledger
from resnets.papers.budgets import Budget, Job, required_data
from resnets.papers.experiment import EXTERNAL_DATA
from resnets.papers.ledger import Row
from resnets.papers.status import log_start, machine_name, start_times

if TYPE_CHECKING:
    from resnets.data.dataset import Split
    from resnets.training.clock import ProgressReport
    from resnets.training.run import Run

OnProgress = Callable[["ProgressReport"], None]


def digits_detection_data(root: Path) -> Path:
    """Digits on noise with a box each, even and odd: a CSV beside its images, for "smoke"."""
    import numpy as np
    from PIL import Image

    from resnets.data import dataset

    folder = root / "digits-detection"
    table, draw, digits = folder / "boxes.csv", np.random.default_rng(0), dataset.digits()
    if table.exists():
        return table
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["path,x1,y1,x2,y2,label,split"]
    for name, count in (("train", 12), ("test", 1)):
        split = digits.splits[name]
        assert not isinstance(split.images, tuple)
        for k in range(count):
            side = int(draw.integers(24, 41))
            x, y = draw.integers(0, 65 - side, 2).tolist()
            canvas = Image.fromarray(draw.integers(0, 60, (64, 64), dtype=np.uint8))
            canvas.paste(Image.fromarray(split.images[k, 0].numpy()).resize((side, side)), (x, y))
            canvas.save(folder / f"{name}{k}.png")
            kind = "odd" if int(split.labels[k]) % 2 else "even"
            lines.append(f"{name}{k}.png,{x},{y},{x + side},{y + side},{kind},{name}")
    write_whole(table, "\n".join(lines).encode())
    return table


def train_network(
    job: Job, recipe: Recipe, root: Path, device: str, workers: int, on_progress: OnProgress
) -> Run:
    """Train a job in its run folder, from where it stands to its end; raises as `resnets.train`."""
    import resnets
    from resnets.training.runner import create_run

    folder = find_folder(job, recipe, root)
    if folder.finished:
        return folder
    plan = None  # made from the folder
    if not folder.begun:
        plan = resnets.plan(recipe.data, recipe=recipe, device=device, workers=workers)
        create_run(plan, folder.path)
    log_start(folder, device)
    resnets.resume(folder.path, data=plan, device=device, workers=workers, on_progress=on_progress)
    shutil.rmtree(folder.path / "checkpoints")  # the model file stays
    return folder


def find_folder(job: Job, recipe: Recipe, root: Path) -> Run:
    """The run folder of a job. Raises UsageError where it holds a run of another recipe.

    A folder's name ends in a digest of the recipe, which is another one in earlier versions, so
    folders that differ in this alone are searched for the recipe itself.
    """
    from resnets.training.run import Run

    by_machine = ("data", "weights", "micro_batch", *["precision"] * (job.precision == "auto"))
    fields = {name: getattr(recipe, name) for name in by_machine}
    named = Run(root / "runs" / job.budget / job.name)
    stem = job.name.rpartition("-")[0]
    for folder in (named, *map(Run, named.path.parent.glob(f"{stem}-*/"))):
        with suppress(ResnetsError):
            if replace(folder.read_recipe(), **fields) == recipe:
                return folder
    if named.begun:
        named.read_recipe()  # where it cannot be read, that is the error
        raise UsageError(f"{named.path} holds a run of another recipe: remove the folder")
    return named


def reproduce_job(
    job: Job, root: Path, *, device: str = "auto", workers: int = 2,
    on_progress: OnProgress = lambda progress: None,
) -> Row | None:  # fmt: skip
    """The row of a job in the ledger, trained if there is none; None: another process is at it.

    Raises as `resnets.train`.
    """
    from filelock import FileLock, Timeout  # here, since it takes a while

    if job.data is None and job.recipe and (form := EXTERNAL_DATA.get(job.recipe.data)):
        if job.budget != "smoke":
            raise UsageError(f"{job.experiment.id} at this budget needs {form}")
        job = replace(job, data=str(digits_detection_data(root)))
    if known := job.ledger_rows(ledger.read(root)):
        return known[-1]
    folder = root / "runs" / job.budget
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as locks:
        try:
            for name in sorted({training.name for training in job.trainings}):
                locks.enter_context(FileLock(folder / f"{name}.lock", timeout=0))
        except Timeout:
            return None
        # The other process may have written it meanwhile.
        known = job.ledger_rows(ledger.read(root))
        return known[-1] if known else train_and_record(job, root, device, workers, on_progress)


def train_and_record(
    job: Job, root: Path, device: str, workers: int, on_progress: OnProgress
) -> Row:
    """Train and evaluate a job's networks, append its row to the ledger. Errors as of `train`."""
    from resnets.device import environment, pick_device
    from resnets.evaluation.load import load

    versions = environment()
    row: dict[str, Any] = job.key | {
        "command": command_of(job),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {name: versions[name] for name in ("resnets", "code", "python", "torch")},
        "machine": machine_name(device),
    }
    if job.recipe:
        row["recipe"] = job.recipe_digest
    try:
        folders = [
            train_network(training, training.recipe, root, device, workers, on_progress)
            for training in job.trainings
            if training.recipe
        ]
    except Interrupted as error:
        raise Interrupted("the same command", error.exit_code - 128) from None
    except Diverged as error:
        row |= {"protocol": False, "test_error": None, "notes": [str(error)]}
    else:
        if job.recipe and folders:
            row |= describe_run(job, job.recipe, folders[0], root)
            if job.arm.evaluate and (split := test_split(job, job.recipe)):
                models = [load(folder.path, device=pick_device(device)) for folder in folders]
                row |= job.arm.evaluate(models, split)
        if job.arm.compute:
            row |= job.arm.compute()
    ledger.append(root, row)
    return row


def command_of(job: Job) -> str:
    """The command that runs a job again."""
    command = f"resnets reproduce {job.experiment.id} --budget {job.budget}"
    command += f" --arm {shlex.quote(job.arm.name)} --seed {job.seed}"
    if job.precision != "auto":
        command += f" --precision {job.precision}"
    if job.data and required_data(job.experiment, job.budget):
        command += f" --data {Path(job.data).name}"
    if job.recipe and job.recipe.weights:
        command += f" --weights {Path(job.recipe.weights).name}"
    return command


def test_split(job: Job, recipe: Recipe) -> Split | None:
    """The images that a job's `evaluate` is given: of "smoke" only the first 16."""
    import torch

    from resnets.data import dataset

    source = dataset.load(recipe.data, task=archs.task_for_arch(get_arch(recipe.model)))
    split = source.test or source.val
    if split and job.budget == "smoke":
        return split.take(torch.arange(min(16, len(split))))
    return split


def describe_run(job: Job, recipe: Recipe, folder: Run, root: Path) -> dict[str, Any]:
    """What the run folder says for the ledger; its curve is kept in results/curves."""
    from resnets.config.arch import from_dict
    from resnets.models.cost import cost

    source, result = folder.read_json("source.json"), folder.read_json("result.json")
    network = from_dict(source["arch"])
    curve = curve_file(root, job.budget, job.name)
    curve.parent.mkdir(parents=True, exist_ok=True)
    metrics = (folder.path / "metrics.jsonl").read_bytes()
    write_whole(curve, gzip.compress(metrics, mtime=0))
    notes = [row["note"] for row in folder.rows("notes.jsonl")]
    changed = job.experiment.deviation or any(map(ledger.changes_training, notes))
    precision = folder.read_json("recipe.json")["precision"]
    starts = start_times(folder)
    return {
        "protocol": job.budget == "full" and not changed and ledger.paper_protocol(precision),
        "model": recipe.model,
        "layers": network.depth,
        "data": source["data"],
        "digest": source["digest"],
        "size": network.size,
        "images": job.iterations * recipe.batch,
        "multiply_adds": cost(network).macs,
        "train_error": 100 * folder.rows("metrics.jsonl")[-1]["train_error"],
        "test_error": 100 * result["error"],
        "precision": precision,
        "seconds": folder.read_json("cost.json")["seconds"],
        "notes": notes,
        "interruptions": max(0, len(starts) - 1),
        "starts": folder.rows("starts.jsonl") or [{"date": date} for date in starts],
        "curve": str(curve.relative_to(root)),
    }


def curve_file(root: Path, budget: Budget, name: str) -> Path:
    """Where the metrics of a run are kept, compressed."""
    return root / "results" / "curves" / f"{budget}-{name}.jsonl.gz"

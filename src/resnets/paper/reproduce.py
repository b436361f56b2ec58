"""Run the experiments at a budget, each arm in a run folder, and write what came out."""

from __future__ import annotations

import gzip
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnets import arch as archs
from resnets import doctor
from resnets.errors import Diverged, Interrupted, UsageError
from resnets.families import arch
from resnets.files import write_whole
from resnets.paper import ledger
from resnets.paper.budgets import Budget, Job, jobs, lacks
from resnets.paper.experiment import PLACES, Experiment
from resnets.paper.experiments import EXPERIMENTS
from resnets.paper.ledger import Row
from resnets.recipe import Recipe

if TYPE_CHECKING:
    from resnets.training.fit import Progress
    from resnets.training.run import Run

Watch = Callable[["Progress"], None]


def scenes_of_digits(root: Path) -> Path:
    """Digits on noise with a box each, even and odd: a CSV beside its images, for "smoke"."""
    import numpy as np
    from PIL import Image

    from resnets.data import sources

    folder = root / "scenes"
    table, draw, digits = folder / "boxes.csv", np.random.default_rng(0), sources.digits()
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


def trained(job: Job, recipe: Recipe, root: Path, device: str, workers: int, watch: Watch) -> Run:
    """The finished run folder of a job, which goes on where it stood. Raises as `verbs.train`."""
    from resnets import lifecycle, verbs
    from resnets.recipe import parse
    from resnets.training.run import Run

    folder = Run(root / "runs" / job.budget / job.name)
    begun = (folder.path / "recipe.json").exists()
    if begun:
        there = parse(folder.read_json("recipe.json"))
        here = ("data", "weights", "precision", "micro")  # what places and machines decide
        if replace(there, **{name: getattr(recipe, name) for name in here}) != recipe:
            raise UsageError(f"{folder.path} holds a run of another recipe: remove the folder")
    if not folder.finished:
        if begun:
            verbs.resume(folder.path, device=device, workers=workers, watch=watch)
        else:
            plan = verbs.plan(recipe.data, recipe=recipe, device=device, workers=workers)
            lifecycle.go(lifecycle.create_run(plan, folder.path), plan, watch)
        shutil.rmtree(folder.path / "checkpoints")  # the model file stays
    return folder


def run(
    job: Job,
    root: Path,
    *,
    device: str = "auto",
    workers: int = 2,
    watch: Watch = lambda progress: None,
) -> Row:
    """The line of a job in the ledger, which is written once. Raises as `verbs.train`."""
    if known := ledger.of(ledger.read(root), **job.key):
        return known[-1]
    task = archs.task(arch(job.arm.recipe.model)) if job.arm.recipe else "classify"
    if task != "classify" and job.budget == "smoke":
        job = replace(job, data=str(scenes_of_digits(root)))
    if job.data is None and job.recipe and (needs := PLACES.get(job.recipe.data)):
        raise UsageError(f"{job.experiment.id} at this budget needs {needs}")
    import torch

    from resnets.data import sources
    from resnets.evaluation.model import Model, load
    from resnets.listing import environment
    from resnets.training.plan import pick_device
    from resnets.training.run import Run

    models, split, folders = list[Model](), None, list[Run]()
    command = f"resnets reproduce {job.experiment.id} --budget {job.budget} --seeds {job.seed + 1}"
    if job.data and lacks(job.experiment, job.budget):
        command += f" --data {Path(job.data).name}"
    if job.recipe and job.recipe.weights:
        command += f" --weights {Path(job.weights).name}"
    around = environment()
    row: dict[str, Any] = job.key | {
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {name: around[name] for name in ("resnets", "code", "python", "torch")},
        "machine": machine(device),
    }
    try:
        for each in job.all:
            if each.recipe:
                folders.append(trained(each, each.recipe, root, device, workers, watch))
                models.append(load(folders[-1].path, device=pick_device(device)))
    except Interrupted as error:
        raise Interrupted("the same command", error.exit_code - 128) from None
    except Diverged as error:
        row |= {"protocol": False, "test_error": None, "notes": [str(error)]}
    else:
        if job.recipe and folders:
            source = sources.load(job.recipe.data, task=task)
            split = source.test or source.val
            if split and job.budget == "smoke":
                split = split.take(torch.arange(min(16, len(split))))
            row |= facts(job, job.recipe, folders[0], root)
        if job.arm.measure:
            row |= job.arm.measure(models, split)
    ledger.append(root, row)
    return row


def facts(job: Job, recipe: Recipe, folder: Run, root: Path) -> dict[str, Any]:
    """What the run folder says for the ledger; its curve is kept in results/curves."""
    from resnets.arch import from_dict
    from resnets.nets.cost import cost

    source, result = folder.read_json("source.json"), folder.read_json("result.json")
    network = from_dict(source["arch"])
    curve = (folder.path / "metrics.jsonl").read_bytes()
    kept = curve_file(root, job.budget, job.name)
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_whole(kept, gzip.compress(curve, mtime=0))
    notes = [row["note"] for row in folder.rows("notes.jsonl")]
    return {
        "protocol": job.budget == "full" and not notes and not job.experiment.ours,
        "model": recipe.model,
        "layers": network.depth,
        "data": source["data"],
        "digest": source["digest"],
        "size": network.size,
        "images": job.iterations * recipe.batch,
        "multiply_adds": cost(network).macs,
        "train_error": 100 * folder.rows("metrics.jsonl")[-1]["train_error"],
        "test_error": 100 * result["error"],
        "precision": folder.read_json("recipe.json")["precision"],
        "seconds": folder.read_json("cost.json")["seconds"],
        "notes": notes,
        "curve": str(kept.relative_to(root)),
    }


def curve_file(root: Path, budget: Budget, name: str) -> Path:
    """Where the metrics of a run are kept, compressed."""
    return root / "results" / "curves" / f"{budget}-{name}.jsonl.gz"


def machine(device: str = "auto") -> str:
    """What computes, as the ledger names it."""
    if device != "cpu" and shutil.which("nvidia-smi"):  # torch takes a second to ask
        import torch

        if torch.cuda.is_available():
            return torch.cuda.get_device_name()
    return f"{doctor.told('cpuinfo', 'model name') or 'CPU'}, {os.cpu_count()} cores"


def overview(root: Path = Path()) -> list[dict[str, Any]]:
    """Every experiment: the papers' figures, its cost and time here, and what the ledger holds."""
    rows = ledger.read(root)
    pace = ledger.pace(rows, machine())
    table = []
    for one in EXPERIMENTS.values():
        held = Counter(row["budget"] for row in ledger.of(rows, experiment=one.id))
        cost = {
            budget: sum(each.cost for job in jobs(one, budget) for each in job.all)
            for budget in ("full", "cpu")
        }
        table.append(
            {
                "id": one.id,
                "what": one.title,
                "paper": " ".join(brief(next(iter(arm.paper.values()), "-")) for arm in one.arms),
                "images_x_macs": cost["full"],
                "cpu": pace * cost["cpu"],
                "full": pace * cost["full"],
                "ledger": one.needs or ", ".join(f"{n} {budget}" for budget, n in held.items()),
            }
        )
    return table


def brief(figure: float | str) -> str:
    """A figure of a paper in few characters."""
    return figure if isinstance(figure, str) else f"{figure:.4g}"


def planned(one: Experiment, budget: Budget, seeds: int, root: Path) -> list[dict[str, Any]]:
    """What a budget would run, and how long it would take here."""
    rows = ledger.read(root)
    pace = ledger.pace(rows, machine())
    return [
        {
            "arm": job.arm.name,
            "seed": job.seed,
            "data": job.recipe.data if job.recipe else "-",
            "size": job.recipe.size or arch(job.recipe.model).size if job.recipe else 0,
            "iterations": job.iterations,
            "images": job.iterations * job.recipe.batch if job.recipe else 0,
            "seconds": pace * sum(each.cost for each in job.all),
            "paper": " ".join(f"{k} {v}" for k, v in job.arm.paper.items()) or "-",
            "in_ledger": bool(ledger.of(rows, **job.key)),
        }
        for job in jobs(one, budget, seeds)
    ]

"""Run the experiments at a budget, each arm in a run folder, and write what came out."""

from __future__ import annotations

import gzip
import json
import os
import shlex
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, get_args

from resnets.config import arch as archs
from resnets.config.families import arch
from resnets.config.recipe import Augment, Recipe
from resnets.config.types import Task
from resnets.device import processor
from resnets.errors import Diverged, Interrupted, ResnetsError, UsageError
from resnets.files import write_whole
from resnets.papers import ledger
from resnets.papers.budgets import IMAGES, TESTED, Budget, Job, jobs, lacks
from resnets.papers.experiment import PLACES
from resnets.papers.experiments import EXPERIMENTS
from resnets.papers.ledger import Row

if TYPE_CHECKING:
    from resnets.training.loop import Progress
    from resnets.training.run import Run

Watch = Callable[["Progress"], None]
BOTH: tuple[Budget, Budget] = ("full", "cpu")
MEASURED = 8  # networks of a plan: more would keep a person waiting


def scenes_of_digits(root: Path) -> Path:
    """Digits on noise with a box each, even and odd: a CSV beside its images, for "smoke"."""
    import numpy as np
    from PIL import Image

    from resnets.data import dataset

    folder = root / "scenes"
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


def trained(job: Job, recipe: Recipe, root: Path, device: str, workers: int, watch: Watch) -> Run:
    """The finished run folder of a job, which goes on where it stood. Raises as `api.train`."""
    from resnets import api
    from resnets.api import training
    from resnets.config.recipe import parse
    from resnets.training import runner
    from resnets.training.run import Run

    here = ("data", "weights", "precision", "micro_batch")  # what places and machines decide
    own = {name: getattr(recipe, name) for name in here}
    if job.precision != "auto":
        del own["precision"]
    place = root / "runs" / job.budget / job.name
    # A name holds a digest of the recipe, which changes when a version has more fields.
    for path in [place, *place.parent.glob(job.name.rpartition("-")[0] + "-*/")]:
        with suppress(ResnetsError):
            if replace(parse(Run(path).read_json("recipe.json")), **own) == recipe:
                place = path
                break
    folder = Run(place)
    begun = (folder.path / "recipe.json").exists()
    if begun and replace(parse(folder.read_json("recipe.json")), **own) != recipe:
        raise UsageError(f"{folder.path} holds a run of another recipe: remove the folder")
    if not folder.finished:
        if begun:
            started(folder, device)
            api.resume(folder.path, device=device, workers=workers, watch=watch)
        else:
            plan = api.plan(recipe.data, recipe=recipe, device=device, workers=workers)
            runner.create_run(plan, folder.path)
            started(folder, device)
            training.train_and_report(folder, plan, watch)
        shutil.rmtree(folder.path / "checkpoints")  # the model file stays
    return folder


def started(folder: Run, device: str) -> None:
    """Log in starts.jsonl that a run begins or goes on: when, at which step, by which code, where.

    What an older version began is taken from the names of its TensorBoard files, one a start.
    """
    from resnets.device import code

    if not (folder.path / "starts.jsonl").exists():
        for date in starts(folder):
            folder.append("starts.jsonl", {"date": date})
    row = {"date": when(time.time()), "step": position(folder).get("step", 0), "code": code()}
    folder.append("starts.jsonl", row | {"machine": machine(device)})


def starts(folder: Run) -> list[str]:
    """When a run began and went on, oldest first, as far as its folder says."""
    if rows := folder.rows("starts.jsonl"):
        return [row["date"] for row in rows]
    events = (folder.path / "tensorboard").glob("events.out.tfevents.*")
    parts = (path.name.split(".")[3] for path in events)
    return [when(int(part)) for part in sorted(parts) if part.isdigit()]


def when(seconds: float) -> str:
    """A time as ISO 8601, UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def position(folder: Run) -> dict[str, Any]:
    """Step, steps and seconds of a run's newest checkpoint; {} without one that can be read."""
    for path in sorted((folder.path / "checkpoints").glob("step-*/state.json"), reverse=True):
        with suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
            # It may just have been replaced.
            course: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["course"]
            return course
    return {}


def status(root: Path = Path()) -> list[dict[str, Any]]:
    """The runs below ROOT/runs that are not finished: how far each is, its errors, the time left.

    `written` is how long ago it last wrote something: a run that trains does so every minute or so.
    """
    from resnets.training.run import Run

    budgets: tuple[Budget, ...] = get_args(Budget)
    places = [path.parent for b in budgets for path in root.glob(f"runs/{b}/*/recipe.json")]
    return [standing(folder, root) for folder in map(Run, sorted(places)) if not folder.finished]


def standing(folder: Run, root: Path) -> dict[str, Any]:
    """A line of `status`; what a damaged folder does not say is None."""
    recipe: dict[str, Any] = {}
    last: dict[str, Any] = {}
    fast, begun = list[float](), list[str]()
    with suppress(ResnetsError):
        recipe, begun = folder.read_json("recipe.json"), starts(folder)
        last = (folder.rows("metrics.jsonl") or [{}])[-1]
        fast = [row["images_per_second"] for row in folder.rows("timing.jsonl")[-3:]]
    course = position(folder)
    step, steps = course.get("step", 0), course.get("steps") or recipe.get("steps", 0)
    each = course["seconds"] / step if step else None
    if fast and median(fast) > 0:
        each = recipe["batch"] / median(fast)
    times = [folder.path.stat().st_mtime]
    for path in folder.path.rglob("*"):
        with suppress(OSError):  # a checkpoint that is just being replaced
            times.append(path.stat().st_mtime)
    row = {"run": str(folder.path.relative_to(root)), "seed": recipe.get("seed")}
    row |= {"precision": recipe.get("precision"), "step": step, "steps": steps}
    row |= {name: last.get(name) for name in ("train_error", "test_error")}
    row |= {"left": None if each is None else each * (steps - step)}
    row |= {"interruptions": max(0, len(begun) - 1)}
    return row | {"written": max(0.0, time.time() - max(times))}


def run(
    job: Job,
    root: Path,
    *,
    device: str = "auto",
    workers: int = 2,
    watch: Watch = lambda progress: None,
) -> Row | None:
    """The line of a job in the ledger, which is written once; None: another process is at it.

    Raises as `api.train`.
    """
    from filelock import FileLock, Timeout  # here, since it takes a while

    task = archs.task(arch(job.arm.recipe.model)) if job.arm.recipe else "classify"
    if job.data is None and job.recipe and (needs := PLACES.get(job.recipe.data)):
        if task == "classify" or job.budget != "smoke":
            raise UsageError(f"{job.experiment.id} at this budget needs {needs}")
        job = replace(job, data=str(scenes_of_digits(root)))
    if known := job.lines(ledger.read(root)):
        return known[-1]
    folder = root / "runs" / job.budget
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as locks:
        try:
            for name in sorted({each.name for each in job.all}):
                locks.enter_context(FileLock(folder / f"{name}.lock", timeout=0))
        except Timeout:
            return None
        # The other process may have written it meanwhile.
        known = job.lines(ledger.read(root))
        return known[-1] if known else made(job, root, task, device, workers, watch)


def made(job: Job, root: Path, task: Task, device: str, workers: int, watch: Watch) -> Row:
    """The line of a job, once it is in the ledger. Raises as `api.train`."""
    import torch

    from resnets.data import dataset
    from resnets.device import environment, pick_device
    from resnets.evaluation.predictor import Model, load
    from resnets.training.run import Run

    models, split, folders = list[Model](), None, list[Run]()
    command = f"resnets reproduce {job.experiment.id} --budget {job.budget}"
    command += f" --arm {shlex.quote(job.arm.name)} --seed {job.seed}"
    if job.precision != "auto":
        command += f" --precision {job.precision}"
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
            source = dataset.load(job.recipe.data, task=task)
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
    from resnets.config.arch import from_dict
    from resnets.models.cost import cost

    source, result = folder.read_json("source.json"), folder.read_json("result.json")
    network = from_dict(source["arch"])
    curve = (folder.path / "metrics.jsonl").read_bytes()
    kept = curve_file(root, job.budget, job.name)
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_whole(kept, gzip.compress(curve, mtime=0))
    notes = [row["note"] for row in folder.rows("notes.jsonl")]
    precision = folder.read_json("recipe.json")["precision"]
    exact = job.budget == "full" and not notes and not job.experiment.ours
    return {
        "protocol": exact and ledger.protocol_in(precision),
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
        "interruptions": max(0, len(starts(folder)) - 1),
        "starts": folder.rows("starts.jsonl") or [{"date": date} for date in starts(folder)],
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
    return f"{processor()}, {os.cpu_count()} cores"


def overview(root: Path = Path()) -> list[dict[str, Any]]:
    """Every experiment: the papers' figures, its cost and time here, and what the ledger holds."""
    rows, here = ledger.read(root), machine()
    table = []
    for one in EXPERIMENTS.values():
        held = Counter(row["budget"] for row in ledger.of(rows, experiment=one.id))
        work = {budget: [each for job in jobs(one, budget) for each in job.all] for budget in BOTH}
        seconds = {name: sum(lasting(job, rows, here) for job in work[name]) for name in BOTH}
        table.append(
            {
                "id": one.id,
                "what": one.title,
                "paper": " ".join(brief(next(iter(arm.paper.values()), "-")) for arm in one.arms),
                "images_x_macs": sum(job.cost for job in work["full"]),
                "cpu": seconds["cpu"],
                "full": seconds["full"],
                "ledger": one.needs or ", ".join(f"{n} {budget}" for budget, n in held.items()),
            }
        )
    return table


def brief(figure: float | str) -> str:
    """A figure of a paper in few characters."""
    return figure if isinstance(figure, str) else ledger.large(figure)


def lasting(job: Job, rows: Sequence[Row], here: str) -> float:
    """Seconds of one training on the machine `here`, by the runs most alike among `rows`."""
    if not job.recipe:
        return 0.0
    return job.cost * ledger.pace(rows, here, job.layers, job.size)


def measured(work: Sequence[Job], rows: Sequence[Row], here: str, device: str) -> Iterator[Row]:
    """What some real steps take here, of those networks that no run of this machine was like.

    They are lines for `lasting`: of the dearest few, and of another network than their own for
    detectors and localisers.
    """
    from resnets import api
    from resnets.models.cost import cost
    from resnets.training.loop import estimate

    known = {(row.get("layers"), row.get("size")) for row in ledger.of(rows, machine=here)}
    count = 0
    every = (each for one in work for each in one.all)
    for job in sorted(every, key=lambda each: -each.cost):
        recipe = job.recipe
        if recipe is None or (job.layers, job.size) in known or count >= MEASURED:
            continue
        dense = archs.task(arch(recipe.model)) != "classify"
        model, changes = ("resnet50_v1", {}) if dense else (recipe.model, dict(recipe.arch))
        side = min(job.size, 224)
        batch = max(2, min(recipe.batch, int(4e9 * job.images / job.cost)))
        short = Recipe(model=model, arch=changes, size=side, batch=batch, steps=100)
        short = replace(short, augment=Augment(crop="pad"), precision=recipe.precision)
        plan = api.plan("digits", recipe=short, device=device, workers=0)
        # An evaluation passes forward alone, a third of a step.
        tests = TESTED.get(recipe.data, 0) / IMAGES.get(recipe.data, 1) / recipe.eval_every
        seconds = estimate(plan, seconds=1) * (1 + tests / 3)
        row = {"machine": here, "layers": job.layers, "size": job.size, "seconds": seconds}
        known.add((job.layers, job.size))
        count += 1
        yield row | {"images": 100 * batch, "multiply_adds": cost(plan.arch).macs}


def planned(work: Sequence[Job], root: Path, device: str = "auto") -> list[dict[str, Any]]:
    """What would be run, and how long it would take here."""
    rows, here = ledger.read(root), machine(device)
    fresh = [job for job in work if job.budget != "smoke" and not job.lines(rows)]
    alike = [*rows, *measured(fresh, rows, here, device)]
    return [
        {
            "arm": job.arm.name,
            "seed": job.seed,
            "data": job.recipe.data if job.recipe else "-",
            "size": job.size,
            "iterations": job.iterations,
            "images": job.images,
            "seconds": sum(lasting(each, alike, here) for each in job.all),
            "paper": " ".join(f"{k} {v}" for k, v in job.arm.paper.items()) or "-",
            "in_ledger": bool(job.lines(rows)),
        }
        for job in work
    ]

"""Run the experiments at a budget, each arm in a run folder, and write what came out."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnets import arch as archs
from resnets import doctor
from resnets.arch import changed
from resnets.errors import Diverged, Interrupted, UsageError
from resnets.families import arch
from resnets.files import write_whole
from resnets.paper import ledger
from resnets.paper.experiments import (
    EXPERIMENTS,
    MACS,
    PLACES,
    STEPS,
    Arm,
    Budget,
    Experiment,
    experiment,
)
from resnets.paper.ledger import Row
from resnets.recipe import Recipe, to_dict

if TYPE_CHECKING:
    from resnets.training.fit import Progress
    from resnets.training.run import Run

Watch = Callable[["Progress"], None]
IMAGES = {"digits": 899, "cifar10": 50_000, "cifar100": 50_000, "imagenet": 1_281_167}
SIDE = {"smoke": 8, "cpu": 16, "gpu": 32}  # pixels; twice as many for the networks of ImageNet
# Of scenes: side, images of a step, and regions of a detector that are learnt from or judged.
SCENES: dict[Budget, tuple[int, int, int]] = {
    "smoke": (64, 2, 4), "cpu": (256, 8, 32), "gpu": (600, 8, 256),
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One arm, budget and seed."""

    experiment: Experiment
    arm: Arm
    budget: Budget
    seed: int
    data: str | None = None  # the place of data that has to be named
    weights: str = ""  # of the classifier that scenes start from at full length

    @property
    def recipe(self) -> Recipe | None:
        """How its network is trained at this budget."""
        recipe = self.arm.recipe
        if recipe and recipe.data in PLACES and recipe.data != "imagenet":
            return scene(self.experiment, recipe, self)
        return recipe and scaled(self.experiment, recipe, self.budget, self.seed, self.data)

    @property
    def iterations(self) -> int:
        """Optimiser steps."""
        recipe = self.recipe
        return recipe.total_steps(IMAGES.get(recipe.data, IMAGES["imagenet"])) if recipe else 0

    @property
    def key(self) -> dict[str, Any]:
        """What makes a line of the ledger the line of this job."""
        named = {"experiment": self.experiment.id, "arm": self.arm.name, "budget": self.budget}
        return named | {"seed": self.seed, "iterations": self.iterations}

    @property
    def name(self) -> str:
        """Of its run folder, which all experiments that train alike share."""
        recipe = self.recipe
        assert recipe is not None
        assert self.arm.recipe is not None
        place = "" if self.budget == "smoke" else self.arm.recipe.data
        plain = replace(recipe, data=place, weights=Path(recipe.weights).name)
        told = json.dumps(to_dict(plain), sort_keys=True)
        digest = hashlib.sha256(told.encode()).hexdigest()[:8]
        return f"{recipe.model}-{self.iterations}-seed{recipe.seed}-{digest}"

    @property
    def cost(self) -> float:
        """Images times multiply-adds."""
        recipe = self.recipe
        if not recipe:
            return 0.0
        known = arch(recipe.model)
        seen = getattr(known, "backbone", known).size  # the side that MACS are of
        part = changed(known, recipe.arch).depth / known.depth
        part *= ((recipe.size or known.size) / seen) ** 2
        return part * MACS[known.depth] * 1e6 * self.iterations * recipe.batch

    @property
    def all(self) -> list[Job]:
        """This one and those that train what else it needs."""
        return [self, *(replace(self, arm=member) for member in self.arm.members)]


def jobs(
    one: Experiment, budget: Budget, seeds: int = 1, data: str | None = None, weights: str = ""
) -> Iterator[Job]:
    """All that is to be run, seed by seed; what is not trained has one."""
    for seed in range(seeds):
        for arm in () if one.needs else one.arms:
            if arm.recipe or not seed:
                yield Job(one, arm, budget, seed, data, weights)


def chosen(
    ids: Sequence[str], budget: Budget = "smoke", data: str | None = None
) -> list[Experiment]:
    """The experiments of these ids; without any all whose data need not be named.

    Raises UsageError for one that one command cannot run, and for `data` that would be two.
    """
    for one in map(experiment, ids):
        if one.needs:
            raise UsageError(f"{one.id} {one.needs}")
    wanted = [one for one in map(experiment, ids or EXPERIMENTS) if ids or not lacks(one, budget)]
    if data and len(places := {place for one in wanted if (place := lacks(one, budget))}) > 1:
        raise UsageError(f"--data is of one of {', '.join(sorted(places))}: name its experiments")
    return wanted


def lacks(one: Experiment, budget: Budget) -> str:
    """The data that an experiment needs to have named at this budget, "" for none."""
    needed = budget == "full" if one.place == "imagenet" else budget != "smoke"
    return one.place if needed else ""


def scaled(
    one: Experiment, recipe: Recipe, budget: Budget, seed: int, data: str | None = None
) -> Recipe:
    """A recipe at a budget, which changes length, resolution and data.

    "full" is the paper's; "gpu" has CIFAR at its own size, "cpu" at half of it, "smoke" the digits
    and 128 images a step. Data of `imagenet` becomes CIFAR-10 at twice the size. A start at a low
    rate takes a tenth of the run or 50 steps. An experiment may have its own side, and fewer units
    in a stage, for "cpu".
    """
    recipe = replace(recipe, seed=recipe.seed + seed)
    large = recipe.data == "imagenet"
    if budget == "full":
        return replace(recipe, data=data) if large and data else recipe
    fewest = min(arm.recipe.steps for arm in one.arms if arm.recipe)
    steps = one.steps.get(budget, STEPS[budget]) * (recipe.steps // fewest if fewest else 1)
    side = one.side if one.side and budget == "cpu" else SIDE[budget]
    place = "digits" if budget == "smoke" else "cifar10" if large else recipe.data
    short = replace(
        recipe,
        data=place,
        size=2 * side if large and budget != "smoke" else side,
        train_size=0,
        steps=steps,
        normalize="data",
        augment=replace(recipe.augment, crop="pad", pad=side // 8, repeats=1),
        warmup=min(0.1, recipe.warmup) if recipe.warmup < 1 else min(0.1, 50 / steps),
        drops=recipe.drops if recipe.schedule == "step" else (),
        holdout=0.0,
        watch="test",
        keep="last",
    )
    if recipe.schedule == "plateau":  # which a test set must not choose
        short = replace(short, schedule="step", drops=(0.5, 0.75))
    if budget == "smoke":
        grey = replace(short.augment, colour="none", policy="none")
        usual = recipe.lr_batch or recipe.batch
        short = replace(short, batch=128, lr_batch=usual, augment=grey)
        short = replace(short, watch="val")  # there is none: the test is at the end
    elif one.units and budget == "cpu":
        short = replace(short, arch={**recipe.arch, "blocks": [one.units] * 3})
    parts = 1 if budget == "smoke" else 6  # of the run, with an evaluation after each
    return replace(short, eval_every=max(1, steps // parts) * short.batch / IMAGES[place])


def scene(one: Experiment, recipe: Recipe, job: Job) -> Recipe:
    """The recipe of a network for scenes at a job's budget.

    "full" is the paper's, from the weights of a classifier. Less starts from random weights, with
    normalisation that learns, at another size, on fewer regions.
    """
    recipe = replace(recipe, seed=recipe.seed + job.seed, data=job.data or recipe.data)
    if job.budget == "full":
        return replace(recipe, weights=job.weights)
    side, batch, regions = SCENES[job.budget]
    side = min(side, recipe.size or arch(recipe.model).size)
    if archs.task(arch(recipe.model)) == "detect":
        few = {"sampled": regions, "proposals": [8 * regions, regions]}
    else:
        few = {"regions": [2, regions], "crop": side} if "regions" in recipe.arch else {}
    return replace(
        recipe,
        arch={**recipe.arch, **few},
        size=side,
        steps=one.steps.get(job.budget, STEPS[job.budget]),
        batch=batch,
        norm="batch",
        normalize="data",
        augment=replace(recipe.augment, crop="none"),
        trainval=False,
        watch="test",
        eval_every=1e6,  # at the end
    )


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
        machine = {name: getattr(recipe, name) for name in ("data", "precision", "micro")}
        if replace(there, weights=recipe.weights, **machine) != recipe:
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
    place = (
        f" --data {Path(job.data).name}" if job.data and lacks(job.experiment, job.budget) else ""
    )
    place += f" --weights {Path(job.weights).name}" * bool(job.recipe and job.recipe.weights)
    row: dict[str, Any] = job.key | {
        "command": f"resnets reproduce {job.experiment.id} --budget {job.budget} "
        f"--seeds {job.seed + 1}{place}",
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {name: environment()[name] for name in ("resnets", "python", "torch")},
    }
    row["machine"] = machine(device)
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

"""What experiments cost: the list of them, and the time that a plan would take here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from resnets.config.arch import DenseTaskArch
from resnets.config.recipe import Augment, Recipe
from resnets.errors import format_count
from resnets.papers import ledger
from resnets.papers.budgets import TEST_IMAGES, TRAIN_IMAGES, Budget, Job, jobs
from resnets.papers.experiments import EXPERIMENTS
from resnets.papers.ledger import Row
from resnets.papers.status import machine_name

OVERVIEW_BUDGETS: tuple[Budget, Budget] = ("cpu", "full")
MAX_TIMED = 8  # networks of a plan that are timed: more would take too long


def overview(root: Path = Path()) -> list[dict[str, Any]]:
    """Every experiment: the papers' figures, its cost and time here, and what the ledger holds."""
    rows, machine = ledger.read(root), machine_name()
    table = []
    for experiment in EXPERIMENTS.values():
        figures = [next(iter(arm.paper.values()), "-") for arm in experiment.arms]
        work = {budget: list(jobs(experiment, budget)) for budget in OVERVIEW_BUDGETS}
        counts = Counter(row["budget"] for row in ledger.select(rows, experiment=experiment.id))
        done = ", ".join(f"{count} {budget}" for budget, count in counts.items())
        row: dict[str, Any] = {"id": experiment.id, "what": experiment.title}
        row["paper"] = " ".join(map(format_figure, figures))
        row["images_x_macs"] = sum(run.cost for job in work["full"] for run in job.trainings)
        for budget in OVERVIEW_BUDGETS:
            row[budget] = training_seconds(work[budget], rows, machine)
        table.append(row | {"ledger": experiment.not_runnable or done})
    return table


def format_figure(figure: float | str) -> str:
    """A figure of a paper in few characters."""
    return figure if isinstance(figure, str) else format_count(figure)


def training_seconds(work: Iterable[Job], rows: Sequence[Row], machine: str) -> float:
    """Seconds of all trainings of these jobs on that machine, by the runs most alike of `rows`."""
    trainings = [training for job in work for training in job.trainings if training.recipe]
    seconds = (t.cost * ledger.seconds_per_mac(rows, machine, t.layers, t.size) for t in trainings)
    return sum(seconds, 0.0)


def time_networks(
    work: Sequence[Job], rows: Sequence[Row], machine: str, device: str
) -> Iterator[Row]:
    """Time some steps of the networks of `work` that no run on this machine was like.

    Yields rows for `training_seconds`, for the most expensive networks.
    """
    known = {(row.get("layers"), row.get("size")) for row in ledger.select(rows, machine=machine)}
    trainings = [training for job in work for training in job.trainings if training.recipe]
    dearest = dict[tuple[int, int], Job]()
    for job in sorted(trainings, key=lambda job: -job.cost):
        if (job.layers, job.size) not in known:
            dearest.setdefault((job.layers, job.size), job)
    for (layers, size), job in islice(dearest.items(), MAX_TIMED):
        yield time_training(job, device) | {"machine": machine, "layers": layers, "size": size}


def time_training(job: Job, device: str) -> dict[str, Any]:
    """Seconds, images and their multiply-adds for some steps like a job's, with its evaluations.

    A ResNet-50 stands for a detector or localiser.
    """
    import resnets
    from resnets.models.cost import cost
    from resnets.training.clock import estimate_duration

    recipe = job.recipe
    assert recipe is not None
    dense = isinstance(job.network, DenseTaskArch)
    model, changes = ("resnet50_v1", {}) if dense else (recipe.model, dict(recipe.arch))
    batch = max(2, min(recipe.batch, int(4e9 * job.images / job.cost)))
    short = Recipe(
        model=model, arch=changes, size=min(job.size, 224), batch=batch, steps=100,
        augment=Augment(crop="pad"), precision=recipe.precision,
    )  # fmt: skip
    plan = resnets.plan("digits", recipe=short, device=device, workers=0)
    test, train = TEST_IMAGES.get(recipe.data, 0), TRAIN_IMAGES.get(recipe.data, 1)
    tested = test / train / recipe.eval_every  # images, for each in training
    # An evaluation passes forward alone, a third of a step.
    seconds = estimate_duration(plan, seconds=1) * (1 + tested / 3)
    return {"seconds": seconds, "images": 100 * batch, "multiply_adds": cost(plan.arch).macs}


def plan_jobs(work: Sequence[Job], root: Path, device: str = "auto") -> list[dict[str, Any]]:
    """What would be run, and how long it would take here."""
    rows, machine = ledger.read(root), machine_name(device)
    new = [job for job in work if job.budget != "smoke" and not job.ledger_rows(rows)]
    timed = [*rows, *time_networks(new, rows, machine, device)]
    return [
        {
            "arm": job.arm.name,
            "seed": job.seed,
            "data": job.recipe.data if job.recipe else "-",
            "size": job.size,
            "iterations": job.iterations,
            "images": job.images,
            "seconds": training_seconds([job], timed, machine),
            "paper": " ".join(f"{name} {figure}" for name, figure in job.arm.paper.items()) or "-",
            "in_ledger": bool(job.ledger_rows(rows)),
        }
        for job in work
    ]

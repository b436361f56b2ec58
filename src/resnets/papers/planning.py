"""What experiments cost: the list of them, and the time that a plan would take here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from resnets.config.arch import DenseTaskArch
from resnets.config.families import arch
from resnets.config.recipe import Augment, Recipe
from resnets.papers import ledger
from resnets.papers.budgets import TEST_IMAGES, TRAIN_IMAGES, Budget, Job, jobs
from resnets.papers.experiments import EXPERIMENTS
from resnets.papers.ledger import Row
from resnets.papers.status import machine_name

OVERVIEW_BUDGETS: tuple[Budget, Budget] = ("full", "cpu")
MAX_MEASURED = 8  # networks of a plan that are timed: more would keep a person waiting


def overview(root: Path = Path()) -> list[dict[str, Any]]:
    """Every experiment: the papers' figures, its cost and time here, and what the ledger holds."""
    rows, machine = ledger.read(root), machine_name()
    table = []
    for experiment in EXPERIMENTS.values():
        done = Counter(row["budget"] for row in ledger.select(rows, experiment=experiment.id))
        work = {
            budget: [each for job in jobs(experiment, budget) for each in job.trainings]
            for budget in OVERVIEW_BUDGETS
        }
        seconds = {
            budget: sum(estimate_seconds(job, rows, machine) for job in work[budget])
            for budget in OVERVIEW_BUDGETS
        }
        figures = [next(iter(arm.paper.values()), "-") for arm in experiment.arms]
        table.append(
            {
                "id": experiment.id,
                "what": experiment.title,
                "paper": " ".join(map(format_figure, figures)),
                "images_x_macs": sum(job.cost for job in work["full"]),
                "cpu": seconds["cpu"],
                "full": seconds["full"],
                "ledger": experiment.not_runnable
                or ", ".join(f"{count} {budget}" for budget, count in done.items()),
            }
        )
    return table


def format_figure(figure: float | str) -> str:
    """A figure of a paper in few characters."""
    return figure if isinstance(figure, str) else ledger.format_count(figure)


def estimate_seconds(job: Job, rows: Sequence[Row], machine: str) -> float:
    """Seconds of one training on that machine, by the runs most alike among `rows`."""
    if not job.recipe:
        return 0.0
    return job.cost * ledger.seconds_per_mac(rows, machine, job.layers, job.size)


def measure_steps(
    work: Sequence[Job], rows: Sequence[Row], machine: str, device: str
) -> Iterator[Row]:
    """Time some steps of the networks of `work` that no run on this machine was like.

    Yields rows for `estimate_seconds`, for the most expensive networks; detectors and localisers
    are represented by a ResNet-50.
    """
    from resnets import api
    from resnets.models.cost import cost
    from resnets.training.clock import estimate

    known = {(row.get("layers"), row.get("size")) for row in ledger.select(rows, machine=machine)}
    trainings = [each for job in work for each in job.trainings]
    count = 0
    for job in sorted(trainings, key=lambda job: -job.cost):
        recipe = job.recipe
        if recipe is None or (job.layers, job.size) in known or count >= MAX_MEASURED:
            continue
        dense = isinstance(arch(recipe.model), DenseTaskArch)
        model, changes = ("resnet50_v1", {}) if dense else (recipe.model, dict(recipe.arch))
        side = min(job.size, 224)
        batch = max(2, min(recipe.batch, int(4e9 * job.images / job.cost)))
        short = Recipe(model=model, arch=changes, size=side, batch=batch, steps=100)
        short = replace(short, augment=Augment(crop="pad"), precision=recipe.precision)
        plan = api.plan("digits", recipe=short, device=device, workers=0)
        test_images, train_images = (
            TEST_IMAGES.get(recipe.data, 0),
            TRAIN_IMAGES.get(recipe.data, 1),
        )
        tested = test_images / train_images / recipe.eval_every  # images, for each in training
        # An evaluation passes forward alone, a third of a step.
        seconds = estimate(plan, seconds=1) * (1 + tested / 3)
        known.add((job.layers, job.size))
        count += 1
        yield {
            "machine": machine,
            "layers": job.layers,
            "size": job.size,
            "seconds": seconds,
            "images": 100 * batch,
            "multiply_adds": cost(plan.arch).macs,
        }


def plan_jobs(work: Sequence[Job], root: Path, device: str = "auto") -> list[dict[str, Any]]:
    """What would be run, and how long it would take here."""
    rows, machine = ledger.read(root), machine_name(device)
    new = [job for job in work if job.budget != "smoke" and not job.ledger_rows(rows)]
    timed = [*rows, *measure_steps(new, rows, machine, device)]
    return [
        {
            "arm": job.arm.name,
            "seed": job.seed,
            "data": job.recipe.data if job.recipe else "-",
            "size": job.size,
            "iterations": job.iterations,
            "images": job.images,
            "seconds": sum(estimate_seconds(each, timed, machine) for each in job.trainings),
            "paper": " ".join(f"{name} {figure}" for name, figure in job.arm.paper.items()) or "-",
            "in_ledger": bool(job.ledger_rows(rows)),
        }
        for job in work
    ]

"""What each command does: it calls a function of `resnets.api`, and prints what that returns.

torch is imported inside a function only, so that `--help` and a typing error answer at once.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import MISSING, fields, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

import resnets
from resnets.api import training
from resnets.api.checks import (
    check_floors,
    check_value,
    literal_values,
    parse_floors,
    parse_seconds,
    public,
)
from resnets.cli import format, terminal
from resnets.config.recipe import Augment, Recipe
from resnets.config.types import DownloadName, TaskName
from resnets.config.weights import WeightsRow, check_weights
from resnets.errors import UsageError
from resnets.files import check_inputs, resume_command
from resnets.http_files import is_offline

if TYPE_CHECKING:
    from resnets.papers.budgets import Job
    from resnets.training.tune import Trial

STDIN = "\0-"  # for "-", which cyclopts takes for an option: no file has such a name


def train(
    data: str, *, dry_run: bool = False, yes: bool = False, devices: int = 1, **options: Any
) -> None:
    """Train a network on DATA, test it, and write a run folder.

    Args:
        dry_run: Print the plan and stop.
        yes: Download pretrained weights, where they would help, without asking.
        devices: Number of processes (one GPU each, if there are any) that share each batch;
            torchrun starts them.
    """
    began = time.monotonic()
    run, seeds = options.pop("run"), options.pop("seeds")
    check_value("seeds", seeds, ())
    if seeds > 1 and devices > 1:
        raise UsageError("--devices trains one seed at a time: --seed N")
    if seeds == 1:
        training.check_run(run, data)
    plan = resnets.plan(data, devices=devices, **options)
    if plan.suggested is not None and not dry_run and (yes or wants_weights(plan.suggested)):
        plan = resnets.plan(data, devices=devices, **options | {"weights": plan.suggested.name})
    from resnets.training import runner
    from resnets.training.clock import estimate_duration

    # A folder that cannot be used is refused before anything is measured.
    runs = list(runner.seed_runs(plan, run, seeds).values()) if seeds > 1 else []
    if not runs:
        runner.run_folder(plan, run)
    format.print_plan(plan, estimate_duration(plan), runs, asked_for=dry_run)
    if dry_run:
        return
    if devices > 1:  # the ranks are other processes; this one ends with theirs
        folder, model = runner.create_run(plan, run).path, plan.recipe.model
        run_ranks(devices, folder, options, model if plan.external else None, began)
    with terminal.training_bar() as on_progress:
        result = resnets.train(plan, run=run, seeds=seeds, on_progress=on_progress)
    if result.compared is not None:
        format.print_comparison(result.compared)
    else:
        format.print_outcome(result)


def wants_weights(row: WeightsRow) -> bool:
    """Whether to download weights, asked once; without a terminal, or offline, no."""
    asks = sys.stdin.isatty() and not (terminal.quiet or terminal.out.quiet or is_offline())
    if not asks or "RANK" in os.environ:  # the ranks of torchrun have no terminal of their own
        return False
    size = f"{row.bytes / 1e6:,.0f} MB" if row.bytes else "size not known"
    terminal.note(
        f"few photographs are learned best from weights that others trained: {row.name}, {size}, "
        f"from {row.source}, licence {row.licence}.\nDownload it? [Y/n] (--yes and --weights none "
        "decide without this question)",
        always=True,
    )
    return sys.stdin.readline().strip().lower() in ("", "y", "yes")


def run_ranks(
    devices: int, run: str | Path, options: dict[str, Any], model: str | None, began: float
) -> None:
    """Resume a run in as many processes, and exit as they do."""
    from resnets.training.distributed import launch

    words = ["--device", options["device"], "--workers", str(options["workers"])]
    words += ["--model", model] if model else []
    words += ["--json"] * terminal.out.quiet
    raise SystemExit(launch(devices, ["resume", str(run), *words], began))


def tune(data: str, *, rate_only: bool = False, **options: Any) -> None:
    """Search a recipe's fields for the lowest validation error; repeat the command to resume.

    Args:
        rate_only: Only suggest a learning rate, by a range test of some seconds; no folder is
            written.
    """
    run, trials, search = (options.pop(name) for name in ("run", "trials", "search"))
    budget = options.pop("budget")
    plan = resnets.plan(data, **options)
    if rate_only:
        format.print_rates(*resnets.lr_range_test(plan))
        return
    from resnets.training.clock import estimate_duration

    format.print_plan(plan, parse_seconds(budget) if budget else trials * estimate_duration(plan))
    folder = Path(run or training.study_folder(plan))
    done: list[Trial] = []
    with terminal.training_bar() as on_progress:
        studied = resnets.tune(
            plan, run=folder, trials=trials, budget=budget, search=search, on_progress=on_progress
        )
        for done in studied:
            format.print_trial(done, trials)
    format.print_study(done, folder, plan)


def resume(run: str | None = None, *, yes: bool = False, devices: int = 1, **options: Any) -> None:
    """Resume an interrupted run; without RUN, the newest unfinished one.

    Args:
        yes: Without RUN, do not ask before resuming a run that is older than a day.
        devices: Number of processes (one GPU each, if there are any) that share each batch.
    """
    if devices > 1:
        if run is None or options["data"] is not None:
            raise UsageError("--devices needs RUN, and its data where it was")
        run_ranks(devices, run, options, options["model"], time.monotonic())
    with terminal.training_bar() as on_progress:
        result = resnets.resume(run or newest_unfinished(yes), **options, on_progress=on_progress)
    format.print_outcome(result)


def newest_unfinished(yes: bool) -> Path:
    """The newest unfinished run; an old one only after a question. Raises UsageError."""
    run, written = training.newest_unfinished()
    age = timedelta(seconds=round(time.time() - written))
    terminal.note(f"the newest unfinished run is {run}, last written {age} ago", always=True)
    if age > timedelta(days=1) and not yes:
        answer = ""
        if sys.stdin.isatty():
            terminal.note("resume it? [y/N]", always=True)
            answer = sys.stdin.readline()
        if answer.strip().lower() not in ("y", "yes"):
            raise UsageError(f"not resumed: name it, {resume_command(run)}, or give --yes")
    return run


def evaluate(
    *places: str, task: TaskName, fail_under: list[str] | None = None, **options: Any
) -> None:
    """Test MODEL... on one split of DATA; several models form an ensemble.

    Args:
        fail_under: METRIC=VALUE: exit with code 1 if it is lower; may be repeated.
    """
    floors = parse_floors(task, fail_under or [])
    result = resnets.evaluate(*places, task=task, **options)
    format.print_result(result)
    check_floors(floors, result)


def predict(model: str, *inputs: str, task: TaskName, **options: Any) -> None:
    """Classify images: files, folders, patterns, or - for an image on standard input."""
    items = [sys.stdin.buffer.read() if item == STDIN else item for item in inputs]
    if "out" in options:
        options["out"] = options["out"] or "predictions"
        rows = resnets.predict(model, items, task=task, **options)
        terminal.note(f"the pictures are in {options['out']}")
        format.print_findings(rows)
        return
    check_weights(model)
    check_inputs(items)
    names = {f"input {k}": "-" for k, item in enumerate(inputs) if item == STDIN}
    predictions = resnets.predict(model, iter(items), task=task, **options)  # each is shown at once
    format.print_predictions(replace(p, file=names.get(p.file, p.file)) for p in predictions)


def explain(model: str, *inputs: str, out: str, **options: Any) -> None:  # noqa: D103
    format.print_explanations(resnets.explain(model, *inputs, out=out, **options), Path(out))


def features(model: str, data: str, *, out: str, **options: Any) -> None:  # noqa: D103
    with terminal.image_bar() as watch:
        written: Any = resnets.features(model, data, out=out, **options, watch=watch)
    format.print_feature_file(written)


def probe(model: str, data: str, **options: Any) -> None:  # noqa: D103 - the API's
    with terminal.image_bar() as watch:
        result = resnets.probe(model, data, **options, watch=watch)
    format.print_probe(result)


def search(model: str, folder: str, *queries: str, **options: Any) -> None:  # noqa: D103
    with terminal.image_bar() as watch:
        result = resnets.search(model, folder, *queries, **options, watch=watch)
    format.print_search(result)


@public
def reproduce(
    *ids: str, budget: Literal["smoke", "cpu", "gpu", "full"] | None = None,
    arm: list[str] | None = None, seed: int = 0, seeds: int = 1,
    precision: Literal["auto", "float32", "bfloat16"] = "auto", status: bool = False,
    data: str | None = None, weights: str = "", root: Path = Path(), dry_run: bool = False,
    device: str = "auto", workers: int = 2,
) -> None:  # fmt: skip
    """Rerun tables and figures of the papers; without --budget, list them.

    Args:
        ids: Experiments from the list, e.g. r1.tab6; all by default.
        budget: smoke: digits, two steps; cpu: some hundred steps at half the resolution, gpu: some
            thousand; full: the paper's protocol.
        arm: One row of an experiment, e.g. resnet20; may be repeated.
        seed: The first seed.
        seeds: Number of runs of each network, with the seeds that follow.
        precision: float32 is the papers'; bfloat16 is reported separately; auto takes what the
            machine has.
        status: Show the progress of unfinished runs, and stop.
        data: Where ImageNet is, for the full budget; VOC, COCO or other boxes, for all but smoke.
        weights: A classifier that detectors and localisers start from with the full budget.
        root: Folder of runs/, results/ledger.jsonl and docs/results.md; with the smoke budget
            ROOT/runs/smoke.
        dry_run: Show what would be run and how long it would take here, and stop.
    """
    from resnets.papers import budgets, planning
    from resnets.papers.experiments import EXPERIMENTS

    if status or budget is None:
        list_experiments(root, under_way=status)
        return
    if budget == "smoke":
        root = root / "runs" / "smoke"
    arms = arm or []
    experiments = budgets.select_experiments(ids, budget, data, arms)
    left_out = [e.id for e in EXPERIMENTS.values() if not e.not_runnable and e not in experiments]
    if left_out and not ids:
        names = ", ".join(left_out)
        terminal.note(f"left out, since their data has to be named with --data: {names}")
    seeded = partial(budgets.jobs, budget=budget, seeds=seeds, seed=seed, precision=precision)
    jobs = [job for e in experiments for job in seeded(e, data=data, weights=weights, arms=arms)]
    if dry_run:
        terminal.print_rows(planning.plan_jobs(jobs, root, device))
    else:
        run_jobs(jobs, root, device, workers)


def list_experiments(root: Path, *, under_way: bool) -> None:
    """Print all experiments, or how far those that are `under_way` are."""
    from resnets.papers import planning
    from resnets.papers.status import status

    rows = status(root)
    terminal.print_rows(rows if under_way else planning.overview(root))
    if rows and not under_way:
        terminal.note(f"{len(rows)} under way: `resnets reproduce --status`", always=True)


def run_jobs(jobs: Sequence[Job], root: Path, device: str, workers: int) -> None:
    """Run jobs of experiments, print the row of each, and write the page of results."""
    from resnets.papers import reproduce, results

    with terminal.training_bar() as on_progress:
        for job in jobs:
            row = reproduce.reproduce_job(
                job, root, device=device, workers=workers, on_progress=on_progress
            )
            if row is None:
                text = f"{job.experiment.id} {job.arm.name} seed {job.seed}"
                terminal.note(f"{text}: left out, another process is at it", always=True)
            else:
                format.print_experiment(row)
    format.print_path(results.write_page(root))


def data_get(name: DownloadName) -> None:  # noqa: D103 - the API's
    with terminal.download_bar(name) as on_progress:
        path = resnets.data_get(name, on_progress=on_progress)
    terminal.note(f"{name} is in {path}", always=True)


def weights_get(name: str, *, accept_licence: bool = False) -> None:  # noqa: D103 - the API's
    with terminal.download_bar(name) as update:
        path = resnets.weights_get(name, accept_licence=accept_licence, on_progress=update)
    format.print_path(path)


def list_fields() -> None:
    """List the fields of a recipe for --set: name, default, meaning."""
    rows = []
    for kind, prefix in ((Recipe, ""), (Augment, "augment.")):
        hints = get_type_hints(kind)
        for field in fields(kind):
            if meaning := field.metadata.get("meaning"):
                default = {} if field.default is MISSING else field.default
                choices = ", ".join(map(str, literal_values(hints[field.name])))
                row = {"field": prefix + field.name, "default": str(default)}
                rows.append(row | {"meaning": f"{meaning} ({choices})" if choices else meaning})
    terminal.print_rows(rows)

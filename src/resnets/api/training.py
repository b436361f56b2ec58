"""Training as functions: `train`, `resume`, `tune` and `find_rate`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnets.api import checks
from resnets.api.checks import public
from resnets.api.info import runs_compare, write_report
from resnets.api.plans import is_plan, plan, planned
from resnets.config.types import TaskName
from resnets.errors import DataError, MissingCode, ResnetsError, UsageError
from resnets.files import check_outside, code_option, resume_command

if TYPE_CHECKING:
    from torch.nn import Module

    from resnets.config.arch import ExternalArch
    from resnets.config.recipe import Recipe
    from resnets.data.torch_dataset import Data
    from resnets.training.clock import ProgressReport
    from resnets.training.plan import Plan
    from resnets.training.run import Run
    from resnets.training.runner import TrainResult
    from resnets.training.tune import Trial
else:  # so that the annotations can be read without torch
    Data = str | Path | Any
    Module = ExternalArch = Any
    Recipe = TrainResult = ProgressReport = Plan = Trial = Any


def check_run(run: str | Path | None, data: object) -> None:
    """Raise UsageError if a new run cannot be in that folder; ranks of torchrun resume there."""
    from resnets.training.run import Run

    if run is not None and "TORCHELASTIC_RUN_ID" not in os.environ:
        check_outside(Path(run), data)
        Run(Path(run)).check_free()


@public
def train(
    data: Data | Plan, *, task: TaskName | None = None, model: str | Module | None = None,
    recipe: str | Path | Recipe | None = None, weights: str | Path | None = None,
    epochs: float | None = None, budget: float | str | None = None, lr: float | None = None,
    batch: int | None = None, size: int | None = None, seed: int | None = None,
    overrides: Mapping[str, Any] | Sequence[str] | None = None, run: str | Path | None = None,
    seeds: int = 1, device: str = "auto", workers: int = 2,
    watch: Callable[[ProgressReport], None] = lambda progress: None,
) -> TrainResult:  # fmt: skip
    """Train a network on DATA, test it, and write a run folder.

    In Python `data` may be a plan. Arguments that are not explained here, and the errors, are those
    of `plan`. Raises Interrupted when a signal stopped it; `resume` continues. The outcome of
    several seeds is that of the first, without a result where it was finished before, with
    `compared`.

    Args:
        run: The run folder; runs/DATA-MODEL when left out.
        seeds: Number of runs, with the seeds from --seed on, in RUN-seed0, RUN-seed1, ...; they are
            compared at the end. Repeat the command to resume.
        watch: Called with the progress, about twice a second and at each evaluation.
    """
    arguments = dict(locals())
    if seeds == 1:
        check_run(run, data)
    chosen = planned(data, arguments)
    from resnets.training import runner

    if seeds == 1:
        return train_and_report(runner.create_run(chosen, run), chosen, watch)
    results = list(train_seeds(chosen, run, seeds, watch))
    return replace(results[0], compared=runs_compare(*(result.run for result in results)))


def train_and_report(
    run: Run, plan: Plan, watch: Callable[[ProgressReport], None], more: str = ""
) -> TrainResult:
    """As `steps_to_report`, with each progress given to `watch`."""
    steps = steps_to_report(run, plan, more)
    while True:
        try:
            watch(next(steps))
        except StopIteration as end:
            result: TrainResult = end.value
            return result


@public
def fit(
    plan: Plan, /, *, run: str | Path | None = None
) -> Generator[ProgressReport, None, TrainResult]:
    """Train a plan as `train` does, as a generator of its progress: the loop is yours.

    A progress comes about twice a second and at each evaluation, where `loss`, `train_error`,
    `eval_error` and `eval_metrics` are set. After the last one the network is tested and the report
    written. A loop that is left early leaves a run that `resume` goes on with.

    Raises as `train`; before the loop begins, UsageError for a folder that holds a run.

    Args:
        run: The run folder; runs/DATA-MODEL when left out.
    """
    from resnets.training import runner

    check_run(run, plan.recipe.data)
    return steps_to_report(runner.create_run(plan, run), plan)


def steps_to_report(
    run: Run, plan: Plan, more: str = ""
) -> Generator[ProgressReport, None, TrainResult]:
    """Train from where a run stands to its end, test it, and write its result and its report.

    What is there already stays. `more` follows the command that resumes it after a signal.
    """
    from resnets.training import runner

    again = f"{resume_command(run.path)}{more}"
    with runner.lock_and_catch_signals(run, plan) as stop:
        result = yield from runner.train_and_test(run, plan, stop, again)
        with stop.interruptible(again):
            if plan.world.is_main and not set(runner.PAGES).isdisjoint(runner.missing_results(run)):
                write_report(run, plan.source, network=plan.external)
    return result


def train_seeds(
    first: Plan, run: str | Path | None, seeds: int, watch: Callable[[ProgressReport], None]
) -> Iterator[TrainResult]:
    """Train or resume a plan with its seed and those that follow, one after another.

    Raises UsageError as `runner.seed_runs`, before anything is trained.
    """
    from resnets.training import runner

    for seed, folder in runner.seed_runs(first, run, seeds).items():
        if not runner.missing_results(folder):
            yield runner.TrainResult(folder.path, None, 0.0, first.task.name)
            continue
        chosen = first
        if folder.begun or seed != first.recipe.seed:
            recipe = folder.read_recipe() if folder.begun else replace(first.recipe, seed=seed)
            data = recipe.data if first.data is None else first.data
            chosen = plan(
                data, recipe=recipe, device=str(first.device), workers=first.workers,
                model=first.external,
            )  # fmt: skip
        if not folder.begun:
            folder = runner.create_run(chosen, folder.path)
        # The parts of a task may be a person's own. The same budget for each seed: the first would
        # pay for the start of the program.
        chosen = replace(chosen, task=first.task, began=time.monotonic())
        more = ", with all seeds by the same command"
        yield train_and_report(folder, chosen, watch, more)


@public
def resume(
    run: str | Path | None = None, *, data: Data | Plan | None = None,
    model: str | Module | None = None, device: str = "auto", workers: int = 2,
    watch: Callable[[ProgressReport], None] = lambda progress: None,
) -> TrainResult:  # fmt: skip
    """Resume an interrupted run; without RUN, the newest unfinished one.

    In Python `data` may be the Dataset or dictionary that the run was started on, or a plan whose
    task you have changed, and `model` a module.

    Raises UsageError where there is nothing to resume, the newest one is older than a day, or it is
    a trial of a study; DataError where the data is not what the run was started on; CheckpointError
    where no checkpoint of the run is whole.

    Args:
        run: The run folder.
        data: Where the data is now, if it was moved.
        model: Your own code, where the network was trained from that: my_module:build.
        watch: Called with the progress, about twice a second and at each evaluation.
    """
    from resnets.training.run import Run

    if run is None:
        run, written = newest_unfinished()
        if time.time() - written > 86_400:
            raise UsageError(f"the newest unfinished run, {run}, is older than a day: name it")
    folder = Run(Path(run))
    recipe = folder.read_recipe()
    if folder.finished:
        from resnets.training.runner import missing_results
        from resnets.training.tasks import task_of_run

        if not missing_results(folder):
            text = task_of_run(folder.read_json("source.json")).text
            command = f"resnets {text.command}evaluate {run} DATA{code_option(run)}"
            raise UsageError(f"{run} is finished; `{command}` uses it")
    if (folder.path / "trial.json").exists():  # it would be tested on the test images
        raise UsageError(
            f"{run} is a trial of a study, which goes on by its own command:\n"
            f"`resnets tune {recipe.data} --run {folder.path.parent}` with the options it had"
        )
    resumed = plan_again(folder, recipe, data, model, device, workers)
    return train_and_report(folder, resumed, watch)


def plan_again(
    folder: Run, recipe: Recipe, data: Any, model: Any, device: str, workers: int
) -> Plan:
    """The plan of a run that is resumed: as it was, or as it is given. Errors as `resume`."""
    run, started = folder.path, folder.read_json("source.json")
    if data is None and recipe.data.startswith("dataset-"):
        raise UsageError(
            f"{run} was trained on a torch Dataset: resnets.resume({str(run)!r}, data=...) in "
            "Python, with\nthe same Dataset or dictionary"
        )
    if is_plan(data):
        resumed = data
        if replace(resumed.recipe, data=recipe.data) != recipe:
            whose = f"recipe={str(run / 'recipe.json')!r}"
            raise UsageError(f"the plan has another recipe than {run}: make it with {whose}")
    else:
        check_code(run, started, model)
        data = recipe.data if data is None else data
        resumed = plan(data, recipe=recipe, model=model, device=device, workers=workers)
    if resumed.source.digest != started["digest"]:
        raise DataError(
            f"{resumed.source.name} has changed since {run} was started: digest "
            f"{resumed.source.digest[:12]}, was {started['digest'][:12]}.\n"
            "Restore the data, or start a new run."
        )
    return resumed


def check_code(run: str | Path, started: Mapping[str, Any], model: object) -> None:
    """Raise UsageError where a run with a person's own code is resumed without it."""
    arch, replaced = started["arch"], started.get("replaced")
    if replaced:
        raise UsageError(
            f"{run} was trained with your own {', '.join(replaced)}: resnets.resume({str(run)!r}, "
            "data=plan)\nwith a plan whose task has them"
        )
    if arch.get("kind") == "external" and model is None:
        raise MissingCode(f"{run} was trained from", arch["builder"], "--model")


def newest_unfinished(root: Path = Path("runs")) -> tuple[Path, float]:
    """The unfinished run that was written last, and when. Raises UsageError if there is none.

    One that was broken off while its result or report was written is unfinished too.
    """
    times = dict[Path, float]()
    for recipe in root.glob("*/recipe.json"):
        log = recipe.with_name("metrics.jsonl")
        unfinished = not recipe.with_name("result.json").exists()
        if not unfinished:
            from resnets.training.run import Run
            from resnets.training.runner import missing_results

            with suppress(ResnetsError, KeyError):  # an unreadable one cannot be resumed
                unfinished = bool(missing_results(Run(recipe.parent)))
        if unfinished:
            times[recipe.parent] = (log if log.exists() else recipe).stat().st_mtime
    if not times:
        raise UsageError(f"there is no unfinished run in {root}/")
    newest = max(times, key=times.__getitem__)
    return newest, times[newest]


@public
def tune(
    data: Data | Plan, *, run: str | Path | None = None, trials: int = 20,
    search: Sequence[str] = (), task: TaskName | None = None, model: str | Module | None = None,
    recipe: str | Path | Recipe | None = None, weights: str | Path | None = None,
    epochs: float | None = None, budget: float | str | None = None, lr: float | None = None,
    batch: int | None = None, size: int | None = None, seed: int | None = None,
    overrides: Mapping[str, Any] | Sequence[str] | None = None, device: str = "auto",
    workers: int = 2, watch: Callable[[ProgressReport], None] = lambda progress: None,
) -> Iterator[list[Trial]]:  # fmt: skip
    """Search a recipe's fields for the lowest validation error; repeat the command to resume.

    In Python `data` may be a plan. Arguments that are not explained here are those of `plan`.
    Yields the trials that have ended, after each. Raises MissingPackage without Optuna.

    Args:
        run: The folder of the study; runs/DATA-MODEL-tune when left out.
        trials: Number of trials; those that fall behind are stopped early.
        search: FIELD=LOW:HIGH, FIELD=LOW:HIGH:log, FIELD=A,B,C, or FIELD of those that are searched
            when left out: lr, weight_decay, warmup, label_smoothing, ema, augment.policy,
            augment.mixup.
        budget: Total time of all trials, as 30m or 8h.
        watch: Called with the progress, about twice a second and at each evaluation.
    """
    chosen = planned(data, {**locals(), "budget": None})
    from resnets.training import runner, tune

    total = 0.0 if budget is None else checks.parse_seconds(budget)
    folder = runner.run_folder(chosen, run or study_folder(chosen))
    return tune.search(folder, chosen, search, trials, total, watch)


def study_folder(chosen: Plan) -> Path:
    """The default folder of a study."""
    from resnets.training import runner

    return Path(f"{runner.default_folder(chosen)}-tune")


@public
def find_rate(
    plan: Plan, low: float = 1e-5, high: float = 10.0, steps: int = 100
) -> tuple[list[float], list[float], float]:
    """Learning rates, the loss at each, and a suggestion: see `training.lr_range_test`.

    Args:
        low: The first learning rate; they grow by the same factor from step to step.
        high: The last learning rate.
        steps: Number of steps, each with the next batch.
    """
    from resnets.training import lr_range_test

    return lr_range_test.lr_range_test(plan, low, high, steps)

"""Training as functions: `train`, `resume`, `tune` and `lr_range_test`."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnets.api import checks, plans
from resnets.api.checks import public
from resnets.api.info import runs_compare, write_report
from resnets.config.types import TaskName
from resnets.errors import DataError, Interrupted, MissingCode, ResnetsError, UsageError
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
    on_progress: Callable[[ProgressReport], None] = lambda progress: None,
) -> TrainResult:  # fmt: skip
    """Train a network on DATA, test it, and write a run folder.

    In Python `data` may be a plan. Arguments that are not explained here, and the errors, are those
    of `plan`. Raises Interrupted when a signal stopped it; `resume` continues. The outcome of
    several seeds is that of the first, without a result where it was finished before, with
    `compared`.

    Args:
        run: The run folder; runs/DATA-MODEL by default.
        seeds: Number of runs, with the seeds from --seed on, in RUN-seed0, RUN-seed1, ...; they are
            compared at the end. Repeat the command to resume.
        on_progress: Called with the progress, about twice a second and at each evaluation.
    """
    if seeds == 1:
        check_run(run, data)
    plan = plans.plan(
        data, task=task, model=model, recipe=recipe, weights=weights, epochs=epochs, budget=budget,
        lr=lr, batch=batch, size=size, seed=seed, overrides=overrides, device=device,
        workers=workers,
    )  # fmt: skip
    if seeds > 1:
        return train_seeds(plan, run, seeds, on_progress)
    from resnets.training import runner

    steps = runner.train_and_test(runner.create_run(plan, run), plan, write_pages)
    while True:
        try:
            on_progress(next(steps))
        except StopIteration as end:
            result: TrainResult = end.value
            return result


def write_pages(run: Run, plan: Plan) -> None:
    """Write the report and the model card of a run, from the data that its plan holds."""
    write_report(run, plan.source, network=plan.external)


@public
def fit(
    plan: Plan, /, *, run: str | Path | None = None
) -> Generator[ProgressReport, None, TrainResult]:
    """Train a plan as `train` does, as a generator of its progress: the loop is yours.

    A progress comes about twice a second and at each evaluation, where `loss`, `train_error`,
    `eval_error` and `eval_metrics` are set. After the last one the network is tested and the report
    written. A loop that is left early leaves a run that `resume` continues.

    Raises as `train`; before the loop begins, UsageError for a folder that holds a run.

    Args:
        run: The run folder; runs/DATA-MODEL by default.
    """
    from resnets.training import runner

    check_run(run, plan.recipe.data)
    return runner.train_and_test(runner.create_run(plan, run), plan, write_pages)


def train_seeds(
    first: Plan, run: str | Path | None, seeds: int, on_progress: Callable[[ProgressReport], None]
) -> TrainResult:
    """Train or resume a plan with its seed and those that follow, one after another; compare them.

    Raises UsageError as `runner.seed_runs`, before anything is trained.
    """
    from resnets.training import runner

    results = list[TrainResult]()
    for seed, folder in runner.seed_runs(first, run, seeds).items():
        if not runner.missing_results(folder):
            results.append(runner.TrainResult(folder.path, None, 0.0, first.task.name))
            continue
        plan = first
        if seed != first.recipe.seed:
            recipe = replace(first.recipe, seed=seed)
            data = recipe.data if first.data is None else first.data
            plan = plans.plan(
                data, recipe=recipe, device=str(first.device), workers=first.workers,
                model=first.external,
            )  # fmt: skip
        # The functions of a task may be custom. The same budget for each seed: the first
        # would pay for the start of the program.
        plan = replace(plan, task=first.task, began=time.monotonic())
        if not folder.begun:
            runner.create_run(plan, folder.path)
        try:
            plan = replace(plan, resumes=folder.path)
            results.append(train(plan, on_progress=on_progress))
        except Interrupted as error:
            command = f"{resume_command(folder.path)}, with all seeds by the same command"
            raise Interrupted(command, error.exit_code - 128) from None
    return replace(results[0], compared=runs_compare(*(result.run for result in results)))


@public
def resume(
    run: str | Path | None = None, *, data: Data | Plan | None = None,
    model: str | Module | None = None, device: str = "auto", workers: int = 2,
    on_progress: Callable[[ProgressReport], None] = lambda progress: None,
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
        model: The code of a custom network, as my_module:build.
        on_progress: Called with the progress, about twice a second and at each evaluation.
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
            f"{run} is a trial of a study; resume the study instead:\n"
            f"`resnets tune {recipe.data} --run {folder.path.parent}` with the options it had"
        )
    plan = plan_to_resume(folder, recipe, data, model, device, workers)
    return train(plan, on_progress=on_progress)


def plan_to_resume(
    folder: Run, recipe: Recipe, data: Any, model: Any, device: str, workers: int
) -> Plan:
    """The plan of a run that is resumed: as it was, or as it is given. Errors as `resume`."""
    run, started = folder.path, folder.read_json("source.json")
    if data is None and recipe.data.startswith("dataset-"):
        raise UsageError(
            f"{run} was trained on a torch Dataset: resnets.resume({str(run)!r}, data=...) in "
            "Python, with\nthe same Dataset or dictionary"
        )
    if plans.is_plan(data):
        plan = data
        if replace(plan.recipe, data=recipe.data) != recipe:
            whose = f"recipe={str(run / 'recipe.json')!r}"
            raise UsageError(f"the plan has another recipe than {run}: make it with {whose}")
    else:
        check_custom_code(run, started, model)
        data = recipe.data if data is None else data
        plan = plans.plan(data, recipe=recipe, model=model, device=device, workers=workers)
    if plan.source.digest != started["digest"]:
        raise DataError(
            f"{plan.source.name} has changed since {run} was started: digest "
            f"{plan.source.digest[:12]}, was {started['digest'][:12]}.\n"
            "Restore the data, or start a new run."
        )
    return replace(with_started_inputs(plan, started), resumes=run)


def with_started_inputs(plan: Plan, started: Mapping[str, Any]) -> Plan:
    """With the preprocessing that the run was started with, whatever its weights say today."""
    import pydantic

    from resnets.config.recipe import Preprocess

    if not started.get("preprocess"):
        return plan
    preprocess = pydantic.TypeAdapter(Preprocess).validate_python(started["preprocess"])
    return replace(plan, preprocess=preprocess, arch=replace(plan.arch, size=preprocess.size))


def check_custom_code(run: str | Path, started: Mapping[str, Any], model: object) -> None:
    """Raise UsageError where a run with custom code is resumed without it."""
    arch, replaced = started["arch"], started.get("replaced")
    if replaced:
        raise UsageError(
            f"{run} was trained with a custom {', '.join(replaced)}: resnets.resume({str(run)!r}, "
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
    workers: int = 2,
    on_progress: Callable[[ProgressReport], None] = lambda progress: None,
) -> Iterator[list[Trial]]:  # fmt: skip
    """Search a recipe's fields for the lowest validation error; repeat the command to resume.

    In Python `data` may be a plan. Arguments that are not explained here are those of `plan`.
    Yields the trials that have ended, after each. Raises MissingPackage without Optuna.

    Args:
        run: The folder of the study; runs/DATA-MODEL-tune by default.
        trials: Number of trials; those that fall behind are stopped early.
        search: FIELD=LOW:HIGH, FIELD=LOW:HIGH:log, FIELD=A,B,C, or a FIELD of those searched by
            default: lr, weight_decay, warmup, label_smoothing, ema, augment.policy, augment.mixup.
        budget: Total time of all trials, e.g. 30m or 8h.
        on_progress: Called with the progress, about twice a second and at each evaluation.
    """
    plan = plans.plan(
        data, task=task, model=model, recipe=recipe, weights=weights, epochs=epochs, lr=lr,
        batch=batch, size=size, seed=seed, overrides=overrides, device=device, workers=workers,
    )  # fmt: skip
    from resnets.training import runner, tune

    seconds = 0.0 if budget is None else checks.parse_seconds(budget)
    folder = runner.run_folder(plan, run or study_folder(plan))
    return tune.search(folder, plan, search, trials, seconds, on_progress)


def study_folder(plan: Plan) -> Path:
    """The default folder of a study."""
    from resnets.training import runner

    return Path(f"{runner.default_folder(plan)}-tune")


@public
def lr_range_test(
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


def find_rate(
    plan: Plan, low: float = 1e-5, high: float = 10.0, steps: int = 100
) -> tuple[list[float], list[float], float]:
    """The old name of `lr_range_test`."""
    warnings.warn("find_rate is now lr_range_test", FutureWarning, stacklevel=2)
    return lr_range_test(plan, low, high, steps)

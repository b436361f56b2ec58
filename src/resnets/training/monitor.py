"""The figures along a run: when they are computed, and what the held-out error decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from resnets.config.recipe import Recipe
from resnets.errors import CheckpointError
from resnets.files import resume_command
from resnets.models import Network
from resnets.models.io.model_file import load, save
from resnets.models.modes import evaluation_mode
from resnets.training.clock import FORWARDS_PER_STEP, ProgressReport
from resnets.training.log import Log
from resnets.training.plan import Plan
from resnets.training.run import Run, reading
from resnets.training.signals import SignalFlags
from resnets.training.state import State, TrainProgress

EVALUATION_SHARE = 0.1  # of a run's time that extra evaluations may take


def evaluation_interval(plan: Plan, steps: int) -> int:
    """Steps between evaluations in a run of so many."""
    recipe, monitored = plan.recipe, len(plan.monitor_split or ())
    interval = max(1, round(recipe.eval_every * len(plan.train) / recipe.batch))
    cost = recipe.evaluations * monitored / FORWARDS_PER_STEP  # in images of a training step
    if recipe.evaluations and cost <= EVALUATION_SHARE * steps * recipe.batch:
        interval = min(interval, max(1, steps // recipe.evaluations))
    return interval


def evaluation_due(progress: TrainProgress, interval: int) -> bool:
    """Whether to evaluate at this step: at intervals and at the end, but not twice near it."""
    due = progress.step % interval == 0 and progress.steps - progress.step > interval // 4
    at_start = progress.last_logged_step < 0  # a classifier that is a probe already
    return (due or progress.done or at_start) and progress.last_logged_step < progress.step


def evaluate_and_log(
    log: Log, state: State, report: ProgressReport, stop: SignalFlags
) -> ProgressReport:
    """Log training figures since the last row, and the error on the monitored images.

    A signal breaks the evaluation off; then nothing is logged, and a resumed run does it again.
    """
    plan, progress = log.plan, state.progress
    loss, train_error = (state.totals[:2] / state.totals[2].clamp(min=1)).tolist()
    evaluated = replace(report, loss=loss, train_error=train_error)
    names = ("step", "epoch", "lr", "loss", "train_error")
    row = {name: getattr(evaluated, name) for name in names}
    if plan.monitor_split is not None:
        network = state.whole_average(plan.arch)
        with evaluation_mode(network):
            stopped = lambda: bool(stop.signal)  # noqa: E731
            figures = plan.task.validate(plan, network, plan.monitor_split, stopped)
        if plan.world.all_reduce_max([stop.signal])[0]:
            return report
        row |= {f"{plan.recipe.monitor}_{name}": value for name, value in figures.items()}
        more = tuple((k, v) for k, v in figures.items() if k not in ("error", "loss"))
        evaluated = replace(evaluated, eval_error=figures["error"], eval_metrics=more)
        update_best(log.run, plan, progress, network, figures)
    state.totals.zero_()
    progress.last_logged_step = progress.step
    log.write_row(row, report.images_per_second)
    return evaluated


def update_best(
    run: Run, plan: Plan, progress: TrainProgress, network: Network, figures: Mapping[str, float]
) -> None:
    """What new figures on the monitored images mean: a best state, a plateau, an early end.

    Of few images the loss is the surer figure: an error moves in steps of one image.
    """
    recipe = plan.recipe
    figure = figures["loss" if recipe.select == "lowest-loss" else "error"]
    if progress.best_figure is None or figure < progress.best_figure:
        progress.best_figure, progress.best_step = figure, progress.step
        progress.evals_since_best = progress.evals_since_drop = 0
        if recipe.select != "last" and plan.world.is_main:
            save(run.best, network, plan.metadata)
        return
    progress.evals_since_best += 1
    progress.evals_since_drop += 1
    if recipe.schedule == "plateau" and progress.evals_since_drop >= recipe.patience:
        progress.lr_drops, progress.evals_since_drop = progress.lr_drops + 1, 0
    if recipe.early_stop_patience and progress.evals_since_best >= recipe.early_stop_patience:
        progress.steps = progress.step


def selected_step(recipe: Recipe, progress: TrainProgress) -> int | None:
    """The step whose state is the result; None where a checkpoint of before does not say it."""
    chooses = recipe.select != "last" and progress.best_figure is not None
    return progress.best_step if chooses else progress.step


def describe_selection(recipe: Recipe, result: Mapping[str, Any], steps: int) -> str:
    """Which state is the result of a run of so many steps, in a sentence; "" where none was chosen.

    `result` is its result.json.
    """
    selected = result.get("selected_step")
    if selected is None:
        return ""
    figure = "loss" if recipe.select == "lowest-loss" else "error"
    if selected == 0 and recipe.head == "probe":
        return (
            f"The result is the linear probe: {steps} steps of fine-tuning did not lower the "
            f"{figure} on the validation images."
        )
    state = f"step {selected} of {steps}" if selected < steps else f"the last state, step {steps}"
    tuned = ", fine-tuned from a linear probe" if recipe.head == "probe" else ""
    return f"The result is {state}{tuned}: it has the lowest {figure} on the validation images."


def read_best(run: Run, plan: Plan) -> Network | None:
    """The best state on the monitored images, or None. Raises CheckpointError, DiskError."""
    with reading(run.best):
        if not run.best.exists():
            return None
        run.best.read_bytes()  # what fails now may pass
    try:
        return load(run.best, plan.external)[0]
    except CheckpointError as error:
        raise CheckpointError(
            f"{str(error).splitlines()[0]}\nNothing was touched. Put back a whole copy; or move it "
            f"away, and {resume_command(run.path)}\ngoes on without: the best state of what "
            "follows is the result, or the last one."
        ) from None


def forget_missing_best(run: Run, plan: Plan, progress: TrainProgress) -> list[str]:
    """Notes where the file of the best state is gone; its error then no longer counts.

    Raises CheckpointError where it was changed.
    """
    if plan.recipe.select == "last" or progress.best_figure is None or read_best(run, plan):
        return []
    progress.best_figure = None
    return [f"{run.best.name} is gone: the best state after this one is the result, or the last"]

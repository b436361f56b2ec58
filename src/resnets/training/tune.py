"""A search for better fields of a recipe, by the error on validation images.

study.json      what is searched, over which recipe and data
trial-0001/     an ordinary run, and trial.json: its fields, how it ended, its error
trials.csv      the table
best.json       the recipe with the best fields

These files are the whole study. Optuna's own study is built from them before each trial, so a kill
loses what a killed run loses, and what is proposed is a function of the seed and the folder.
(Optuna's journal of a study cannot be read again when a kill cuts a line of it short.)
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pydantic

from resnets.config import recipe as recipe_fields
from resnets.config import recipes
from resnets.config.recipe import Recipe, rename_old_fields
from resnets.data.splits import hold_out
from resnets.errors import Diverged, MemoryExhausted, MissingPackage, UsageError
from resnets.training.clock import ProgressReport
from resnets.training.loop import fit
from resnets.training.memory import fit_to_memory
from resnets.training.plan import Plan
from resnets.training.resolve import resolve
from resnets.training.run import Run, reading
from resnets.training.runner import create_run, finish
from resnets.training.signals import SignalFlags

try:
    import optuna
    from optuna import distributions
    from optuna.trial import TrialState
except ImportError:
    raise MissingPackage("tuning needs Optuna: pip install 'resnets[tune]'") from None

optuna.logging.set_verbosity(optuna.logging.WARNING)

VAL_FRACTION = 0.1  # of the training images, where the data has no validation split


@dataclass(frozen=True)
class Trial:
    """A choice of the fields, and how its training ended."""

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")

    number: int  # from 0
    fields: dict[str, Any]  # of the recipe, as they were drawn
    state: str = "running"  # then "complete", "pruned" or "failed"
    error: float | None = None  # on the validation images; 1 where training was not possible
    seconds: float = 0.0  # since it was last started
    curve: list[float] = field(default_factory=list)  # the errors along the way


def search_ranges(recipe: Recipe, requested: Sequence[str]) -> dict[str, str]:
    """What is searched, FIELD: LOW:HIGH, LOW:HIGH:log or A,B,C; all of these by default."""
    decay = recipe.weight_decay or 1e-4
    defaults = {
        "lr": f"{recipe.lr / 10:g}:{recipe.lr * 10:g}:log",
        "weight_decay": f"{decay / 10:g}:{decay * 10:g}:log",
        "warmup": "0:0.3",
        "label_smoothing": "0:0.2",
        "ema": "0,0.99,0.998",
        "augment.policy": "none,trivialaugment",
        "augment.mixup": "0:0.4",
    }
    pairs = [item.partition("=") for item in requested]
    ranges = rename_old_fields({key: text for key, _, text in pairs})
    return {key: text or defaults.get(key, "") for key, text in ranges.items()} or defaults


def distribution(recipe: Recipe, key: str, text: str) -> distributions.BaseDistribution:
    """What a field's values are drawn from. Raises UsageError for a wrong field, value or form."""
    values = text.removesuffix(":log").split(":" if ":" in text else ",")
    try:
        for value in values:  # all are tried before anything is trained
            changed = recipe_fields.to_dict(recipes.replace_fields(recipe, {key: value}))
        if ":" not in text:
            return distributions.CategoricalDistribution(values)
        (low, high), log = values, text.endswith(":log")
        head, _, tail = key.partition(".")
        if isinstance(changed[head][tail] if tail else changed[head], int):
            return distributions.IntDistribution(int(low), int(high), log=log)
        return distributions.FloatDistribution(float(low), float(high), log=log)
    except (ValueError, UsageError) as error:
        form = "write FIELD=LOW:HIGH, FIELD=LOW:HIGH:log or FIELD=A,B,C"
        raise UsageError(f"--search {key}={text}: {form} ({error})") from None


def search(
    folder: Run,
    plan: Plan,
    requested: Sequence[str],
    trials: int,
    budget: float,
    on_progress: Callable[[ProgressReport], None],
) -> Iterator[list[Trial]]:
    """Run trials until `trials` of them have ended; yields all that have, at first and after each.

    With a `budget` each has the same share of these seconds, those of earlier calls included.

    Raises UsageError for a wrong field or range, another study in the folder, or another process
    there; Interrupted by a signal, after which the same call goes on with the current trial.
    """
    ranges = search_ranges(plan.recipe, requested)
    space = {key: distribution(plan.recipe, key, text) for key, text in ranges.items()}
    length = {"budget": budget / trials} if budget else {}
    recipe = json.loads(json.dumps(recipe_fields.to_dict(plan.recipe)))
    study = {"recipe": recipe, "digest": plan.source.digest, "space": ranges, "length": length}
    shared = without_test_images(plan)
    folder.path.mkdir(parents=True, exist_ok=True)
    with folder.locked(), SignalFlags() as stop, stop.interruptible("the same command"):
        claim(folder, study)
        done, running = read_trials(folder)
        yield done
        while len(done) < trials:
            proposed = propose(space, plan.recipe.seed, done, running)
            trial = Trial(len(done) + 1, proposed.params)
            trial_plan = plan_trial(shared, trial.fields | length)
            run_trial(folder, trial_plan, trial, proposed, on_progress, stop)
            done, running = read_trials(folder)
            names = ("number", "state", "error", "seconds")
            rows = ([*map(asdict(t).get, names), *map(t.fields.get, space)] for t in done)
            folder.write_csv("trials.csv", (*names, *space), rows)
            winner = recipes.replace_fields(plan.recipe, best(done).fields)
            folder.write_json("best.json", recipe_fields.to_dict(winner))
            yield done


def without_test_images(plan: Plan) -> Plan:
    """The plan with validation images, which choose, and no test images, which must not."""
    source, recipe = plan.source, replace(plan.recipe, monitor="val")
    if source.val is None:
        recipe = replace(recipe, val_fraction=VAL_FRACTION)
        source = hold_out(source, VAL_FRACTION, recipe.seed)
    return replace(plan, source=replace(source, test=None), recipe=recipe)


def claim(folder: Run, study: dict[str, Any]) -> None:
    """Write study.json. Raises UsageError where there is that of another study."""
    if (folder.path / "study.json").exists():
        earlier = folder.read_json("study.json")
        for key in ("recipe", "space"):
            if isinstance(earlier[key], dict):
                earlier[key] = rename_old_fields(earlier[key], note=False)
        if other := [key for key in study if earlier[key] != study[key]]:
            raise UsageError(
                f"{folder.path} is a study with other {', '.join(other)}: repeat its command, in "
                "which budget / trials may not change, or give another folder with --run"
            )
    folder.write_json("study.json", study)


def read_trials(folder: Run) -> tuple[list[Trial], list[Trial]]:
    """The trials that have ended, by number, and one that has not."""
    paths = sorted(folder.path.glob("trial-*/trial.json"))
    schema, trials = pydantic.TypeAdapter(Trial), []
    for path in paths:
        with reading(path):
            trial = schema.validate_python(dict(Run(path.parent).read_json("trial.json")))
        trials.append(replace(trial, fields=rename_old_fields(trial.fields, note=False)))
    done = [trial for trial in trials if trial.state != "running"]
    return done, trials[len(done) :]


def best(trials: Sequence[Trial]) -> Trial:
    """The trial with the lowest error, the first of equals; those that were pruned have none."""
    return min(trials, key=lambda t: 2.0 if t.error is None else t.error)


def propose(
    space: dict[str, distributions.BaseDistribution],
    seed: int,
    done: Sequence[Trial],
    running: Sequence[Trial],
) -> optuna.Trial:
    """The trial that was interrupted, or the next, a function of the seed and those done."""
    sampler = optuna.samplers.TPESampler(seed=seed * 10_000 + len(done))
    # From the third evaluation on: a rate that warms up longer is behind at first.
    pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=2)
    study = optuna.create_study(sampler=sampler, pruner=pruner)
    for trial in done:
        study.add_trial(
            optuna.create_trial(
                state=TrialState.PRUNED if trial.state == "pruned" else TrialState.COMPLETE,
                value=trial.error,
                params=trial.fields,
                distributions=space,
                intermediate_values=dict(enumerate(trial.curve)),
            )
        )
    for trial in running:
        study.enqueue_trial(trial.fields)
    return study.ask(space)


def plan_trial(shared: Plan, changes: dict[str, Any]) -> Plan:
    """The plan of all trials with other fields of its recipe. Raises UsageError."""
    recipe = recipes.replace_fields(shared.recipe, changes)
    source, device, workers = shared.source, shared.device, shared.workers
    return fit_to_memory(
        resolve(recipe, source, device, workers, task=shared.task, external=shared.external)
    )


def run_trial(
    folder: Run,
    plan: Plan,
    trial: Trial,
    proposed: optuna.Trial,
    on_progress: Callable[[ProgressReport], None],
    stop: SignalFlags,
) -> None:
    """Train a trial, from where it stands, until it ends or the median of the others is better."""
    run = Run(folder.path / f"trial-{trial.number:04d}")
    run.path.mkdir(exist_ok=True)
    run.write_json("trial.json", asdict(trial))
    if not (run.path / "recipe.json").exists():
        create_run(plan, run.path)
    curve, state, error = list[float](), "complete", None
    stop.at_once = False
    try:
        with run.locked():
            for progress in fit(run, plan, stop):
                on_progress(progress)
                if state == "pruned":
                    continue
                # Rows from before a kill, too: it may have come just before the end was recorded.
                for row in run.rows("metrics.jsonl")[len(curve) :]:
                    proposed.report(row["val_error"], len(curve))
                    curve.append(row["val_error"])
                    if row["step"] < progress.steps and proposed.should_prune():
                        state, stop.signal = "pruned", signal.SIGTERM  # saved, as by a signal
                        break
            if state == "pruned":
                stop.signal = 0
            if stop.signal:
                raise KeyboardInterrupt
            stop.at_once = True
            if state == "complete":
                finish(run, plan, time.monotonic() - plan.began)
                error = run.read_json("result.json")["error"]
    except (Diverged, MemoryExhausted):
        state, error, stop.at_once = "failed", 1.0, True
    seconds = round(time.monotonic() - plan.began, 1)
    ended = replace(trial, state=state, error=error, seconds=seconds, curve=curve)
    run.write_json("trial.json", asdict(ended))

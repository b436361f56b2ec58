"""A search for better fields of a recipe, judged by the error on validation images.

study.json       what is searched, over which recipe and data
trial-0001/      an ordinary run, and trial.json: its fields, how it ended, its error
trials.csv       the table; trials.json the same
best.toml        the recipe with the best fields

These files are the whole study. Optuna's own lives in memory, filled from them before each trial,
so a kill loses what a killed run loses, and what is proposed is a function of seed and folder.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from resnets import recipe as room
from resnets import recipes
from resnets.data.splits import hold_out
from resnets.errors import Diverged, Interrupted, MemoryExhausted, MissingPackage, UsageError
from resnets.files import write_whole
from resnets.recipe import Recipe
from resnets.training.fit import Progress, fit
from resnets.training.memory import fitted
from resnets.training.plan import Plan, resolve
from resnets.training.run import Run
from resnets.training.stop import Stop

try:
    import optuna
    from optuna.distributions import (
        BaseDistribution,
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )
    from optuna.trial import TrialState
except ImportError:
    raise MissingPackage("tuning needs Optuna: pip install 'resnets[tune]'") from None

optuna.logging.set_verbosity(optuna.logging.WARNING)

HOLDOUT = 0.1  # of the training images, where the data has no validation split


@dataclass(frozen=True)
class Trial:
    """One choice of the fields, and its end."""

    number: int
    state: Literal["running", "complete", "pruned", "failed"]
    fields: dict[str, Any]
    error: float | None = None  # on the validation images; 1 where training was not possible
    seconds: float = 0.0
    curve: list[float] = field(default_factory=list)  # the errors along the way


def choices(recipe: Recipe, asked: Sequence[str]) -> dict[str, str]:
    """What is searched, FIELD: LOW:HIGH, LOW:HIGH:log or A,B,C; with none asked, all of these.

    Raises UsageError for an item that is neither a field of this table nor FIELD=RANGE.
    """
    decay = recipe.weight_decay or 1e-4
    table = {
        "lr": f"{recipe.lr / 10:g}:{recipe.lr * 10:g}:log",
        "weight_decay": f"{decay / 10:g}:{decay * 10:g}:log",
        "warmup": "0:0.3",
        "label_smoothing": "0:0.2",
        "ema": "0,0.99,0.998",
        "augment.policy": "none,trivial",
        "augment.mixup": "0:0.4",
    }
    pairs = [item.partition("=") for item in asked]
    for key, _, text in pairs:
        if not text and key not in table:
            raise UsageError(f"--search {key}: write FIELD=LOW:HIGH, LOW:HIGH:log or A,B,C")
    return {key: text or table[key] for key, _, text in pairs} or table


def distribution(recipe: Recipe, key: str, text: str) -> BaseDistribution:
    """Integers where the field has one. Raises UsageError for an unknown field or wrong values."""
    low, *rest = text.split(":")
    values = [low, *rest[:1]] if rest else text.split(",")
    try:
        for value in values:  # an error is told before anything is trained
            recipes.merged(recipe, recipes.nested({key: value}))
        if not rest:
            return CategoricalDistribution(values)
        head, _, tail = key.partition(".")
        own = getattr(getattr(recipe, head), tail) if tail else getattr(recipe, head)
        log = rest[1:] == ["log"]
        if len(rest) > 1 + log:
            raise ValueError("it is LOW:HIGH or LOW:HIGH:log")
        if isinstance(own, int):
            return IntDistribution(int(low), int(rest[0]), log=log)
        return FloatDistribution(float(low), float(rest[0]), log=log)
    except (ValueError, UsageError) as error:
        raise UsageError(f"--search {key}={text}: {error}") from None


def recorded(folder: Run) -> list[Trial]:
    """The trials so far, by number."""
    paths = sorted(folder.path.glob("trial-*/trial.json"))
    return [Trial(**Run(path.parent).read_json("trial.json")) for path in paths]


def search(
    folder: Run,
    plan: Plan,
    asked: Sequence[str],
    trials: int,
    budget: float,
    create: Callable[[Plan, Path], Run],
    finish: Callable[[Run, Plan, float], object],
    watch: Callable[[Progress], None],
) -> Iterator[Trial]:
    """Run trials until there are `trials` of them; yields each as it ends.

    With a `budget` each has the same part of these seconds, the ones that are over included.
    `create` and `finish` make a run folder and write a run's result.

    Raises:
        UsageError: the folder holds another study, or another process is at work there.
        Interrupted: by a signal; the trial in hand goes on when it is called again.
    """
    texts = choices(plan.recipe, asked)
    space = {key: distribution(plan.recipe, key, text) for key, text in texts.items()}
    study = {
        "recipe": json.loads(json.dumps(room.to_dict(plan.recipe))),
        "digest": plan.source.digest,
        "space": texts,
        "seconds": budget / trials,
    }
    folder.path.mkdir(parents=True, exist_ok=True)
    with folder.locked():
        if (folder.path / "study.json").exists():
            before = folder.read_json("study.json")
            if other := [key for key in study if before[key] != study[key]]:
                raise UsageError(
                    f"{folder.path} holds a study with other {', '.join(other)}: repeat its command"
                    " (with a budget, budget / trials stays), or give another folder with --run"
                )
        folder.write_json("study.json", study)
        source, recipe = plan.source, replace(plan.recipe, watch="val", budget=plan.recipe.budget)
        if source.val is None:
            recipe = replace(recipe, holdout=HOLDOUT)
            source = hold_out(source, HOLDOUT, recipe.seed)
        source = replace(source, test=None)  # nobody looks at it before the search is over
        while len(done := [t for t in recorded(folder) if t.state != "running"]) < trials:
            proposed = propose(space, recipe.seed, recorded(folder))
            changes = recipes.nested(proposed.params)
            if budget:
                changes["budget"] = budget / trials
            chosen = recipes.merged(recipe, changes)
            own = fitted(resolve(chosen, source, plan.device, plan.workers))
            trial = Trial(len(done) + 1, "running", proposed.params)
            yield conduct(folder, trial, proposed, own, create, finish, watch)
            tabulate(folder, plan.recipe)


def propose(
    space: dict[str, BaseDistribution], seed: int, before: Sequence[Trial]
) -> optuna.Trial:
    """The next trial; one that is still running is the next."""
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=seed * 10_000 + len(before)),
        # From the third evaluation on: before, a rate that rises slowly looks worse than it is.
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=2),
    )
    for trial in before:
        if trial.state == "running":
            study.enqueue_trial(trial.fields)
            continue
        study.add_trial(
            optuna.create_trial(
                state=TrialState.PRUNED if trial.state == "pruned" else TrialState.COMPLETE,
                value=trial.error,
                params=trial.fields,
                distributions=space,
                intermediate_values=dict(enumerate(trial.curve)),
            )
        )
    return study.ask(space)


def conduct(
    folder: Run,
    trial: Trial,
    proposed: optuna.Trial,
    plan: Plan,
    create: Callable[[Plan, Path], Run],
    finish: Callable[[Run, Plan, float], object],
    watch: Callable[[Progress], None],
) -> Trial:
    """Train one trial from where its folder stands, until its end or the median is better."""
    run = Run(folder.path / f"trial-{trial.number:04d}")
    run.path.mkdir(exist_ok=True)
    run.write_json("trial.json", asdict(trial))
    if not (run.path / "recipe.json").exists():
        create(plan, run.path)
    seconds, curve, pruned = 0.0, list[float](), False
    try:
        with Stop() as stop:
            for progress in fit(run, plan, stop):
                watch(progress)
                if progress.loss is None:
                    continue
                errors = [row["val_error"] for row in run.rows("metrics.jsonl")]
                for k in range(len(curve), len(errors)):  # after a kill, the earlier ones too
                    proposed.report(errors[k], k)
                curve = errors
                if progress.step < progress.steps and proposed.should_prune():
                    pruned, stop.signal = True, signal.SIGTERM  # saved like any interrupted run
        if stop.signal and not pruned:
            raise Interrupted("the same command", stop.signal)
        if not pruned:
            finish(run, plan, seconds)
    except (Diverged, MemoryExhausted):
        trial = replace(trial, state="failed", error=1.0)
    ...
    return trial

"""What makes runs, as functions: the verbs of the command line with the same names and options.

`classifiers` and `scenes` are what networks are used for, `instruments` looks inside.

torch, and with it most rooms, is imported inside a verb only, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, Unpack

from cyclopts import Parameter

from resnets.errors import DataError, UsageError
from resnets.options import Count, Device, Seconds, Workers, assignments, group

if TYPE_CHECKING:
    from resnets.lifecycle import Outcome
    from resnets.options import Task
    from resnets.recipe import Recipe
    from resnets.training.fit import Progress
    from resnets.training.plan import Plan
    from resnets.training.tune import Trial

    Name = str | Recipe
    Fields = Mapping[str, Any] | Sequence[str]
else:  # what the command line reads for these
    Name, Fields = str, list[str]


class Asked(TypedDict, total=False):
    """What is trained: the options of everything that makes a plan.

    Args:
        model: A name from `resnets models`; chosen from the data when left out.
        recipe: A published recipe (paper-cifar10, quick-cifar10, ...), a TOML file, or a run's
            recipe.json; in Python a Recipe too.
        epochs: Passes over the training images.
        seed: Of the initial weights, the order of the images and their augmentation.
        overrides: FIELD=VALUE of the recipe; may be repeated.
    """

    model: str | None
    recipe: Name | None
    epochs: float | None
    seed: int | None
    overrides: Annotated[Fields | None, Parameter(name="--set")]
    device: Device
    workers: Workers


def plan(
    data: str,
    *,
    task: Task | None = None,
    budget: Seconds = None,
    devices: Count = 1,
    **asked: Unpack[Asked],
) -> Plan:
    """Everything a training run will do, chosen from the data where nothing is said.

    The `task` is the model's; without one it is classification. It is a plan for `devices`
    processes, or for those that torchrun has started; `budget` is in seconds. Raises UsageError for
    an unknown model, recipe or key, a value of the wrong type or a model of another task, DataError
    where the data is missing, empty, broken or has one class.
    """
    from resnets import arch, families, recipes
    from resnets.data import sources
    from resnets.evaluation import detect
    from resnets.recipe import Recipe
    from resnets.training import memory, plan, world

    # The command line and a launcher of ranks say since when a budget counts.
    began = time.monotonic() - (now := time.time()) + float(os.environ.pop("RESNETS_BEGAN", now))
    model, recipe, device = asked.get("model"), asked.get("recipe"), asked.get("device", "auto")
    if model is not None:
        families.arch(model)  # a typing error is told before minutes of reading
    ranks = world.join(device) if world.launched() else world.World(size=devices)
    place = ranks.device if world.launched() else plan.pick_device(device)
    said = {"model": model, "epochs": asked.get("epochs"), "budget": budget}
    changes = {k: v for k, v in (said | {"seed": asked.get("seed")}).items() if v is not None}
    changes |= assignments(asked.get("overrides") or {})
    base = recipes.read(recipe) if recipe is not None else None
    check = recipes.merged(base or Recipe(model="resnet18"), changes)
    named = base is not None or "model" in changes
    own = arch.task(families.arch(check.model)) if named else task or "classify"
    if own != (task or own):
        raise UsageError(f"{check.model} is not for `resnets {task}`, but to {own}")
    if own == "detect":
        detect.coco()  # is missed now, not after the training
    source = sources.load(data, max_unreadable=check.max_unreadable, task=own)
    train = plan.training_images(source)
    if own == "classify":
        auto = plan.choose(source, train, place)
    else:
        auto = plan.choose_scene(source, train, place, own)
    resolved = recipes.merged(base or auto, changes)
    # A run is resumed from anywhere, so places are kept whole; a name stays a name.
    resolved = replace(
        resolved,
        data=data if source.root is None else str(Path(data).resolve()),
        weights=resolved.weights and str(Path(resolved.weights).resolve()),
        teacher=resolved.teacher and str(Path(resolved.teacher).resolve()),
    )
    if not resolved.weights and (resolved.frozen or resolved.norm == "frozen"):
        raise UsageError("frozen=N and norm=frozen need weights to start from: --set weights=...")
    if resolved.trainval:
        source = sources.with_val(source)
    if resolved.holdout:
        source = sources.hold_out(source, resolved.holdout, resolved.seed)
    chosen = plan.resolve(resolved, source, place, asked.get("workers", 2), ranks)
    if model is not None and chosen.recipe.model != model:
        raise UsageError(
            f"--model {model}: {resolved.weights} is {chosen.recipe.model}; leave it out"
        )
    return replace(memory.fitted(chosen), began=began)


def train(
    data: str,
    *,
    task: Task | None = None,
    run: str | Path | None = None,
    budget: float | None = None,
    watch: Callable[[Progress], None] = lambda progress: None,
    **asked: Unpack[Asked],
) -> Outcome:
    """Train a network on `data` and test it; see `Asked` for the options, `plan` for the errors.

    `budget` is in seconds. Raises Interrupted when a signal stopped it: `resume` goes on.
    """
    from resnets.lifecycle import create_run, go

    chosen = plan(data, task=task, budget=budget, **asked)
    return go(create_run(chosen, run), chosen, watch)


def resume(
    run: str | Path | None = None,
    *,
    data: str | None = None,
    device: str = "auto",
    workers: int = 2,
    watch: Callable[[Progress], None] = lambda progress: None,
) -> Outcome:
    """Go on with a run where its newest checkpoint stands; without a path the newest unfinished.

    `data` says where the data is now, if it was moved. Raises UsageError where there is nothing to
    resume, or it is a trial of a study; DataError where the data is not what the run was started
    on; CheckpointError where no checkpoint of the run is whole.
    """
    from resnets import arch
    from resnets.lifecycle import go, lacking, newest_unfinished
    from resnets.recipe import parse
    from resnets.training.run import Run

    folder = Run(Path(run)) if run is not None else newest_unfinished()
    if not lacking(folder):
        own = arch.task(arch.from_dict(folder.read_json("source.json")["arch"]))
        verb = f"resnets {group(own)}evaluate"
        raise UsageError(f"{folder.path} is finished; `{verb} {folder.path} DATA` uses it")
    recipe = parse(folder.read_json("recipe.json"))
    if (folder.path / "trial.json").exists():  # it would be tested on the test images
        raise UsageError(
            f"{folder.path} is a trial of a study, which goes on by its own command:\n"
            f"`resnets tune {recipe.data} --run {folder.path.parent}` with the options it had"
        )
    resumed = plan(data or recipe.data, recipe=recipe, device=device, workers=workers)
    started = folder.read_json("source.json")
    if resumed.source.digest != started["digest"]:
        raise DataError(
            f"{resumed.source.name} has changed since {folder.path} was started: digest "
            f"{resumed.source.digest[:12]}, was {started['digest'][:12]}.\n"
            "Restore the data, or start a new run."
        )
    return go(folder, resumed, watch)


def tune(
    plan: Plan,
    run: str | Path,
    *,
    trials: int = 20,
    budget: float = 0.0,
    search: Sequence[str] = (),
    watch: Callable[[Progress], None] = lambda progress: None,
) -> Iterator[list[Trial]]:
    """Search for better fields of the plan's recipe, in the folder `run`: see `tune.search`.

    Yields the trials that have ended, after each. Raises MissingPackage without Optuna.
    """
    from resnets.lifecycle import create_run, finish, run_folder
    from resnets.training import tune

    folder = run_folder(plan, run)
    return tune.search(folder, plan, search, trials, budget, create_run, finish, watch)


def report(run: Path, /, *, data: str | None = None) -> Path:
    """Write report.html and the model card README.md of RUN anew; returns the first.

    Args:
        data: Where the data is now, if it was moved.
    """
    from resnets import lifecycle
    from resnets.training.run import Run

    return lifecycle.report(Run(run), data=data)

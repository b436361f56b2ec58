"""What the command line does, as functions: the same verbs with the same names."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from resnets import arch as archs
from resnets import recipe as recipe_room
from resnets import recipes
from resnets.data import sources
from resnets.data.get import get
from resnets.data.sources import Source
from resnets.errors import DataError, Interrupted, ResnetsError, UsageError
from resnets.evaluation.classify import Result
from resnets.evaluation.model import Model, Prediction, aligned, load
from resnets.listing import data_info, environment, models, runs
from resnets.nets import Network, create
from resnets.nets.modelfile import save
from resnets.recipe import Recipe
from resnets.training import checkpoint
from resnets.training import plan as plans
from resnets.training.fit import Progress, batches, estimate, fit
from resnets.training.memory import fitted
from resnets.training.plan import Plan
from resnets.training.precise import precise
from resnets.training.rates import find_rate
from resnets.training.run import Run
from resnets.training.state import Course, State
from resnets.training.stop import Stop
from resnets.training.world import World, join, launch, launched

if TYPE_CHECKING:
    from resnets.training.tune import Trial

__all__ = [
    "Model", "Outcome", "Prediction", "Result", "create", "create_run", "data_info", "estimate",
    "evaluate", "find_rate", "get", "go", "launch", "load", "models", "plan", "predict", "resume",
    "run_folder", "runs", "summary", "train", "tune",
]  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """A finished run."""

    run: Path
    result: Result | None  # on the test split, else on the validation split, if there is one
    seconds: float


def plan(
    data: str,
    *,
    model: str | None = None,
    recipe: str | Recipe | None = None,
    epochs: float | None = None,
    budget: float | None = None,
    seed: int | None = None,
    devices: int = 1,
    device: str = "auto",
    workers: int = 2,
    overrides: Mapping[str, Any] | None = None,
) -> Plan:
    """Everything a training run will do, chosen from the data where nothing is said.

    It is a plan for `devices` processes, or for those that torchrun has started.

    Raises:
        UsageError: an unknown model, recipe or key, or a value of the wrong type.
        DataError: the data is missing, empty, broken or has one class.
    """
    # The command line and a launcher of ranks say since when a budget counts.
    began = time.monotonic() - (now := time.time()) + float(os.environ.pop("RESNETS_BEGAN", now))
    if model is not None:
        archs.arch(model)  # a typing error is told before minutes of reading
    world = join(device) if launched() else World(size=devices)
    place = world.device if launched() else plans.pick_device(device)
    said = {"model": model, "epochs": epochs, "budget": budget, "seed": seed}
    changes = {key: value for key, value in said.items() if value is not None}
    changes |= overrides or {}
    base = recipes.read(recipe) if recipe is not None else None
    check = recipes.merged(base or Recipe(model="resnet18"), changes)
    source = sources.load(data, max_unreadable=check.max_unreadable)
    auto = plans.choose(source, plans.training_images(source), place)
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
    if resolved.holdout:
        source = sources.hold_out(source, resolved.holdout, resolved.seed)
    chosen = plans.resolve(resolved, source, place, workers, world)
    if model is not None and chosen.recipe.model != model:
        raise UsageError(
            f"--model {model}: {resolved.weights} is {chosen.recipe.model}; leave it out"
        )
    return replace(fitted(chosen), began=began)


def train(
    data: str,
    *,
    model: str | None = None,
    recipe: str | Recipe | None = None,
    epochs: float | None = None,
    budget: float | None = None,
    run: str | Path | None = None,
    seed: int | None = None,
    device: str = "auto",
    workers: int = 2,
    overrides: Mapping[str, Any] | None = None,
    watch: Callable[[Progress], None] = lambda progress: None,
) -> Outcome:
    """Train a network on `data` and test it; see `plan` for the arguments and errors.

    `budget` is in seconds. Raises Interrupted when a signal stopped it: `resume` goes on.
    """
    chosen = plan(
        data,
        model=model,
        recipe=recipe,
        epochs=epochs,
        budget=budget,
        seed=seed,
        device=device,
        workers=workers,
        overrides=overrides,
    )
    return go(create_run(chosen, run), chosen, watch)


def run_folder(plan: Plan, path: str | Path | None = None) -> Run:
    """Where a plan's run will be. Raises UsageError where a run is already, or among the data.

    Under torchrun, which may start a command again, a run that is there is for `create_run`.
    """
    run = Run(Path(path) if path is not None else fresh_folder(plan))
    root = plan.source.root
    folder = Path(plan.recipe.data).is_dir()  # a CSV may lie beside its runs
    if root is not None and folder and run.path.resolve().is_relative_to(root.resolve()):
        raise UsageError(f"the run folder {run.path} would lie in the data: give another, --run")
    if not launched():
        run.check_free()
    return run


def create_run(plan: Plan, path: str | Path | None = None) -> Run:
    """Create the run folder of a plan; errors as in `run_folder`, and DiskError.

    Under torchrun, which starts the same command again after a failure, a run that is in the folder
    already goes on instead.
    """
    world = plan.world
    if launched():
        if path is None:
            raise UsageError("under torchrun give a folder that all its restarts share: --run DIR")
        if world.share((Path(path) / "recipe.json").exists()):
            return Run(Path(path))
    if not world.first:
        return Run(Path(path or "."))
    run = run_folder(plan, path)
    run.create()
    run.write_json(
        "source.json",
        {
            "data": plan.recipe.data,
            "digest": plan.source.digest,
            "classes": plan.source.classes,
            "arch": archs.to_dict(plan.arch),
            "preprocess": asdict(plan.preprocess),
            "images": len(plan.train),
        },
    )
    run.write_json("environment.json", environment())
    if table := plan.source.split_table():
        run.write_csv("split.csv", ("file", "label", "split"), table)
    run.write_json("recipe.json", recipe_room.to_dict(plan.recipe))  # last: now it is a run
    return run


def fresh_folder(plan: Plan) -> Path:
    """runs/DATA-MODEL, with a number where that is taken."""
    stem = f"{Path(plan.recipe.data).stem or 'data'}-{plan.recipe.model}"
    names = chain([stem], (f"{stem}-{number}" for number in count(2)))
    return next(path for path in map(Path("runs").joinpath, names) if not path.exists())


def go(run: Run, plan: Plan, watch: Callable[[Progress], None]) -> Outcome:
    """Train from where the run stands, then test and write the result."""
    with run.locked() if plan.world.first else nullcontext():
        with plan.world.together(), Stop() as stop:
            for progress in fit(run, plan, stop):
                watch(progress)
            plan.world.leave()
        if stop.signal:
            raise Interrupted(f"`resnets resume {run.path}`", stop.signal)
        seconds = time.monotonic() - plan.began
        return finish(run, plan, seconds) if plan.world.first else Outcome(run.path, None, seconds)


def finish(run: Run, plan: Plan, seconds: float) -> Outcome:
    """Write model.safetensors from the last state or the best, test it once, draw the pictures."""
    from resnets.reporting import plots  # here, since matplotlib delays every start

    found = checkpoint.newest(run.path / "checkpoints")
    if found is None or not found.course.ended:
        raise ResnetsError(f"{run.path} has no checkpoint of its last step")
    state = State.start(plan.recipe, plan.arch, plan.device)
    state.restore(found.tensors, found.course)
    network: Network = state.average
    if plan.recipe.keep == "best" and run.best.exists():
        network = load(run.best, device=plan.device).network
    if plan.recipe.precise_bn:
        # At the final size of a growing input, and without a budget's endless stream.
        plain = replace(plan, recipe=replace(plan.recipe, budget=0.0, grow_from=0))
        stream = batches(plain, Course(steps=plan.recipe.precise_bn))
        precise(network, (batch.images for batch in stream))
    steps = {"steps": str(found.course.step)}
    card = replace(plan.card, provenance=plan.card.provenance | steps)
    save(run.model, network, card)
    result = None
    if plan.final is not None:
        model = Model(network.eval(), card, plan.device)
        result = model.evaluate(plan.final, batch=plan.micro, workers=plan.workers)
        result = replace(result, split="test" if plan.source.test is not None else "val")
        run.write_csv(
            "confusion.csv",
            ("true \\ predicted", *result.classes),
            ((name, *row) for name, row in zip(result.classes, result.confusion, strict=True)),
        )
        plots.confusion(run.path / "confusion.png", result.confusion, result.classes)
    plots.curves(run.path / "curves.png", run.rows("metrics.jsonl"))
    run.write_json("result.json", summary(result) if result else {"images": 0})
    return Outcome(run.path, result, seconds)


def summary(result: Result) -> dict[str, Any]:
    """The stable JSON form of a Result."""
    return {
        "split": result.split,
        "images": result.images,
        **{name: round(getattr(result, name), 6) for name in ("error", "top1", "top5", "loss")},
        "top1_interval_95": [round(x, 6) for x in result.interval],
        "unreadable": [str(path) for path, _ in result.unreadable],
        "per_class": result.per_class(),
    }


def resume(
    run: str | Path | None = None,
    *,
    data: str | None = None,
    device: str = "auto",
    workers: int = 2,
    watch: Callable[[Progress], None] = lambda progress: None,
) -> Outcome:
    """Go on with a run where its newest checkpoint stands; without a path the newest unfinished.

    `data` says where the data is now, if it was moved.

    Raises:
        UsageError: there is nothing to resume.
        DataError: the data is not what the run was started on.
        CheckpointError: no checkpoint of the run is whole.
    """
    folder = Run(Path(run)) if run is not None else newest_unfinished()
    if folder.finished:
        raise UsageError(
            f"{folder.path} is finished; `resnets evaluate {folder.path} DATA` uses it"
        )
    recipe = recipe_room.parse(folder.read_json("recipe.json"))
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
    from resnets.training import tune as tuning

    folder = run_folder(plan, run)
    return tuning.search(folder, plan, search, trials, budget, create_run, finish, watch)


def newest_unfinished(root: Path = Path("runs")) -> Run:
    """The unfinished run that was written to last. Raises UsageError when there is none."""
    open_runs = [Run(p.parent) for p in root.glob("*/recipe.json") if not Run(p.parent).finished]
    if not open_runs:
        raise UsageError(f"there is no unfinished run in {root}/")
    logs = {run: run.path / "metrics.jsonl" for run in open_runs}
    return max(logs, key=lambda run: logs[run].stat().st_mtime if logs[run].exists() else 0.0)


def evaluate(
    model: str | Path,
    data: str,
    *,
    split: Literal["test", "val", "train", "all"] | None = None,
    normalize: Literal["data", "imagenet", "none"] | None = None,
    device: str = "auto",
    precision: Literal["float32", "bfloat16"] = "float32",
    batch: int = 128,
    workers: int = 2,
    max_unreadable: float = 0.01,
) -> Result:
    """Figures of a model on one split of a data set, every image counted once.

    Without `split` it is the test split; where the data has none of its own and is not what the
    model was trained on, there is a choice to make, and UsageError says so.

    `normalize` replaces the preprocessing's mean and deviation, for foreign files that have none.
    """
    place = plans.pick_device(device)
    source = sources.load(data, max_unreadable=max_unreadable)
    loaded = load(model, device=place, bfloat16=precision == "bfloat16", classes=source.classes)
    trained_on = loaded.card.provenance.get("digest")
    if split is None and source.automatic and source.digest != trained_on:
        raise UsageError(
            f"{data} has no splits of its own and is not what this model was trained on.\n"
            "If the model never saw its images: --split all. If it is the training folder with "
            "changes,\nimages of the training would be in the test: give it train/ and test/."
        )
    name = split or "test"
    chosen = aligned(pick_split(source, name), source.classes, loaded)
    if normalize is not None:
        loaded = loaded.normalized(*plans.moments(normalize, source, loaded.card.arch.channels))
    result = loaded.evaluate(chosen, batch=batch, workers=workers)
    unreadable = (*source.unreadable, *result.unreadable)
    if not result.images or len(unreadable) > max(max_unreadable * source.files, 0):
        raise DataError(
            f"{len(unreadable)} of {source.files} files of {data} are unreadable, first: "
            f"{unreadable[0][0] if unreadable else 'none'}\nMend them, or allow more: "
            "--max-unreadable 0.1"
        )
    return replace(result, split=name, unreadable=unreadable)


def pick_split(source: Source, name: Literal["test", "val", "train", "all"]) -> sources.Split:
    """The split of that name. Raises DataError that says which there are."""
    there = source.splits
    if name == "all":
        return functools.reduce(sources.Split.plus, there.values())
    if name not in there:
        raise DataError(f"{source.name} has no {name} split; it has: {', '.join(there)} (--split)")
    return there[name]


def predict(
    model: str | Path,
    inputs: str | Path | bytes | Sequence[str | Path | bytes],
    *,
    top: int = 5,
    device: str = "auto",
) -> Iterator[Prediction]:
    """The most probable classes of image files, folders of images, globs, or bytes."""
    items = [inputs] if isinstance(inputs, str | Path | bytes) else inputs
    files = list(sources.expand(items))
    return load(model, device=plans.pick_device(device)).predict(files, top=top)

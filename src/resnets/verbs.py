"""What the command line does, as functions: the same verbs with the same names."""

from __future__ import annotations

import functools
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torchvision

from resnets import __version__, recipes
from resnets import arch as archs
from resnets import recipe as recipe_room
from resnets.data import get as data_get
from resnets.data import sources
from resnets.data.sources import Source
from resnets.errors import DataError, Interrupted, ResnetsError, UsageError
from resnets.evaluation.classify import Result
from resnets.evaluation.model import Model, Prediction, aligned, load
from resnets.nets import create
from resnets.nets.cost import cost
from resnets.nets.modelfile import Card, save
from resnets.recipe import Recipe
from resnets.reporting import plots
from resnets.training import plan as plans
from resnets.training.fit import Progress, Stop, estimate, fit
from resnets.training.plan import Plan
from resnets.training.run import Run
from resnets.training.state import State

__all__ = [
    "Model", "Outcome", "Prediction", "Result", "create", "create_run", "data_info", "estimate",
    "evaluate", "get", "go", "load", "models", "plan", "predict", "resume", "run_folder", "runs",
    "summary", "train",
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
    seed: int | None = None,
    device: str = "auto",
    workers: int = 2,
    overrides: Mapping[str, Any] | None = None,
) -> Plan:
    """Everything a training run will do, chosen from the data where nothing is said.

    Raises:
        UsageError: an unknown model, recipe or key, or a value of the wrong type.
        DataError: the data is missing, empty, broken or has one class.
    """
    if model is not None:
        archs.arch(model)  # a typing error is told before minutes of reading
    place = plans.pick_device(device)
    said = {"model": model, "epochs": epochs, "seed": seed}
    changes = {key: value for key, value in said.items() if value is not None}
    changes |= recipes.nested(overrides or {})
    base = recipes.read(recipe) if recipe is not None else None
    check = recipes.merged(base or Recipe(model="resnet18"), changes)
    source = sources.load(data, max_unreadable=check.max_unreadable)
    auto = plans.choose(source, plans.training_images(source), place)
    resolved = recipes.merged(base or auto, changes)
    # A run is resumed from anywhere, so a place is kept whole; a name stays a name.
    place_or_name = data if source.root is None else str(Path(data).resolve())
    resolved = replace(resolved, data=place_or_name)
    if resolved.holdout:
        source = sources.hold_out(source, resolved.holdout, resolved.seed)
    return plans.resolve(resolved, source, place, workers)


def train(
    data: str,
    *,
    model: str | None = None,
    recipe: str | Recipe | None = None,
    epochs: float | None = None,
    run: str | Path | None = None,
    seed: int | None = None,
    device: str = "auto",
    workers: int = 2,
    overrides: Mapping[str, Any] | None = None,
    watch: Callable[[Progress], None] = lambda progress: None,
) -> Outcome:
    """Train a network on `data` and test it; see `plan` for the arguments and errors.

    Raises Interrupted when a signal stopped it: `resume` goes on.
    """
    chosen = plan(
        data,
        model=model,
        recipe=recipe,
        epochs=epochs,
        seed=seed,
        device=device,
        workers=workers,
        overrides=overrides,
    )
    return go(create_run(chosen, run), chosen, watch)


def run_folder(plan: Plan, path: str | Path | None = None) -> Run:
    """Where a plan's run will be. Raises UsageError where a run is already, or among the data."""
    run = Run(Path(path) if path is not None else fresh_folder(plan))
    root = plan.source.root
    if root is not None and run.path.resolve().is_relative_to(root.resolve()):
        raise UsageError(f"the run folder {run.path} would lie in the data: give another, --run")
    run.check_free()
    return run


def create_run(plan: Plan, path: str | Path | None = None) -> Run:
    """Create the run folder of a plan; errors as in `run_folder`, and DiskError."""
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
    path, number = Path("runs") / stem, 1
    while path.exists():
        number += 1
        path = Path("runs") / f"{stem}-{number}"
    return path


def go(run: Run, plan: Plan, watch: Callable[[Progress], None]) -> Outcome:
    """Train from where the run stands, then test and write the result."""
    began = time.monotonic()
    with Stop() as stop:
        for progress in fit(run, plan, stop):
            watch(progress)
        if stop.signal:
            raise Interrupted(str(run.path), stop.signal)
    seconds = time.monotonic() - began
    return finish(run, plan, seconds)


def finish(run: Run, plan: Plan, seconds: float) -> Outcome:
    """Write model.safetensors from the last state, test it once, and draw the pictures."""
    state = State.start(plan.recipe, plan.arch, plan.device)
    checkpoint = run.newest()
    if checkpoint is None or checkpoint.step != plan.steps:
        raise ResnetsError(f"{run.path} has no checkpoint of its last step")
    state.restore(checkpoint.tensors, checkpoint.step)
    card = Card(
        arch=plan.arch,
        classes=plan.source.classes,
        preprocess=plan.preprocess,
        provenance={
            "data": plan.source.name,
            "digest": plan.source.digest,
            "recipe": json.dumps(recipe_room.to_dict(plan.recipe)),
            "steps": str(plan.steps),
            "resnets": __version__,
            "torch": torch.__version__,
        },
    )
    save(run.model, state.average, card)
    result = None
    held_out = "test" if plan.source.test is not None else "val"
    if (split := plan.source.test or plan.source.val) is not None:
        model = Model(state.average.eval(), card, plan.device)
        result = model.evaluate(split, batch=plan.recipe.batch, workers=plan.workers)
        result = replace(result, split=held_out)
        run.write_csv(
            "confusion.csv",
            ("true \\ predicted", *result.classes),
            ((name, *row) for name, row in zip(result.classes, result.confusion, strict=True)),
        )
    run.write_json("result.json", summary(result) if result else {"images": 0})
    if result is not None:
        plots.confusion(run.path / "confusion.png", result.confusion, result.classes)
    plots.curves(run.path / "curves.png", run.rows("metrics.jsonl"))
    return Outcome(run.path, result, seconds)


def summary(result: Result) -> dict[str, Any]:
    """The stable JSON form of a Result."""
    return {
        "split": result.split,
        "images": result.images,
        "error": round(result.error, 6),
        "top1": round(result.top1, 6),
        "top5": round(result.top5, 6),
        "loss": round(result.loss, 6),
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
    values = folder.read_json("recipe.json")
    recipe = recipe_room.parse(values)
    resumed = plan(data or recipe.data, recipe=recipe, device=device, workers=workers)
    started = folder.read_json("source.json")
    if resumed.source.digest != started["digest"]:
        raise DataError(
            f"{resumed.source.name} has changed since {folder.path} was started: digest "
            f"{resumed.source.digest[:12]}, was {started['digest'][:12]}.\n"
            "Restore the data, or start a new run."
        )
    return go(folder, resumed, watch)


def newest_unfinished(root: Path = Path("runs")) -> Run:
    """The unfinished run that was written to last. Raises UsageError when there is none."""
    open_runs = [Run(p.parent) for p in root.glob("*/recipe.json") if not Run(p.parent).finished]
    if not open_runs:
        raise UsageError(f"there is no unfinished run in {root}/")
    return max(
        open_runs,
        key=lambda r: (
            (r.path / "metrics.jsonl").stat().st_mtime
            if (r.path / "metrics.jsonl").exists()
            else 0.0
        ),
    )


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
    splits = {"train": source.train, "val": source.val, "test": source.test}
    there = {key: value for key, value in splits.items() if value is not None}
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


def models(pattern: str = "*") -> Iterator[dict[str, Any]]:
    """Name, depth, parameters, multiply-adds, input and source of each known network, sorted."""
    import fnmatch

    if not any(sign in pattern for sign in "*?["):
        pattern = f"*{pattern}*"
    for name in sorted(archs.FAMILY, key=natural):
        if not fnmatch.fnmatchcase(name, pattern):
            continue
        arch = archs.FAMILY[name]
        price = cost(arch)
        yield {
            "name": name,
            "depth": arch.depth,
            "parameters": price.parameters,
            "multiply_adds": price.macs,
            "channels": arch.channels,
            "size": arch.size,
            "source": arch.source,
        }


def natural(name: str) -> list[tuple[int, str]]:
    """A sort key by which resnet18 comes before resnet110."""
    import re

    return [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", name)]


def get(name: str, watch: Callable[[int, int], None] = lambda done, total: None) -> Path:
    """Download a data set into the cache; see `resnets.data.get`."""
    return data_get.get(name, watch)


def data_info(data: str, *, max_unreadable: float = 1.0) -> dict[str, Any]:
    """What a data set holds: splits, classes, sizes, digest, unreadable files."""
    source = sources.load(data, max_unreadable=max_unreadable)
    splits = {"train": source.train, "val": source.val, "test": source.test}
    return {
        "name": source.name,
        "digest": source.digest,
        "channels": source.channels,
        "size": source.size,
        "mean": source.mean,
        "std": source.std,
        "classes": list(source.classes),
        "images": {
            name: torch.bincount(split.labels, minlength=len(source.classes)).tolist()
            for name, split in splits.items()
            if split is not None
        },
        "unreadable": [(str(path), reason) for path, reason in source.unreadable],
    }


def runs(root: str | Path = "runs") -> list[dict[str, Any]]:
    """Every run below a folder: path, model, data, progress, error."""
    rows = []
    for path in sorted(Path(root).glob("*/recipe.json")):
        run = Run(path.parent)
        try:
            recipe = run.read_json("recipe.json")
        except ResnetsError:
            recipe = {"data": "unreadable recipe.json", "model": "?"}
        metrics = run.rows("metrics.jsonl")
        error = run.read_json("result.json").get("error") if run.finished else None
        rows.append(
            {
                "run": str(run.path),
                "data": recipe["data"],
                "model": recipe["model"],
                "epoch": metrics[-1]["epoch"] if metrics else 0.0,
                "train_error": metrics[-1]["train_error"] if metrics else None,
                "finished": run.finished,
                "test_error": error,
            }
        )
    return rows


def environment() -> dict[str, str]:
    """Versions and machine, for the record."""
    return {
        "resnets": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "system": platform.platform(),
        "threads": str(torch.get_num_threads()),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }

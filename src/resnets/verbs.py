"""What the command line does, as functions: the same verbs with the same names and options.

torch, and with it most rooms, is imported inside a verb only, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, Unpack

from cyclopts import Parameter

from resnets.errors import CheckpointError, DataError, UsageError
from resnets.options import Count, Device, Part, Read, Seconds, Tested, Workers, assignments

if TYPE_CHECKING:
    from resnets.analysis.cam import Sanity
    from resnets.analysis.explain import Explained
    from resnets.assessment import Calibration
    from resnets.evaluation.metrics import Result
    from resnets.evaluation.model import Prediction
    from resnets.lifecycle import Outcome
    from resnets.options import Task
    from resnets.recipe import Recipe
    from resnets.training.fit import Progress
    from resnets.training.plan import Plan
    from resnets.training.tune import Trial

    Name = str | Recipe
    Fields = Mapping[str, Any] | Sequence[str]
else:  # what the command line reads for these
    Name, Fields, Calibration, Explained, Sanity = str, list[str], Any, Any, Any


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
    from resnets.lifecycle import go, newest_unfinished
    from resnets.recipe import parse
    from resnets.training.run import Run

    folder = Run(Path(run)) if run is not None else newest_unfinished()
    if folder.finished:
        raise UsageError(
            f"{folder.path} is finished; `resnets evaluate {folder.path} DATA` uses it"
        )
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


def evaluate(
    *places: str | Path,
    compare: bool = False,
    at_precision: Part | None = None,
    ood: str | None = None,
    corruptions: bool = False,
    **how: Unpack[Tested],
) -> Result:
    """Test a model, or several as an ensemble, on one split of a data set.

    `places` are the models (run folders, model files, foreign .pth or .safetensors files), then the
    data. Further figures stand in fields of the result: `compare` is of the second of two models
    against the first; `at_precision` finds the probability from which on that part of the answers
    is right; `ood` is other data, on which the model ought to be unsure; `corruptions` are errors
    on noisy, blurred and otherwise worsened images.

    Raises UsageError for no `split`, where the data has none of its own and is not that of the
    training, or models whose number does not suit; CheckpointError for a file that is refused, or
    models that do not know the data's classes or have different ones; DataError where too many
    images are unreadable, or there is no such split.
    """
    from resnets import assessment
    from resnets.data import sources
    from resnets.evaluation import metrics
    from resnets.evaluation.scores import ensemble
    from resnets.lifecycle import opened

    *models, data = places or ("",)
    if not models:
        raise UsageError("name a model and the data: resnets evaluate MODEL... DATA")
    if (compare and len(models) != 2) or (corruptions and len(models) != 1):
        raise UsageError(f"--compare takes two models, --corruptions one; here are {len(models)}")
    allowed, name = how.get("max_unreadable", 0.01), how.get("split") or "test"
    source = sources.load(data, max_unreadable=allowed)
    subjects = [assessment.subject(path, source, **how) for path in models]
    assessment.check_same(subjects)
    scored = [each.scores() for each in subjects]
    said = scored[-1] if compare else ensemble(scored)
    result, bad = metrics.result(said, name), said.unreadable
    if not result.images or len(bad) > allowed * (result.images + len(bad)):
        raise DataError(
            f"{len(bad)} of {result.images + len(bad)} files of the {name} split of {data} are "
            f"unreadable, first: {bad[0][0] if bad else 'none'}\nMend them, or allow more: "
            "--max-unreadable 0.1"
        )
    for path, own in dict(zip(map(str, models), scored, strict=True)).items():
        opened(path, source, name, 1 - float(metrics.right(own).double().mean()))
    result = replace(result, unreadable=(*source.unreadable, *bad))
    if compare:
        found, images = metrics.compare(*scored), subjects[0].split.images
        if isinstance(images, tuple):
            fixed, broken = (
                tuple(str(images[int(k)]) for k in part) for part in (found.fixed, found.broken)
            )
            found = replace(found, fixed=fixed, broken=broken)
        result = replace(result, comparison=found)
    if at_precision is not None:
        result = replace(result, abstention=metrics.abstention(said, at_precision))
    if ood is not None:
        strange = assessment.unlabelled(sources.load(ood, max_unreadable=allowed), said.labels)
        seen = ensemble([replace(each, split=strange).scores() for each in subjects])
        result = replace(result, familiarity=metrics.ood(said, seen))
    if corruptions:
        from resnets.evaluation.corruptions import robustness  # here: torchvision delays a start

        (one,) = subjects
        rows = robustness(one.scores, one.model.card.arch.channels)
        result = replace(result, corruptions=tuple(rows))
    return result


def calibrate(
    model: str | Path,
    data: str,
    /,
    *,
    split: Literal["val", "all"] = "val",
    device: Device = "auto",
    workers: Workers = 2,
) -> Calibration:
    """Fit the temperature of MODEL on images that it was not trained on, and keep it in its file.

    The answers stay the same; their probabilities become what they say (1706.04599). Figures and
    report of a run follow.

    Args:
        split: The validation images, which `--set holdout` keeps from the training, or `all` images
            of a data set that are all new to the model.
    """
    from resnets import assessment
    from resnets.data import sources
    from resnets.evaluation import metrics
    from resnets.lifecycle import rescale
    from resnets.nets.modelfile import save
    from resnets.training.run import Run

    path = Path(model) / "model.safetensors" if Path(model).is_dir() else Path(model)
    source = sources.load(data)
    one = assessment.subject(model, source, split=split, device=device, workers=workers)
    card = one.model.card
    if not card.provenance:
        raise CheckpointError(
            f"{model} is a foreign file, which has no place for a temperature: calibrate a run or "
            "a model file of resnets"
        )
    if split == "all" and card.provenance["digest"] == source.digest:
        raise UsageError(f"{model} was trained on images of {data}: --split val, or other images")
    scores = one.scores()
    factor = metrics.fit_temperature(scores)
    temperature = (card.temperature or 1.0) * factor
    save(path, one.model.network, replace(card, temperature=temperature))
    if (path.parent / "result.json").exists():
        rescale(Run(path.parent), factor)
    after = replace(scores, logits=scores.logits / factor)
    before, after_all = (metrics.result(x, split) for x in (scores, after))
    return assessment.Calibration(temperature, before, after_all)


def explain(
    model: Path,
    /,
    *inputs: str | Path | bytes,
    out: Path,
    data: str | None = None,
    level: str | None = None,
    method: Literal["grad-cam", "occlusion"] = "grad-cam",
    top: Count = 1,
    **how: Unpack[Read],
) -> Iterator[Explained | Sanity | dict[str, int]]:
    """Draw why MODEL answers what it answers: for images, or for a whole data set.

    Given is the answer to each image, or how many there are of each finding; errors as `evaluate`.

    Args:
        inputs: Image files, folders or globs: what speaks for the answer to each.
        out: A new folder for the pictures.
        data: Beside images: their nearest training images. Alone: the most wrong, most unsure and
            likely mislabelled images of a split, duplicates of training images, and a map.
        level: Which level's map Grad-CAM takes, as layer3; the last when left out.
        method: grad-cam, or occlusion, which needs no gradient and is slower.
        top: How many answers are explained.
    """
    from resnets import assessment
    from resnets.analysis import explain as drawing
    from resnets.data import sources
    from resnets.evaluation import metrics
    from resnets.evaluation.model import load
    from resnets.lifecycle import check_outside, opened
    from resnets.training.plan import moments, pick_device

    if data is None and not inputs:
        raise UsageError("give images, a data set or both: resnets explain MODEL IMAGE --data DATA")
    if not inputs and (level or method != "grad-cam" or top != 1):
        raise UsageError("--level, --method and --top are for images: name some")
    source = sources.load(data, max_unreadable=how.get("max_unreadable", 0.01)) if data else None
    if source and data:
        check_outside(out, data)
    reading, known = {"batch": how.get("batch", 128), "workers": how.get("workers", 2)}, None
    if inputs:
        if source:
            chosen: Read = {**how, "split": how.get("split") or "train"}
            one = assessment.subject(model, source, **chosen)
            loaded, known = one.model, one.split
        else:
            place = pick_device(how.get("device", "auto"))
            loaded = load(model, device=place, task="classify")
            if normalize := how.get("normalize"):
                loaded = loaded.normalized(*moments(normalize, None, loaded.card.arch.channels))
        files = list(sources.expand(inputs))
        yield from drawing.explain(
            loaded, files, out, level=level, method=method, top=top, known=known, **reading
        )
    elif source:
        one, name = assessment.subject(model, source, **how), how.get("split") or "test"
        scores = one.scores()
        opened(model, source, name, 1 - float(metrics.right(scores).double().mean()))
        train = None if name in ("train", "all") else source.train
        yield drawing.explore(one.model, one.split, scores, out, train=train, **reading)


def report(run: Path, /, *, data: str | None = None) -> Path:
    """Write report.html and the model card README.md of RUN anew; returns the first.

    Args:
        data: Where the data is now, if it was moved.
    """
    from resnets import lifecycle
    from resnets.training.run import Run

    return lifecycle.report(Run(run), data=data)


def predict(
    model: str | Path,
    inputs: str | Path | bytes | Sequence[str | Path | bytes],
    *,
    top: int = 5,
    device: str = "auto",
) -> Iterator[Prediction]:
    """The most probable classes of image files, folders of images, globs, or bytes."""
    from resnets.data import sources
    from resnets.evaluation.model import load
    from resnets.training.plan import pick_device

    items = [inputs] if isinstance(inputs, str | Path | bytes) else inputs
    files = list(sources.expand(items))
    one = load(model, device=pick_device(device), task="classify")
    return one.predict(files, top=top)

"""What the package does, as plain functions: the commands have the same names and options.

They are there as `resnets.train`, `resnets.evaluate` and so on. An argument that a function does
not have is refused with the nearest name. A wrong name or path is answered before torch is imported
and before data is read; therefore the imports inside.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from resnets import options
from resnets.errors import DataError, ResnetsError, UsageError
from resnets.files import glob_paths
from resnets.instruments import ERRORS, Kind
from resnets.options import InferenceOptions, command_group, public

if TYPE_CHECKING:
    from resnets.analysis.cam import RandomizationCheck
    from resnets.analysis.explain import Explained
    from resnets.assessment import Calibration
    from resnets.config.arch import Arch
    from resnets.config.recipe import Recipe
    from resnets.evaluation.predictor import Model, Prediction
    from resnets.instruments import Analysis
    from resnets.lifecycle import TrainResult
    from resnets.models import Network
    from resnets.options import Task
    from resnets.training.loop import Progress
    from resnets.training.plan import Plan
    from resnets.training.tasks import Tested
    from resnets.training.tune import Trial
else:  # so that the annotations can be read without torch
    Analysis = Arch = Calibration = Explained = Model = Network = TrainResult = Plan = Any
    Prediction = Progress = Recipe = RandomizationCheck = Tested = Trial = Any
    Task = options.Task

DOWNLOADS = ("imagenet", "default", "true", "pretrained")  # what others' weights are called
PLANNED = (  # arguments of `plan` that `train` and `tune` pass on
    "task", "model", "recipe", "weights", "epochs", "budget", "lr", "batch", "size", "seed",
    "overrides", "device", "workers",
)  # fmt: skip


@public
def plan(
    data: str | Path, *, task: Task | None = None, model: str | None = None,
    recipe: str | Path | Recipe | None = None, weights: str | Path | None = None,
    epochs: float | None = None, budget: float | str | None = None, lr: float | None = None,
    batch: int | None = None, size: int | None = None, seed: int | None = None,
    overrides: Mapping[str, Any] | Sequence[str] | None = None, devices: int = 1,
    device: str = "auto", workers: int = 2,
) -> Plan:  # fmt: skip
    """Everything a training run will do, chosen from the data where nothing is given.

    Raises UsageError for an unknown model, recipe or field, a value of the wrong type, or a model
    of another task; DataError where the data is missing, empty, broken or has one class.

    Args:
        data: digits, cifar10, cifar100, a folder of class folders, or a CSV of path,label.
        task: What the network is for; the model's task when left out, else classification.
        model: A name from `resnets models`; chosen from the data when left out.
        recipe: A published recipe (paper-cifar10, quick-cifar10, ...), a TOML file, or a run's
            recipe.json.
        weights: A run folder or a file to start from, ours, torchvision's or timm's; without it
            training starts from random weights.
        epochs: Passes over the training images.
        budget: A time instead of epochs, as 90s, 30m or 1.5h: as many steps as fit.
        lr: The learning rate at its peak.
        batch: Images of an optimiser step, over all devices.
        size: Side of the input in pixels.
        seed: Of the initial weights, the order of the images and their augmentation.
        overrides: FIELD=VALUE of the recipe; may be repeated.
        devices: Processes (GPUs, where there are some) that share each batch.
        device: auto, cpu, cuda or cuda:N.
        workers: Processes that decode image files.
    """
    from resnets.config import arch, families, recipes
    from resnets.config.recipe import Recipe, rename_old_fields

    # The command line and a launcher of ranks say since when a budget counts.
    began = time.monotonic() - (now := time.time()) + float(os.environ.pop("RESNETS_BEGAN", now))
    options.check_data(data)
    if model is not None:
        families.arch(model)
    named = {
        "model": model, "weights": weights and str(weights), "epochs": epochs, "lr": lr,
        "budget": budget if budget is None else options.seconds(budget),
        "batch": batch, "size": size, "seed": seed,
    }  # fmt: skip
    changes = {name: value for name, value in named.items() if value is not None}
    fields = options.assignments(overrides or {})
    if twice := changes.keys() & fields:
        raise UsageError(f"{min(twice)} is given twice, by its own option and by --set")
    changes |= rename_old_fields(fields)
    base = recipes.read(recipe) if recipe is not None else None
    shortened = base is None or not {"epochs", "steps", "budget"}.isdisjoint(changes)
    if shortened and {"eval_every", "early_stop_patience", "patience"}.isdisjoint(changes):
        changes.setdefault("evaluations", 5)  # a short run has a curve too
    check = recipes.merged(base or Recipe(model="resnet18"), changes)
    for field in ("weights", "teacher"):
        check_weights(field, getattr(check, field))
    chosen = base is not None or "model" in changes
    network_task = arch.task(families.arch(check.model)) if chosen else task or "classify"
    if network_task != (task or network_task):
        raise UsageError(f"{check.model} is not for `resnets {task}`, but to {network_task}")
    if not check.weights and (check.freeze_backbone_epochs or check.norm == "frozen"):
        raise UsageError(
            "freeze_backbone_epochs=N and norm=frozen need weights to start from: "
            "--weights FILE|RUN"
        )

    from resnets.data import dataset
    from resnets.device import pick_device
    from resnets.training import distributed, memory
    from resnets.training.resolve import resolve, training_images
    from resnets.training.tasks import find_task

    ranks = distributed.join(device) if distributed.launched() else distributed.World(size=devices)
    place = ranks.device if distributed.launched() else pick_device(device)
    chosen_task = find_task(network_task)
    chosen_task.require()
    source = dataset.load(str(data), max_unreadable=check.max_unreadable, task=network_task)
    train = training_images(source)
    base = base or chosen_task.default_recipe(source, train, place)
    resolved = recipes.merged(base, changes)
    # A run is resumed from anywhere, so places are kept whole; a name stays a name.
    resolved = replace(
        resolved,
        data=str(data) if source.root is None else str(Path(data).resolve()),
        weights=resolved.weights and str(Path(resolved.weights).resolve()),
        teacher=resolved.teacher and str(Path(resolved.teacher).resolve()),
    )
    if resolved.trainval:
        source = dataset.merge_val_into_train(source)
    if resolved.val_fraction:
        source = dataset.hold_out(source, resolved.val_fraction, resolved.seed)
    result = resolve(resolved, source, place, workers, ranks, chosen_task)
    if model is not None and result.recipe.model != model:
        raise UsageError(
            f"--model {model}: {resolved.weights} is {result.recipe.model}; leave it out"
        )
    return replace(memory.fitted(result), began=began)


def check_weights(field: str, path: str) -> None:
    """Raise UsageError where `path` is neither a file nor a run; "" is none."""
    if path and (path.lower() in DOWNLOADS or "imagenet1k" in path.lower()):
        raise UsageError(
            f"--weights {path}: there are no weights to download yet. --weights FILE|RUN starts "
            "from a\nfile that you have (torchvision's and timm's .pth and .safetensors load as "
            "they are) or from a run."
        )
    if path:
        options.check_model(path, option=f"--{field} {path}: ")


def check_run(run: str | Path | None, data: object) -> None:
    """Raise UsageError where a new run cannot be in that folder; a rank of torchrun goes on."""
    from resnets.training.run import Run

    if run is not None and "TORCHELASTIC_RUN_ID" not in os.environ:
        options.check_outside(Path(run), data)
        Run(Path(run)).check_free()


def planned(data: str | Path | Plan, values: Mapping[str, Any]) -> Plan:
    """The plan itself, or that of data and of the `values` among which are its arguments."""
    given = {name: values[name] for name in PLANNED}
    if isinstance(data, str | Path):
        return plan(data, **given)
    usual = {**dict.fromkeys(PLANNED), "device": "auto", "workers": 2}
    if changed := [name for name in PLANNED if given[name] != usual[name]]:
        raise UsageError(f"{changed[0]} is an argument of `plan`: this plan is made already")
    return data


@public
def train(
    data: str | Path | Plan, *, task: Task | None = None, model: str | None = None,
    recipe: str | Path | Recipe | None = None, weights: str | Path | None = None,
    epochs: float | None = None, budget: float | str | None = None, lr: float | None = None,
    batch: int | None = None, size: int | None = None, seed: int | None = None,
    overrides: Mapping[str, Any] | Sequence[str] | None = None, run: str | Path | None = None,
    seeds: int = 1, device: str = "auto", workers: int = 2,
    watch: Callable[[Progress], None] = lambda progress: None,
) -> TrainResult:  # fmt: skip
    """Train a network on DATA, test it, and leave a run folder.

    In Python `data` may be a plan. The arguments without a word here, and the errors, are those of
    `plan`. Raises Interrupted when a signal stopped it: `resume` goes on. The outcome of several
    seeds is that of the first, without a result where it was finished before, with `compared`.

    Args:
        run: The run folder; runs/DATA-MODEL when left out.
        seeds: Runs with the seeds from `seed` on, in RUN-seed0, RUN-seed1, ..., which are compared;
            the same command again goes on where they stand.
        watch: Called with the progress after each step.
    """
    given = dict(locals())
    if seeds == 1:
        check_run(run, data)
    chosen = planned(data, given)
    from resnets import lifecycle

    if seeds == 1:
        return lifecycle.train_and_finish(lifecycle.create_run(chosen, run), chosen, watch)
    done = list(train_seeds(chosen, run, seeds, watch))
    return replace(done[0], compared=runs_compare(*(one.run for one in done)))


def train_seeds(
    first: Plan, run: str | Path | None, seeds: int, watch: Callable[[Progress], None]
) -> Iterator[TrainResult]:
    """Train a plan with its seed and those that follow, each where it stands, one after another.

    Raises UsageError as `lifecycle.seed_runs`, before anything is trained.
    """
    from resnets import lifecycle
    from resnets.config import recipes

    for seed, folder in lifecycle.seed_runs(first, run, seeds).items():
        if not lifecycle.missing_results(folder):
            yield lifecycle.TrainResult(folder.path, None, 0.0, first.task.name)
            continue
        chosen, begun = first, (folder.path / "recipe.json").exists()
        if begun or seed != first.recipe.seed:
            own = recipes.read(folder.path / "recipe.json") if begun else first.recipe
            own = replace(own, seed=seed)
            chosen = plan(own.data, recipe=own, device=str(first.device), workers=first.workers)
        folder = folder if begun else lifecycle.create_run(chosen, folder.path)
        more = ", with all seeds by the same command"
        yield lifecycle.train_and_finish(folder, chosen, watch, more)


@public
def resume(
    run: str | Path | None = None, *, data: str | Path | None = None, device: str = "auto",
    workers: int = 2, watch: Callable[[Progress], None] = lambda progress: None,
) -> TrainResult:  # fmt: skip
    """Go on with an interrupted run; without RUN with the newest unfinished one.

    Raises UsageError where there is nothing to resume, the newest one is older than a day, or it is
    a trial of a study; DataError where the data is not what the run was started on; CheckpointError
    where no checkpoint of the run is whole.

    Args:
        run: The run folder.
        data: Where the data is now, if it was moved.
        watch: Called with the progress after each step.
    """
    from resnets.config import arch
    from resnets.config.recipe import parse
    from resnets.training.run import Run

    if run is None:
        run, written = newest_unfinished()
        if time.time() - written > 86_400:
            raise UsageError(f"the newest unfinished run, {run}, is older than a day: name it")
    folder = Run(Path(run))
    recipe = parse(folder.read_json("recipe.json"))
    if folder.finished:
        from resnets.lifecycle import missing_results

        if not missing_results(folder):
            own = arch.task(arch.from_dict(folder.read_json("source.json")["arch"]))
            command = f"resnets {command_group(own)}evaluate"
            raise UsageError(f"{run} is finished; `{command} {run} DATA` uses it")
    if (folder.path / "trial.json").exists():  # it would be tested on the test images
        raise UsageError(
            f"{run} is a trial of a study, which goes on by its own command:\n"
            f"`resnets tune {recipe.data} --run {folder.path.parent}` with the options it had"
        )
    resumed = plan(data or recipe.data, recipe=recipe, device=device, workers=workers)
    started = folder.read_json("source.json")
    if resumed.source.digest != started["digest"]:
        raise DataError(
            f"{resumed.source.name} has changed since {run} was started: digest "
            f"{resumed.source.digest[:12]}, was {started['digest'][:12]}.\n"
            "Restore the data, or start a new run."
        )
    from resnets import lifecycle

    return lifecycle.train_and_finish(folder, resumed, watch)


def newest_unfinished(root: Path = Path("runs")) -> tuple[Path, float]:
    """The unfinished run that was written to last, and when. Raises UsageError for none.

    One that was broken off while its result or report was written is unfinished too.
    """
    times = dict[Path, float]()
    for recipe in root.glob("*/recipe.json"):
        log, result = recipe.with_name("metrics.jsonl"), recipe.with_name("result.json")
        if not result.exists() or _lacks(recipe.parent):
            times[recipe.parent] = (log if log.exists() else recipe).stat().st_mtime
    if not times:
        raise UsageError(f"there is no unfinished run in {root}/")
    newest = max(times, key=times.__getitem__)
    return newest, times[newest]


def _lacks(path: Path) -> bool:
    """Whether `resume` has something to write for a run with a result; not where that is unread."""
    from resnets.lifecycle import missing_results
    from resnets.training.run import Run

    try:
        return bool(missing_results(Run(path)))
    except (ResnetsError, KeyError):
        return False


@public
def tune(
    data: str | Path | Plan, *, run: str | Path | None = None, trials: int = 20,
    search: Sequence[str] = (), task: Task | None = None, model: str | None = None,
    recipe: str | Path | Recipe | None = None, weights: str | Path | None = None,
    epochs: float | None = None, budget: float | str | None = None, lr: float | None = None,
    batch: int | None = None, size: int | None = None, seed: int | None = None,
    overrides: Mapping[str, Any] | Sequence[str] | None = None, device: str = "auto",
    workers: int = 2, watch: Callable[[Progress], None] = lambda progress: None,
) -> Iterator[list[Trial]]:  # fmt: skip
    """Search for better fields of a recipe by the error on validation images; again goes on.

    In Python `data` may be a plan. The arguments without a word here are those of `plan`. Yields
    the trials that have ended, after each. Raises MissingPackage without Optuna.

    Args:
        run: The folder of the study; runs/DATA-MODEL-tune when left out.
        trials: How many choices are tried; those that fall behind are stopped early.
        search: FIELD=LOW:HIGH, FIELD=LOW:HIGH:log, FIELD=A,B,C, or FIELD of those that are searched
            when left out: lr, weight_decay, warmup, label_smoothing, ema, augment.policy,
            augment.mixup.
        budget: A time for all of them, as 30m or 8h, that they share evenly.
        watch: Called with the progress after each step.
    """
    chosen = planned(data, {**locals(), "budget": None})
    from resnets import lifecycle
    from resnets.training import tune

    total = 0.0 if budget is None else options.seconds(budget)
    folder = lifecycle.run_folder(chosen, run or study_folder(chosen))
    create, finish = lifecycle.create_run, lifecycle.finish
    return tune.search(folder, chosen, search, trials, total, create, finish, watch)


def study_folder(chosen: Plan) -> Path:
    """Where a study of that plan is, when nothing is said."""
    return Path(f"runs/{Path(chosen.recipe.data).stem}-{chosen.recipe.model}-tune")


@public
def find_rate(
    plan: Plan, low: float = 1e-5, high: float = 10.0, steps: int = 100
) -> tuple[list[float], list[float], float]:
    """Learning rates, the loss at each, and a suggestion: see `training.rates.find_rate`."""
    from resnets.training import lr_range_test

    return lr_range_test.lr_range_test(plan, low, high, steps)


@public
def evaluate(
    *places: str | Path, task: Task | None = None,
    split: Literal["test", "val", "train", "all"] | None = None,
    view: str | Sequence[str] = "center", compare: bool = False,
    at_precision: float | None = None, ood: str | Path | None = None, corruptions: bool = False,
    classifier: str | Path | None = None, refine: bool = False,
    scales: str | Sequence[float] = "1", size: int | None = None,
    normalize: Literal["data", "imagenet", "none"] | None = None,
    overrides: Mapping[str, Any] | Sequence[str] | None = None,
    precision: Literal["float32", "bfloat16"] = "float32", max_unreadable: float = 0.01,
    batch: int | None = None, device: str = "auto", workers: int = 2,
) -> Tested:  # fmt: skip
    """Test MODEL... on one split of DATA: several models are an ensemble.

    In Python what is asked for beside the figures stands in fields of the result.

    Raises UsageError for no `split`, where the data has none of its own and is not that of the
    training, models whose number does not suit, or an option of another task; CheckpointError for a
    file that is refused, or models that do not know the data's classes or have different ones;
    DataError where too many images are unreadable, or there is no such split.

    Args:
        places: Run folders, model files, or foreign .pth or .safetensors files; and last the data.
        task: What the models are for, when they should be refused otherwise.
        split: The test split when left out; `all` for a folder whose images are all new to the
            model.
        view: center, flip (and its mirror image), ten-crop or multi-scale; or one for each model,
            as ten-crop,flip.
        compare: The second of two models against the first: which images changed, and whether that
            is more than chance.
        at_precision: From which probability on this part of the answers is right, and how many
            answers that leaves.
        ood: Other data, on which the model ought to be unsure.
        corruptions: Also the errors on noisy, blurred and otherwise worsened images.
        classifier: A model that says the five classes that a localiser looks for.
        refine: Judge the boxes once more and vote (1512.03385, appendix B); of detectors in two
            stages.
        scales: Sizes of the image as parts of the model's, as 0.5,1,1.5. Each region takes the two
            that suit it (appendix B); a localiser the best box of all (appendix C).
        size: Side of the input in pixels; the model's own when left out.
        normalize: Mean and deviation for a foreign file that does not say its own.
        overrides: arch.FIELD=VALUE, where a foreign file leaves that open, as
            arch.stride_on=1x1; may be repeated.
        precision: Of the numbers that the network computes with.
        max_unreadable: Part of the images that may be unreadable and left out.
        batch: Images of a forward pass; 128, of detection, localisation and segmentation 4.
        device: auto, cpu, cuda or cuda:N.
        workers: Processes that decode image files.
    """
    *models, data = places or ("",)
    if not models:
        raise UsageError(
            "name a model and the data: "
            f"resnets {command_group(task or 'classify')}evaluate MODEL... DATA"
        )
    for path in models:
        options.check_model(path)
    options.check_data(data)
    if (compare and len(models) != 2) or (corruptions and len(models) != 1):
        raise UsageError(f"--compare takes two models, --corruptions one; here are {len(models)}")
    views = options.views(view, len(models))
    how = InferenceOptions(
        split=split, max_unreadable=max_unreadable, normalize=normalize, size=size or 0,
        precision=precision, refine=refine, scales=options.numbers(scales), batch=batch,
        fields=options.arch_overrides(overrides), device=device, workers=workers,
    )  # fmt: skip
    if ood is not None:
        options.check_data(ood)
    if classifier is not None:
        options.check_model(classifier)
    from resnets import assessment

    purpose = task or assessment.task_of(models[0], how.fields)
    only = {
        "localize": {"--classifier": classifier is not None},
        "detect localize": {"--refine": refine, "--scales": how.scales != (1.0,)},
        "classify detect": {"--compare": compare},
        "classify": {
            "--view": set(views) != {"center"}, "--at-precision": at_precision is not None,
            "--ood": ood is not None, "--corruptions": corruptions, "--size": size is not None,
        },
    }  # fmt: skip
    refuse_others(purpose, only)
    if purpose == "classify":
        return assessment.classification(
            models, str(data), how, views=views, compare=compare, at_precision=at_precision,
            ood=None if ood is None else str(ood), corruptions=corruptions,
        )  # fmt: skip
    return assessment.objects(
        purpose, models, str(data), how, compare=compare, classifier=classifier
    )


def refuse_others(task: Task, only: Mapping[str, Mapping[str, bool]]) -> None:
    """Raise UsageError for an option that is given, and is `only` for other tasks."""
    for tasks, given in only.items():
        names = [name for name, is_given in given.items() if is_given]
        if names and task not in tasks.split():
            known = " and ".join(tasks.split())
            raise UsageError(f"{names[0]} is to {known}, this model to {task}")


@public
def predict(
    model: str | Path, inputs: str | Path | bytes | Sequence[str | Path | bytes], *,
    task: Task | None = None, top: int = 5, out: str | Path = "predictions", score: float = 0.5,
    refine: bool = False, scales: str | Sequence[float] = "1",
    normalize: Literal["data", "imagenet", "none"] | None = None,
    overrides: Mapping[str, Any] | Sequence[str] | None = None,
    precision: Literal["float32", "bfloat16"] = "float32", batch: int | None = None,
    device: str = "auto", workers: int = 2,
) -> Iterator[Prediction] | list[dict[str, str]]:  # fmt: skip
    """Say what is on images: a classifier names them, other models draw what they find.

    Of objects, pictures are written into the new folder `out` and detections.json, in COCO's form
    of results with the file's name; of pixels a PNG of class indices for each image. A row says
    what was found on an image, or its problem. Of COCO data, a folder or a file, images and
    categories keep their ids; others are numbered from 0, or after those.

    In Python an input may be the bytes of an image too.

    Raises UsageError for no inputs, or where `out` is not empty; DataError where none is found.

    Args:
        inputs: Image files, folders or patterns.
        task: What the model is for, when it should be refused otherwise.
        top: How many classes to name.
        out: A new folder for the pictures and the file.
        score: From which score on an object is drawn; all are written.
    """
    options.check_model(model)
    items = [inputs] if isinstance(inputs, str | Path | bytes) else list(inputs)
    check_inputs(items)
    if task not in (None, "classify"):
        options.check_empty(Path(out))
    how = InferenceOptions(
        normalize=normalize, precision=precision, refine=refine, scales=options.numbers(scales),
        batch=batch, fields=options.arch_overrides(overrides), device=device, workers=workers,
    )  # fmt: skip
    from resnets import assessment
    from resnets.data.dataset import expand_inputs

    purpose = task or assessment.task_of(model, how.fields)
    improved = {"--refine": refine, "--scales": how.scales != (1.0,)}
    refuse_others(purpose, {"detect localize": improved, "classify": {"--top": top != 5}})
    if purpose == "classify":
        loaded = assessment.load_model(model, None, how, purpose)
        return loaded.predict(list(expand_inputs(items)), top=top, batch=how.images_per_batch(32))
    options.check_empty(Path(out))
    return assessment.draw_predictions(purpose, model, items, Path(out), score, how)


def check_inputs(inputs: Sequence[str | Path | bytes]) -> None:
    """Raise UsageError for no inputs, DataError where none of them is there."""
    if not inputs:
        raise UsageError("no input: give image files, folders or patterns")
    if not any(isinstance(item, bytes) or glob_paths(item) for item in inputs):
        raise DataError(f"no such file, folder or pattern: {inputs[0]!s}")


@public
def explain(
    model: str | Path, /, *inputs: str | Path | bytes, out: str | Path,
    data: str | Path | None = None, level: str | None = None,
    method: Literal["grad-cam", "occlusion"] = "grad-cam", top: int = 1,
    split: Literal["test", "val", "train", "all"] | None = None, max_unreadable: float = 0.01,
    overrides: Mapping[str, Any] | Sequence[str] | None = None,
    normalize: Literal["data", "imagenet", "none"] | None = None, batch: int | None = None,
    device: str = "auto", workers: int = 2,
) -> Iterator[Explained | RandomizationCheck | dict[str, int]]:  # fmt: skip
    """Draw why MODEL answers what it answers: for images, or for a whole data set.

    In Python: the answer to each image, or how many there are of each finding; errors as
    `evaluate`.

    Args:
        inputs: Image files, folders or patterns: what speaks for the answer to each.
        out: A new folder for the pictures.
        data: Beside images: their nearest training images. Alone: the most wrong, most unsure and
            likely mislabelled images of a split, duplicates of training images, and a map.
        level: Which level's map Grad-CAM takes, as layer3; the last when left out.
        method: Occlusion needs no gradient and is slower.
        top: How many answers are explained.
    """
    from resnets import instruments

    options.check_model(model)
    if data is None and not inputs:
        raise UsageError("give images, a data set or both: resnets explain MODEL IMAGE --data DATA")
    if not inputs and (level or method != "grad-cam" or top != 1):
        raise UsageError("--level, --method and --top are for images: name some")
    if inputs:
        check_inputs(inputs)
    options.check_empty(Path(out))
    if data is not None:
        options.check_data(data)
        options.check_outside(Path(out), data)
    how = InferenceOptions(
        split=split, max_unreadable=max_unreadable, normalize=normalize, batch=batch,
        fields=options.arch_overrides(overrides), device=device, workers=workers,
    )  # fmt: skip
    place = None if data is None else str(data)
    return instruments.explained(model, inputs, Path(out), place, level, method, top, how)


@public
def calibrate(
    model: str | Path, data: str | Path, /, *, split: Literal["val", "all"] = "val",
    device: str = "auto", workers: int = 2,
) -> Calibration:  # fmt: skip
    """Fit the temperature of MODEL on images that it was not trained on, and keep it in its file.

    The answers stay the same; their probabilities become what they say (1706.04599). Figures and
    report of a run follow.

    Args:
        split: val, the validation images (`--set val_fraction` holds some out), or all, for a data
            set of which the model has seen no image.
    """
    options.check_model(model)
    options.check_data(data)
    from resnets import assessment

    how = InferenceOptions(split=split, device=device, workers=workers)
    return assessment.calibration(model, str(data), how)


@public
def report(run: str | Path, /, *, data: str | Path | None = None) -> Path:
    """Write report.html and the model card README.md of RUN anew.

    In Python the path of the report is returned.

    Args:
        data: Where the data is now, if it was moved.
    """
    from resnets.training.run import Run

    folder = Run(Path(run))
    folder.read_json("source.json")
    if data is not None:
        options.check_data(data)
    from resnets import lifecycle

    return lifecycle.report(folder, data=None if data is None else str(data))


@public
def analyze(
    kind: Kind, model: str | Path, data: str | Path | None = None, /, *,
    out: str | Path | None = None, input: str = "", seed: int = 0,
    split: Literal["test", "val", "train", "all"] | None = None, max_unreadable: float = 0.01,
    overrides: Mapping[str, Any] | Sequence[str] | None = None,
    normalize: Literal["data", "imagenet", "none"] | None = None, batch: int | None = None,
    device: str = "auto", workers: int = 2,
) -> Analysis:  # fmt: skip
    """Look inside MODEL: a table, a CSV file, a picture, and what they say in a sentence.

    Without DATA the network sees normal noise with random labels. With it, training images; where
    errors are measured (lesions, swaps, precise) the validation images, else the test images.

    Args:
        kind: Responses, signal or gradients by layer; equations of identity shortcuts; lesions or
            swaps of units; paths by length; the loss landscape; precise statistics.
        model: A run folder, a model file, foreign weights, a name from `resnets models` (fresh
            weights), or my_module:build, a function found here that returns a torch module.
        out: A new folder; analysis/KIND-MODEL when left out.
        input: Shape of one input, as 3x32x32, where neither network nor DATA says it.
        seed: Of fresh weights, of noise, and of all that is drawn.
        batch: Images of a forward pass.
    """
    from resnets import instruments
    from resnets.config import families

    name = str(model)
    folder = Path(out or Path("analysis", f"{kind}-{Path(name.replace(':', '-')).name}"))
    options.check_empty(folder)
    if not re.fullmatch(r"([1-9]\d*(x[1-9]\d*)*)?", input):
        raise UsageError(f"--input {input}: write the shape of one input, as 3x32x32")
    if data is None and kind in ERRORS:
        raise UsageError(f"{kind} measures errors on images: resnets analyze {kind} MODEL DATA")
    if Path(name).exists() or Path(name).name != name:
        options.check_model(name)
    elif overrides:
        raise UsageError(f"--set is for a foreign file, {name} is none")
    elif ":" not in name:
        families.arch(name)
    if data is not None:
        options.check_data(data)
        options.check_outside(folder, data)
    how = InferenceOptions(
        split=split, max_unreadable=max_unreadable, normalize=normalize, batch=batch,
        fields=options.arch_overrides(overrides), device=device, workers=workers,
    )  # fmt: skip
    shape = tuple(map(int, input.split("x"))) if input else ()
    place = None if data is None else str(data)
    return instruments.analyze(kind, name, place, folder, shape, seed, how)


@public
def list_models(pattern: str = "*", /) -> Iterator[dict[str, Any]]:
    """List the networks: name, depth, parameters, multiply-adds, input, source."""
    from resnets import listing

    return listing.list_models(pattern)


@public
def load(
    path: str | Path, *, task: Task | None = None, classes: Sequence[str] | None = None,
    overrides: Mapping[str, Any] | Sequence[str] | None = None,
    precision: Literal["float32", "bfloat16"] = "float32", device: str = "cpu",
) -> Model:  # fmt: skip
    """A model from a run folder, one of our model files, or a foreign weights file.

    See `evaluation.model.load`, also for the errors; `overrides` are arch.FIELD=VALUE.
    """
    options.check_model(path)
    from resnets.device import pick_device
    from resnets.evaluation import predictor

    place, bfloat16, fields = (
        pick_device(device),
        precision == "bfloat16",
        options.arch_overrides(overrides),
    )
    return predictor.load(
        path, device=place, bfloat16=bfloat16, classes=classes, task=task, fields=fields
    )


@public
def create(
    model: str | Arch, *, classes: int | None = None, channels: int | None = None,
    checkpoint: int = 0,
) -> Network:  # fmt: skip
    """A network by name or description, with other numbers of classes or input channels.

    With `checkpoint` its training keeps the input of each segment of that many residual units and
    recomputes the rest. Raises UsageError with the nearest known names.
    """
    from resnets.config import families

    if isinstance(model, str):
        families.arch(model)
    from resnets import models

    return models.create(model, classes=classes, channels=channels, checkpoint=checkpoint)


@public
def data_get(
    name: Literal["cifar10", "cifar100"], /, *,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> Path:  # fmt: skip
    """Fetch a data set into the cache (RESNETS_DATA, else the user's cache folder).

    Args:
        watch: Called with the bytes that have come, and their number or 0.
    """
    from resnets.data import download

    return download.get(name, watch)


@public
def data_info(data: str | Path, /, *, task: Task | None = None) -> dict[str, Any]:
    """Show what DATA holds: splits, classes, sizes, digest, unreadable files, problems.

    Args:
        task: What the labels are for; guessed from the files when left out.
    """
    from resnets import listing

    options.check_data(data)
    return listing.data_info(str(data), task)


@public
def data_check(data: str | Path, /, *, task: Task | None = None) -> list[dict[str, Any]]:
    """List everything that is wrong with DATA, with its place; exit code 3 if training refuses it.

    Args:
        task: What the labels are for; guessed from the files when left out.
    """
    from resnets import listing

    options.check_data(data)
    return listing.data_check(str(data), task)


@public
def runs(root: str | Path = "runs", /) -> list[dict[str, Any]]:
    """List the runs below a folder: path, model, data, progress, error on which images."""
    from resnets import listing

    return listing.runs(Path(root))


@public
def runs_compare(*runs: str | Path) -> dict[str, Any]:
    """Put runs side by side: their figures, and what differs in recipe, data, code and machine.

    Runs that differ in seed only are one group: mean, deviation and interval of their errors.
    """
    from resnets.training.run import Run

    folders = [Run(Path(run)) for run in runs]
    for folder in folders:
        folder.read_json("recipe.json")
    from resnets.reporting.compare import compare

    return compare(folders)


@public
def doctor(*, quick: bool = False) -> dict[str, str]:
    """Look at this machine: versions, processor, GPU, memory, disk, and a ten-second speed check.

    Args:
        quick: Leave out the speed check.
    """
    from resnets import machine

    return machine.describe_machine(quick)

"""The plan of a training run: what is asked for is checked, then data and network are chosen."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnets.api import checks
from resnets.api.checks import public
from resnets.config.types import TaskName
from resnets.errors import MissingCode, UsageError
from resnets.files import find_model_file, network_builder

if TYPE_CHECKING:
    import torch
    from torch.nn import Module
    from typing_extensions import TypeIs

    from resnets.config.arch import Arch, ExternalArch
    from resnets.config.recipe import Recipe
    from resnets.config.weights import WeightsRow
    from resnets.data.dataset import Source
    from resnets.data.torch_dataset import Data
    from resnets.evaluation.predictor import Model
    from resnets.training.plan import Plan, Task
else:  # so that the annotations can be read without torch
    Data = str | Path | Any
    Module = Arch = ExternalArch = Recipe = Plan = Any


@public
def plan(
    data: Data | Plan, *, task: TaskName | None = None,
    model: str | Module | ExternalArch | None = None,
    recipe: str | Path | Recipe | None = None, weights: str | Path | None = None,
    epochs: float | None = None, budget: float | str | None = None, lr: float | None = None,
    batch: int | None = None, size: int | None = None, seed: int | None = None,
    overrides: Mapping[str, Any] | Sequence[str] | None = None, devices: int = 1,
    device: str = "auto", workers: int = 2,
) -> Plan:  # fmt: skip
    """Everything a training run will do, chosen from the data where nothing is given.

    In Python `data` may be a torch Dataset of (image, label), which is split at random, or a
    dictionary of Datasets called train, val and test (`data.torch_dataset.load`); `model` may be a
    module from images to logits, which starts from the weights that it has. A plan is returned as
    it is, without other arguments.

    Raises UsageError for an unknown model, recipe or field, a value of the wrong type, or a model
    of another task; DataError where the data is missing, empty, broken or has one class.

    Args:
        data: digits, cifar10, cifar100, a folder of class folders, or a CSV of path,label.
        task: What the network is for; by default the model's task, else classification.
        model: A name from `resnets models`, or my_module:build, a function of the working folder
            that returns a torch module; chosen from the data by default.
        recipe: A published recipe (paper-cifar10, quick-cifar10, ...), a TOML file, or a run's
            recipe.json.
        weights: Published weights by name (`resnets weights ls`; imagenet: the best free ones of
            the network), a run folder or a weights file to start from, ours, torchvision's or
            timm's; none: random weights. When left out, and a recipe too, photographs start from
            published weights that are in a cache of this machine.
        epochs: Passes over the training images.
        budget: Training time instead of epochs, e.g. 90s, 30m or 1.5h: as many steps as fit.
        lr: The peak learning rate.
        batch: Images per optimiser step, over all devices.
        size: Side length of the input in pixels.
        seed: Seed of the initial weights, the image order and the augmentation.
        overrides: A field of the recipe, e.g. lr=0.2; may be repeated.
        devices: Number of processes (one GPU each, if there are any) that share each batch.
        device: auto, cpu, cuda or cuda:N.
        workers: Number of processes that decode image files.
    """
    began = time.monotonic()  # the imports that follow count where there is a budget
    fields = {
        "model": model, "weights": weights and str(weights), "epochs": epochs, "lr": lr,
        "budget": budget, "batch": batch, "size": size, "seed": seed,
    }  # fmt: skip
    if is_plan(data):
        others = {"task": task, "recipe": recipe, "overrides": overrides, "devices": devices}
        refuse_beside_plan(fields | others | {"device": device, "workers": workers})
        return data
    from resnets.config import families, recipes
    from resnets.config.recipe import Recipe

    checks.check_data(data)
    external = read_model(model)
    name = external.builder if external else model
    fields["model"] = name
    fields["budget"] = None if budget is None else checks.parse_seconds(budget)
    fields["weights"] = read_weights(weights)
    base = None if recipe is None else recipes.read_recipe(recipe)
    changes = read_changes(fields, overrides or {}, base)
    draft = recipes.replace_fields(base or Recipe(model="resnet18"), changes)
    network: Arch | None = external
    beside = network_builder(Path(recipe).parent) if isinstance(recipe, str | Path) else ""
    if network is None and base is not None and (":" in draft.model or draft.model == beside):
        raise MissingCode("the recipe is for", draft.model, "--model")
    if network is None and (base is not None or "model" in changes):
        network = families.get_arch(draft.model)
    checked_task = check_recipe(draft, network, task)
    result = load_and_resolve(
        data, base, changes, checked_task, external, draft.max_unreadable, devices, device, workers
    )
    if name not in (None, result.recipe.model):
        started = result.recipe
        raise UsageError(f"--model {name}: {started.weights} is {started.model}; leave it out")
    from resnets.training.distributed import launch_time

    return replace(result, began=launch_time(began))


def read_changes(
    named: Mapping[str, Any], overrides: Mapping[str, Any] | Sequence[str], base: Recipe | None
) -> dict[str, Any]:
    """The fields that differ from the recipe `base`, by arguments of their own or FIELD=VALUE."""
    from resnets.config.recipe import rename_old_fields

    changes = {name: value for name, value in named.items() if value is not None}
    if wrong := [name for name, value in changes.items() if isinstance(value, bool)]:
        raise UsageError(f"{wrong[0]}={changes[wrong[0]]}: give a number or a string")
    fields = checks.parse_fields(overrides)
    if twice := changes.keys() & fields:
        raise UsageError(f"{min(twice)} is given twice, by its own option and by --set")
    if "data" in fields:
        raise UsageError("--set data: the data is the first argument, leave this out")
    changes |= rename_old_fields(fields)
    shortened = base is None or not {"epochs", "steps", "budget"}.isdisjoint(changes)
    if shortened and {"eval_every", "early_stop_patience", "patience"}.isdisjoint(changes):
        changes.setdefault("evaluations", 5)  # a short run has a curve too
    return changes


def check_recipe(recipe: Recipe, network: Arch | None, task: TaskName | None) -> TaskName:
    """The task of a recipe and its network, if one is chosen. Raises UsageError.

    It names weights or a teacher that are not there, and a network of another task.
    """
    from resnets.config import arch

    for field in ("weights", "teacher"):
        check_start(field, getattr(recipe, field), recipe.model, network)
    network_task = arch.task_for_arch(network) if network else task or "classify"
    if network_task != (task or network_task):
        raise UsageError(f"{recipe.model} cannot {task}: it is a network to {network_task}")
    keeps = recipe.freeze_backbone_epochs or recipe.freeze_stages or recipe.norm == "frozen"
    if not recipe.weights and (keeps or recipe.head == "probe"):
        raise UsageError(
            "head=probe, norm=frozen, freeze_stages=N and freeze_backbone_epochs=N need weights to "
            "start\nfrom: --weights NAME|FILE|RUN"
        )
    return network_task


def load_and_resolve(
    data: Data, base: Recipe | None, changes: Mapping[str, Any], task_name: TaskName,
    external: ExternalArch | None, max_unreadable: float, devices: int, device: str, workers: int,
) -> Plan:  # fmt: skip
    """Load the data and resolve the plan, in micro-batches as large as memory allows."""
    from resnets.data import dataset, splits
    from resnets.device import pick_device
    from resnets.training import distributed, memory
    from resnets.training.resolve import resolve
    from resnets.training.tasks import find_task

    launched = distributed.launched()
    ranks = distributed.join(device) if launched else distributed.World(size=devices)
    target = ranks.device if launched else pick_device(device)
    task = find_task(task_name)
    task.require()
    source = dataset.load(data, max_unreadable=max_unreadable, task=task_name)
    recipe, pretrained, suggested = choose_recipe(base, changes, source, task, target, external)
    # A run is resumed from anywhere, so paths are kept whole; a name stays a name.
    recipe = replace(
        recipe,
        data=dataset.name_in_recipe(data, source),
        teacher=name_in_recipe(recipe.teacher, recipe.model),
    )
    source = splits.apply_holdout(
        source, recipe.trainval, recipe.val_fraction, recipe.seed, recipe.folds, recipe.fold
    )
    result = resolve(recipe, source, target, workers, ranks, task, external, pretrained)
    return replace(memory.fit_to_memory(result), data=data, suggested=suggested)


def choose_recipe(
    base: Recipe | None, changes: Mapping[str, Any], source: Source, task: Task,
    device: torch.device, external: ExternalArch | None,
) -> tuple[Recipe, Model | None, WeightsRow | None]:  # fmt: skip
    """The recipe `base`, or the one that suits the data and what training starts from, changed.

    Without a recipe published weights are used if they are in a cache of this machine, and would
    help. Returns what the recipe starts from too, and published weights that it does without.
    """
    from resnets.config import recipes
    from resnets.models.io.fetch import cached_path
    from resnets.training.resolve import load_pretrained_model, suggest_weights, training_images

    train = training_images(source)
    recipe = recipes.replace_fields(base or task.default_recipe(source, train, device), changes)
    suggested = None
    if base is None and external is None and "weights" not in changes:
        suggested = suggest_weights(source, train, recipe, task)
        if suggested and cached_path(suggested):
            changes, suggested = {**changes, "weights": suggested.name}, None
    recipe = recipes.replace_fields(recipe, changes)
    recipe = replace(recipe, weights=name_in_recipe(recipe.weights, recipe.model))
    pretrained = load_pretrained_model(recipe, external)
    if base is None and pretrained and not external and task.pretrained_recipe:
        chosen = task.pretrained_recipe(source, train, pretrained, device)
        if chosen is not None:
            chosen = recipes.replace_fields(chosen, changes)
            recipe = replace(chosen, weights=recipe.weights)
    return recipe, pretrained, suggested


def read_model(model: str | Module | ExternalArch | None) -> ExternalArch | None:
    """The code of a network, if it is custom.

    Raises UsageError for an unknown name, and for code that is no module.
    """
    if isinstance(model, str) and ":" not in model:
        from resnets.config import families

        families.get_arch(model)
        return None
    if model is None:
        return None
    from resnets.models import external

    return external.describe(model)


def read_weights(weights: str | Path | None) -> str | None:
    """The weights as a field of the recipe, where none is empty; None where they are left open."""
    if weights is None:
        return None
    return "" if str(weights).lower() == "none" else str(weights)


def check_start(field: str, text: str, model: str, network: Arch | None) -> None:
    """Raise UsageError if `text` is no name, file or run for `network`; "" is no weights."""
    if not text:
        return
    if not os.path.exists(text):
        from resnets.config.weights import check_weights

        check_weights(text, model, option=f"--{field} {text}: ")
        return
    file = find_model_file(text, option=f"--{field} {text}: ")
    builder = network_builder(file.parent)
    if builder and field == "teacher":
        raise UsageError(f"{text} was trained from {builder}; a teacher must be of resnets")
    if builder and not hasattr(network, "builder"):
        raise MissingCode(f"{text} was trained from", builder, "--model")


def name_in_recipe(text: str, model: str) -> str:
    """A file or run as a whole path, published weights as the name of their row."""
    if text and os.path.exists(text):
        return str(Path(text).resolve())
    from resnets.config.weights import full_name

    return full_name(text, model)


def refuse_beside_plan(arguments: Mapping[str, Any]) -> None:
    """Raise UsageError for an argument of `plan` beside a plan that is made already."""
    defaults = inspect.signature(plan).parameters
    for name, value in arguments.items():
        if value != defaults[name].default:
            raise UsageError(f"{name} is an argument of `plan`, and this plan is made already")


def is_plan(data: object) -> TypeIs[Plan]:
    """Whether `plan` made it; torch is not imported for a path."""
    if isinstance(data, str | Path):
        return False
    from resnets.training.plan import Plan

    return isinstance(data, Plan)

"""What a budget makes of an experiment: the jobs, and the recipe of each. No torch here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from resnets.config.arch import Arch, DetectorArch, with_fields
from resnets.config.families import get_arch
from resnets.config.recipe import Recipe, to_dict
from resnets.errors import UsageError, nearest
from resnets.papers import ledger
from resnets.papers.experiment import EXTERNAL_DATA, Arm, Experiment
from resnets.papers.experiments import EXPERIMENTS, get_experiment
from resnets.papers.ledger import Row

Budget = Literal["smoke", "cpu", "gpu", "full"]
Precision = Literal["auto", "float32", "bfloat16"]
# Millions of multiply-adds of an image, by depth, for estimates (`models.cost` counts exactly).
MACS = {18: 1795, 20: 41, 28: 5243, 32: 69, 34: 3664, 44: 97, 50: 4089, 56: 125, 100: 288}
MACS |= {101: 7570, 110: 253, 152: 11282, 164: 245, 200: 14776, 1001: 1488, 1202: 2829}
STEPS = {"smoke": 2, "cpu": 400, "gpu": 8000}
TEST_IMAGES = {"digits": 450, "cifar10": 10_000, "cifar100": 10_000, "imagenet": 50_000}
TRAIN_IMAGES = {"digits": 899, "cifar10": 50_000, "cifar100": 50_000, "imagenet": 1_281_167}
SIDE = {"smoke": 8, "cpu": 16, "gpu": 32}  # pixels; twice as many for the networks of ImageNet
# For detection and localisation: side, images of a step, regions of an image.
DENSE_TASK_SIZES: dict[Budget, tuple[int, int, int]] = {
    "smoke": (64, 2, 4), "cpu": (256, 8, 32), "gpu": (600, 8, 256),
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One arm, budget and seed."""

    experiment: Experiment
    arm: Arm
    budget: Budget
    seed: int
    data: str | None = None  # the path of data that has to be named
    weights: str = ""  # of the classifier that a detector or localiser starts from, at "full"
    precision: Precision = "auto"

    @cached_property
    def recipe(self) -> Recipe | None:
        """How its network is trained at this budget; None where nothing is trained."""
        recipe = self.arm.recipe
        if recipe is None:
            return None
        dense = recipe.data in EXTERNAL_DATA and recipe.data != "imagenet"
        full = self.budget == "full"
        data = self.data if dense or (full and recipe.data == "imagenet") else None
        recipe = replace(
            recipe,
            precision=self.precision,
            seed=recipe.seed + self.seed,
            data=data or recipe.data,
            weights=self.weights if dense and full else recipe.weights,
        )
        if full:
            return recipe
        return scale_dense_recipe(self, recipe) if dense else scale_recipe(self, recipe)

    @property
    def recipe_digest(self) -> str:
        """SHA-256 of the recipe's fields that differ from their defaults; "" without one.

        So a field that a later version adds changes nothing. Where the data and the weights lie and
        the precision, which a machine decides, do not count.
        """
        if self.recipe is None or self.arm.recipe is None:
            return ""
        recipe = replace(self.recipe, data=self.arm.recipe.data, weights="", precision="auto")
        changed = changed_fields(to_dict(recipe), to_dict(Recipe(model="", data="")))
        return hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()

    @cached_property
    def iterations(self) -> int:
        """Optimiser steps."""
        images = TRAIN_IMAGES.get(self.recipe.data if self.recipe else "", TRAIN_IMAGES["imagenet"])
        return self.recipe.total_steps(images) if self.recipe else 0

    @property
    def key(self) -> dict[str, Any]:
        """The values by which a row of the ledger is found."""
        named = {"experiment": self.experiment.id, "arm": self.arm.name, "budget": self.budget}
        return named | {"seed": self.seed, "iterations": self.iterations}

    def ledger_rows(self, rows: Iterable[Row]) -> list[Row]:
        """The rows of the ledger that are this job's; older ones do not name the recipe."""
        matching, digest = ledger.select(rows, **self.key), self.recipe_digest
        if not self.recipe:
            return matching
        if self.precision != "auto":
            matching = ledger.select(matching, precision=self.precision)
        return [row for row in matching if row.get("recipe", digest) == digest]

    @property
    def name(self) -> str:
        """Of its run folder, which all experiments that train alike share, or of what it counts."""
        recipe = self.recipe
        if recipe is None or self.arm.recipe is None:
            return f"{self.experiment.id}-{self.arm.name}"
        data = "" if self.budget == "smoke" else self.arm.recipe.data
        named = replace(recipe, data=data, weights=Path(recipe.weights).name)
        text = json.dumps(to_dict(named), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return f"{recipe.model}-{self.iterations}-seed{recipe.seed}-{digest}"

    @cached_property
    def network(self) -> Arch | None:
        """The network that is trained; None where nothing is."""
        recipe = self.recipe
        return with_fields(get_arch(recipe.model), recipe.arch) if recipe else None

    @property
    def layers(self) -> int:
        """Of its network; 0: nothing is trained."""
        return self.network.depth if self.network else 0

    @property
    def size(self) -> int:
        """Side of its images."""
        return self.recipe.size or get_arch(self.recipe.model).size if self.recipe else 0

    @property
    def images(self) -> int:
        """Images in training, each counted as often as it is used."""
        return self.iterations * self.recipe.batch if self.recipe else 0

    @property
    def cost(self) -> float:
        """Images times multiply-adds; a detector's regions count as a tenth of an image each."""
        if not self.recipe:
            return 0.0
        backbone: Any = getattr(self.network, "backbone", self.network)
        full_depth = get_arch(self.recipe.model).depth
        # MACS are for the full depth and the backbone's own side.
        scale = self.layers / full_depth * (self.size / backbone.size) ** 2
        if getattr(self.network, "architecture", "") == "c4":  # a tenth of conv5 for each region
            scale += 0.1 * getattr(self.network, "sampled", 0)
        return float(scale * MACS[full_depth] * 1e6 * self.images)

    @property
    def trainings(self) -> list[Job]:
        """This one and those that train what else it needs."""
        return [self, *(replace(self, arm=member) for member in self.arm.members)]


def changed_fields(fields: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that differ from their defaults, of `augment` too."""
    changed = {key: value for key, value in fields.items() if value != defaults[key]}
    if "augment" in changed:
        changed["augment"] = changed_fields(fields["augment"], defaults["augment"])
    return changed


def jobs(
    experiment: Experiment,
    budget: Budget,
    seeds: int = 1,
    data: str | None = None,
    weights: str = "",
    *,
    seed: int = 0,
    arms: Sequence[str] = (),
    precision: Precision = "auto",
) -> Iterator[Job]:
    """The jobs of an experiment, or of these `arms`, with the seeds from `seed` on.

    An arm that is not trained has one job, of seed 0.
    """
    chosen = [arm for arm in experiment.arms if not arms or arm.name in arms]
    for number in range(seed, seed + seeds):
        for arm in () if experiment.not_runnable else chosen:
            if arm.recipe or number == seed:
                job = Job(experiment, arm, budget, number, data, weights, precision)
                yield job if arm.recipe else replace(job, seed=0)


def select_experiments(
    ids: Sequence[str],
    budget: Budget = "smoke",
    data: str | None = None,
    arms: Sequence[str] = (),
) -> list[Experiment]:
    """The experiments of these ids that have one of these arms, if any are named.

    Without ids, all that need no data to be named. Raises UsageError for an experiment that one
    command cannot run, for an unknown arm, and for `data` where two data sets are needed.
    """
    selected = []
    for name in ids or EXPERIMENTS:
        experiment = get_experiment(name)
        if ids and experiment.not_runnable:
            raise UsageError(f"{experiment.id} {experiment.not_runnable}")
        if ids or not required_data(experiment, budget):
            selected.append(experiment)
    needed = {required_data(experiment, budget) for experiment in selected} - {""}
    if data and len(needed) > 1:
        raise UsageError(f"--data is for one of {', '.join(sorted(needed))}: name its experiments")
    names = [arm.name for experiment in selected for arm in experiment.arms]
    if unknown := [arm for arm in arms if arm not in names]:
        raise UsageError(f"no arm {unknown[0]!r}: {nearest(unknown[0], names)}")
    return [e for e in selected if not arms or any(arm.name in arms for arm in e.arms)]


def required_data(experiment: Experiment, budget: Budget) -> str:
    """The data that an experiment needs to have named at this budget, "" for none."""
    needed = budget == "full" if experiment.external_data == "imagenet" else budget != "smoke"
    return experiment.external_data if needed else ""


def scale_recipe(job: Job, recipe: Recipe) -> Recipe:
    """The recipe of a classifier at a job's budget: other length, resolution and data.

    "gpu" has CIFAR at its own size, "cpu" at half of it, "smoke" the digits, 128 images a step and
    exact statistics of normalisation. Data of `imagenet` becomes CIFAR-10 at twice the size. A
    start at a low rate takes a tenth of the run or 50 steps. At "cpu" an experiment may have its
    own side, and its networks fewer units in a stage; all others keep their networks.
    """
    experiment, budget, large = job.experiment, job.budget, recipe.data == "imagenet"
    fewest = min(arm.recipe.steps for arm in experiment.arms if arm.recipe)
    steps = experiment.steps.get(budget, STEPS[budget]) * (recipe.steps // fewest if fewest else 1)
    side = experiment.cpu_side if experiment.cpu_side and budget == "cpu" else SIDE[budget]
    data_name = "digits" if budget == "smoke" else "cifar10" if large else recipe.data
    short = replace(
        recipe,
        data=data_name,
        size=2 * side if large and budget != "smoke" else side,
        train_size=0,
        steps=steps,
        normalize="data",
        augment=replace(recipe.augment, crop="pad", pad=side // 8, repeated_aug=1),
        warmup=min(0.1, recipe.warmup) if recipe.warmup < 1 else min(0.1, 50 / steps),
        milestones=recipe.milestones if recipe.schedule == "step" else (),
        val_fraction=0.0,
        monitor="test",
        select="last",
    )
    if recipe.schedule == "plateau":  # which a test set must not choose
        short = replace(short, schedule="step", milestones=(0.5, 0.75))
    if budget == "smoke":
        grey = replace(short.augment, colour="none", policy="none")
        usual = recipe.lr_batch or recipe.batch
        # It has no validation images, so nothing is evaluated before the end.
        short = replace(short, batch=128, lr_batch=usual, augment=grey, monitor="val")
        # After two steps running averages are far from the statistics: 110 layers would overflow.
        short = replace(short, precise_bn=2)
    elif experiment.cpu_units and budget == "cpu":
        short = replace(short, arch={**recipe.arch, "blocks": [experiment.cpu_units] * 3})
    evaluations = 1 if budget == "smoke" else 6
    return replace(
        short, eval_every=max(1, steps // evaluations) * short.batch / TRAIN_IMAGES[data_name]
    )


def scale_dense_recipe(job: Job, recipe: Recipe) -> Recipe:
    """The recipe of a detector or localiser at a job's budget.

    It starts from random weights, with normalisation that learns, at another size, on fewer
    regions.
    """
    side, batch, regions = DENSE_TASK_SIZES[job.budget]
    side = min(side, recipe.size or get_arch(recipe.model).size)
    if isinstance(get_arch(recipe.model), DetectorArch):
        few = {"sampled": regions, "proposals": [8 * regions, regions]}
    else:
        few = {"regions": [2, regions], "crop": side} if "regions" in recipe.arch else {}
    return replace(
        recipe,
        arch={**recipe.arch, **few},
        size=side,
        steps=job.experiment.steps.get(job.budget, STEPS[job.budget]),
        batch=batch,
        norm="batch",
        normalize="data",
        augment=replace(recipe.augment, crop="none"),
        trainval=False,
        monitor="test",
        eval_every=1e6,  # at the end
    )

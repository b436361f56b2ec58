"""What a budget makes of an experiment: the jobs, and the recipe of each. No torch here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from resnets.config import arch as archs
from resnets.config.arch import Arch, with_fields
from resnets.config.families import arch
from resnets.config.recipe import Recipe, to_dict
from resnets.errors import UsageError, nearest
from resnets.papers.experiment import PLACES, Arm, Experiment
from resnets.papers.experiments import EXPERIMENTS, experiment

Budget = Literal["smoke", "cpu", "gpu", "full"]
Precision = Literal["auto", "float32", "bfloat16"]
# Millions of multiply-adds of an image, by depth, for estimates (`nets.cost` counts exactly).
MACS = {18: 1795, 20: 41, 28: 5243, 32: 69, 34: 3664, 44: 97, 50: 4089, 56: 125, 100: 288}
MACS |= {101: 7570, 110: 253, 152: 11282, 164: 245, 200: 14776, 1001: 1488, 1202: 2829}
STEPS = {"smoke": 2, "cpu": 400, "gpu": 8000}
TESTED = {"digits": 450, "cifar10": 10_000, "cifar100": 10_000, "imagenet": 50_000}
IMAGES = {"digits": 899, "cifar10": 50_000, "cifar100": 50_000, "imagenet": 1_281_167}
SIDE = {"smoke": 8, "cpu": 16, "gpu": 32}  # pixels; twice as many for the networks of ImageNet
# Of scenes: side, images of a step, and regions of a detector that are learnt from or judged.
SCENES: dict[Budget, tuple[int, int, int]] = {
    "smoke": (64, 2, 4), "cpu": (256, 8, 32), "gpu": (600, 8, 256),
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One arm, budget and seed."""

    experiment: Experiment
    arm: Arm
    budget: Budget
    seed: int
    data: str | None = None  # the place of data that has to be named
    weights: str = ""  # of the classifier that scenes start from at full length
    precision: Precision = "auto"

    @property
    def recipe(self) -> Recipe | None:
        """How its network is trained at this budget."""
        recipe = self.arm.recipe and replace(self.arm.recipe, precision=self.precision)
        if recipe and recipe.data in PLACES and recipe.data != "imagenet":
            return scene(self, recipe)
        return recipe and scaled(self.experiment, recipe, self.budget, self.seed, self.data)

    @property
    def iterations(self) -> int:
        """Optimiser steps."""
        recipe = self.recipe
        return recipe.total_steps(IMAGES.get(recipe.data, IMAGES["imagenet"])) if recipe else 0

    @property
    def key(self) -> dict[str, Any]:
        """What makes a line of the ledger the line of this job."""
        named = {"experiment": self.experiment.id, "arm": self.arm.name, "budget": self.budget}
        return named | {"seed": self.seed, "iterations": self.iterations}

    def lines(self, rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Those of the ledger that are this job's."""
        own = [row for row in rows if all(row.get(k) == v for k, v in self.key.items())]
        named = self.precision if self.precision != "auto" and self.recipe else None
        return [row for row in own if named is None or row.get("precision") == named]

    @property
    def name(self) -> str:
        """Of its run folder, which all experiments that train alike share, or of what it counts."""
        recipe = self.recipe
        if recipe is None or self.arm.recipe is None:
            return f"{self.experiment.id}-{self.arm.name}"
        place = "" if self.budget == "smoke" else self.arm.recipe.data
        plain = replace(recipe, data=place, weights=Path(recipe.weights).name)
        told = json.dumps(to_dict(plain), sort_keys=True)
        digest = hashlib.sha256(told.encode()).hexdigest()[:8]
        return f"{recipe.model}-{self.iterations}-seed{recipe.seed}-{digest}"

    @property
    def layers(self) -> int:
        """Of its network; 0: nothing is trained."""
        recipe = self.recipe
        return with_fields(arch(recipe.model), recipe.arch).depth if recipe else 0

    @property
    def size(self) -> int:
        """Side of its images."""
        recipe = self.recipe
        return recipe.size or arch(recipe.model).size if recipe else 0

    @property
    def images(self) -> int:
        """Images in training, each counted as often as it is shown."""
        return self.iterations * self.recipe.batch if self.recipe else 0

    @property
    def cost(self) -> float:
        """Images times multiply-adds; a detector's regions count as a tenth of an image each."""
        recipe = self.recipe
        if not recipe:
            return 0.0
        network = with_fields(arch(recipe.model), recipe.arch)
        backbone: Arch = getattr(network, "backbone", network)
        usual = arch(recipe.model).depth
        part = self.layers / usual * (self.size / backbone.size) ** 2  # MACS are of that side
        if getattr(network, "form", "") == "c4":  # conv5 is a tenth of a network, for each region
            part += 0.1 * getattr(network, "sampled", 0)
        return part * MACS[usual] * 1e6 * self.images

    @property
    def all(self) -> list[Job]:
        """This one and those that train what else it needs."""
        return [self, *(replace(self, arm=member) for member in self.arm.members)]


def jobs(
    one: Experiment,
    budget: Budget,
    seeds: int = 1,
    data: str | None = None,
    weights: str = "",
    *,
    seed: int = 0,
    arms: Sequence[str] = (),
    precision: Precision = "auto",
) -> Iterator[Job]:
    """All that is to be run, or of these arms, from `seed` on; what is not trained has one."""
    for k in range(seed, seed + seeds):
        for arm in () if one.needs else one.arms:
            if (not arms or arm.name in arms) and (arm.recipe or k == seed):
                yield Job(one, arm, budget, k if arm.recipe else 0, data, weights, precision)


def chosen(
    ids: Sequence[str],
    budget: Budget = "smoke",
    data: str | None = None,
    arms: Sequence[str] = (),
) -> list[Experiment]:
    """The experiments of these ids that have one of these arms, if any are named.

    Without ids all whose data need not be named. Raises UsageError for one that one command cannot
    run, for an arm that none has, and for `data` that would be two.
    """
    for one in map(experiment, ids):
        if one.needs:
            raise UsageError(f"{one.id} {one.needs}")
    wanted = [one for one in map(experiment, ids or EXPERIMENTS) if ids or not lacks(one, budget)]
    if data and len(places := {place for one in wanted if (place := lacks(one, budget))}) > 1:
        raise UsageError(f"--data is of one of {', '.join(sorted(places))}: name its experiments")
    names = [arm.name for one in wanted for arm in one.arms]
    if unknown := [arm for arm in arms if arm not in names]:
        raise UsageError(f"no arm {unknown[0]!r}: {nearest(unknown[0], names)}")
    return [one for one in wanted if not arms or any(arm.name in arms for arm in one.arms)]


def lacks(one: Experiment, budget: Budget) -> str:
    """The data that an experiment needs to have named at this budget, "" for none."""
    needed = budget == "full" if one.place == "imagenet" else budget != "smoke"
    return one.place if needed else ""


def scaled(
    one: Experiment, recipe: Recipe, budget: Budget, seed: int, data: str | None = None
) -> Recipe:
    """A recipe at a budget, which changes length, resolution and data.

    "full" is the paper's; "gpu" has CIFAR at its own size, "cpu" at half of it, "smoke" the digits
    and 128 images a step. Data of `imagenet` becomes CIFAR-10 at twice the size. A start at a low
    rate takes a tenth of the run or 50 steps. At "cpu" an experiment may have its own side, and its
    networks fewer units in a stage; all others keep their networks.
    """
    recipe = replace(recipe, seed=recipe.seed + seed)
    large = recipe.data == "imagenet"
    if budget == "full":
        return replace(recipe, data=data) if large and data else recipe
    fewest = min(arm.recipe.steps for arm in one.arms if arm.recipe)
    steps = one.steps.get(budget, STEPS[budget]) * (recipe.steps // fewest if fewest else 1)
    side = one.side if one.side and budget == "cpu" else SIDE[budget]
    place = "digits" if budget == "smoke" else "cifar10" if large else recipe.data
    short = replace(
        recipe,
        data=place,
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
        # Watched is a split that there is not: the test is at the end.
        short = replace(short, batch=128, lr_batch=usual, augment=grey, monitor="val")
    elif one.units and budget == "cpu":
        short = replace(short, arch={**recipe.arch, "blocks": [one.units] * 3})
    parts = 1 if budget == "smoke" else 6  # of the run, with an evaluation after each
    return replace(short, eval_every=max(1, steps // parts) * short.batch / IMAGES[place])


def scene(job: Job, recipe: Recipe) -> Recipe:
    """The recipe of a network for scenes at a job's budget.

    "full" is the paper's, from the weights of a classifier. Less starts from random weights, with
    normalisation that learns, at another size, on fewer regions.
    """
    recipe = replace(recipe, seed=recipe.seed + job.seed, data=job.data or recipe.data)
    if job.budget == "full":
        return replace(recipe, weights=job.weights)
    side, batch, regions = SCENES[job.budget]
    side = min(side, recipe.size or arch(recipe.model).size)
    if archs.task(arch(recipe.model)) == "detect":
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

"""What an experiment is: a table or figure of a paper as data. No torch here.

An `Experiment` is a table of arms; an `Arm` is a network, how the paper trained it, and what the
paper says came out, in %.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from resnets.config.recipe import Recipe
from resnets.papers import measures
from resnets.papers.measures import Evaluate, Metrics

PaperFigures = Mapping[str, float | str]
EXTERNAL_DATA = {  # data that has to be named, and in what form
    "imagenet": "ImageNet: --data FOLDER with train/ and val/ (or test/) of class folders",
    "imagenet-boxes": "ImageNet's boxes: --data FOLDER in a form that `resnets data check` reads",
    "imagenet-detection": "ImageNet's detection set: --data FOLDER that `resnets data check` reads",
    "voc": "PASCAL VOC: --data FOLDER with Annotations/ and ImageSets/",
    "coco": "COCO: --data FOLDER with annotations/ and its images",
}
NO_CLAIM = "none: the difference is smaller than what a short run can show"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A row of a table, or a line of a figure. Arms of one name are trained alike."""

    name: str
    recipe: Recipe | None = None  # None: nothing is trained
    evaluate: Evaluate | None = None  # the trained models, for figures beside the errors
    compute: Callable[[], Metrics] | None = None  # what is computed where nothing is trained
    paper: PaperFigures = field(default_factory=dict)  # "fail" is a test error above 20 %
    members: tuple[Arm, ...] = ()  # what else is trained for it


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A table or figure, and what less than its full length can show."""

    id: str
    title: str
    arms: tuple[Arm, ...]
    reference: str = "paper"  # heading of the column of `Arm.paper`
    short_run_claim: str = NO_CLAIM
    expected_order: tuple[tuple[str, str], ...] = ()  # pairs: the first has the greater `metric`
    metric: str = "train_error"
    has_curves: bool = False  # whether the paper draws errors over iterations
    steps: Mapping[str, int] = field(default_factory=dict)  # of budgets, where not as in STEPS
    cpu_units: int = 0  # in each stage, at the budget "cpu"; 0: as in the paper
    cpu_side: int = 0  # of the images, likewise
    not_runnable: str = ""  # why it cannot be run from here
    deviation: str = ""  # what is not the paper's, so that no run is by its protocol

    @property
    def external_data(self) -> str:
        """The data that has to be named, "" for none; an experiment has one."""
        data = [arm.recipe.data for arm in self.arms if arm.recipe]
        return next((name for name in data if name in EXTERNAL_DATA), "")


def make_arms(
    base: Recipe, errors: PaperFigures, evaluate: Evaluate | None = None, **changes: Any
) -> tuple[Arm, ...]:
    """An arm for each model, and the test error that the paper has for it; "" where it has none.

    A model may be written "model+tag", where `changes` of the recipe make another arm of it.
    """
    return tuple(
        Arm(
            name=name,
            recipe=replace(base, model=name.partition("+")[0], **changes),
            evaluate=evaluate,
            paper={"test_error": error} if error != "" else {},
        )
        for name, error in errors.items()
    )


def count_rows(metric: str, printed: PaperFigures) -> tuple[Arm, ...]:
    """Arms whose layers, parameters and multiply-adds are counted."""
    return tuple(
        Arm(name=name, compute=partial(measures.count_size, name), paper={metric: figure})
        for name, figure in printed.items()
    )


def pending(id: str, title: str, figures: Mapping[str, str], reason: str) -> Experiment:
    """An experiment that one command cannot run."""
    rows = (Arm(name=name, paper={"": text}) for name, text in figures.items())
    return Experiment(id=id, title=title, arms=tuple(rows), not_runnable=reason)

"""The report of a run: one HTML file that needs nothing else."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jinja2

from resnets.analysis import findings
from resnets.data import dataset
from resnets.data.dataset import Source, Split
from resnets.data.splits import apply_holdout
from resnets.errors import CheckpointError, DataError, ResnetsError
from resnets.escape import visible
from resnets.files import code_option, write_whole
from resnets.reporting import classification, dense, detection, localization, segmentation
from resnets.reporting.facts import RunFacts, about_test, about_training, cost, headline, percent
from resnets.reporting.page import ImageName, Page, PageInputs, plain_page

PAGES = jinja2.Environment(
    loader=jinja2.PackageLoader("resnets.reporting", "."),
    autoescape=jinja2.select_autoescape(["html"]),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    finalize=lambda value: visible(value) if type(value) is str else value,
)
PAGES.filters |= {"percent": percent, "quote": shlex.quote}
PAGES.globals |= {"cost": cost, "headline": headline, "code_option": code_option}


@dataclass(frozen=True)
class Section:
    """What a task's report has beside the parts of all."""

    page: Callable[[PageInputs], Page] = plain_page
    findings: Callable[[RunFacts, ImageName], Iterable[str]] = lambda facts, name: ()


SECTIONS = {  # by the name of the task
    "classify": Section(classification.page, classification.findings),
    "detect": Section(detection.page, dense.findings),
    "localize": Section(localization.page, dense.findings),
    "segment": Section(segmentation.page, dense.findings),
}


def section_of(facts: RunFacts) -> Section:
    """That of the run's task; a task without one has a plain page."""
    return SECTIONS.get(facts.task.name, Section())


def write(facts: RunFacts, source: Source | None = None, network: Any = None) -> Path:
    """Write report.html into the folder of a run, finished or not; what is missing is said.

    `source` is the run's data where it is at hand; else it is read from where the recipe says.
    `network` is that of `evaluation.load.load`.

    Raises CheckpointError, DiskError.
    """
    run, missing = facts.run, ""
    try:
        source = source or reload_data(facts)
    except ResnetsError as error:
        missing = f"There are no pictures: {error}"
    splits = source.splits if source else {}
    tested = splits.get(facts.ended.get("split", ""))
    known = facts.scores.indices.tolist() if facts.scores else []
    if tested and max(known, default=-1) >= len(tested):
        raise CheckpointError(f"{run.path} has scores of images that are not in its split")
    name = partial(short_name, tested)
    page = section_of(facts).page(PageInputs(facts, splits, tested, name, network))
    text = PAGES.get_template("report.html").render(
        facts=facts,
        missing=missing or page.missing,
        problems=source.problems if source else (),
        notes=source.notes if source else (),
        page=page,
        sentences=sentences(facts, name, page.notes, page.counts),
    )
    path = run.path / "report.html"
    write_whole(path, text.encode("utf-8", "backslashreplace"))
    return path


def reload_data(facts: RunFacts) -> Source:
    """The run's data, split as for the run. Raises DataError where it is gone or another."""
    recipe = facts.recipe
    source = dataset.load(recipe.data, max_unreadable=recipe.max_unreadable, task=facts.task.name)
    if source.digest != facts.source["digest"]:
        raise DataError(f"{facts.data} is no longer the data that the run was trained on.")
    return apply_holdout(
        source, recipe.trainval, recipe.val_fraction, recipe.seed, recipe.folds, recipe.fold
    )


def short_name(split: Split | None, index: int) -> str:
    """What an image is called, without the place where the data lies."""
    return "/".join(Path(findings.image_name(split, index)).parts[-2:])


def sentences(
    facts: RunFacts, name: ImageName, notes: Sequence[str] = (), counts: Sequence[int] = ()
) -> list[str]:
    """Notes for the reader, on the honesty of the test first.

    `notes` are the page's; `counts` are the training images, or objects, of each class, empty where
    the data is not at hand.
    """
    findings = section_of(facts).findings(facts, name)
    return [*about_test(facts), *findings, *notes, *about_training(facts, counts)]

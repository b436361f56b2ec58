"""Which report a task has, and the sentences of every report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from resnets.reporting import classification, dense, detection, localization, segmentation
from resnets.reporting.facts import RunFacts, about_test, about_training
from resnets.reporting.page import ImageName, Page, PageInputs, plain_page


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


def sentences(
    facts: RunFacts, name: ImageName, notes: Sequence[str] = (), counts: Sequence[int] = ()
) -> list[str]:
    """What a person should know, the honesty of the test first.

    `notes` are the page's; `counts` are the training images, or objects, of each class, empty where
    the data is not at hand.
    """
    findings = section_of(facts).findings(facts, name)
    return [*about_test(facts), *findings, *notes, *about_training(facts, counts)]

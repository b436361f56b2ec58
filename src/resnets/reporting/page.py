"""The parts of a report that each task fills in its own way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resnets.data.splits import Split
from resnets.reporting import plots
from resnets.reporting.facts import RunFacts, figures, percent

ImageName = Callable[[int], str]  # of an image of the tested split, given its index
Picture = dict[str, Any]
Gallery = tuple[str, str, list[Picture]]  # title, class of its element, pictures
Chart = tuple[str, Any, str]  # id, SVG, caption


@dataclass(frozen=True)
class PageInputs:
    """What a page is made of."""

    facts: RunFacts
    splits: Mapping[str, Split]  # of the data, where it is at hand
    tested: Split | None
    name: ImageName
    network: Any = None  # for a custom network: that of `evaluation.load.load`


@dataclass(frozen=True, kw_only=True)
class Page:
    """What report.html shows; a part that is empty is left out."""

    figures: Sequence[tuple[str, str, str]]  # name, meaning, value
    missing: str = ""  # why there are no pictures
    notes: Sequence[str] = ()  # findings in the data and the pictures
    chart: Chart | None = None  # beside the figures
    columns: Mapping[str, Sequence[Any]]  # of the table of classes
    counts: Sequence[int] = ()  # training images, or objects, of each class
    strips: Sequence[str] = ()  # training images of each class, as addresses
    confusion: Sequence[Sequence[int]] = ()
    matrix: str = ""  # what its rows and columns are
    pictures: Sequence[Gallery] = ()
    curves: Sequence[Chart] = ()


def picture(
    name: str,
    verdict: str,
    images: Iterable[tuple[str, str]],  # addresses, and what they show
    legend: Sequence[tuple[object, str]] = (),  # colours and their classes
) -> Picture:
    """An entry of a gallery."""
    return {"name": name, "verdict": verdict, "images": [*images], "legend": legend}


def error_curve(facts: RunFacts) -> Chart:
    """The errors by epoch, and where they ended."""
    labels = {f"{split}_error": split for split in ("train", "val", "test")}
    last = facts.rows[-1] if facts.rows else {}
    ends = [f"{split} {percent(last[key])}" for key, split in labels.items() if key in last]
    caption = f"Error by epoch{', at the end ' * bool(ends)}{', '.join(ends)}."
    return "curves", plots.history("curves", facts.rows, labels, "error (%)"), caption


def loss_curve(facts: RunFacts) -> Chart:
    """The training loss by epoch."""
    svg = plots.history("curves", facts.rows, {"loss": "training"}, "loss", 1)
    return "curves", svg, "Training loss by epoch."


def plain_page(inputs: PageInputs) -> Page:
    """The page of a task that has none of its own: figures and the training curve."""
    return Page(figures=figures(inputs.facts), columns={}, curves=[loss_curve(inputs.facts)])

"""Runs side by side: their figures, and what differs between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from resnets.errors import UsageError
from resnets.evaluation import metrics
from resnets.reporting.facts import Facts, gather, percent
from resnets.training.run import Run


def compare(runs: Sequence[Run]) -> list[dict[str, str]]:
    """Rows of what is compared (key "what") and each run's value (keyed by its folder).

    First the figures; then, against the first run, the exact test of the images that only one of
    the two has right (McNemar), where both have scores of the same images; then every field of the
    recipe, the data and the machine that is not the same everywhere.

    Raises UsageError for fewer than two runs, or one twice; and as `facts.gather`.
    """
    if len({run.path.resolve() for run in runs}) < max(2, len(runs)):
        raise UsageError("give two runs or more, each once: resnets runs compare A B")
    # A folder called `what` goes by another of its names: that key is taken.
    paths = ["./what" if str(run.path) == "what" else str(run.path) for run in runs]
    every = dict(zip(paths, map(gather, runs), strict=True))
    first, *_ = every.values()
    rows = [
        {"what": "error"} | {name: error(facts) for name, facts in every.items()},
        {"what": "against the first"} | {name: against(first, f) for name, f in every.items()},
    ]
    made = {name: settings(facts) for name, facts in every.items()}
    for key in settings(first):
        row = {name: str(values.get(key, "-")) for name, values in made.items()}
        if len(set(row.values())) > 1:
            rows.append({"what": key} | row)
    return rows


def error(facts: Facts) -> str:
    """The error with its interval, and on which images."""
    if facts.result is None:
        if not facts.ended.get("images"):
            return "not finished"
        label = "" if facts.task == "classify" else f" ({facts.words.error}), {facts.split}"
        return percent(facts.ended["error"]) + label
    low, high = (percent(1 - x) for x in reversed(facts.result.interval))
    return f"{percent(facts.result.error)} ({low} to {high}), {facts.split}"


def against(first: Facts, other: Facts) -> str:
    """How far another run is better or worse, and whether that is more than chance."""
    if first is other or not (first.scores and other.scores) or images(first) != images(other):
        return "-"
    found = metrics.compare(first.scores, other.scores)
    low, high = (f"{100 * x:+.2f}" for x in found.interval)
    points = f"{100 * found.difference:+.2f} points right ({low} to {high})"
    return f"{points}, p = {found.p:.2g}, {len(found.fixed)} mended, {len(found.broken)} broken"


def images(facts: Facts) -> tuple[object, ...]:
    """What decides which images the scores are of."""
    drawn = (facts.recipe.holdout, facts.recipe.seed) if facts.split == "validation" else ()
    return facts.source["digest"], facts.split, *drawn


def settings(facts: Facts) -> dict[str, Any]:
    """What a run was made of: fields of the recipe, the data's digest, versions and machine."""
    made = asdict(facts.recipe) | asdict(facts.recipe.augment)
    del made["augment"]
    return made | {"digest": facts.source["digest"]} | facts.run.read_json("environment.json")

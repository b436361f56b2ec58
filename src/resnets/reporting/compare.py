"""Runs side by side: their figures, and what differs between them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from resnets.errors import UsageError
from resnets.evaluation.classification import compare_scores
from resnets.reporting.facts import RunFacts, percent, read_facts
from resnets.training.run import Run

SCHEMA = 1  # docs/evaluation.md


def compare(runs: Sequence[Run]) -> dict[str, Any]:
    """Figures of each run, tests against the first, runs that differ in seed only, and settings.

    Keys and units are in docs/evaluation.md ("The JSON of runs compare"). The paired test is the
    exact one of the images that only one of two networks has right (McNemar).

    Raises UsageError for fewer than two runs, or one twice; and as `facts.gather`.
    """
    if len({run.path.resolve() for run in runs}) < max(2, len(runs)):
        raise UsageError("give two runs or more, each once: resnets runs compare A B")
    facts = {str(run.path): read_facts(run) for run in runs}
    first, *_ = facts.values()
    tests = {name: compare_to_first(first, other) for name, other in facts.items()}
    made = {name: settings(run) for name, run in facts.items()}
    keys = dict.fromkeys(key for values in made.values() for key in values)
    values = {key: {name: made[name].get(key) for name in made} for key in keys}
    return {
        "schema": SCHEMA,
        "runs": [{"run": name} | run_figures(run) for name, run in facts.items()],
        "networks_against_the_first": [{"run": name} | row for name, row in tests.items() if row],
        "seeds": group_seeds(facts),
        "differences": {k: row for k, row in values.items() if len({*map(str, row.values())}) > 1},
    }


def run_figures(facts: RunFacts) -> dict[str, Any]:
    """The error, what it is and of which images, and what the run did; None where it has none."""
    ended, result = facts.ended, facts.result
    last = facts.rows[-1] if facts.rows else {}
    cost = facts.run.path / "cost.json"
    return {
        "task": facts.task.name,
        "split": ended.get("split"),
        "images": ended.get("images"),
        "error": result.error if result else ended.get("error"),
        "error_interval_95": [1 - x for x in reversed(result.interval)] if result else None,
        "error_is": facts.text.error,
        "epochs": last.get("epoch"),
        "steps": last.get("step"),
        "seconds": facts.run.read_json("cost.json")["seconds"] if cost.exists() else None,
    }


def compare_to_first(first: RunFacts, other: RunFacts) -> dict[str, Any] | None:
    """How much more a network has right than the first, and whether more than chance; or None."""
    comparable = first is not other and tested_images(first) == tested_images(other)
    if not (comparable and first.scores and other.scores):
        return None
    change = compare_scores(first.scores, other.scores)
    return {
        "difference": change.difference,
        "difference_interval_95": change.interval,
        "p": change.p,
        "fixed": len(change.fixed),
        "broken": len(change.broken),
    }


def group_seeds(runs: Mapping[str, RunFacts]) -> list[dict[str, Any]]:
    """Of the runs that differ in seed or fold only: mean error, deviation, Student's interval."""
    groups: dict[str, list[str]] = {}
    for name, facts in runs.items():
        recipe = asdict(facts.recipe) | {"seed": 0, "fold": 0, "digest": facts.source["digest"]}
        if facts.ended.get("images"):
            groups.setdefault(f"{recipe} {facts.split}", []).append(name)
    rows = []
    for names in groups.values():
        if len(names) > 1:
            errors = [run_figures(runs[name])["error"] for name in names]
            over = "folds" if runs[names[0]].recipe.folds else "seeds"
            rows.append({"runs": names, "over": over} | seed_statistics(errors))
    return rows


def seed_statistics(errors: Sequence[float]) -> dict[str, Any]:
    """Mean, deviation (n - 1) and Student's 95 % interval of the mean of two errors or more."""
    from scipy.special import stdtrit  # here, since it takes a while to import

    mean, deviation = statistics.fmean(errors), statistics.stdev(errors)
    half = float(stdtrit(len(errors) - 1, 0.975)) * deviation / math.sqrt(len(errors))
    return {"mean": mean, "deviation": deviation, "mean_interval_95": [mean - half, mean + half]}


def tested_images(facts: RunFacts) -> tuple[object, ...]:
    """What decides which images the scores are of."""
    recipe = facts.recipe
    choice = (recipe.val_fraction, recipe.folds, recipe.fold, recipe.seed)
    held_out = choice if facts.split == "validation" else ()
    return facts.source["digest"], facts.split, *held_out


def settings(facts: RunFacts) -> dict[str, Any]:
    """What a run was made of: fields of the recipe, the data's digest, versions and machine."""
    made = asdict(facts.recipe) | asdict(facts.recipe.augment)
    del made["augment"]
    return made | {"digest": facts.source["digest"]} | facts.run.read_json("environment.json")


def table_rows(compared: Mapping[str, Any]) -> list[dict[str, str]]:
    """`compare`'s answer as a table: what is compared (key "what"), and each run's value."""
    runs = {row["run"]: row for row in compared["runs"]}
    table = list[dict[str, str]]()

    def add(label: str, values: Mapping[str, str]) -> None:
        # A folder called `what` goes by another of its names: that key is taken.
        cells = {"./what" if run == "what" else run: values.get(run, "-") for run in runs}
        table.append({"what": label} | cells)

    add("error", {run: error_text(row) for run, row in runs.items()})
    trained = {run: length_text(row) for run, row in runs.items()}
    if len(set(trained.values())) > 1:
        add("trained", trained)
    if tests := {row["run"]: test_text(row) for row in compared["networks_against_the_first"]}:
        add("this network against the first (not their recipes)", tests)
    for group in compared["seeds"]:
        low, high = (f"{100 * x:.2f}" for x in group["mean_interval_95"])
        text = f"{percent(group['mean'])} ± {100 * group['deviation']:.2f} ({low} to {high})"
        label = f"error over {len(group['runs'])} {group['over']} (95 % by Student's t)"
        add(label, dict.fromkeys(group["runs"], text))
    for key, values in compared["differences"].items():
        add(key, {run: str(value) for run, value in values.items() if value is not None})
    return table


def length_text(row: Mapping[str, Any]) -> str:
    """How long a run trained."""
    if row["epochs"] is None:
        return "-"
    seconds = "" if row["seconds"] is None else f", {row['seconds']:,.0f} s"
    return f"{row['epochs']:.1f} epochs{seconds}"


def error_text(row: Mapping[str, Any]) -> str:
    """The error with its interval, and on which images."""
    if row["error"] is None:
        return "not finished"
    split = "validation" if row["split"] == "val" else "test"
    if row["error_interval_95"] is None:
        return f"{percent(row['error'])} ({row['error_is']}), {split}"
    low, high = map(percent, row["error_interval_95"])
    return f"{percent(row['error'])} ({low} to {high}, Wilson), {split}"


def test_text(row: Mapping[str, Any]) -> str:
    """How far another network is better or worse, and whether that is more than chance."""
    low, high = (f"{100 * x:+.2f}" for x in row["difference_interval_95"])
    points = f"{100 * row['difference']:+.2f} points right ({low} to {high}, bootstrap)"
    return f"{points}, p = {row['p']:.2g}, {row['fixed']} newly right, {row['broken']} newly wrong"

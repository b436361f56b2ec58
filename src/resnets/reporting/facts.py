"""What a run folder says, and what follows from it in plain words."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnets.config import arch as archs
from resnets.config.recipe import Recipe
from resnets.config.tasks import TaskText
from resnets.errors import CheckpointError, quantify
from resnets.evaluation import scores
from resnets.evaluation.classification import ClassificationMetrics, classification_metrics
from resnets.evaluation.scores import Scores
from resnets.models.cost import cost as network_cost
from resnets.training.monitor import describe_selection
from resnets.training.plan import Task
from resnets.training.run import Run
from resnets.training.tasks import task_of_run

FALLING, RISING = 0.97, 1.1  # of the lowest error before: what counts as better, as worse


@dataclass(frozen=True, slots=True)
class RunFacts:
    """One run; empty or None is what its folder does not have, or not yet."""

    run: Run
    recipe: Recipe
    source: dict[str, Any]
    rows: Sequence[Mapping[str, Any]]  # of metrics.jsonl
    ended: dict[str, Any]  # result.json
    scores: Scores | None
    result: ClassificationMetrics | None  # of a classifier; other tasks have `ended` alone

    @property
    def name(self) -> str:
        """The folder's name, however its path was given."""
        return self.run.path.resolve().name

    @property
    def data(self) -> str:
        """The data's name, without the place where it lies."""
        return Path(self.source["data"]).name

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes' names."""
        return tuple(self.source["classes"])

    @property
    def split(self) -> str:
        """The images of the result."""
        return "validation" if self.ended.get("split") == "val" else "test"

    @property
    def task(self) -> Task:
        """What the network is for."""
        return task_of_run(self.source)

    @property
    def text(self) -> TaskText:
        """What the task and its figures are called."""
        return self.task.text

    def figure(self, name: str) -> float | None:
        """A figure of the result; None without it."""
        if name == "top5" and len(self.source.get("classes", ())) <= 5:
            return None  # any answer would be right
        return getattr(self.result, name, None) if self.result else self.ended.get(name)


def read_facts(run: Run) -> RunFacts:
    """What is in the folder. Raises UsageError where it is none, CheckpointError for a bad file."""
    recipe, source = run.read_recipe(), run.read_json("source.json")
    ended = run.read_json("result.json") if run.finished else {}
    ended |= {f"mask_{name}": value for name, value in (ended.get("masks") or {}).items()}
    path = run.path / "scores.safetensors"
    logits = scores.load(path) if ended and path.exists() else None
    result = classification_metrics(logits, ended["split"]) if logits else None
    return RunFacts(run, recipe, source, run.rows("metrics.jsonl"), ended, logits, result)


def percent(fraction: float) -> str:
    """0.0827 as 8.27 %, never broken over lines."""
    return f"{100 * fraction:.2f}\u00a0%"


def headline(facts: RunFacts) -> tuple[str, str]:
    """The run in one sentence, and how sure that is."""
    model, data, ended = facts.recipe.model, facts.data, facts.ended
    if not ended:
        stands = "It has not logged an epoch yet."
        if facts.rows:
            error = percent(facts.rows[-1]["train_error"])
            stands = f"It stands at epoch {facts.rows[-1]['epoch']:.1f}, training error {error}."
        return f"{model} on {data} is not trained to the end.", stands
    if not ended["images"]:
        return f"{model} was trained on {data}.", "There were no images to test it on."
    where = {"model": model, "where": f"the {facts.split} images of {data}"}
    if not ended.get("objects", True):
        return "{model} was trained, but there are no objects on {where}.".format(**where), ""
    if facts.result:  # not rounded
        low, high = facts.result.interval
        ended = ended | {"top1": facts.result.top1, "top1_interval_95": (low, high)}
    values = {k: percent(v) for k, v in ended.items() if isinstance(v, float)}
    values |= {k: quantify(v, k) for k, v in ended.items() if isinstance(v, int)}
    values |= {k: " to ".join(map(percent, v)) for k, v in ended.items() if k.endswith("_95")}
    text = facts.text
    try:
        head, detail = (x.format(**values, **where) for x in (text.headline, text.detail))
    except KeyError as missing:
        file = facts.run.path / "result.json"
        raise CheckpointError(f"{file} was changed: {missing} is missing") from None
    return head, " ".join(filter(None, [detail, ended.get("why")]))


def figures(facts: RunFacts) -> list[tuple[str, str, str]]:
    """The figures that there are: name, meaning and value."""
    rows = []
    for key, (name, meaning) in facts.text.figures.items():
        value = facts.figure(key)
        if value is not None:
            rows.append((name, meaning, percent(value)))
    return rows


def cost(facts: RunFacts) -> dict[str, str]:
    """The plan as it was printed, and what it took as far as that was recorded."""
    price, run = network_cost(archs.from_dict(facts.source["arch"])), facts.run
    speeds = [row["images_per_second"] for row in run.rows("timing.jsonl")]
    took = {"size": f"{price.parameters:,} parameters, {price.macs / 1e6:,.1f} M multiply-adds"}
    if speeds:
        took["speed"] = f"{statistics.median(speeds):,.0f} training images a second"
    if (run.path / "cost.json").exists():
        spent = run.read_json("cost.json")
        took["took"] = f"{spent['seconds'] / 60:.1f} minutes"
        if peak := spent["peak_memory"]:
            took["memory"] = f"{peak / 2**30:.2f} GiB at the most"
    plan: dict[str, str] = facts.source.get("plan", {})
    return plan | took | run.read_json("environment.json")


def times(count: int) -> str:
    """Once, or a number of times."""
    return "once" if count == 1 else f"{count:,} times"


def about_test(facts: RunFacts) -> Iterator[str]:
    """What the figures were measured on; only the first use of a test split is fully honest."""
    if facts.split == "validation":
        chose = ", which also chose the best state, so they are optimistic"
        best = chose if facts.recipe.select != "last" else ""
        trial = (facts.run.path / "trial.json").exists()
        why = "Test images are kept away from trials" if trial else "There is no test split"
        yield f"{why}: the figures are of the validation images{best}."
    if watched := sum("test_error" in row for row in facts.rows):
        looked = f"The test split was evaluated {times(watched)} during training (monitor=test)"
        yield f"{looked}; no choice was based on it."
    if accesses := len(facts.run.test_accesses()):
        later = "; each use after the first makes it less honest" if accesses > 1 else ""
        yield f"The test split was evaluated {times(accesses)} for a result{later}."
    if bad := len(facts.ended.get("unreadable", ())):
        yield f"{quantify(bad, 'images')} could not be read, so not counted."


def about_training(facts: RunFacts, counts: Sequence[int]) -> Iterator[str]:
    """Whether training was too short or too long, or had too few images."""
    if counts and max(counts) >= 3 * min(counts):
        named = dict(zip(counts, facts.classes, strict=True))
        few, many = (f"{count:,} of “{named[count]}”" for count in (min(counts), max(counts)))
        yield f"Training has {many} and {few}: {facts.text.balance} may help."
    if not facts.rows:
        return
    last = facts.rows[-1]
    if selection := describe_selection(facts.recipe, facts.ended, last["step"]):
        yield selection
    if last["epoch"] < 1:
        why = f" in {facts.recipe.budget:g} seconds" if facts.recipe.budget else ""
        unused = percent(1 - last["epoch"])
        yield f"It saw less than one epoch{why}: {unused} of the training images were not used."
    yield from about_length(facts.rows)
    if facts.result and facts.result.error > 2 * last["train_error"] + 0.05:
        yield (
            f"It knows its training images better ({percent(last['train_error'])} wrong) than "
            f"new ones ({percent(facts.result.error)}): more images or augmentation may help."
        )


def about_length(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Whether the error was still falling at the end, or had risen again."""
    kinds = {"val_error": "validation", "test_error": "test", "train_error": "training"}
    key = next(key for key in kinds if key in rows[-1])
    *before, last = (row[key] for row in rows if key in row)
    change = f"from {percent(min(before))} to {percent(last)}" if before else ""
    if before and last < FALLING * min(before):
        yield f"The {kinds[key]} error was still falling, {change} at the end: train longer."
    elif before and last > RISING * min(before) + 0.005:
        yield f"The {kinds[key]} error rose again, {change}: train shorter, or augment more."
    elif 1 <= rows[-1]["epoch"] < 10:
        yield f"It trained only {rows[-1]['epoch']:.1f} epochs: more may help."

"""What a person sees: tables and a bar on a terminal, plain lines in a pipe, JSON when asked."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
from rich.table import Table

from resnets.errors import DataError

if TYPE_CHECKING:
    from resnets.assessment import Calibration
    from resnets.evaluation.metrics import Result
    from resnets.evaluation.model import Prediction
    from resnets.instruments import Analysis
    from resnets.lifecycle import Outcome
    from resnets.training.fit import Progress as Standing
    from resnets.training.plan import Plan
    from resnets.training.tune import Trial

# In a pipe a row of a table stays one line.
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 240)
err = Console(stderr=True, highlight=False, soft_wrap=True)
quiet = as_json = False
chief = os.environ.get("RANK", "0") == "0"  # of the ranks that torchrun started

FORMS: dict[str, Callable[[Any], str]] = {  # of columns; others go by their values' types
    "multiply_adds": lambda count: f"{count / 1e6:,.1f} M",
    "epoch": lambda epoch: f"{epoch:.1f}",
    "loss": lambda nats: f"{nats:.4f}",
    **dict.fromkeys(
        ("std", "sorted_std", "forward", "backward", "weight", "product", "norm", "alpha"),
        lambda value: f"{value:.4g}",
    ),
    "images_x_macs": lambda count: f"{count:.1e}",
    **dict.fromkeys(("cpu", "full", "seconds"), lambda time: days(time)),
}


def note(text: str, *, always: bool = False) -> None:
    """A line on standard error, so that standard output holds results only."""
    if chief and (always or not quiet):
        err.print(text, markup=False)


def dump(data: Any) -> None:
    """JSON on standard output."""
    print(json.dumps(data, indent=2))


def plan(chosen: Plan, estimate: float, *, asked_for: bool = False) -> None:
    """The plan of a run with its measured time, and each unreadable file by name."""
    lines, unreadable = chosen.lines(), chosen.source.unreadable
    if as_json and asked_for:
        left_out = [{"file": str(path), "reason": reason} for path, reason in unreadable]
        dump({**lines, "seconds": round(estimate, 1), "unreadable": left_out})
        return
    lines["time"] = f"about {seconds(estimate)}, measured on this machine"
    for what, value in lines.items():
        note(f"{what:>10}  {value}", always=asked_for)
    for path, reason in unreadable:
        note(f"{'left out':>10}  {path}: {reason}", always=True)


def percent(part: float | None) -> str:
    """0.0827 as 8.27 %."""
    return "-" if part is None else f"{100 * part:.2f} %"


def seconds(value: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    whole = round(value)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def days(value: float) -> str:
    """Seconds as h:mm:ss, or as days where they are more than two."""
    return seconds(value) if value < 2 * 86_400 else f"{value / 86_400:,.0f} days"


def moving(*columns: ProgressColumn) -> Progress:
    """A bar on a terminal; nothing elsewhere."""
    disable = quiet or not chief or not err.is_terminal
    return Progress(*columns, console=err, transient=True, disable=disable)


@contextmanager
def bar() -> Iterator[Callable[[Standing], None]]:
    """A bar, and what moves it, which also prints a line for each evaluation."""
    head = " epoch      loss   train error   held out   rate      images/s   left"

    def update(standing: Standing) -> None:
        nonlocal head
        for text in standing.notes:
            note(text, always=True)
        speed, left = f"{standing.images_per_second:,.0f}", seconds(standing.seconds_left)
        where = f"{standing.step}/{standing.steps} steps {speed} images/s {left} left"
        progress.update(task, completed=standing.step, total=standing.steps, description=where)
        if standing.loss is None:
            return
        if head:
            note(head)
            head = ""
        note(
            f"{standing.epoch:6.1f}  {standing.loss:8.4f}  {percent(standing.train_error):>12}"
            f"  {percent(standing.watched_error):>9}   {standing.rate:<8.4g}  {speed:>8}   {left}"
        )

    with moving(BarColumn(bar_width=30), TextColumn("{task.description}")) as progress:
        task = progress.add_task("", total=1)
        yield update


@contextmanager
def download(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar of bytes, and what moves it."""
    with moving() as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total or None)


def cell(name: str, value: Any) -> str:
    """A value of a table's column: counts with commas, parts as percent."""
    if isinstance(value, str):
        return value
    if name in FORMS:
        return FORMS[name](value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return percent(value)


def table(rows: Sequence[Mapping[str, Any]]) -> None:
    """A table with the keys as its head; columns of numbers to the right."""
    shown = Table(box=None, pad_edge=False)
    for name in rows[0]:
        words = any(isinstance(row[name], str | bool) for row in rows)
        shown.add_column(name.replace("_", " "), justify="left" if words else "right")
    for row in rows:
        shown.add_row(*(escape(cell(name, value)) for name, value in row.items()))
    out.print(shown)


def outcome(finished: Outcome) -> None:
    """The end of a run: its test figures, and what to type next."""
    result, folder = finished.result, finished.run
    if not chief:
        return
    if as_json:
        figures = {"error": result.error, "images": result.images} if result else {}
        dump({"run": str(folder), "seconds": round(finished.seconds, 1), **figures})
        return
    if result is not None:
        headline(result)
    out.print(f"trained in {seconds(finished.seconds)}; everything is in {folder}", markup=False)
    note(f"next: resnets predict {folder} IMAGE    resnets evaluate {folder} DATA")


def headline(result: Result) -> None:
    """The figures of one split in one line."""
    low, high = (percent(1 - x).removesuffix(" %") for x in reversed(result.interval))
    more = f", top-5 error {percent(1 - result.top5)}" if len(result.classes) > 5 else ""
    if result.mean_average_precision is not None:
        more = f", mean average precision {percent(result.mean_average_precision)}"
    out.print(
        f"{result.split} error {percent(result.error)} ({low} to {high} at 95 %){more}, "
        f"loss {result.loss:.4f}, calibration error {percent(result.ece)}, "
        f"{result.images:,} images",
        markup=False,
    )


def result(figures: Result) -> None:
    """The figures of an evaluation, class by class."""
    from resnets.lifecycle import summary

    for path, reason in figures.unreadable:
        note(f"left out {path}: {reason}", always=True)
    if as_json:
        dump(summary(figures))
        return
    headline(figures)
    extras(figures)
    if not quiet:
        table(figures.per_class())


def extras(figures: Result) -> None:
    """What was asked for beside the figures, a line each."""
    if found := figures.comparison:
        low, high = (f"{100 * x:+.2f}" for x in found.interval)
        out.print(
            f"the second model against the first: {100 * found.difference:+.2f} points "
            f"({low} to {high} at 95 %), p = {found.p:.2g}; {len(found.fixed)} images mended, "
            f"{len(found.broken)} broken",
            markup=False,
        )
        for what, indices in (("mended", found.fixed), ("broken", found.broken)):
            note(f"{what}: {' '.join(map(str, indices[:20]))}{' ...' * (len(indices) > 20)}")
    if figures.abstention:
        threshold, coverage = figures.abstention
        out.print(f"answers from probability {threshold:.4f} on: {percent(coverage)} of them")
    if figures.familiarity is not None:
        out.print(
            f"AUROC of the greatest probability against the other data {figures.familiarity:.4f}"
        )
    if figures.corruptions:
        from resnets.evaluation.corruptions import mean_corruption_error

        kinds = dict.fromkeys(kind for kind, _, _ in figures.corruptions)
        table(
            [
                {"corruption": kind} | {str(s): e for k, s, e in figures.corruptions if k == kind}
                for kind in kinds
            ]
        )
        out.print(f"mean corruption error {percent(mean_corruption_error(figures.corruptions))}")


def calibration(found: Calibration) -> None:
    """The temperature, and the figures before and after in a table."""
    pairs = {"before": found.before, "after": found.after}
    names = ("images", "ece", "loss", "top1")
    rows = [{"when": when} | {n: getattr(r, n) for n in names} for when, r in pairs.items()]
    if as_json:
        dump({"temperature": found.temperature, "figures": rows})
        return
    out.print(f"temperature {found.temperature:.4g}")
    table(rows)


def analysis(found: Analysis) -> None:
    """The rows of an instrument, and what they say; JSON has null for what is not finite."""
    if as_json:
        rows = [
            {
                k: None if isinstance(v, float) and not math.isfinite(v) else v
                for k, v in row.items()
            }
            for row in found.rows
        ]
        dump({"verdict": found.verdict, "folder": str(found.folder), "rows": rows})
        return
    if not quiet:
        table(found.rows)
    out.print(found.verdict, markup=False)
    note(f"the table and the picture are in {found.folder}")


def place(path: Path) -> None:
    """Where a file was written."""
    dump(str(path)) if as_json else out.print(str(path), markup=False)


def explained(found: Iterable[Any], folder: Path) -> None:
    """A line for each image or finding. Raises SystemExit(3) where an image could not be read."""
    images, more = [], dict[str, Any]()
    for item in found:
        if isinstance(item, dict):
            more |= item
        elif hasattr(item, "verdict"):
            more |= {"verdict": item.verdict, **asdict(item)}
            note(item.verdict)
        else:
            images.append(item)
    if as_json:
        dump({"images": [asdict(image) for image in images], **more})
    elif not images:
        table([{"what": what, "images": count} for what, count in more.items()])
    note(f"the pictures are in {folder}")
    if images and not as_json:
        predictions(images)
    elif any(image.problem for image in images):
        raise SystemExit(DataError.exit_code)


def predictions(items: Iterable[Prediction]) -> None:
    """One line an image. Raises SystemExit(3) at the end where some could not be read."""
    rows = []
    for item in items:
        if item.problem is not None:
            note(item.problem, always=True)
        pairs = list(zip(item.classes, item.probabilities, strict=True))
        best = [{"class": name, "probability": round(p, 6)} for name, p in pairs]
        rows.append({"file": item.file, "problem": item.problem, "classes": best})
        if pairs and not as_json:
            answer = "  ".join(f"{name} {100 * p:.1f} %" for name, p in pairs)
            out.print(f"{item.file}  {answer}", markup=False)
    if as_json:
        dump(rows)
    if any(row["problem"] for row in rows):
        raise SystemExit(DataError.exit_code)


def rates(tried: Sequence[float], losses: Sequence[float], suggestion: float) -> None:
    """Every fifth line of a range test, and the rate that follows."""
    if as_json:
        dump({"suggestion": suggestion, "rates": tried, "losses": losses})
        return
    for rate, loss in list(zip(tried, losses, strict=True))[::5]:
        note(f"{rate:10.3g}  {loss:.4f}")
    best = f"{10 * suggestion:.2g}"
    out.print(f"--set lr={suggestion:.2g}, a tenth of {best} where the loss is lowest")


def trial(done: Sequence[Trial], trials: int) -> None:
    """The trial that has just ended, and the time that the others will take."""
    if done:
        left = seconds((trials - len(done)) * sum(t.seconds for t in done) / len(done))
        note(f"trial {done[-1].number} of {trials}: {fields(done[-1])}; about {left} left")


def fields(trial: Trial) -> str:
    """How a trial ended, and what it had, in a line."""
    pairs = trial.fields.items()
    texts = (f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in pairs)
    return f"{trial.state} {percent(trial.error)}  {' '.join(texts)}"


def study(done: Sequence[Trial], folder: Path) -> None:
    """The trials from the best on, what their errors are worth, and what to type next."""
    if as_json:
        dump({"best": str(folder / "best.json"), "trials": [asdict(t) for t in done]})
        return
    for t in sorted(done, key=lambda t: (t.error is None, t.error)):
        out.print(f"{t.number:4d}  {fields(t)}", markup=False)
    note(
        f"The best of {len(done)} errors on the same validation images is optimistic; "
        "the test images were not used."
    )
    note(f"next: resnets train DATA --recipe {folder / 'best.json'}")


def listed(rows: Sequence[Mapping[str, Any]], none: str) -> None:
    """Rows that may be `none`."""
    if as_json:
        dump(rows)
    elif rows:
        table(rows)
    else:
        note(none, always=True)


def reached(row: Mapping[str, Any]) -> None:
    """What came out of an arm of an experiment, in a line."""
    if as_json:
        print(json.dumps(row))
        return
    from resnets.paper.results import EXACT

    names = ("train_error", "test_error", "top5_error", "median_std", *EXACT)
    told = {name: row[name] for name in names if name in row}
    figures = ", ".join(
        f"{name.replace('_', ' ')} {'diverged' if value is None else f'{value:.6g}'}"
        for name, value in told.items()
    )
    head = f"{row['experiment']}  {row['arm']}  {row['budget']}  seed {row['seed']}"
    out.print(f"{head}: {figures}", markup=False)


def data(facts: Mapping[str, Any]) -> None:
    """What a data set holds."""
    if as_json:
        dump(facts)
        return
    size = f"{facts['size']} pixels on the shorter side"
    print(f"{facts['name']}: {facts['channels']} channels, {size}, digest {facts['digest']}")
    splits = {name: [*counts, sum(counts)] for name, counts in facts["images"].items()}
    names = [*facts["classes"], "all"]
    table([{"class": name, **{s: splits[s][k] for s in splits}} for k, name in enumerate(names)])
    for path, reason in facts["unreadable"]:
        print(f"unreadable {path}: {reason}")


def pairs(rows: Mapping[str, str]) -> None:
    """Name and value, a line each."""
    if as_json:
        dump(rows)
        return
    width = max(len(name) for name in rows)
    for name, value in rows.items():
        sys.stdout.write(f"{name:>{width}}  {value}\n")

"""docs/results.md and its pictures, drawn from the ledger: the papers' figures beside ours."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any, get_args

from matplotlib import color_sequences
from matplotlib.figure import Figure

from resnets.errors import format_count
from resnets.files import write_whole
from resnets.papers import ledger
from resnets.papers.budgets import Budget, jobs
from resnets.papers.experiment import Experiment
from resnets.papers.experiments import EXPERIMENTS
from resnets.papers.ledger import Row

HEAD = """# Results

What `resnets reproduce` has reached, written by it from `results/ledger.jsonl`. Errors are in %, as mean ± standard
deviation over the seeds (their number). The column "paper" has the paper's figure, which on CIFAR is the median of five runs
in that of 2016. "own" has runs by the paper's own protocol: its full length on its data, in float32, with nothing left out;
figures of runs that differ in bfloat16 alone are marked. All other runs had less, say what, and stand below: they do not show
what a full run would reach. Runs of a length or recipe that an experiment no longer has are in the ledger alone. An empty
"own" has not been run; an empty "paper" means that the paper gives no number.
"""  # noqa: E501
EXACT_METRICS = ("macs", "parameters", "residual", "log2_product", "first_over_last")
DENSE_TASK_METRICS = ("map50", "map", "voc07", "given_error", "five_error")
ERRORS = ("train_error", "test_error")
COLORS = color_sequences["tab10"] + color_sequences["tab20"][1::2]  # the pale ones last
PAPER_UNIT = 10_000  # iterations, on the axes of the papers' figures


def write_page(root: Path) -> Path:
    """Write ROOT/docs/results.md and ROOT/docs/pictures/ from the ledger. Raises DataError."""
    rows, page = ledger.read(root), root / "docs" / "results.md"
    (page.parent / "pictures").mkdir(parents=True, exist_ok=True)
    sections = [section(experiment, rows, root) for experiment in EXPERIMENTS.values()]
    write_whole(page, "\n".join([HEAD, *sections]).encode())
    return page


def latest_rows(experiment: Experiment, rows: Iterable[Row]) -> list[Row]:
    """The last row of each arm, budget, seed and protocol, of today's length and recipe."""
    budgets: tuple[Budget, ...] = get_args(Budget)
    today = {(b, job.arm.name): job for b in budgets for job in jobs(experiment, b)}
    latest = dict[tuple[Any, ...], Row]()
    for row in rows:
        job = today.get((row["budget"], row["arm"]))
        if job and replace(job, seed=row["seed"]).ledger_rows([row]):
            latest[row["arm"], row["budget"], row["seed"], ledger.protocol(row)] = row
    return list(latest.values())


def section(experiment: Experiment, rows: Sequence[Row], root: Path) -> str:
    """An experiment's part of the page."""
    rows = latest_rows(experiment, ledger.select(rows, experiment=experiment.id))
    lines = [f"## {experiment.title} ({experiment.id})", ""]
    if experiment.not_runnable:
        lines += [f"This {experiment.not_runnable}.", ""]
    if experiment.deviation:
        lines += [f"No run of it is by the paper's own protocol: {experiment.deviation}.", ""]
    head = ("arm", experiment.reference, "own")
    lines += markdown_table(head, by_protocol(experiment, rows))
    exact = [row for row in rows if ledger.protocol(row)]
    if runs := [row for row in exact if row.get("curve")]:
        lines += ["", *by_run(experiment, runs, root)]
    for budget in sorted({row["budget"] for row in rows}):
        less = [row for row in ledger.select(rows, budget=budget) if not ledger.protocol(row)]
        if less:
            lines += ["", *by_budget(experiment, budget, less, root)]
    if rows:
        lines += ["", describe_origin(rows)]
    return "\n".join([*lines, ""])


def describe_origin(rows: Sequence[Row]) -> str:
    """Machines, days and versions of PyTorch that an experiment's rows are of."""
    machines = sorted({row["machine"] for row in rows if "machine" in row})
    days = sorted({row["date"] for row in rows if "date" in row})
    versions = {row["versions"].get("torch", "") for row in rows if "versions" in row} - {""}
    torch = sorted(f"torch {version.partition('+')[0]}" for version in versions)
    return "; ".join(", ".join(values) for values in (machines, days, torch) if values)


def by_protocol(experiment: Experiment, rows: Sequence[Row]) -> Iterator[tuple[str, str, str]]:
    """Arm, the paper's figures, and ours by its own protocol."""
    protocols = sorted({ledger.protocol(row) for row in rows} - {""})
    for arm in experiment.arms:
        ours = []
        for protocol in protocols:
            exact = [r for r in ledger.select(rows, arm=arm.name) if ledger.protocol(r) == protocol]
            if not exact:
                continue
            mark = f" ({protocol.removeprefix('paper ')})" if protocol != "paper" else ""
            names = list(arm.paper) or [name for name in EXACT_METRICS if name in exact[-1]]
            for name in names:
                ours.append(format_figure(name, [row.get(name) for row in exact]) + mark)
        paper = [format_figure(name, [figure]) for name, figure in arm.paper.items()]
        yield arm.name, ", ".join(paper), ", ".join(ours)


def by_run(experiment: Experiment, rows: Sequence[Row], root: Path) -> list[str]:
    """The runs at full length one by one, and their curves as the paper draws them."""
    head = ("run", "seed", "precision", "train error", "test error", "hours", "machine")
    body = []
    for row in sorted(rows, key=lambda row: (row["layers"], row["arm"], row["seed"])):
        starts = row.get("starts", ())
        steps = [f"{start['step']:,}" for start in starts[1:] if "step" in start]
        interruptions = str(row.get("interruptions", 0))
        interruptions += f" (at {', '.join(steps)})" if steps else ""
        codes = {start.get("code") for start in starts} | {row["versions"].get("code")}
        body.append(
            [row["arm"], str(row["seed"]), row["precision"]]
            + [ledger.format_mean_std([row.get(name)]) for name in ERRORS]
            + [f"{row['seconds'] / 3600:.1f}", row["machine"], interruptions]
            + [", ".join(sorted(code[:8] for code in codes if code)), row["digest"][:8]]
        )
    lines = markdown_table((*head, "interruptions", "code", "data"), body)
    if experiment.has_curves:
        figure = plot_curves(experiment, rows, root)
        figure.axes[0].set(xlim=(0, 6.4), ylim=(0, 20))  # the paper's: Figure 6
        lines += ["", save_picture(figure, f"{experiment.id}-full", experiment.title, root)]
    return lines


def format_figure(name: str, values: Sequence[Any]) -> str:
    """A figure with its name; errors in % of tests have none."""
    last = values[-1]
    if isinstance(last, str):
        return last
    if name in ("macs", "parameters"):
        return f"{format_count(last, 4)} {'multiply-adds' if name == 'macs' else name}"
    if name in EXACT_METRICS:
        return f"{name.replace('_', ' ')} {last:.3g}"
    return f"{'' if name == 'test_error' else name + ' '}{ledger.format_mean_std(values)}"


def by_budget(experiment: Experiment, budget: str, rows: Sequence[Row], root: Path) -> list[str]:
    """The table of runs on less, whether what they may show holds, and their picture."""
    claim = experiment.short_run_claim if budget in ("cpu", "gpu") else "that it runs"
    if budget == "full":  # and yet no protocol: something changed the training
        claim = "; ".join(sorted({note for row in rows for note in row.get("notes", ())})) or "none"
    intro = f"Budget `{budget}`. What such a run can show: {claim}."
    if experiment.cpu_units and budget == "cpu":
        intro += f" Its networks are cut to {experiment.cpu_units} units in each stage."
    metrics = [*ERRORS] if experiment.metric in ERRORS else [*ERRORS, experiment.metric]
    body = []
    for arm in experiment.arms:
        if runs := ledger.select(rows, arm=arm.name):
            means = [ledger.format_mean_std([row.get(name) for row in runs]) for name in metrics]
            body.append([arm.name, describe_run(runs[-1]), *means])
    head = ["arm", "run", "train error", "test error", *metrics[2:]]
    lines = [intro, "", *markdown_table(head, body)]
    if budget != "smoke":
        lines += ["", *(f"- {verdict}" for verdict in check_order(experiment, rows))]
    picture = f"{experiment.id}-{budget}"
    if any("stds" in row for row in rows):
        lines += ["", save_picture(plot_responses(rows), picture, experiment.title, root)]
    if experiment.has_curves and any(row.get("curve") for row in rows):
        figure = plot_curves(experiment, rows, root)
        lines += ["", save_picture(figure, picture, experiment.title, root)]
    return lines


def describe_run(row: Row) -> str:
    """What was run, in a few words."""
    return (
        f"{row['layers']} layers, {row['data']} at {row['size']} px, {row['iterations']:,} "
        f"iterations, {row['images']:,} images, {row['precision']}"
    )


def check_order(experiment: Experiment, rows: Sequence[Row]) -> Iterator[str]:
    """Of each pair that a short run may tell apart, in how many seeds the order is as expected.

    A diverged run counts as the greater error.
    """
    metric = experiment.metric
    for greater, less in experiment.expected_order:
        pairs = [
            (a.get(metric), b.get(metric))
            for a in ledger.select(rows, arm=greater)
            for b in ledger.select(rows, arm=less, seed=a["seed"])
        ]
        if not pairs:
            continue
        right = sum(a is None or (b is not None and a > b) for a, b in pairs)
        margins = [a - b for a, b in pairs if a is not None and b is not None]
        by = f", by {mean(margins):.2f} on average" if margins else ""
        by += f" ± {stdev(margins):.2f}" if len(margins) > 1 else ""
        name = metric.replace("_", " ")
        yield f"{name} of {greater} above {less}: in {right} of {len(pairs)} seeds{by}"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def read_curve(row: Row, root: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl."""
    text = gzip.decompress((root / row["curve"]).read_bytes()).decode()
    return [json.loads(line) for line in text.splitlines()]


def plot_curves(experiment: Experiment, rows: Sequence[Row], root: Path) -> Figure:
    """Error over iterations as the papers draw it: training dashed, test solid; seeds averaged."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.2)
    unit = PAPER_UNIT if max(row["iterations"] for row in rows) >= PAPER_UNIT else 1
    for number, arm in enumerate(experiment.arms):
        runs = [
            read_curve(row, root) for row in ledger.select(rows, arm=arm.name) if row.get("curve")
        ]
        if not runs:  # all of them diverged
            continue
        for key, line, name in (("train_error", "--", arm.name), ("test_error", "-", None)):
            points = [seeds for seeds in zip(*runs, strict=False) if key in seeds[0]]
            steps = [seeds[0]["step"] / unit for seeds in points]
            errors = [100 * mean(row[key] for row in seeds) for seeds in points]
            axes.plot(steps, errors, line, color=COLORS[number], label=name, lw=1.2)
    axes.set(xlabel="iterations (1e4)" if unit > 1 else "iterations", ylabel="error (%)")
    if axes.lines:
        title = "dashed: training\nsolid: test"
        figure.legend(
            loc="outside right upper", frameon=False, fontsize=7, title=title, title_fontsize=7
        )
    return figure


def plot_responses(rows: Sequence[Row]) -> Figure:
    """Standard deviations by layer, and sorted: 1512.03385, Figure 7."""
    figure = Figure(figsize=(6, 5), layout="constrained")
    above, below = figure.subplots(2)
    for row in ledger.select(rows, seed=rows[0]["seed"]):
        above.plot(row["stds"], label=row["arm"], lw=1)
        below.plot(sorted(row["stds"], reverse=True), lw=1)
    above.set(xlabel="layer index (original)", ylabel="standard deviation")
    below.set(xlabel="layer index (sorted by size)", ylabel="standard deviation")
    above.legend(frameon=False, fontsize=7)
    return figure


def save_picture(figure: Figure, name: str, title: str, root: Path) -> str:
    """Write a picture, and say so in Markdown."""
    figure.savefig(root / "docs" / "pictures" / f"{name}.png", dpi=120)
    return f"![{title}](pictures/{name}.png)"

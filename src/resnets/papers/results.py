"""docs/results.md and its pictures, drawn from the ledger: the papers' figures beside ours."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from statistics import mean, stdev
from typing import Any, get_args

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resnets.files import write_whole
from resnets.papers import ledger
from resnets.papers.budgets import Budget, jobs
from resnets.papers.experiment import Experiment
from resnets.papers.experiments import EXPERIMENTS
from resnets.papers.ledger import Row

HEAD = """# Results

What `resnets reproduce` reached, drawn by it from `results/ledger.jsonl`; errors in %, mean ± standard deviation over
the seeds (their number). The paper's column holds the paper's figure. "Own" holds runs by the paper's own protocol: its
full length on its data, in float32, with nothing left out; where the numbers were bfloat16 and all else the paper's, the
figure is marked so. All else was run on less, says what, and stands below it: such a run never shows what the full one
would reach. Runs of a length that an experiment no longer has are in the ledger alone.
"""  # noqa: E501
EXACT = ("macs", "parameters", "residual", "log2_product", "first_over_last")
SCENES = ("map50", "map", "voc07", "given_error", "five_error")
ERRORS = ("train_error", "test_error")


def draw(root: Path) -> Path:
    """Write ROOT/docs/results.md and ROOT/docs/pictures/ from the ledger. Raises DataError."""
    rows, page = ledger.read(root), root / "docs" / "results.md"
    (page.parent / "pictures").mkdir(parents=True, exist_ok=True)
    parts = [HEAD, *(section(one, rows, root) for one in EXPERIMENTS.values())]
    write_whole(page, "\n".join(parts).encode())
    return page


def current(one: Experiment, rows: Iterable[Row]) -> list[Row]:
    """The last line of each arm, budget, seed and protocol, of the length that there is now."""
    budgets: tuple[Budget, ...] = get_args(Budget)
    length = {(b, job.arm.name): job.iterations for b in budgets for job in jobs(one, b)}
    found = (row for row in rows if length.get((row["budget"], row["arm"])) == row["iterations"])
    return list(
        {(row["arm"], row["budget"], row["seed"], ledger.kind(row)): row for row in found}.values()
    )


def section(one: Experiment, rows: Sequence[Row], root: Path) -> str:
    """An experiment's part of the page."""
    found = current(one, ledger.of(rows, experiment=one.id))
    lines = [f"## {one.id}: {one.title}", ""]
    if one.needs:
        lines += [f"This {one.needs}.", ""]
    if one.ours:
        lines += [f"No run of it is by the paper's own protocol: {one.ours}.", ""]
    lines += table(("arm", "paper", "own"), ([a, p, o] for a, p, o in by_protocol(one, found)))
    full = [row for row in found if ledger.kind(row) and row.get("curve")]
    if full:
        lines += ["", *by_run(one, full, root)]
    less = [row for row in found if not ledger.kind(row)]
    for budget, some in groupby(sorted(less, key=lambda row: row["budget"]), lambda r: r["budget"]):
        lines += ["", *by_budget(one, budget, list(some), root)]
    return "\n".join([*lines, ""])


def by_protocol(one: Experiment, rows: Sequence[Row]) -> Iterator[tuple[str, str, str]]:
    """Arm, the paper's figures, and ours by its own protocol."""
    for arm in one.arms:
        ours = []
        for kind in sorted({ledger.kind(row) for row in rows} - {""}):
            own = [row for row in ledger.of(rows, arm=arm.name) if ledger.kind(row) == kind]
            names = list(arm.paper) or [name for name in EXACT if own and name in own[-1]]
            mark = f" ({kind.removeprefix('paper ')})" if kind != "paper" else ""
            ours += [shown(name, [row.get(name) for row in own]) + mark for name in names if own]
        yield arm.name, ", ".join(shown(k, [v]) for k, v in arm.paper.items()), ", ".join(ours)


def by_run(one: Experiment, rows: Sequence[Row], root: Path) -> list[str]:
    """The runs at full length one by one, and their curves as the paper draws them."""
    head = ("run", "seed", "precision", "train error", "test error", "hours", "machine")
    body = []
    for row in sorted(rows, key=lambda row: (row["layers"], row["arm"], row["seed"])):
        steps = [f"{start['step']:,}" for start in row.get("starts", ())[1:] if "step" in start]
        broken = f"{row.get('interruptions', 0)}" + (f" (at {', '.join(steps)})" if steps else "")
        codes = {start.get("code") for start in row.get("starts", ())} | {
            row["versions"].get("code")
        }
        body.append(
            [row["arm"], str(row["seed"]), row["precision"]]
            + [ledger.spread([row.get(name)]) for name in ERRORS]
            + [f"{row['seconds'] / 3600:.1f}", row["machine"], broken]
            + [", ".join(sorted(code[:8] for code in codes if code)), row["digest"][:8]]
        )
    lines = table((*head, "interruptions", "code", "data"), body)
    if one.curves:
        drawn = curves(one, rows, root)
        drawn.axes[0].set(xlim=(0, 6.4), ylim=(0, 20))  # the paper's: Figure 6
        lines += ["", picture(drawn, f"{one.id}-full", one.title, root)]
    return lines


def shown(name: str, values: Sequence[Any]) -> str:
    """A figure with its name; errors in % of tests have none."""
    last = values[-1]
    if isinstance(last, str):
        return last
    if name in ("macs", "parameters"):
        return f"{ledger.large(last, 4)} {'multiply-adds' if name == 'macs' else name}"
    if name in EXACT:
        return f"{name.replace('_', ' ')} {last:.3g}"
    return f"{'' if name == 'test_error' else name + ' '}{ledger.spread(values)}"


def by_budget(one: Experiment, budget: str, rows: Sequence[Row], root: Path) -> list[str]:
    """The table of runs on less, whether what they may show holds, and their picture."""
    may = one.claim if budget in ("cpu", "gpu") else "that it runs"
    if budget == "full":  # and yet no protocol: something was left out on the way
        may = "; ".join(sorted({note for row in rows for note in row.get("notes", ())})) or "none"
    lines = [f"Budget `{budget}`. What it may claim: {may}.", ""]
    if one.units and budget == "cpu":
        lines[0] += f" Its networks are cut to {one.units} units in each stage."
    body = []
    for arm in one.arms:
        own = ledger.of(rows, arm=arm.name)
        if own:
            errors = [ledger.spread([r.get(k) for r in own]) for k in ("train_error", "test_error")]
            more = [ledger.spread([r.get(one.figure) for r in own])]
            body.append([arm.name, ran(own[-1]), *errors, *more * (one.figure not in ERRORS)])
    names = ["arm", "run", "train error", "test error"]
    lines += table([*names, one.figure] if one.figure not in ERRORS else names, body)
    if budget != "smoke":
        lines += ["", *(f"- {verdict}" for verdict in verdicts(one, rows))]
    if any("stds" in row for row in rows):
        lines += ["", picture(responses(rows), f"{one.id}-{budget}", one.title, root)]
    if one.curves and any(row.get("curve") for row in rows):
        lines += ["", picture(curves(one, rows, root), f"{one.id}-{budget}", one.title, root)]
    return lines


def ran(row: Row) -> str:
    """What was run, in a few words."""
    return (
        f"{row['layers']} layers, {row['data']} at {row['size']} px, {row['iterations']:,} "
        f"iterations, {row['images']:,} images, {row['precision']}"
    )


def verdicts(one: Experiment, rows: Sequence[Row]) -> Iterator[str]:
    """Of each pair that a short run may tell apart, whether the first has the greater figure."""
    for more, less in one.greater:
        pairs = [
            (a.get(one.figure), b.get(one.figure))
            for a in ledger.of(rows, arm=more)
            for b in ledger.of(rows, arm=less, seed=a["seed"])
        ]
        if not pairs:
            continue
        right = sum(a is None or (b is not None and a > b) for a, b in pairs)
        told = [a - b for a, b in pairs if a is not None and b is not None]
        by = f", by {mean(told):.2f} on average" if told else ""
        by += f" ± {stdev(told):.2f}" if len(told) > 1 else ""
        what = one.figure.replace("_", " ")
        yield f"{what} of {more} above {less}: in {right} of {len(pairs)} seeds{by}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def curve(row: Row, root: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl."""
    text = gzip.decompress((root / row["curve"]).read_bytes()).decode()
    return [json.loads(line) for line in text.splitlines()]


def curves(one: Experiment, rows: Sequence[Row], root: Path) -> Figure:
    """Error over iterations as the papers draw it: training dashed, test solid; seeds averaged."""
    figure, axes = blank()
    for number, arm in enumerate(one.arms):
        runs = [curve(row, root) for row in ledger.of(rows, arm=arm.name) if row.get("curve")]
        if not runs:  # all of them diverged
            continue
        for key, line, name in (("train_error", "--", arm.name), ("test_error", "-", None)):
            some = [points for points in zip(*runs, strict=False) if key in points[0]]
            steps = [points[0]["step"] / 1e4 for points in some]
            errors = [100 * mean(point[key] for point in points) for points in some]
            axes.plot(steps, errors, line, color=colormaps["tab20"](number), label=name, lw=1.2)
    axes.set(xlabel="iterations (1e4)", ylabel="error (%)")
    if axes.lines:
        title = "dashed: training\nsolid: test"
        figure.legend(
            loc="outside right upper", frameon=False, fontsize=7, title=title, title_fontsize=7
        )
    return figure


def responses(rows: Sequence[Row]) -> Figure:
    """Standard deviations by layer, and sorted: 1512.03385, Figure 7."""
    figure = Figure(figsize=(6, 5), layout="constrained")
    above, below = figure.subplots(2)
    for row in ledger.of(rows, seed=rows[0]["seed"]):
        above.plot(row["stds"], label=row["arm"], lw=1)
        below.plot(sorted(row["stds"], reverse=True), lw=1)
    above.set(xlabel="layer index (original)", ylabel="standard deviation")
    below.set(xlabel="layer index (sorted by size)", ylabel="standard deviation")
    above.legend(frameon=False, fontsize=7)
    return figure


def blank() -> tuple[Figure, Axes]:
    """A figure of a column's width, and its axes."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.2)
    return figure, axes


def picture(figure: Figure, name: str, title: str, root: Path) -> str:
    """Write a picture, and say so in Markdown."""
    figure.savefig(root / "docs" / "pictures" / f"{name}.png", dpi=120)
    return f"![{title}](pictures/{name}.png)"

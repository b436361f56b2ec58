"""What each command prints: text, or with --json JSON, never both; and what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnets.cli import terminal
from resnets.cli.terminal import format_percent, format_seconds, note, out, print_json, print_table
from resnets.config.tasks import TASK_TEXTS
from resnets.errors import DataError, format_count, quantify
from resnets.files import code_option
from resnets.training.run import Run

if TYPE_CHECKING:
    from resnets.analysis.instruments import Analysis
    from resnets.analysis.similar import SearchResult
    from resnets.evaluation.classification import Calibration, ClassificationMetrics, Prediction
    from resnets.evaluation.feature_files import FeatureFile
    from resnets.evaluation.probe_methods import ProbeResult
    from resnets.evaluation.tasks import Metrics
    from resnets.training.plan import Plan
    from resnets.training.runner import TrainResult
    from resnets.training.tune import Trial


def print_plan(
    plan: Plan, estimate: float, runs: Sequence[Run] = (), *, asked_for: bool = False
) -> None:
    """The plan of a run, or of `runs` with several seeds, and the problems of its data.

    `estimate` is the measured time of one.
    """
    lines, source = plan.summary(), plan.source
    if budget := plan.recipe.budget:
        epochs = budget / estimate * plan.steps * plan.recipe.batch / len(plan.train)
        few = ", less than one: some images will never be seen" if epochs < 1 else ""
        lines["length"] += f": about {epochs:.2g} epochs{few}"
        estimate = budget
    if runs:
        done = sum(run.finished for run in runs)
        lines["runs"] = f"{len(runs)} with a seed each, {runs[0].path} to {runs[-1].path}"
        lines["runs"] += ", each with this budget" * bool(budget)
        lines["runs"] += f"; {done} of them finished" * bool(done)
        estimate *= len(runs) - done
    if out.quiet and asked_for:
        unreadable = [{"file": str(path), "reason": reason} for path, reason in source.unreadable]
        problems = [{"place": where, "problem": reason} for where, reason in source.problems]
        facts = {"seconds": round(estimate, 1), "unreadable": unreadable, "problems": problems}
        print_json({**lines, **facts, "notes": source.notes})
        return
    lines["time"] = f"about {format_seconds(estimate)}, measured on this machine"
    for name, text in lines.items():
        note(f"{name:>10}  {text}", always=asked_for)
    notes = [("note", text) for text in source.notes]
    notes += [("left out", f"{path}: {reason}") for path, reason in source.unreadable]
    notes += [("noted", f"{where}: {reason}") for where, reason in source.problems[:10]]
    if (more := len(source.problems) - 10) > 0:
        notes.append((f"{more:,}", "more, which `resnets data check` lists"))
    for name, text in notes:
        note(f"{name:>10}  {text}", always=True)


def print_outcome(outcome: TrainResult) -> None:
    """The result of a run, and what to type next."""
    from resnets.training.monitor import describe_selection

    if not terminal.is_main:
        return
    result, folder = outcome.result, outcome.run
    figures = {"error": result.error, "images": result.images} if result else {}
    print_json({"run": str(folder), "seconds": round(outcome.seconds, 1), **figures})
    if result is not None:
        out.print(result.headline())
        run = Run(folder)
        rows, ended = run.rows("metrics.jsonl"), run.read_json("result.json")
        if chosen := describe_selection(run.read_recipe(), ended, rows[-1]["step"]):
            out.print(chosen)
    out.print(f"trained in {format_seconds(outcome.seconds)}; everything is in {folder}")
    command, path = f"resnets {TASK_TEXTS[outcome.task].command}", shlex.quote(str(folder))
    code = code_option(folder)
    after = f"next: {command}predict {path} IMAGE{code}"
    if result is not None:
        data = shlex.quote(Run(folder).read_json("recipe.json")["data"])
        split = "" if result.split == "test" else f" --split {result.split}"
        after += f"    {command}evaluate {path} {data}{split}{code}"
    note(after)


def print_result(figures: Metrics) -> None:
    """The metrics of an evaluation, of each class too, and the extras that were asked for."""
    from resnets.evaluation.classification import ClassificationMetrics

    for path, reason in figures.unreadable:
        note(f"left out {path}: {reason}", always=True)
    print_json(figures.summary())
    out.print(figures.headline())
    if isinstance(figures, ClassificationMetrics):
        print_extras(figures)
    if not terminal.quiet and (rows := figures.per_class()):
        print_table(rows)


def print_comparison(comparison: Mapping[str, Any]) -> None:
    """Runs side by side: a table, or numbers as JSON."""
    from resnets.reporting.compare import table_rows

    print_json(comparison)
    print_table(table_rows(comparison))


def print_extras(figures: ClassificationMetrics) -> None:
    """The extras of an evaluation, one line each."""
    if comparison := figures.comparison:
        low, high = (f"{100 * x:+.2f}" for x in comparison.interval)
        out.print(
            f"the second model against the first: {100 * comparison.difference:+.2f} points "
            f"({low} to {high} at 95 % by bootstrap), p = {comparison.p:.2g}; "
            f"{len(comparison.fixed)} images newly right, {len(comparison.broken)} newly wrong"
        )
        for change, indices in (
            ("newly right", comparison.fixed),
            ("newly wrong", comparison.broken),
        ):
            note(f"{change}: {' '.join(map(str, indices[:20]))}{' ...' * (len(indices) > 20)}")
    if figures.abstention:
        threshold, coverage = figures.abstention
        answered = format_percent(coverage)
        out.print(
            f"predictions with a probability of {threshold:.4f} or more: {answered} of the images"
        )
    if (auroc := figures.ood_auroc) is not None:
        out.print(f"AUROC of the greatest probability against the other data {auroc:.4f}")
    if figures.corruptions:
        from resnets.evaluation.corruptions import mean_corruption_error

        rows = dict[str, dict[str, Any]]()
        for kind, severity, error in figures.corruptions:
            rows.setdefault(kind, {"corruption": kind})[str(severity)] = error
        print_table(list(rows.values()))
        mean = mean_corruption_error(figures.corruptions)
        out.print(f"mean corruption error {format_percent(mean)}")


def print_calibration(calibration: Calibration) -> None:
    """The temperature, and the figures before and after in a table."""
    pairs = {"before": calibration.before, "after": calibration.after}
    names = ("images", "ece", "loss", "top1")
    rows = [{"when": when} | {n: getattr(r, n) for n in names} for when, r in pairs.items()]
    print_json({"temperature": calibration.temperature, "figures": rows})
    out.print(f"temperature {calibration.temperature:.4g}")
    print_table(rows)


def print_analysis(analysis: Analysis) -> None:
    """The rows of an instrument, and its verdict."""
    print_json({"verdict": analysis.verdict, "folder": str(analysis.folder), "rows": analysis.rows})
    if not terminal.quiet:
        print_table(analysis.rows)
    out.print(analysis.verdict)
    note(f"the table and the picture are in {analysis.folder}")


def print_feature_file(written: FeatureFile) -> None:
    """What was written where."""
    for path, reason in written.unreadable:
        note(f"left out {path}: {reason}", always=True)
    facts = asdict(written) | {
        "file": str(written.file),
        "seconds": round(written.seconds, 1),
        "unreadable": [str(path) for path, _ in written.unreadable],
    }
    print_json(facts)
    shape = " x ".join(map(str, written.shape))
    classes = f", of {len(written.classes)} classes" if written.classes else ""
    what = f"{quantify(written.images, 'images')}{classes}: {shape} numbers each at {written.level}"
    out.print(f"{written.file}: {what}, in {format_seconds(written.seconds)}")


def print_probe(result: ProbeResult) -> None:
    """The accuracy of each method with its interval, and what they learned from."""
    for path, reason in result.unreadable:
        note(f"left out {path}: {reason}", always=True)
    print_json(result.summary())
    print_table(
        [
            {
                "method": score.method,
                "setting": score.setting,
                "accuracy": score.accuracy,
                "from": score.interval[0],
                "to": score.interval[1],
                "images" if score.metrics else "episodes": score.images,
            }
            for score in result.scores
        ]
    )
    chosen = f"; C chosen by {result.chosen_by}" if result.chosen_by else ""
    tested = "all images" if result.split == "all" else f"the {result.split} images"
    note(
        f"{result.level}, {result.dimensions:,} numbers, learned from {result.trained_on}{chosen}; "
        f"on {tested}, from and to are the 95 % interval; "
        f"{format_seconds(result.seconds)}"
    )
    if result.file is not None:
        file = shlex.quote(str(result.file))
        note(f"next: resnets predict {file} IMAGE    resnets evaluate {file} DATA")


def print_search(result: SearchResult) -> None:
    """What was found: a table for each kind of answer."""
    for path in result.unreadable:
        note(f"left out {path}", always=True)
    print_json(result.summary())
    several = len({hit.query for hit in result.hits}) > 1
    hits = [asdict(hit) | {"cosine": f"{hit.cosine:.4f}"} for hit in result.hits]
    scores = [
        {
            "figure": score.figure,
            "value": score.value,
            "from": score.interval[0],
            "to": score.interval[1],
            "images": score.images,
        }
        for score in result.scores
    ]
    copies = [asdict(pair) | {"correlation": f"{pair.correlation:.4f}"} for pair in result.copies]
    far = [asdict(row) | {"distance": f"{row.distance:.4f}"} for row in result.outliers]
    for rows in (hits, scores, copies, far):
        for row in rows:
            if not several:
                row.pop("query", None)
        if rows:
            print_table(rows)
    what = f"{quantify(result.images, 'images')}, {result.level}, {result.seconds:.1f} s"
    note(what + (f"; the picture is in {result.picture}" if result.picture else ""))
    if not (hits or scores or copies or far):
        note("none found", always=True)


def print_path(path: Path) -> None:
    """Where a file was written."""
    print_json(str(path))
    out.print(str(path))


def print_explanations(explanations: Iterable[Any], folder: Path) -> None:
    """The explanation of each image, or the number of images of each finding."""
    images, more = list[Any](), dict[str, Any]()
    for item in explanations:
        if isinstance(item, dict):
            more |= item
        elif hasattr(item, "verdict"):
            more |= {"verdict": item.verdict, **asdict(item)}
            note(item.verdict)
        else:
            images.append(item)
    if not images:
        print_table([{"what": finding, "images": count} for finding, count in more.items()])
    note(f"the pictures are in {folder}")
    print_predictions(images, more)


def print_predictions(
    items: Iterable[Prediction], findings: Mapping[str, Any] | None = None
) -> None:
    """One line an image. Raises SystemExit(3) at the end where some could not be read."""
    done, rows = [], []
    for item in items:
        pairs = list(zip(item.classes, item.probabilities, strict=True))
        if item.problem is not None:
            note(item.problem, always=True)
        else:
            out.print(f"{item.file}  {'  '.join(f'{name} {100 * p:.1f} %' for name, p in pairs)}")
        best = [{"class": name, "probability": round(p, 6)} for name, p in pairs]
        rows.append({"file": item.file, "problem": item.problem, "classes": best})
        done.append(item)
    print_json(rows if findings is None else {"images": done, **findings})
    exit_if_unreadable(rows)


def print_findings(rows: Sequence[Mapping[str, str]]) -> None:
    """What was found on each image, one line each; ends as `print_predictions`."""
    print_json(rows)
    for row in rows:
        if row["problem"]:
            note(f"{row['file']}: {row['problem']}", always=True)
        else:
            out.print(f"{row['file']}  {row['found']}")
    exit_if_unreadable(rows)


def exit_if_unreadable(rows: Iterable[Mapping[str, Any]]) -> None:
    """Raise SystemExit(3) where images could not be read."""
    if any(row["problem"] for row in rows):
        raise SystemExit(DataError.exit_code)


def print_rates(tried: Sequence[float], losses: Sequence[float], suggestion: float) -> None:
    """Every fifth line of a range test, and the suggested rate."""
    print_json({"suggestion": suggestion, "rates": tried, "losses": losses})
    for rate, loss in list(zip(tried, losses, strict=True))[::5]:
        note(f"{rate:10.3g}  {loss:.4f}")
    best = f"{10 * suggestion:.2g}"
    out.print(f"--set lr={suggestion:.2g}, a tenth of {best} where the loss is lowest")


def print_trial(done: Sequence[Trial], trials: int) -> None:
    """The trial that has just ended, and the time left."""
    if done:
        left = format_seconds((trials - len(done)) * sum(t.seconds for t in done) / len(done))
        note(f"trial {done[-1].number} of {trials}: {describe_trial(done[-1])}; about {left} left")


def describe_trial(trial: Trial) -> str:
    """The state, error and fields of a trial, in one line."""
    pairs = trial.fields.items()
    texts = (f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in pairs)
    return f"{trial.state} {format_percent(trial.error)}  {' '.join(texts)}"


def print_study(done: Sequence[Trial], folder: Path, plan: Plan) -> None:
    """The trials, best first, how far their errors can be trusted, and what to type next."""
    print_json({"best": str(folder / "best.json"), "trials": done})
    for t in sorted(done, key=lambda t: (t.error is None, t.error)):
        out.print(f"{t.number:4d}  {describe_trial(t)}")
    note(
        f"The best of {len(done)} errors on the same validation images is optimistic; "
        "the test images were not used."
    )
    words = [plan.recipe.data, "--recipe", str(folder / "best.json")]
    words += ["--model", plan.recipe.model] if plan.external else []
    note(f"next: resnets {plan.task.text.command}train {shlex.join(words)}")


def print_experiment(row: Mapping[str, Any]) -> None:
    """The result of one arm of an experiment, in one line."""
    if out.quiet:
        print(terminal.json_text(row))
        return
    from resnets.papers.results import DENSE_TASK_METRICS, ERRORS, EXACT_METRICS

    names = (*ERRORS, "top5_error", "median_std", *DENSE_TASK_METRICS, *EXACT_METRICS)
    figures = ", ".join(
        f"{name.replace('_', ' ')} {'diverged' if row[name] is None else format_count(row[name])}"
        for name in names
        if name in row
    )
    head = f"{row['experiment']}  {row['arm']}  {row['budget']}  seed {row['seed']}"
    out.print(f"{head}: {figures}")


def print_data(facts: Mapping[str, Any]) -> None:
    """What a data set holds."""
    print_json(facts)
    size = f"{facts['size']} pixels on the shorter side"
    out.print(f"{facts['name']}: {facts['channels']} channels, {size}, digest {facts['digest']}")
    if "objects" in facts:
        out.print("objects of each class, without those that are ignored:")
    counts = facts.get("objects", facts["images"])
    rows = [
        {"class": name, **{split: counts[split][k] for split in counts}}
        for k, name in enumerate(facts["classes"])
    ]
    print_table([*rows, {"class": "all", **{split: sum(counts[split]) for split in counts}}])
    for text in facts["notes"]:
        out.print(f"note: {text}")
    for path, reason in facts["unreadable"]:
        out.print(f"unreadable {path}: {reason}")
    for where, reason in facts["problems"]:
        out.print(f"{where}: {reason}")


def print_problems(rows: Sequence[Mapping[str, Any]]) -> None:
    """The problems of data, one line each. Raises SystemExit(3) if training would refuse it."""
    print_json(rows)
    for row in rows:
        kind = "error" if row["refused"] else "note"
        out.print(f"{row['place']}: {kind}: {row['problem']}")
    refused = sum(row["refused"] for row in rows)
    errors = f"{quantify(refused, 'errors')}, which training refuses" if refused else "no errors"
    note(f"{errors}; {quantify(len(rows) - refused, 'notes')}")
    if refused:
        raise SystemExit(DataError.exit_code)


def print_inspection(facts: Mapping[str, Any]) -> None:
    """What a weights file is, a line for each fact, and a line for each guess."""
    print_json(facts)
    lines = {name: value for name, value in facts.items() if value not in ("", None, [], {})}
    for name, value in lines.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        for item in value if isinstance(value, list) and name == "guessed" else [value]:
            text = ", ".join(item) if isinstance(item, list) else item
            text = f"{text:,}" if isinstance(text, int) else str(text).replace("\n", " ")
            out.print(f"{name.replace('_', ' '):>11}  {text}")


def print_facts(rows: Mapping[str, str]) -> None:
    """Name and value, a line each."""
    print_json(rows)
    width = max(map(len, rows))
    for name, value in rows.items():
        out.print(f"{name:>{width}}  {value}")

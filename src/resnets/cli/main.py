"""The command line: parses, calls one function of `resnets.api`, prints.

torch is imported inside a function only, so that `--help` and a typing error answer at once.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from cyclopts import App, CycloptsError, Parameter

import resnets
from resnets import api
from resnets.api import training
from resnets.api.checks import (
    check_metric_floors,
    check_value,
    literal_values,
    metric_floors,
    public,
)
from resnets.cli import format, terminal
from resnets.cli.options import command, explain
from resnets.config.recipe import Augment, Recipe
from resnets.config.tasks import TASK_TEXTS, missing_options
from resnets.config.types import Task
from resnets.errors import DataError, DiskError, MemoryExhausted, ResnetsError, UsageError
from resnets.escape import lines, visible
from resnets.files import check_inputs, find_model_file

if TYPE_CHECKING:
    from resnets.training.tune import Trial

app = App(
    name="resnets",
    help="Deep residual learning: train, test and use residual networks.",
    version=resnets.__version__,
    help_format="plaintext",
    result_action="return_value",
    default_parameter=Parameter(negative=()),
)
STDIN = "\0-"  # for "-", which cyclopts takes for an option: no file has such a name
data_app = App(name="data", help="Fetch data sets and look at them.")
runs_app = App(name="runs", help="The runs of this folder.")
app.register_install_completion_command()


@app.meta.default
def shared(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    verbose: Annotated[bool, Parameter(name=("--verbose", "-v"), show_default=False)] = False,
    quiet: Annotated[bool, Parameter(name=("--quiet", "-q"), show_default=False)] = False,
    json: Annotated[bool, Parameter(show_default=False)] = False,
) -> None:
    """Deep residual learning: train, test and use residual networks.

    Args:
        verbose: Show tracebacks of errors.
        quiet: Print results only.
        json: Print results as JSON.
    """
    terminal.verbose, terminal.quiet, terminal.out.quiet = verbose, quiet, json
    words = [STDIN if token == "-" else token for token in tokens]
    app(words, exit_on_error=False, print_error=False)


def train(data: str, *, dry_run: bool = False, devices: int = 1, **options: Any) -> None:
    """Train a network on DATA, test it, and leave a run folder.

    Args:
        dry_run: Print the plan and stop.
        devices: Processes (GPUs, where there are some) that share each batch; torchrun starts them.
    """
    run, seeds = options.pop("run"), options.pop("seeds")
    check_value("seeds", seeds, ())
    if seeds > 1 and devices > 1:
        raise UsageError("with --devices each seed needs a command of its own: --seed N")
    if seeds == 1:
        training.check_run(run, data)
    plan = api.plan(data, devices=devices, **options)
    from resnets.training import runner
    from resnets.training.clock import estimate

    # What is wrong with a folder is told before anything is measured.
    runs = runner.seed_runs(plan, run, seeds) if seeds > 1 else {}
    if not runs:
        runner.run_folder(plan, run)
    format.plan(plan, estimate(plan), list(runs.values()), asked_for=dry_run)
    if dry_run:
        return
    if runs:
        with terminal.bar() as watch:
            for done in training.train_seeds(plan, run, seeds, watch):
                terminal.note(f"{done.run} is finished")
        format.compared(api.runs_compare(*(one.path for one in runs.values())))
        return
    folder = runner.create_run(plan, run)
    terminal.note(f"run folder {folder.path}")
    if devices > 1:  # the ranks are other processes; this one ends with theirs
        os.environ["RESNETS_BEGAN"] = str(time.time() - time.monotonic() + plan.began)
        ranks(devices, folder.path, options, plan.recipe.model if plan.external else None)
    with terminal.bar() as watch:
        outcome = training.train_and_report(folder, plan, watch)
    format.outcome(outcome)


def ranks(devices: int, run: str | Path, options: dict[str, Any], model: str | None) -> None:
    """Go on with a run in as many processes, and exit as they do."""
    from resnets.training.distributed import launch

    words = ["--device", options["device"], "--workers", str(options["workers"])]
    words += ["--model", model] if model else []
    words += ["--json"] * terminal.out.quiet
    raise SystemExit(launch(devices, ["resume", str(run), *words]))


def tune(data: str, *, rate_only: bool = False, **options: Any) -> None:
    """Search for better fields of a recipe by the error on validation images; again goes on.

    Args:
        rate_only: Only suggest a learning rate, by a range test: some seconds, no folder.
    """
    run, trials, search = (options.pop(name) for name in ("run", "trials", "search"))
    budget = options.pop("budget")
    plan = api.plan(data, **options)
    if rate_only:
        format.rates(*api.find_rate(plan))
        return
    from resnets.api.checks import seconds
    from resnets.training.clock import estimate

    format.plan(plan, seconds(budget) if budget else trials * estimate(plan))
    folder = Path(run or training.study_folder(plan))
    done: list[Trial] = []
    with terminal.bar() as watch:
        for done in api.tune(
            plan, run=folder, trials=trials, budget=budget, search=search, watch=watch
        ):
            format.trial(done, trials)
    format.study(done, folder)


def resume(run: str | None = None, *, yes: bool = False, devices: int = 1, **options: Any) -> None:
    """Go on with an interrupted run; without RUN with the newest unfinished one.

    Args:
        yes: Do not ask, when RUN is left out and the newest unfinished run is older than a day.
        devices: Processes (GPUs, where there are some) that share each batch.
    """
    if devices > 1:
        if run is None or options["data"] is not None:
            raise UsageError("--devices needs RUN, and its data where it was")
        ranks(devices, run, options, options["model"])
    with terminal.bar() as watch:
        outcome = api.resume(run or newest_unfinished(yes), **options, watch=watch)
    format.outcome(outcome)


def newest_unfinished(yes: bool) -> Path:
    """The newest unfinished run; an old one only after a question. Raises UsageError."""
    run, written = training.newest_unfinished()
    age = timedelta(seconds=round(time.time() - written))
    terminal.note(f"the newest unfinished run is {run}, last written {age} ago", always=True)
    if age > timedelta(days=1) and not yes:
        answer = ""
        if sys.stdin.isatty():
            terminal.note("go on with it? [y/N]", always=True)
            answer = sys.stdin.readline()
        if answer.strip().lower() not in ("y", "yes"):
            raise UsageError(f"nothing done: `resnets resume {run}`, or --yes, goes on with it")
    return run


def evaluate(*places: str, task: Task, fail_under: list[str] | None = None, **options: Any) -> None:
    """Test MODEL... on one split of DATA: several models are an ensemble.

    Args:
        fail_under: FIGURE=VALUE: exit with code 1 where it is less; may be repeated.
    """
    wanted = metric_floors(task, fail_under or [])
    result = api.evaluate(*places, task=task, **options)
    format.result(result)
    check_metric_floors(wanted, result)


def predict(model: str, *inputs: str, task: Task, **options: Any) -> None:
    """Name what is on images: files, folders, patterns, or - for an image on standard input."""
    items = [sys.stdin.buffer.read() if item == STDIN else item for item in inputs]
    if "out" in options:
        options["out"] = options["out"] or "predictions"
        rows = api.predict(model, items, task=task, **options)
        terminal.note(f"the pictures are in {options['out']}")
        format.seen(rows)
        return
    find_model_file(model)
    check_inputs(items)
    names = {f"input {k}": "-" for k, item in enumerate(inputs) if item == STDIN}
    answers = api.predict(model, iter(items), task=task, **options)  # each is shown at once
    format.predictions(replace(one, file=names.get(one.file, one.file)) for one in answers)


def explained(model: str, *inputs: str, out: str, **options: Any) -> None:  # noqa: D103
    format.explained(api.explain(model, *inputs, out=out, **options), Path(out))


@public
def reproduce(
    *ids: str,
    budget: Literal["smoke", "cpu", "gpu", "full"] | None = None,
    arm: list[str] | None = None,
    seed: int = 0,
    seeds: int = 1,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    status: bool = False,
    data: str | None = None,
    weights: str = "",
    root: Path = Path(),
    dry_run: bool = False,
    device: str = "auto",
    workers: int = 2,
) -> None:
    """Run tables and figures of the papers again; without a budget list them all.

    Args:
        ids: Experiments from the list, as r1.tab6; all when left out.
        budget: smoke: digits, two steps; cpu: some hundred steps at half the resolution, gpu: some
            thousand; full: the paper's protocol.
        arm: A row of an experiment alone, as resnet20; may be repeated.
        seed: The first seed.
        seeds: Runs of each network, with the seeds that follow.
        precision: float32 is the papers', bfloat16 a line of its own, auto what the machine has.
        status: Print how far the runs are that have not ended, and stop.
        data: Where ImageNet is, for the full budget; VOC, COCO or other boxes, for all but smoke.
        weights: A classifier that detectors and localisers start from at the full budget.
        root: Where runs/, results/ledger.jsonl and docs/results.md are; of the smoke budget
            ROOT/runs/smoke.
        dry_run: Print what would be run, and how long it would take here.
    """
    from resnets.papers import budgets, planning, reproduce, results
    from resnets.papers.experiments import EXPERIMENTS
    from resnets.papers.status import status as run_statuses

    if status:
        terminal.listed(run_statuses(root))
        return
    if budget is None:
        terminal.listed(planning.overview(root))
        if under_way := len(run_statuses(root)):
            terminal.note(f"{under_way} under way: `resnets reproduce --status`", always=True)
        return
    if budget == "smoke":
        root = root / "runs" / "smoke"
    arms = arm or []
    wanted = budgets.select_experiments(ids, budget, data, arms)
    runnable = [e for e in EXPERIMENTS.values() if not e.not_runnable]
    if not ids and (left_out := [e.id for e in runnable if e not in wanted]):
        names = ", ".join(left_out)
        terminal.note(f"left out, since their data has to be named with --data: {names}")
    jobs = [
        job
        for one in wanted
        for job in budgets.jobs(
            one, budget, seeds, data, weights, seed=seed, arms=arms, precision=precision
        )
    ]
    if dry_run:
        terminal.listed(planning.plan_jobs(jobs, root, device))
        return
    with terminal.bar() as watch:
        for job in jobs:
            row = reproduce.run(job, root, device=device, workers=workers, watch=watch)
            if row is None:
                text = f"{job.experiment.id} {job.arm.name} seed {job.seed}"
                terminal.note(f"{text}: left out, another process is at it", always=True)
            else:
                format.reached(row)
    format.place(results.write_page(root))


def data_get(name: Literal["cifar10", "cifar100"]) -> None:  # noqa: D103 - the API's
    with terminal.download(name) as watch:
        path = api.data_get(name, watch=watch)
    terminal.note(f"{name} is in {path}", always=True)


def list_fields() -> None:
    """List the fields of a recipe for --set: name, default, meaning."""
    rows = []
    for kind, prefix in ((Recipe, ""), (Augment, "augment.")):
        hints = get_type_hints(kind)
        for field in fields(kind):
            if meaning := field.metadata.get("meaning"):
                default = {} if field.default is MISSING else field.default
                choices = ", ".join(map(str, literal_values(hints[field.name])))
                row = {"field": prefix + field.name, "default": str(default)}
                rows.append(row | {"meaning": f"{meaning} ({choices})" if choices else meaning})
    terminal.listed(rows)


def showing(
    function: Callable[..., Any], shown: Callable[[Any], Any], **more: Any
) -> Callable[..., Any]:
    """A command that shows the result of a function."""

    def run(*arguments: Any, **options: Any) -> None:
        shown(function(*arguments, **options))

    return command(function, run, **more)


def register() -> None:
    """Give the command line its commands."""
    hidden, like = ["task", "watch"], api.evaluate
    section = App(name="train")
    section.default(command(api.train, train, hide=hidden, like=api.plan))
    section.command(list_fields, name="--help-fields", group="Parameters")
    app.command(section)
    app.command(command(api.resume, resume, hide=hidden, like=api.plan), name="resume")
    app.command(command(api.tune, tune, hide=hidden, like=api.plan), name="tune")
    app.command(command(api.explain, explained, like=like), name="explain")
    for text in TASK_TEXTS.values():
        group, given = app, {"task": text.name}
        if text.command:
            group = App(name=text.name, help=text.help)
            words = {"data": text.data_help}
            hide = ["watch"]
            one = command(api.train, train, hide=hide, given=given, like=api.plan, words=words)
            group.command(one, name="train")
            app.command(group)
        hide = missing_options("evaluate", text)
        group.command(command(like, evaluate, hide=hide, given=given), name="evaluate")
        hide, words = missing_options("predict", text), {"": text.predict_help}
        one = command(api.predict, predict, hide=hide, given=given, like=like, words=words)
        group.command(one, name="predict")
    data_app.command(command(api.data_get, data_get, hide=hidden), name="get")
    for parent, name, function, shown in (
        (app, "calibrate", api.calibrate, format.calibration),
        (app, "report", api.report, format.place),
        (app, "analyze", api.analyze, format.analysis),
        (app, "models", api.list_models, terminal.listed),
        (app, "doctor", api.doctor, format.pairs),
        (data_app, "info", api.data_info, format.data),
        (data_app, "check", api.data_check, format.checked),
        (runs_app, "ls", api.runs, terminal.listed),
        (runs_app, "compare", api.runs_compare, format.compared),
    ):
        parent.command(showing(function, shown, like=like), name=name)
    app.command(command(reproduce, reproduce, like=api.plan), name="reproduce")
    app.command(data_app)
    app.command(runs_app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with the documented code."""
    # Read with torch: a waiting thread gives its core to other work (docs/training.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if "RANK" not in os.environ:
        os.environ["RESNETS_BEGAN"] = str(time.time())
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    terminal.verbose = False
    warnings.showwarning = lambda message, *_, **__: terminal.note(f"note: {message}", always=True)
    for stream in (sys.stdout, sys.stderr):  # what their encoding lacks is escaped
        if isinstance(stream, io.TextIOWrapper):
            # As Python itself takes the C locale for UTF-8, unless told otherwise.
            ascii_only = codecs.lookup(stream.encoding).name == "ascii"
            encoding = "utf-8" if ascii_only else stream.encoding
            stream.reconfigure(encoding=encoding, errors="backslashreplace")
    try:
        app.meta(tokens, exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except CycloptsError as error:
        fail(explain(error), UsageError.exit_code)
    except ResnetsError as error:
        fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        fail("stopped", 130)
    except BrokenPipeError:  # nobody reads any more, as of `| head`
        terminal.give_up(sys.stdout)
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
        place = f": {error.filename}" if error.filename else ""
        code = (DiskError if full else DataError).exit_code
        fail(f"{error.strerror or error}{place}", code)
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        memory = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text
        if not memory and isinstance(error, RuntimeError):
            raise
        remedy = (
            "out of memory; train with a smaller --batch N or --set activation_checkpointing=4,\n"
            "evaluate with a smaller --batch N"
        )
        fail(remedy, MemoryExhausted.exit_code)
    raise SystemExit(0)


def fail(message: str, code: int) -> None:
    """Print an error on standard error and exit; with --verbose the traceback too."""
    with contextlib.suppress(OSError, ValueError):
        if terminal.verbose:
            import traceback

            print(visible(traceback.format_exc(), keep="\n"), file=sys.stderr)
        print(f"resnets: {lines(message)}", file=sys.stderr, flush=True)
    for stream in (sys.stdout, sys.stderr):
        terminal.give_up(stream)
    raise SystemExit(code)


register()

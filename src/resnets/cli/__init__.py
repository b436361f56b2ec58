"""The command line: parses, calls one function of the package, prints.

A verb whose result is only shown is a command as it is, with its line in `SHOWN`; the functions
here are those that talk more. torch is imported inside a verb only, so that `--help` answers at
once.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Unpack

from cyclopts import App, CycloptsError, Parameter

import resnets
from resnets import classifiers, doctor, instruments, listing, verbs
from resnets.cli import scenes, screen, show
from resnets.errors import DataError, DiskError, MemoryExhausted, ResnetsError, UsageError
from resnets.options import Count, Device, Judged, Seconds, Workers, check_floors, floors
from resnets.verbs import Asked

if TYPE_CHECKING:
    from resnets.training.tune import Trial

VERBOSE, QUIET, JSON = {"-v", "--verbose"}, {"-q", "--quiet"}, {"--json"}

app = App(
    name="resnets",
    help="Deep residual learning: train, test and use residual networks.\n\n"
    "-v shows tracebacks, -q prints results only, --json prints them as JSON.",
    version=resnets.__version__,
    help_format="plaintext",
    result_action="return_value",
    default_parameter=Parameter(negative=()),
)
data_app = App(name="data", help="Fetch data sets and look at them.")
runs_app = App(name="runs", help="The runs of this folder.")
app.command(data_app)
app.command(runs_app)
app.register_install_completion_command()

SHOWN: dict[Callable[..., Any], tuple[App, str, Callable[[Any], None]]] = {
    classifiers.calibrate: (app, "calibrate", show.calibration),
    verbs.report: (app, "report", show.place),
    doctor.examine: (app, "doctor", show.pairs),
    instruments.analyze: (app, "analyze", show.analysis),
    listing.models: (app, "models", screen.listed),
    listing.data_info: (data_app, "info", show.data),
    listing.data_check: (data_app, "check", show.checked),
    listing.runs: (runs_app, "ls", screen.listed),
}
for verb, (group, name, _) in SHOWN.items():
    group.command(verb, name=name)


@app.command
def train(
    data: str,
    /,
    *,
    task: Annotated[Any, Parameter(parse=False)] = None,
    budget: Seconds = None,
    run: Path | None = None,
    dry_run: bool = False,
    devices: Count = 1,
    **asked: Unpack[Asked],
) -> None:
    """Train a network on DATA, test it, and leave a run folder.

    Args:
        data: digits, cifar10, cifar100, a folder of class folders, or a CSV of path,label; to
            detect and localize COCO, PASCAL VOC, YOLO or a CSV of boxes, to segment images and
            masks.
        budget: A time instead of epochs, as 90s, 30m or 1.5h: as many steps as fit, the rate
            annealed.
        run: The run folder; runs/DATA-MODEL when left out.
        dry_run: Print the plan and stop.
        devices: Processes (GPUs, where there are some) that share each batch; torchrun starts them.
    """
    from resnets import lifecycle
    from resnets.training.fit import estimate

    plan = verbs.plan(data, task=task, budget=budget, devices=devices, **asked)
    lifecycle.run_folder(plan, run)  # what is wrong with it is told before anything is measured
    show.plan(plan, plan.recipe.budget or estimate(plan), asked_for=dry_run)
    if dry_run:
        return
    folder = lifecycle.create_run(plan, run)
    screen.note(f"run folder {folder.path}")
    if devices > 1:  # the ranks are other processes; this one ends with theirs
        os.environ["RESNETS_BEGAN"] = str(time.time() - time.monotonic() + plan.began)
        device, workers = asked.get("device", "auto"), asked.get("workers", 2)
        resume(folder.path, devices=devices, device=device, workers=workers)
    with screen.bar() as watch:
        outcome = lifecycle.go(folder, plan, watch)
    show.outcome(outcome)


scenes.register(app, train)


@app.command
def tune(
    data: str,
    /,
    *,
    trials: Count = 20,
    budget: Seconds = None,
    search: list[str] | None = None,
    run: Path | None = None,
    rate_only: bool = False,
    **asked: Unpack[Asked],
) -> None:
    """Search for better fields of a recipe by the error on validation images; again goes on.

    Args:
        trials: How many choices are tried; those that fall behind are stopped early.
        budget: A time for all of them, as 30m or 8h, that they share evenly.
        search: FIELD=LOW:HIGH, FIELD=LOW:HIGH:log, FIELD=A,B,C, or FIELD of those that are searched
            when left out: lr, weight_decay, warmup, label_smoothing, ema, augment.policy,
            augment.mixup.
        run: The folder of the study; runs/DATA-MODEL-tune when left out.
        rate_only: Only suggest a learning rate, by a range test: some seconds, no folder.
    """
    from resnets.training.fit import estimate

    plan = verbs.plan(data, **asked)
    if rate_only:
        show.rates(*resnets.find_rate(plan))
        return
    show.plan(plan, budget or trials * estimate(plan))
    folder = run or Path(f"runs/{Path(data).stem}-{plan.recipe.model}-tune")
    done: list[Trial] = []
    with screen.bar() as watch:
        for done in verbs.tune(
            plan, folder, trials=trials, budget=budget or 0.0, search=search or (), watch=watch
        ):
            show.trial(done, trials)
    show.study(done, folder)


@app.command
def resume(
    run: Path | None = None,
    /,
    *,
    data: str | None = None,
    devices: Count = 1,
    device: Device = "auto",
    workers: Workers = 2,
) -> None:
    """Go on with an interrupted run; without RUN with the newest unfinished one.

    Args:
        data: Where the data is now, if it was moved.
        devices: Processes (GPUs, where there are some) that share each batch.
    """
    if devices > 1:
        from resnets.training.world import launch

        if run is None or data is not None:
            raise UsageError("--devices needs RUN, and its data where it was")
        options = ["--device", device, "--workers", str(workers), *["--json"] * screen.out.quiet]
        raise SystemExit(launch(devices, ["resume", str(run), *options]))
    with screen.bar() as watch:
        outcome = verbs.resume(run, data=data, device=device, workers=workers, watch=watch)
    show.outcome(outcome)


@app.command
def evaluate(*places: str, fail_under: list[str] | None = None, **how: Unpack[Judged]) -> None:
    """Test MODEL... on one split of DATA: several models are an ensemble.

    Args:
        places: Run folders, model files, or foreign .pth or .safetensors files; and last the data.
        fail_under: FIGURE=VALUE, as top1=0.93: exit with code 1 where it is less; may be repeated.
    """
    wanted = floors("classify", fail_under or [])
    result = classifiers.evaluate(*places, **how)
    show.result(result)
    check_floors(wanted, result)


@app.command
@functools.wraps(classifiers.explain)
def explain(*inputs: Any, **how: Any) -> None:  # noqa: D103 - its documentation is the verb's
    show.explained(classifiers.explain(*inputs, **how), how["out"])


@app.command
def predict(
    model: Path,
    /,
    *inputs: Annotated[str, Parameter(allow_leading_hyphen=True)],
    top: Count = 3,
    device: Device = "auto",
) -> None:
    """Name what is on images: files, folders, globs, or - for an image on standard input.

    Args:
        top: How many classes to name.
    """
    if not inputs:
        raise UsageError("no input: give image files, folders, globs, or - for standard input")
    if unknown := [item for item in inputs if item.startswith("--")]:
        raise UsageError(f"unknown option {unknown[0]}; `resnets predict --help` lists them")
    items = [sys.stdin.buffer.read() if item == "-" else item for item in inputs]
    show.predictions(classifiers.predict(model, items, top=top, device=device))


@app.command
def reproduce(
    *ids: str,
    budget: Literal["smoke", "cpu", "gpu", "full"] | None = None,
    arm: list[str] | None = None,
    seed: int = 0,
    seeds: Count = 1,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    status: bool = False,
    data: str | None = None,
    weights: str = "",
    root: Path = Path(),
    dry_run: bool = False,
    device: Device = "auto",
    workers: Workers = 2,
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
    from resnets.paper import budgets, reproduce, results
    from resnets.paper.experiments import EXPERIMENTS

    if status:
        screen.listed(reproduce.status(root))
        return
    if budget is None:
        screen.listed(reproduce.overview(root))
        if under_way := len(reproduce.status(root)):
            screen.note(f"{under_way} under way: `resnets reproduce --status`", always=True)
        return
    if budget == "smoke":
        root = root / "runs" / "smoke"
    arms = arm or []
    wanted = budgets.chosen(ids, budget, data, arms)
    if not ids and (left := [x for x in EXPERIMENTS.values() if x not in wanted and not x.needs]):
        names = ", ".join(one.id for one in left)
        screen.note(f"left out, since their data has to be named with --data: {names}")
    jobs = [
        job
        for one in wanted
        for job in budgets.jobs(
            one, budget, seeds, data, weights, seed=seed, arms=arms, precision=precision
        )
    ]
    if dry_run:
        screen.listed(reproduce.planned(jobs, root, device))
        return
    with screen.bar() as watch:
        for job in jobs:
            row = reproduce.run(job, root, device=device, workers=workers, watch=watch)
            if row is None:
                text = f"{job.experiment.id} {job.arm.name} seed {job.seed}"
                screen.note(f"{text}: left out, another process is at it", always=True)
            else:
                show.reached(row)
    show.place(results.draw(root))


@data_app.command
def get(name: Literal["cifar10", "cifar100"], /) -> None:
    """Fetch a data set into the cache (RESNETS_DATA, else the user's cache folder)."""
    with screen.download(name) as watch:
        path = resnets.get(name, watch)
    screen.note(f"{name} is in {path}", always=True)


@runs_app.command(name="compare")
def compare_runs(*runs: Path) -> None:
    """Put runs side by side: their figures, and what differs in recipe, data, code and machine."""
    from resnets.reporting.compare import compare
    from resnets.training.run import Run

    screen.listed(compare([Run(run) for run in runs]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with the documented code."""
    # Read with torch: a waiting thread gives its core to other work (docs/training.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if "RANK" not in os.environ:
        os.environ["RESNETS_BEGAN"] = str(time.time())
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    verbose, screen.quiet, screen.out.quiet = (
        not flags.isdisjoint(tokens) for flags in (VERBOSE, QUIET, JSON)
    )
    tokens = [token for token in tokens if token not in VERBOSE | QUIET | JSON]
    try:
        verb, bound, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
        answer = verb(*bound.args, **bound.kwargs)
        if verb in SHOWN:
            SHOWN[verb][-1](answer)
    except (CycloptsError, ResnetsError) as error:
        fail(str(error), getattr(error, "exit_code", UsageError.exit_code), verbose)
    except KeyboardInterrupt:
        fail("stopped", 130, verbose=False)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
        place = f": {error.filename}" if error.filename else ""
        code = (DiskError if full else DataError).exit_code
        fail(f"{error.strerror or error}{place}", code, verbose)
    except (MemoryError, RuntimeError) as error:
        told = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
        if not told and isinstance(error, RuntimeError):
            raise
        remedy = (
            "out of memory; train with a smaller --set batch=N or --set checkpoint_blocks=4,\n"
            "evaluate with a smaller --batch N"
        )
        fail(remedy, MemoryExhausted.exit_code, verbose)
    raise SystemExit(0)


def fail(message: str, code: int, verbose: bool) -> None:
    """Print an error on standard error and exit; with `verbose` the traceback too."""
    if verbose:
        import traceback

        traceback.print_exc()
    with contextlib.suppress(BrokenPipeError):
        print(f"resnets: {message}", file=sys.stderr)
    raise SystemExit(code)

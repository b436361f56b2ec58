"""The command line: parses, calls one function of `resnets.verbs`, prints.

torch is imported inside a verb only, so that `--help` answers at once.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import cyclopts
from cyclopts import App, Parameter, validators

import resnets
from resnets.cli import show
from resnets.cli.options import PLAIN, Asked, Count, Device, Json, Seconds, Workers
from resnets.errors import DataError, DiskError, MemoryExhausted, ResnetsError, UsageError

if TYPE_CHECKING:
    from resnets.training.tune import Trial

VERBOSE, QUIET = {"-v", "--verbose"}, {"-q", "--quiet"}

app = App(
    name="resnets",
    help="Deep residual learning: train, test and use residual networks.\n\n"
    "-v shows tracebacks, -q prints results only.",
    version=resnets.__version__,
    help_format="plaintext",
)
data_app = App(name="data", help="Fetch data sets and look at them.")
runs_app = App(name="runs", help="The runs of this folder.")
app.command(data_app)
app.command(runs_app)
app.register_install_completion_command()


@app.command
def train(
    data: str,
    /,
    *,
    asked: Asked = PLAIN,
    budget: Seconds = None,
    run: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    devices: Count = 1,
    json: Json = False,
) -> None:
    """Train a network on DATA, test it, and leave a run folder.

    Args:
        data: digits, cifar10, cifar100, a folder of class folders, or a CSV of path,label.
        budget: A time instead of epochs, as 90s, 30m or 1.5h: as many steps as fit, the rate
            annealed.
        run: The run folder; runs/DATA-MODEL when left out.
        dry_run: Print the plan and stop.
        devices: Processes (GPUs, where there are some) that share each batch; torchrun starts them.
    """
    from resnets import verbs

    chosen = asked.plan(data, budget, devices)
    verbs.run_folder(chosen, run)  # what is wrong with it is told before anything is measured
    seconds = chosen.recipe.budget or verbs.estimate(chosen)
    show.plan(chosen, seconds, as_json=json and dry_run, always=dry_run)
    if dry_run:
        return
    folder = verbs.create_run(chosen, run)
    show.note(f"run folder {folder.path}")
    if devices > 1:  # the ranks are other processes; this one ends with theirs
        os.environ["RESNETS_BEGAN"] = str(time.time() - time.monotonic() + chosen.began)
        resume(folder.path, devices=devices, device=asked.device, workers=asked.workers, json=json)
    with show.bar() as watch:
        outcome = verbs.go(folder, chosen, watch)
    show.outcome(outcome, as_json=json)


@app.command
def tune(
    data: str,
    /,
    *,
    asked: Asked = PLAIN,
    trials: Count = 20,
    budget: Seconds = None,
    search: Annotated[list[str] | None, Parameter(negative="")] = None,
    run: Path | None = None,
    rate_only: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
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
    from resnets import verbs

    chosen = asked.plan(data)
    if rate_only:
        show.rates(*verbs.find_rate(chosen), as_json=json)
        return
    seconds = budget or trials * verbs.estimate(chosen)
    show.plan(chosen, seconds, as_json=False, always=False)
    folder = run or Path(f"runs/{Path(data).stem}-{chosen.recipe.model}-tune")
    done: list[Trial] = []
    with show.bar() as watch:
        for done in verbs.tune(
            chosen, folder, trials=trials, budget=budget or 0.0, search=search or (), watch=watch
        ):
            show.trial(done, trials)
    show.study(done, folder, as_json=json)


@app.command
def resume(
    run: Path | None = None,
    /,
    *,
    data: str | None = None,
    devices: Count = 1,
    device: Device = "auto",
    workers: Workers = 2,
    json: Json = False,
) -> None:
    """Go on with an interrupted run; without RUN with the newest unfinished one.

    Args:
        data: Where the data is now, if it was moved.
        devices: Processes (GPUs, where there are some) that share each batch.
    """
    from resnets import verbs

    if devices > 1:
        if run is None or data is not None:
            raise UsageError("--devices needs RUN, and its data where it was")
        options = ["--device", device, "--workers", str(workers), *["--json"] * json]
        raise SystemExit(verbs.launch(devices, ["resume", str(run), *options]))
    with show.bar() as watch:
        outcome = verbs.resume(run, data=data, device=device, workers=workers, watch=watch)
    show.outcome(outcome, as_json=json)


@app.command
def evaluate(
    model: Path,
    data: str,
    /,
    *,
    split: Literal["test", "val", "train", "all"] | None = None,
    normalize: Literal["data", "imagenet", "none"] | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    batch: Count = 128,
    max_unreadable: Annotated[float, Parameter(validator=validators.Number(gte=0, lte=1))] = 0.01,
    device: Device = "auto",
    workers: Workers = 2,
    json: Json = False,
) -> None:
    """Test MODEL on one split of DATA: top-1, top-5, loss, and each class.

    Args:
        model: A run folder, a model file, or a foreign .pth or .safetensors file.
        split: The test split when left out; `all` for a folder of images that are all new to the
            model.
        normalize: Mean and deviation for a foreign file that does not say its own.
        max_unreadable: Part of the images that may be unreadable and left out.
    """
    from resnets import verbs

    result = verbs.evaluate(
        model,
        data,
        split=split,
        normalize=normalize,
        precision=precision,
        batch=batch,
        max_unreadable=max_unreadable,
        device=device,
        workers=workers,
    )
    show.result(result, verbs.summary(result), as_json=json)


@app.command
def predict(
    model: Path,
    /,
    *inputs: Annotated[str, Parameter(allow_leading_hyphen=True)],
    top: Count = 3,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Name what is on images: files, folders, globs, or - for an image on standard input.

    Args:
        top: How many classes to name.
    """
    if not inputs:
        raise UsageError("no input: give image files, folders, globs, or - for standard input")
    for item in inputs:
        if item.startswith("--"):
            raise UsageError(f"unknown option {item}; `resnets predict --help` lists them")
    items: list[str | Path | bytes] = [
        sys.stdin.buffer.read() if item == "-" else item for item in inputs
    ]
    problems = show.predictions(resnets.predict(model, items, top=top, device=device), as_json=json)
    if problems:
        raise SystemExit(3)


@app.command
def models(pattern: str = "*", /, *, json: Json = False) -> None:
    """List the networks: name, depth, parameters, multiply-adds, input, source."""
    rows = list(resnets.models(pattern))
    show.dump(rows) if json else show.listed(rows, f"no network matches {pattern!r}")


@data_app.command
def get(name: Literal["cifar10", "cifar100"], /) -> None:
    """Fetch a data set into the cache (RESNETS_DATA, else the user's cache folder)."""
    with show.download(name) as watch:
        path = resnets.get(name, watch)
    show.note(f"{name} is in {path}", always=True)


@data_app.command
def info(data: str, /, *, json: Json = False) -> None:
    """Show what DATA holds: splits, classes, sizes, digest, unreadable files."""
    facts = resnets.data_info(data)
    show.dump(facts) if json else show.data(facts)


@runs_app.command(name="ls")
def list_runs(root: Path = Path("runs"), /, *, json: Json = False) -> None:
    """List the runs below a folder with their errors."""
    rows = resnets.runs(root)
    show.dump(rows) if json else show.listed(rows, f"no runs in {root}")


@app.command
def doctor(*, quick: Annotated[bool, Parameter(negative="")] = False, json: Json = False) -> None:
    """Look at this machine: versions, processor, GPU, memory, disk, and a ten-second speed check.

    Args:
        quick: Leave out the speed check.
    """
    from resnets import doctor as examine

    facts = examine.examine(speed=not quick)
    show.dump(facts) if json else show.pairs(facts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with the documented code."""
    if "RANK" not in os.environ:
        os.environ["RESNETS_BEGAN"] = str(time.time())
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    verbose, show.quiet = (not flags.isdisjoint(tokens) for flags in (VERBOSE, QUIET))
    tokens = [token for token in tokens if token not in VERBOSE | QUIET]
    try:
        app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except cyclopts.CycloptsError as error:
        fail(str(error), 2, verbose)
    except ResnetsError as error:
        fail(str(error), error.exit_code, verbose)
    except KeyboardInterrupt:
        fail("stopped", 130, verbose=False)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
        place = f": {error.filename}" if error.filename else ""
        what = f"{error.strerror or error}{place}"
        fail(what, DiskError.exit_code if full else DataError.exit_code, verbose)
    except (MemoryError, RuntimeError) as error:
        told = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
        if not told and isinstance(error, RuntimeError):
            raise
        fail(
            "out of memory; train with a smaller --set batch=N or --set checkpoint_blocks=4,\n"
            "evaluate with a smaller --batch N",
            MemoryExhausted.exit_code,
            verbose,
        )
    raise SystemExit(0)


def fail(message: str, code: int, verbose: bool) -> None:
    """Print an error on standard error and exit; with `verbose` the traceback too."""
    if verbose:
        import traceback

        traceback.print_exc()
    with contextlib.suppress(BrokenPipeError):
        print(f"resnets: {message}", file=sys.stderr)
    raise SystemExit(code)

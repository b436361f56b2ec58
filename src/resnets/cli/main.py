"""The command line: its commands, and how each error ends it."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter

import resnets
from resnets import http_files
from resnets.cli import commands, format, terminal
from resnets.cli.options import explain_error, make_command
from resnets.config.tasks import TASK_TEXTS, missing_options
from resnets.errors import DataError, DiskError, MemoryExhausted, ResnetsError, UsageError
from resnets.escape import escape_lines, visible

app = App(
    name="resnets",
    help="Deep residual learning: train, evaluate and use residual networks.",
    version=resnets.__version__,
    help_format="plaintext",
    result_action="return_value",
    default_parameter=Parameter(negative=()),
)
data_app = App(name="data", help="Download and inspect data sets.")
weights_app = App(name="weights", help="Download, import and inspect weights that others trained.")
runs_app = App(name="runs", help="List and compare runs.")
app.register_install_completion_command()


@app.meta.default
def shared(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    verbose: Annotated[bool, Parameter(name=("--verbose", "-v"), show_default=False)] = False,
    quiet: Annotated[bool, Parameter(name=("--quiet", "-q"), show_default=False)] = False,
    json: Annotated[bool, Parameter(show_default=False)] = False,
    offline: Annotated[bool, Parameter(show_default=False)] = False,
) -> None:
    """Deep residual learning: train, evaluate and use residual networks.

    Args:
        verbose: Show tracebacks of errors.
        quiet: Print results only.
        json: Print results as JSON.
        offline: Download nothing; as RESNETS_OFFLINE=1 in the environment.
    """
    http_files.offline = offline
    terminal.verbose, terminal.quiet, terminal.out.quiet = verbose, quiet, json
    words = [commands.STDIN if token == "-" else token for token in tokens]
    app(words, exit_on_error=False, print_error=False)


def add(
    parent: App, name: str, function: Callable[..., Any], run: Callable[..., Any], **more: Any
) -> None:
    """Add the command that calls `run`, with the options of `function`: see `make_command`."""
    parent.command(make_command(function, run, **more), name=name)


def register() -> None:
    """Give the command line its commands."""
    training = App(name="train", usage="Usage: resnets train DATA [OPTIONS]")
    hidden = ("task", "on_progress")
    training.default(make_command(resnets.train, commands.train, hide=hidden, like=resnets.plan))
    training.command(commands.list_fields, name="--help-fields", group="Parameters")
    app.command(training)
    add(app, "resume", resnets.resume, commands.resume, hide=hidden, like=resnets.plan)
    add(app, "tune", resnets.tune, commands.tune, hide=hidden, like=resnets.plan)
    add(app, "reproduce", commands.reproduce, commands.reproduce, like=resnets.plan)
    for text in TASK_TEXTS.values():
        parent, fixed = app, {"task": text.name}
        if text.command:
            parent = App(name=text.name, help=text.help)
            app.command(parent)
            add(
                parent, "train", resnets.train, commands.train, hide=("on_progress",), fixed=fixed,
                like=resnets.plan, words={"data": text.data_help},
            )  # fmt: skip
        for name, function, run, words in (
            ("evaluate", resnets.evaluate, commands.evaluate, {}),
            ("predict", resnets.predict, commands.predict, {"": text.predict_help}),
        ):
            add(
                parent, name, function, run, hide=missing_options(name, text), fixed=fixed,
                like=resnets.evaluate, words=words,
            )  # fmt: skip
    add(app, "explain", resnets.explain, commands.explain, like=resnets.evaluate)
    for called in (resnets.features, resnets.probe, resnets.search):
        command = getattr(commands, called.__name__)
        add(app, called.__name__, called, command, hide=("watch",), like=resnets.evaluate)
    add(data_app, "get", resnets.data_get, commands.data_get, hide=hidden)
    add(weights_app, "get", resnets.weights_get, commands.weights_get, hide=hidden)
    printed: tuple[tuple[App, str, Callable[..., Any], Callable[[Any], Any]], ...] = (
        (app, "calibrate", resnets.calibrate, format.print_calibration),
        (app, "report", resnets.report, format.print_path),
        (app, "analyze", resnets.analyze, format.print_analysis),
        (app, "models", resnets.list_models, terminal.print_rows),
        (app, "doctor", resnets.doctor, format.print_facts),
        (data_app, "info", resnets.data_info, format.print_data),
        (data_app, "check", resnets.data_check, format.print_problems),
        (weights_app, "ls", resnets.list_weights, terminal.print_rows),
        (weights_app, "import", resnets.weights_import, format.print_path),
        (weights_app, "inspect", resnets.weights_inspect, format.print_inspection),
        (weights_app, "where", resnets.weights_where, terminal.print_rows),
        (runs_app, "ls", resnets.runs, terminal.print_rows),
        (runs_app, "compare", resnets.runs_compare, format.print_comparison),
    )
    for parent, name, called, show in printed:
        add(parent, name, called, call_and_print(called, show), like=resnets.evaluate)
    app.command(data_app)
    app.command(weights_app)
    app.command(runs_app)


def call_and_print(function: Callable[..., Any], show: Callable[[Any], Any]) -> Callable[..., None]:
    """A command that prints the result of a function."""

    def run(*arguments: Any, **options: Any) -> None:
        show(function(*arguments, **options))

    return run


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with the documented code."""
    # Read with torch: a waiting thread gives its core to other work (docs/training.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    terminal.verbose = False
    warnings.showwarning = lambda message, *_, **__: terminal.note(f"note: {message}", always=True)
    http_files.show_progress = terminal.download_bar
    terminal.escape_what_streams_lack()
    try:
        app.meta(tokens, exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except CycloptsError as error:
        fail(explain_error(error), UsageError.exit_code)
    except ResnetsError as error:
        fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        fail("stopped", 130)
    except BrokenPipeError:  # nobody reads any more, as of `| head`
        terminal.flush_or_close(sys.stdout)
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
        file = f": {error.filename}" if error.filename else ""
        code = (DiskError if full else DataError).exit_code
        fail(f"{error.strerror or error}{file}", code)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        fail(OUT_OF_MEMORY, MemoryExhausted.exit_code)
    raise SystemExit(0)


OUT_OF_MEMORY = (
    "out of memory; train with a smaller --batch N or --set activation_checkpointing=4,\n"
    "evaluate with a smaller --batch N"
)


def is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Whether memory ran out, on the device or the host."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return "can't allocate memory" in str(error)


def fail(message: str, code: int) -> None:
    """Print an error on standard error and exit; with --verbose the traceback too."""
    with contextlib.suppress(OSError, ValueError):
        if terminal.verbose:
            import traceback

            print(visible(traceback.format_exc(), keep="\n"), file=sys.stderr)
        print(f"resnets: {escape_lines(message)}", file=sys.stderr, flush=True)
    for stream in (sys.stdout, sys.stderr):
        terminal.flush_or_close(stream)
    raise SystemExit(code)


register()

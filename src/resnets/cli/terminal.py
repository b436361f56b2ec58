"""Output: lines, tables and progress bars on a terminal, plain lines in a pipe, or JSON.

Standard output is either: `out` is quiet where JSON is asked for, and `dump` where it is not.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
from rich.table import Table

from resnets.errors import format_count
from resnets.escape import escape_lines, visible

if TYPE_CHECKING:
    from resnets.training.clock import ProgressReport

for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
    if getattr(sys, name) is None:  # closed: the next file that is opened would take its place
        setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


class Terminal(Console):
    """A console on which names from outside control nothing and start no line.

    It leaves a broken pipe to `main`; rich's own exits with 1.
    """

    def print(self, *objects: Any, **options: Any) -> None:
        """Print; text through `visible`, on standard error through `escape_lines`."""
        safe = escape_lines if self.stderr else visible
        super().print(*(safe(x) if isinstance(x, str) else x for x in objects), **options)

    def on_broken_pipe(self) -> None:
        raise


plain = partial(Terminal, markup=False, emoji=False, highlight=False, soft_wrap=True)
out = plain(width=None if sys.stdout.isatty() else 240)  # in a pipe a table's row is one line
err = plain(stderr=True)
quiet = verbose = False
is_main = os.environ.get("RANK", "0") == "0"  # of the ranks that torchrun started

COLUMN_FORMATS: dict[str, Callable[[Any], str]] = {  # of columns; others go by their values' types
    "multiply_adds": lambda count: f"{count / 1e6:,.1f} M",
    "epoch": lambda epoch: f"{epoch:.1f}",
    "loss": lambda nats: f"{nats:.4f}",
    "published": lambda percent: f"{percent:.2f} %",
    **dict.fromkeys(
        ("std", "sorted_std", "forward", "backward", "weight", "product", "norm", "alpha"),
        lambda value: f"{value:.4g}",
    ),
    "images_x_macs": format_count,
    **dict.fromkeys(("cpu", "full", "seconds", "left", "written"), lambda time: format_days(time)),
}


def note(text: str, *, always: bool = False) -> None:
    """A line on standard error, so that standard output holds results only."""
    if is_main and (always or not quiet):
        with suppress(OSError):  # what nobody reads does not end a training
            err.print(text)


def flush_or_close(stream: TextIO) -> None:
    """Flush a stream, or close it if that fails, so that it does not fail again at the exit."""
    try:
        stream.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def escape_what_streams_lack() -> None:
    """Escape characters that the encoding of standard output and error lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # As Python itself takes the C locale for UTF-8, unless told otherwise.
            ascii_only = codecs.lookup(stream.encoding).name == "ascii"
            encoding = "utf-8" if ascii_only else stream.encoding
            stream.reconfigure(encoding=encoding, errors="backslashreplace")


def print_json(data: Any) -> None:
    """Print JSON with --json; null for numbers that are not finite."""
    if out.quiet:
        finite = json.loads(json.dumps(data, default=asdict), parse_constant=lambda _: None)
        print(json_text(finite, indent=2))


def json_text(data: Any, indent: int | None = None) -> str:
    """JSON in ASCII, without invisible characters."""
    return json.dumps(data, indent=indent).replace("\x7f", "\\u007f")


def format_percent(share: float | None) -> str:
    """0.0827 as 8.27 %."""
    return "-" if share is None else f"{100 * share:.2f} %"


def format_seconds(value: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    whole = round(value)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def format_days(value: float) -> str:
    """Seconds as h:mm:ss, or as days if there are more than two."""
    return format_seconds(value) if value < 2 * 86_400 else f"{value / 86_400:,.0f} days"


def make_progress(*columns: ProgressColumn) -> Progress:
    """A progress bar on a terminal, nothing elsewhere."""
    disable = quiet or not is_main or not err.is_terminal
    return Progress(*columns, console=err, transient=True, disable=disable)


@contextmanager
def training_bar() -> Iterator[Callable[[ProgressReport], None]]:
    """A progress bar: its update function also prints a line for each evaluation."""
    folder, head = Path(), " epoch      loss   train error   held out   rate      images/s   left"

    def update(report: ProgressReport) -> None:
        nonlocal head, folder
        if report.run != folder:
            folder = report.run
            note(f"run folder {folder}")
        for text in report.notes:
            note(text, always=True)
        speed = f"{report.images_per_second:,.0f}"
        left = format_seconds(report.remaining_seconds) if report.images_per_second else "-"
        where = f"{report.step}/{report.steps} steps {speed} images/s {left} left"
        progress.update(task, completed=report.step, total=report.steps, description=where)
        if report.loss is None:
            return
        if head:
            note(head)
            head = ""
        note(
            f"{report.epoch:6.1f}  {report.loss:8.4f}"
            f"  {format_percent(report.train_error):>12}"
            f"  {format_percent(report.eval_error):>9}   {report.lr:<8.4g}  {speed:>8}   {left}"
            + "".join(f"   {name} {value:.4f}" for name, value in report.eval_metrics)
        )

    columns = BarColumn(bar_width=30), TextColumn("{task.description}", markup=False)
    with make_progress(*columns) as progress:
        task = progress.add_task("", total=1)
        yield update


@contextmanager
def download_bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar of bytes, and its update function."""
    with make_progress() as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total or None)


@contextmanager
def image_bar() -> Iterator[Callable[[int, int], None]]:
    """A progress bar of images, and its update function."""
    with make_progress() as progress:
        task = progress.add_task("images", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def format_cell(name: str, value: Any) -> str:
    """A value in a column of a table: counts with commas, fractions as percent."""
    if isinstance(value, str):
        return visible(value)
    if value is None:
        return "-"
    if name in COLUMN_FORMATS:
        return COLUMN_FORMATS[name](value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return format_percent(value)


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a table with the keys as its header; numbers are aligned to the right."""
    shown = Table(box=None, pad_edge=False)
    for name in rows[0]:
        words = any(isinstance(row[name], str | bool) for row in rows)
        shown.add_column(visible(name).replace("_", " "), justify="left" if words else "right")
    for row in rows:
        shown.add_row(*map(format_cell, row, row.values()))
    out.print(shown)


def print_rows(items: Iterable[Mapping[str, Any]]) -> None:
    """Print rows, or that there are none."""
    rows = list(items)
    print_json(rows)
    if rows:
        print_table(rows)
    elif not out.quiet:
        note("none found", always=True)

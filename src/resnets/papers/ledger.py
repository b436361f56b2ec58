"""results/ledger.jsonl: a row for each run of an experiment.

experiment, arm      what was run: `resnets reproduce` lists both
budget, protocol     "paper", its protocol: full length, float32, nothing left out;
                     "paper in bfloat16"; false: less than that
seed, command        how to run it again
recipe               SHA-256 of the fields that differ from their defaults, but for the precision
model, layers, data, digest (SHA-256 of the images), size, iterations, images, multiply_adds
train_error          in %, the mean over the last part of the iterations
test_error           in %; null: the training diverged
...                  other figures of the experiment
notes                events of the run worth knowing, as in its notes.jsonl
precision, seconds, date, machine
starts               when, at which step, by which code and where it began and went on after each
                     of its `interruptions`
versions             of package, Python and PyTorch; code: SHA-256 of the package's files
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from math import log
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from resnets.errors import DataError
from resnets.files import write_whole

Row = Mapping[str, Any]
SECONDS_PER_MAC = 1.5e-10  # of training, for an image and a multiply-add, if nothing is measured

# Notes of a run about what is written beside the training, or was read again: the training is the
# same without them. All others (steps left out, memory that ran out, ...) change it.
HARMLESS_NOTES = re.compile(
    r"a checkpoint could not be written to .*; the earlier ones are whole, training goes on"
    r"|.*; the one before it is (taken|used)"
    r"|there will be no events for TensorBoard in .*"
    r"|(metrics|timing|notes)\.jsonl is (gone: |not what it was when ).*",
    re.DOTALL,
)


def changes_training(note: str) -> bool:
    """Whether a note of a run tells of something that changed the training."""
    return HARMLESS_NOTES.fullmatch(note) is None


def read(root: Path) -> list[Row]:
    """All lines, oldest first, without a last one that a crash cut short, which `append` removes.

    Raises DataError that names a line that is none.
    """
    path, rows = root / "results" / "ledger.jsonl", list[Row]()
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(dict(json.loads(line)))
        except (ValueError, TypeError, RecursionError):
            if number == len(lines) and not line.endswith(b"\n"):
                break
            raise DataError(f"{path}, line {number} is not a JSON object: remove it") from None
    return rows


def append(root: Path, row: Row) -> None:
    """Add a line, on the disk when it returns; a line that a crash cut short is removed first."""
    from filelock import FileLock  # here, since it takes a while

    path = root / "results" / "ledger.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if path.exists() and not (text := path.read_bytes()).endswith(b"\n") and text:
            whole = len(read(root)) == len(text.splitlines())  # but for its end
            write_whole(path, text + b"\n" if whole else text[: text.rfind(b"\n") + 1])
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())


def select(rows: Iterable[Row], **values: Any) -> list[Row]:
    """The rows that have these values."""
    return [row for row in rows if all(row.get(key) == value for key, value in values.items())]


def protocol(row: Row) -> str:
    """The protocol of a row: "paper", "paper in bfloat16", or "" for less than either."""
    value = row.get("protocol", "paper")  # rows of what is counted have none
    if value is True:  # of an older version
        return paper_protocol(row.get("precision", "float32"))
    return value or ""


def paper_protocol(precision: str) -> str:
    """The paper's protocol in a number format: the papers' own is float32."""
    return "paper" if precision == "float32" else f"paper in {precision}"


def format_mean_std(values: Sequence[float | None], digits: int = 2) -> str:
    """Mean and standard deviation of the seeds, and how many; "fail" where one diverged."""
    finite = [value for value in values if value is not None]
    if len(finite) < len(values):
        return f"fail ({len(values) - len(finite)} of {len(values)} diverged)"
    if not finite:
        return ""
    if len(finite) == 1:
        return f"{finite[0]:.{digits}f}"
    return f"{mean(finite):.{digits}f} ± {stdev(finite):.{digits}f} ({len(finite)})"


def seconds_per_mac(rows: Iterable[Row], machine: str, layers: int, size: int) -> float:
    """Seconds for an image and a multiply-add, of the runs most alike in layers and side of images.

    Only runs on this machine count, if there are any. A shared machine is up to ten times slower at
    times, so it is their median.
    """
    trained = [row for row in rows if row.get("images")]
    known = select(trained, machine=machine) or trained

    def distance(row: Row) -> float:
        return abs(log(row["layers"] / layers)) + abs(log(row["size"] / size))

    least = min(map(distance, known), default=0.0)
    alike = [row for row in known if distance(row) <= least + 1e-9]
    paces = [row["seconds"] / (row["images"] * row["multiply_adds"]) for row in alike]
    return median(paces) if paces else SECONDS_PER_MAC

"""results/ledger.jsonl: a line for each run of an experiment. It never flatters.

experiment, arm      what was run: `resnets reproduce` lists both
budget, protocol     whether it was the paper's protocol: full length, nothing left out on the way
seed, command        how to run it again
model, layers, data, digest, size, iterations, images, multiply_adds
train_error          in %, the mean over the last part of the iterations
test_error           in %; null: the training diverged
...                  other figures of the experiment
notes                what a person should know of the run
seconds, date, machine, versions
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from resnets.errors import DataError
from resnets.files import write_whole

Row = Mapping[str, Any]
PACE = 2e-11  # seconds of training for an image and a multiply-add, where nothing is measured


def read(root: Path) -> list[Row]:
    """All lines, oldest first. Raises DataError that names a line that is none."""
    path, rows = root / "results" / "ledger.jsonl", list[Row]()
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else (), 1):
        try:
            rows.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            raise DataError(f"{path}, line {number} is no JSON object: mend or remove it") from None
    return rows


def append(root: Path, row: Row) -> None:
    """Add a line, on the disk when it returns; a line that a crash cut short is removed first."""
    path = root / "results" / "ledger.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not (text := path.read_bytes()).endswith(b"\n") and text:
        write_whole(path, text[: text.rfind(b"\n") + 1])
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def of(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """The rows that have these values."""
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


def spread(values: Sequence[float | None], digits: int = 2) -> str:
    """Mean and standard deviation of the seeds, and how many; "fail" where one diverged."""
    told = [value for value in values if value is not None]
    if len(told) < len(values):
        return f"fail ({len(values) - len(told)} of {len(values)} diverged)"
    if not told:
        return ""
    if len(told) == 1:
        return f"{told[0]:.{digits}f}"
    return f"{mean(told):.{digits}f} ± {stdev(told):.{digits}f} ({len(told)})"


def pace(rows: Iterable[Row], machine: str) -> float:
    """Seconds for an image and a multiply-add on this machine, from its runs so far."""
    told = [
        row["seconds"] / (row["images"] * row["multiply_adds"])
        for row in of(rows, machine=machine)
        if row.get("images")
    ]
    return median(told) if told else PACE

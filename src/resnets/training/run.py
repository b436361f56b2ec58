"""A run folder: what was asked, what came out, and where it stands. It holds no pickle.

recipe.json        the resolved recipe; `resnets train --recipe` runs it again
source.json        data name, digest, classes, preprocessing, architecture
split.csv          which file went where, for folders and CSV
metrics.jsonl      one line for each logged step: a function of recipe and data alone
timing.jsonl       seconds and images a second for the same steps
tensorboard/       the same as events, with that package
bad_files.csv      unreadable images with the reason
checkpoints/       the two newest states
notes.jsonl        what a person should know: skipped steps, lost files
lock               held by the process that trains
model.safetensors  the result, self-describing
scores.safetensors what it says of each image of the test split
result.json        figures on the test split
cost.json          seconds and memory
opened.jsonl       one line for each look at the test split
report.html        all of it for a person; README.md the same as model card
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from resnets.errors import CheckpointError, DiskError, UsageError
from resnets.files import sync_folder, write_whole


@dataclass(frozen=True)
class Run:
    """The folder of one run."""

    path: Path

    @property
    def finished(self) -> bool:
        """Whether the run reached its end and its result is written."""
        return (self.path / "result.json").exists()

    @property
    def model(self) -> Path:
        """Where the result is, once finished."""
        return self.path / "model.safetensors"

    @property
    def best(self) -> Path:
        """The best state on the validation images, as a model file."""
        return self.path / "best.safetensors"

    def check_free(self) -> None:
        """Raise UsageError when a run is already there, or a file that its result would replace."""
        if (self.path / "recipe.json").exists():
            raise UsageError(
                f"{self.path} already holds a run.\n"
                f"Go on with `resnets resume {self.path}` or give another folder with --run."
            )
        for path in (self.model, self.path / "report.html", self.path / "README.md"):
            if path.exists():
                raise UsageError(
                    f"{path} is of no run, and a run here would replace it.\n"
                    "Move it away or give another folder with --run."
                )

    def create(self) -> None:
        """Make the folder. Raises UsageError as `check_free`, DiskError."""
        self.check_free()
        new = [p for p in (self.path, *self.path.parents) if not p.exists()]
        try:
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            for made in new:  # a synced file is lost with the name of its folder
                sync_folder(made.parent)
        except OSError as error:
            raise DiskError(f"cannot create {self.path}: {error.strerror}") from None

    def write_json(self, name: str, data: Mapping[str, Any]) -> None:
        """Write a JSON file as a whole or not at all."""
        write_whole(self.path / name, (json.dumps(data, indent=2) + "\n").encode())

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file of this run. Raises CheckpointError that names it."""
        try:
            data: dict[str, Any] = json.loads((self.path / name).read_text())
        except FileNotFoundError:
            raise UsageError(f"{self.path} is not a run folder: it has no {name}") from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot read {self.path / name}: {error}") from None
        return data

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Add one line to a JSON-lines file. Raises DiskError; half a line is cut off again."""
        path = self.path / name
        line = (json.dumps(row) + "\n").encode()
        try:
            with path.open("ab", buffering=0) as file:
                before = file.tell()
                try:
                    if file.write(line) < len(line):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(before)
                    raise
        except OSError as error:
            raise DiskError(
                f"{path} could not be written: {error.strerror or error}.\n"
                f"Free some space, then `resnets resume {self.path}`."
            ) from None

    def rows(self, name: str) -> list[dict[str, Any]]:
        """All lines of a JSON-lines file; a last line that a crash cut short is left out.

        Raises CheckpointError that names it.
        """
        path = self.path / name
        if not path.exists():
            return []
        try:
            lines = path.read_text().splitlines(keepends=True)
            return [json.loads(line) for line in lines if line.endswith("\n")]
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot read {path}: {error}") from None

    def write_csv(self, name: str, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
        """Write a CSV file as a whole or not at all; what UTF-8 cannot say stands as `\\udcff`."""
        text = io.StringIO(newline="")
        csv.writer(text).writerows([header, *rows])
        write_whole(self.path / name, text.getvalue().encode(errors="backslashreplace"))

    def truncate(self, name: str, step: int) -> None:
        """Drop the lines of a JSON-lines file that are later than the checkpoint's step."""
        rows = [row for row in self.rows(name) if row["step"] <= step]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        write_whole(self.path / name, text.encode())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process alone; a kill frees it. Raises UsageError, DiskError."""
        try:
            lock = FileLock(self.path / "lock").acquire(timeout=0)
        except Timeout:
            raise UsageError(
                f"another process is training in {self.path}; give this one its own --run"
            ) from None
        except OSError as error:
            raise DiskError(f"{self.path / 'lock'} cannot be opened: {error.strerror}") from None
        with lock:
            yield

"""A run folder: the resolved recipe, the state, the logs and the result. It holds no pickle.

recipe.json        the resolved recipe; `resnets train --recipe` runs it again
source.json        task, data name, digest, classes, preprocessing, architecture
environment.json   versions, processor, digest of the code
split.csv          which file went where, for folders and CSV
metrics.jsonl      one line for each logged step: a function of recipe and data alone
timing.jsonl       images a second at the same steps
tensorboard/       the same as events, with that package
bad_files.csv      unreadable images with the reason
checkpoints/       the two newest states
notes.jsonl        notes for the user: steps left out, lost files
lock               held by the process that trains
best.safetensors   with select=best: the best state on the validation images
model.safetensors  the result, self-describing
scores.safetensors its logits for each image of the test split; detections.safetensors of a detector
result.json        figures on the test split
cost.json          seconds and memory
test_access.jsonl  one line for each test on the test split
report.html        all of it as a page; README.md the same as a model card
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import pydantic
from filelock import FileLock, Timeout

from resnets.config import arch as archs
from resnets.config.recipe import Preprocess, Recipe, parse
from resnets.errors import CheckpointError, DiskError, UsageError
from resnets.escape import csv_cell, shorten
from resnets.files import resume_command, sync_folder, write_whole

Number = Annotated[float, pydantic.Strict()]  # whole ones too


class SourceJson(pydantic.BaseModel):
    """The fields of source.json that are read back."""

    data: str = ""
    task: str = ""
    digest: str = ""
    classes: list[str] = []
    arch: Annotated[dict[str, Any], pydantic.AfterValidator(archs.from_dict)] = {}
    preprocess: Preprocess | None = None
    images: pydantic.StrictInt = 0
    plan: dict[str, str] = {}
    replaced: list[str] = []


class ResultJson(pydantic.BaseModel):
    """The fields of result.json that are read back."""

    split: str = ""
    images: pydantic.StrictInt = 0
    objects: pydantic.StrictInt = 0
    error: Number | None = None
    top1: Number | None = None
    top5: Number | None = None
    top1_interval_95: tuple[Number, Number] = (0, 1)
    masks: dict[str, Any] | None = None
    per_class: list[dict[str, Any]] = []


# The types of the values of these files; others are checked where they are read.
SCHEMAS = {
    "metrics.jsonl": pydantic.TypeAdapter[Any](dict[str, Number | None]),
    "timing.jsonl": pydantic.TypeAdapter[Any](dict[str, Number | None]),
    "cost.json": pydantic.TypeAdapter[Any](dict[str, Number | None]),
    "notes.jsonl": pydantic.TypeAdapter[Any](dict[str, Number | str]),
    "environment.json": pydantic.TypeAdapter[Any](dict[str, str]),
    "source.json": pydantic.TypeAdapter[Any](SourceJson),
    "result.json": pydantic.TypeAdapter[Any](ResultJson),
}
LOGS = ("metrics.jsonl", "timing.jsonl", "notes.jsonl")


class JsonObject(dict[str, Any]):
    """A JSON object that was read from a file, which is named where a key is missing."""

    def __init__(self, path: Path, data: dict[str, Any]) -> None:
        if not isinstance(data, dict):
            raise TypeError("not a JSON object")
        if path.name in SCHEMAS:
            SCHEMAS[path.name].validate_python(data)
        super().__init__(data)
        self.path = path

    def __missing__(self, key: str) -> Any:
        raise CheckpointError(f"{self.path} was changed: it has no {key!r}")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise DiskError where a file cannot be read now, CheckpointError for what it may not hold."""
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"{path} cannot be read: {error.strerror}. Nothing was changed: try again."
        ) from None
    except pydantic.ValidationError as error:
        problem = archs.field_problem(error)[0]
        raise CheckpointError(f"cannot read {path}: {shorten(problem)}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path}: {shorten(str(error))}") from None


def whole_lines(data: bytes) -> list[bytes]:
    """The lines with a line end; a crash may have cut the last one short."""
    return [line for line in data.splitlines(keepends=True) if line.endswith(b"\n")]


@dataclass(frozen=True)
class Run:
    """The folder of one run."""

    path: Path

    @property
    def begun(self) -> bool:
        """Whether this is a run or a study: its recipe or search space is written."""
        return any((self.path / name).exists() for name in ("recipe.json", "study.json"))

    @property
    def finished(self) -> bool:
        """Whether the run reached its end and its result is written."""
        return (self.path / "result.json").exists()

    @property
    def model(self) -> Path:
        """The file of the result, once finished."""
        return self.path / "model.safetensors"

    @property
    def best(self) -> Path:
        """The model file of the best state on the validation images."""
        return self.path / "best.safetensors"

    def check_free(self) -> None:
        """Raise UsageError when a run is already there, or a file that its result would replace."""
        if (self.path / "recipe.json").exists():
            raise UsageError(
                f"{self.path} already holds a run.\n"
                f"Resume with {resume_command(self.path)} or give another folder with --run."
            )
        for path in (self.model, self.path / "report.html", self.path / "README.md"):
            if path.exists():
                raise UsageError(
                    f"{path} does not belong to a run, and a run here would overwrite it.\n"
                    "Move it away or give another folder with --run."
                )

    def create(self, fresh: bool = False) -> None:
        """Make the folder. Raises UsageError as `check_free`, DiskError.

        Only one process can make a `fresh` one: FileExistsError where it is there already.
        """
        self.check_free()
        missing = [p for p in (self.path, *self.path.parents) if not p.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=not fresh)
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            for folder in missing:  # a synced file is lost with the name of its folder
                sync_folder(folder.parent)
        except OSError as error:
            if fresh and isinstance(error, FileExistsError):
                raise
            raise DiskError(f"cannot create {self.path}: {error.strerror}") from None

    def write_json(self, name: str, data: Mapping[str, Any]) -> None:
        """Write a JSON file as a whole or not at all."""
        write_whole(self.path / name, (json.dumps(data, indent=2) + "\n").encode())

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file of this run; a key that it lacks raises CheckpointError too.

        Raises UsageError where there is no run, CheckpointError for a broken file, DiskError.
        """
        path = self.path / name
        with reading(path):
            if path.exists():
                return JsonObject(path, json.loads(path.read_bytes()))
        if (self.path / "checkpoints").is_dir() and not (self.path / "recipe.json").exists():
            raise UsageError(
                f"{self.path} was interrupted before the first step, so nothing was lost.\n"
                f"Start again with the same command, --run {self.path}."
            )
        raise UsageError(f"{self.path} is not a run folder: it has no {name}")

    def read_recipe(self) -> Recipe:
        """The recipe. Raises as `read_json`; UsageError names the file and its wrong fields."""
        values = self.read_json("recipe.json")
        try:
            return parse(values)
        except UsageError as error:
            raise UsageError(f"{self.path / 'recipe.json'}: {error}") from None

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Add one line to a JSON-lines file. Raises DiskError; half a line is cut off again."""
        path = self.path / name
        line = (json.dumps(row) + "\n").encode()
        try:
            with path.open("ab", buffering=0) as file:
                end = file.tell()
                try:
                    if file.write(line) < len(line):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(end)
                    raise
        except OSError as error:
            raise DiskError(
                f"{path} could not be written: {error.strerror or error}.\n"
                f"Free some space, then {resume_command(self.path)}."
            ) from None

    def rows(self, name: str) -> list[dict[str, Any]]:
        """All lines of a JSON-lines file; a last line that a crash cut short is left out.

        Raises CheckpointError that names it, also for a key that a row lacks; DiskError.
        """
        path = self.path / name
        with reading(path):
            lines = whole_lines(path.read_bytes()) if path.exists() else []
            return [JsonObject(path, json.loads(line)) for line in lines]

    def test_accesses(self) -> list[dict[str, Any]]:
        """Each test on the test split; 0.1.0 wrote them into opened.jsonl. Raises as `rows`."""
        return self.rows("opened.jsonl") + self.rows("test_access.jsonl")

    def write_csv(self, name: str, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
        """Write a CSV file as a whole or not at all, every value as an `escape.csv_cell`."""
        text = io.StringIO(newline="")
        csv.writer(text).writerows([csv_cell(value) for value in row] for row in [header, *rows])
        write_whole(self.path / name, text.getvalue().encode())

    def log_digests(self) -> dict[str, tuple[int, str]]:
        """The length in bytes and the SHA-256 of each log, for a checkpoint. Raises OSError."""
        paths = [self.path / name for name in LOGS]
        contents = {path.name: path.read_bytes() for path in paths if path.exists()}
        return {name: (len(x), hashlib.sha256(x).hexdigest()) for name, x in contents.items()}

    def truncate(self, name: str, step: int, saved: tuple[int, str] | None = None) -> str:
        """Drop the lines of a JSON-lines file that are later than the checkpoint's step.

        `saved` is from `log_digests` at that step. Where the file no longer begins with those
        bytes, it is kept as NAME.damaged, invalid lines are dropped too, and a note is returned.
        Raises DiskError.
        """
        path, kept, invalid = self.path / name, list[bytes](), 0
        with reading(path):
            data = path.read_bytes() if path.exists() else b""
        for line in whole_lines(data):
            try:
                if int(json.loads(line)["step"]) <= step:
                    kept.append(line)
            except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
                invalid += 1
        length, digest = saved or (0, hashlib.sha256().hexdigest())
        changed = hashlib.sha256(data[:length]).hexdigest() != digest
        damaged = path.with_name(f"{name}.damaged")
        if (invalid or changed) and data and not damaged.exists():
            write_whole(damaged, data)
        write_whole(path, b"".join(kept))
        if not invalid and not changed:
            return ""
        if not data:
            return f"{name} is gone: its lines up to step {step} are lost"
        return (
            f"{name} is not what it was when step {step} was saved: {invalid} invalid lines were "
            f"dropped, others may be wrong; the file is kept as {damaged.name}"
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the run for this process; a kill unlocks it. Files left half written are removed.

        Raises UsageError where another process holds it, DiskError.
        """
        try:
            lock = FileLock(self.path / "lock").acquire(timeout=0)
        except Timeout:
            raise UsageError(
                f"another process is training in {self.path}; give this one its own --run"
            ) from None
        except OSError as error:
            raise DiskError(f"{self.path / 'lock'} cannot be opened: {error.strerror}") from None
        with lock:
            if self.begun:
                for partial in self.path.glob(f".*.{'?' * 8}.tmp"):
                    partial.unlink(missing_ok=True)
            yield


def log_test_access(model: str | Path, digest: str, split: str, error: float | None) -> None:
    """Record in a run's folder that its model was tested on its own test images once more.

    They are its own where their data has the `digest` of the training's.
    """
    run = Run(Path(model) if Path(model).is_dir() else Path(model).parent)
    if split not in ("test", "all") or not (run.path / "source.json").exists():
        return
    if run.read_json("source.json")["digest"] == digest:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with suppress(DiskError):  # a folder that cannot be written can still be used
            run.append("test_access.jsonl", {"time": now, "split": split, "error": error})

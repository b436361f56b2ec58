"""Checkpoints: written aside, synced and renamed, so that one is whole or not there.

checkpoints/step-00001000/state.safetensors    every tensor
checkpoints/step-00001000/state.json           the course, and SHA-256 of all of it
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pydantic
import safetensors
import safetensors.torch
from torch import Tensor

from resnets.config.arch import field_problem
from resnets.errors import CheckpointError, DiskError
from resnets.files import sync_folder, write_synced
from resnets.tensor_files import check_digest, check_tensors, digest, with_digest
from resnets.training.state import TrainProgress

KEEP = 2
SEAL = "seal"  # the entry of state.json that has the digest of the others
WRONG = (
    *(ValueError, LookupError, TypeError, AttributeError, RecursionError),
    safetensors.SafetensorError,
)
FAILURES = 3  # saves in a row that may fail before the run stops


class Damaged(CheckpointError, exit_code=4):
    """A file of a checkpoint is missing, or its bytes are not those that were written."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint that was read back, and why newer ones were passed over."""

    tensors: dict[str, Tensor]
    course: TrainProgress
    problems: tuple[str, ...] = ()


def finished(folder: Path) -> list[Path]:
    """The finished checkpoints, oldest first."""
    return sorted(p for p in folder.glob("step-*") if not p.suffix)


def write(folder: Path, tensors: Mapping[str, Tensor], course: TrainProgress) -> None:
    """Write a checkpoint of tensors on the CPU; those beyond the newest two go.

    Raises OSError; then the earlier ones are as they were, and nothing half-written is left.
    """
    # A step is saved again after a return to it, and after an evaluation that was broken off.
    again = f"-rewound-{course.rewinds}" if course.rewinds else ""
    logged = "-logged" if course.logged == course.step else ""
    final = folder / f"step-{course.step:08d}{again}{logged}"
    if final.exists():
        return
    temporary = final.with_suffix(".tmp")
    data = safetensors.torch.save(dict(tensors))
    body = {
        "course": asdict(course),
        "run": identity(folder.parent)[0],
        "file": hashlib.sha256(data).hexdigest(),
        "tensors": {name: digest(value) for name, value in tensors.items()},
    }
    try:
        for stale in folder.glob("*.tmp"):  # of a run that was killed
            shutil.rmtree(stale, ignore_errors=True)
        temporary.mkdir(parents=True)
        write_synced(temporary / "state.safetensors", data)
        write_synced(temporary / "state.json", with_digest(body, SEAL, sort_keys=True).encode())
        sync_folder(temporary)
        temporary.rename(final)
        sync_folder(folder)
        for old in finished(folder)[:-KEEP]:
            # Under another name first: what is half deleted is no checkpoint.
            shutil.rmtree(old.rename(old.with_suffix(".tmp")), ignore_errors=True)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def identity(run: Path) -> tuple[str, ...]:
    """SHA-256 of what was asked: the checkpoints of a run are no other run's.

    The first is of the values; the second, of the bytes, stands in checkpoints of earlier versions.
    Raises CheckpointError for a file that is no JSON, OSError.
    """
    asked = [run / name for name in ("recipe.json", "source.json")]
    texts = [path.read_bytes() for path in asked if path.exists()]
    try:
        values = [json.dumps(json.loads(text), sort_keys=True).encode() for text in texts]
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"recipe.json or source.json in {run}: {error}") from None
    return tuple(hashlib.sha256(b"".join(data)).hexdigest() for data in (values, texts))


def read(path: Path) -> Checkpoint:
    """One checkpoint, every digest checked.

    Raises Damaged that names the file, and the tensor, that is missing or was changed;
    CheckpointError for a whole checkpoint of another run; DiskError where a file cannot be read.
    """
    file = path / "state.json"
    try:
        body = check_digest(file.read_bytes().decode(), SEAL, sort_keys=True)
        file = path / "state.safetensors"
        data = file.read_bytes()
        tensors = safetensors.torch.load(data)
        check_tensors(tensors, body["tensors"])
        if hashlib.sha256(data).hexdigest() != body["file"]:
            raise ValueError("its header was changed")
        known = identity(path.parent.parent)
    except FileNotFoundError:
        raise Damaged(f"{file} is missing") from None
    except OSError as error:
        raise DiskError(
            f"{error.filename or file} cannot be read: {error.strerror}. Nothing was changed: try "
            f"again.\nIf that does not help, move {path} away: the checkpoint before it is taken."
        ) from None
    except WRONG as error:
        raise Damaged(f"{file} is damaged: {error}") from None
    if body["run"] not in known:
        raise CheckpointError(
            f"{path} belongs to another run, or recipe.json or source.json was changed after it.\n"
            "Nothing was touched: put back what was changed, or move the checkpoint away."
        )
    try:
        course = TrainProgress(**body["course"])
        pydantic.TypeAdapter(TrainProgress).validate_python(asdict(course))
        return Checkpoint(tensors, course)
    except pydantic.ValidationError as error:
        raise Damaged(
            f"{path / 'state.json'} is damaged: course.{field_problem(error)[0][:200]}"
        ) from None
    except TypeError:
        raise CheckpointError(
            f"{path} was written by another version of resnets, which has to go on with it.\n"
            "Nothing was touched."
        ) from None


def newest(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint, and what was wrong with newer ones, which are set aside.

    None when there is no checkpoint yet. Raises CheckpointError when there are some and none is
    whole, so that training never starts afresh in silence; and as `read`, with nothing touched.
    """
    problems: list[str] = []
    for path in reversed(finished(folder)):
        try:
            taken = tuple(f"{problem}; the one before it is taken" for problem in problems)
            return replace(read(path), problems=taken)
        except Damaged as error:
            problems.append(str(error))
            aside = path.with_suffix(".damaged")
            shutil.rmtree(aside, ignore_errors=True)
            with contextlib.suppress(OSError):  # where nothing can be renamed, nothing is logged
                path.rename(aside)
    if problems or any(folder.glob("step-*.damaged")):
        raise CheckpointError(
            f"no checkpoint in {folder} is whole, start a new run with another --run folder:\n"
            f"{'; '.join(problems) or 'all are set aside'}"
        )
    return None


class Writer:
    """Writes checkpoints in the background; at most one at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.thread = folder, ThreadPoolExecutor(1)
        self.newest: Future[None] | None = None
        self.failures = 0  # in a row
        self.told: list[str] = []  # what went wrong

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self.newest is not None and not self.newest.done()

    def save(self, tensors: Mapping[str, Tensor], course: TrainProgress) -> None:
        """Copy the state and write it in the background. Waits for the one before, if any."""
        self.wait()
        # Copied now, so that the next step cannot reach into it.
        copies = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}
        self.newest = self.thread.submit(self._write, copies, replace(course))

    def _write(self, tensors: Mapping[str, Tensor], course: TrainProgress) -> None:
        try:
            write(self.folder, tensors, course)
            self.failures = 0
        except (OSError, CheckpointError) as error:
            why = getattr(error, "strerror", None) or error
            self.told.append(f"a checkpoint could not be written to {self.folder}: {why}")
            self.failures += 1

    def wait(self) -> None:
        """Until the disk has it."""
        if self.newest is not None:
            self.newest.result()

    def complaints(self, last: bool = False) -> list[str]:
        """What went wrong since the last call, for a person.

        Raises DiskError after three failures in a row, or one where no other save follows.
        """
        told, self.told = self.told, []
        if told and (self.failures >= FAILURES or (last and self.failures)):
            raise DiskError(
                f"{told[-1]}\nThe earlier checkpoints are whole; free space, then "
                f"`resnets resume {self.folder.parent}`."
            )
        return [f"{what}; the earlier ones are whole, training goes on" for what in told]

"""Checkpoints: written aside, synced and renamed, so that one is whole or not there.

checkpoints/step-00001000/state.safetensors    every tensor
checkpoints/step-00001000/state.json           the course, and SHA-256 of all of it
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from resnets.errors import CheckpointError, DiskError
from resnets.files import sync_folder, write_synced
from resnets.nets.modelfile import digest
from resnets.training.state import Course

KEEP = 2
# What keeps a whole file from being read, for now.
PASSING = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM, errno.ESTALE}
FAILURES = 3  # saves in a row that may fail before the run stops


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint that was read back, and why newer ones were passed over."""

    tensors: dict[str, Tensor]
    course: Course
    problems: tuple[str, ...] = ()


def finished(folder: Path) -> list[Path]:
    """The finished checkpoints, oldest first."""
    return sorted(p for p in folder.glob("step-*") if not p.suffix)


def write(folder: Path, tensors: Mapping[str, Tensor], course: Course) -> None:
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
        "run": identity(folder.parent),
        "file": hashlib.sha256(data).hexdigest(),
        "tensors": {name: digest(value) for name, value in tensors.items()},
    }
    try:
        for stale in folder.glob("*.tmp"):  # of a run that was killed
            shutil.rmtree(stale, ignore_errors=True)
        temporary.mkdir(parents=True)
        write_synced(temporary / "state.safetensors", data)
        write_synced(temporary / "state.json", sealed(body))
        sync_folder(temporary)
        temporary.rename(final)
        sync_folder(folder)
        for old in finished(folder)[:-KEEP]:
            # Under another name first: what is half deleted is no checkpoint.
            shutil.rmtree(old.rename(old.with_suffix(".tmp")), ignore_errors=True)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def sealed(body: Mapping[str, Any]) -> bytes:
    """JSON that holds the SHA-256 of the rest of itself."""
    rest = json.dumps(body, sort_keys=True)
    return json.dumps({**body, "seal": hashlib.sha256(rest.encode()).hexdigest()}).encode()


def identity(run: Path) -> str:
    """SHA-256 of what was asked: the checkpoints of a run are no other run's."""
    asked = [run / name for name in ("recipe.json", "source.json")]
    return hashlib.sha256(b"".join(p.read_bytes() for p in asked if p.exists())).hexdigest()


def read(path: Path) -> Checkpoint:
    """One checkpoint, every digest checked.

    Raises CheckpointError that names the file, and the tensor, that is missing or was changed;
    DiskError where the files cannot be read now, and that is not their fault.
    """
    file = path / "state.json"
    try:
        text = file.read_bytes()
        body = json.loads(text)
        del body["seal"]
        if sealed(body) != text:
            raise ValueError("it was changed")
        if body["run"] != identity(path.parent.parent):
            raise ValueError("it belongs to another run, or recipe.json was changed")
        course, digests = Course(**body["course"]), body["tensors"]
        file = path / "state.safetensors"
        data = file.read_bytes()
        tensors = safetensors.torch.load(data)
        for name, tensor in tensors.items():
            if digest(tensor) != digests.get(name):
                raise ValueError(f"{name} is not what was saved (SHA-256)")
        if hashlib.sha256(data).hexdigest() != body["file"]:
            raise ValueError("its header was changed")
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        if isinstance(error, OSError) and error.errno in PASSING:
            raise DiskError(f"{file} cannot be read now: {error.strerror}; try again") from None
        raise CheckpointError(f"{file} cannot be read: {error}") from None
    return Checkpoint(tensors, course)


def newest(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint, and what was wrong with newer ones, which are set aside.

    None when there is no checkpoint yet. Raises CheckpointError when there are some and none is
    whole: training never starts afresh in silence.
    """
    problems: list[str] = []
    for path in reversed(finished(folder)):
        try:
            taken = tuple(f"{problem}; the one before it is taken" for problem in problems)
            return replace(read(path), problems=taken)
        except CheckpointError as error:
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

    def save(self, tensors: Mapping[str, Tensor], course: Course) -> None:
        """Copy the state and write it in the background. Waits for the one before, if any."""
        self.wait()
        # Copied now, so that the next step cannot reach into it.
        copies = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}
        self.newest = self.thread.submit(self._write, copies, replace(course))

    def _write(self, tensors: Mapping[str, Tensor], course: Course) -> None:
        try:
            write(self.folder, tensors, course)
            self.failures = 0
        except OSError as error:
            why = error.strerror or error
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

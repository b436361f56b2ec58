"""Checkpoints: written under another name, synced and renamed, so each is whole or not there.

checkpoints/step-00001000/state.safetensors    every tensor
checkpoints/step-00001000/state.json           the progress, and SHA-256 of all of it
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pydantic
import safetensors.torch
from torch import Tensor

from resnets.config.arch import field_problem
from resnets.errors import CheckpointError, DiskError
from resnets.escape import shorten
from resnets.files import sync_folder, write_synced
from resnets.tensor_files import INVALID, check_digest, check_tensors, digest, with_digest
from resnets.training.state import TrainProgress

CHECKPOINTS_KEPT = 2
SEAL = "seal"  # the entry of state.json that has the digest of the others
# Keys of `TrainProgress` in checkpoints of before; the oldest had them under "course".
OLD_KEYS = {
    "logged": "last_logged_step",
    "micro": "micro_batch",
    "factor": "lr_scale",
    "skipped": "skipped_in_a_row",
    "rewinds": "rollbacks",
    "drops": "lr_drops",
    "best": "best_figure",
    "best_error": "best_figure",
    "waited": "evals_since_best",
    "waited_drop": "evals_since_drop",
}


class Damaged(CheckpointError, exit_code=4):
    """A file of a checkpoint is missing, or its bytes are not those that were written."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint that was read, and why newer ones could not be."""

    tensors: dict[str, Tensor]
    progress: TrainProgress
    problems: tuple[str, ...] = ()


def list_finished(folder: Path) -> list[Path]:
    """The finished checkpoints, oldest first."""
    return sorted(p for p in folder.glob("step-*") if not p.suffix)


def write(folder: Path, tensors: Mapping[str, Tensor], progress: TrainProgress) -> None:
    """Write a checkpoint of tensors on the CPU; those beyond the newest two go.

    Raises OSError; then the earlier ones are as they were, and nothing half-written is left.
    """
    # A step is saved again after a rollback to it, and after an evaluation that was interrupted.
    rewound = f"-rewound-{progress.rollbacks}" if progress.rollbacks else ""
    logged = "-logged" if progress.last_logged_step == progress.step else ""
    final = folder / f"step-{progress.step:08d}{rewound}{logged}"
    if final.exists():
        return
    temporary = final.with_suffix(".tmp")
    data = safetensors.torch.save(dict(tensors))
    body = {
        "progress": asdict(progress),
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
        for old in list_finished(folder)[:-CHECKPOINTS_KEPT]:
            # Under another name first: what is half deleted is no checkpoint.
            shutil.rmtree(old.rename(old.with_suffix(".tmp")), ignore_errors=True)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def identity(run: Path) -> tuple[str, ...]:
    """SHA-256 digests of the recipe and the data, by which a run knows its own checkpoints.

    The first is of the values; the second, of the bytes, is in checkpoints of earlier versions.
    Raises CheckpointError for a file that is not JSON, OSError.
    """
    paths = [run / name for name in ("recipe.json", "source.json")]
    texts = [path.read_bytes() for path in paths if path.exists()]
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
        identities = identity(path.parent.parent)
    except FileNotFoundError:
        raise Damaged(f"{file} is missing") from None
    except OSError as error:
        raise DiskError(
            f"{error.filename or file} cannot be read: {error.strerror}. Nothing was changed: try "
            f"again.\nIf that does not help, move {path} away: the checkpoint before it is used."
        ) from None
    except INVALID as error:
        raise Damaged(f"{file} is damaged: {error}") from None
    if body["run"] not in identities:
        raise CheckpointError(
            f"{path} belongs to another run, or recipe.json or source.json was changed after it.\n"
            "Nothing was touched: put back what was changed, or move the checkpoint away."
        )
    try:
        stored = body.get("progress") or body["course"]
        values = {OLD_KEYS.get(name, name): value for name, value in stored.items()}
        progress = TrainProgress(**values)
        pydantic.TypeAdapter(TrainProgress).validate_python(asdict(progress))
        return Checkpoint(tensors, progress)
    except pydantic.ValidationError as error:
        raise Damaged(
            f"{path / 'state.json'} is damaged: progress.{shorten(field_problem(error)[0])}"
        ) from None
    except (TypeError, AttributeError):
        raise CheckpointError(
            f"{path} was written by another version of resnets: resume it with that one.\n"
            "Nothing was touched."
        ) from None


def read_newest(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint, and what was wrong with newer ones, which are set aside.

    None when there is no checkpoint yet. Raises CheckpointError when there are some and none is
    whole, so that training never starts again silently; and as `read`, with nothing touched.
    """
    problems: list[str] = []
    for path in reversed(list_finished(folder)):
        try:
            notes = tuple(f"{problem}; the one before it is used" for problem in problems)
            return replace(read(path), problems=notes)
        except Damaged as error:
            problems.append(str(error))
            aside = path.with_suffix(".damaged")
            shutil.rmtree(aside, ignore_errors=True)
            with contextlib.suppress(OSError):  # where nothing can be renamed, nothing is logged
                path.rename(aside)
    if problems or any(folder.glob("step-*.damaged")):
        raise CheckpointError(
            f"no checkpoint in {folder} is whole, start a new run in another --run folder:\n"
            f"{'; '.join(problems) or 'all are set aside'}"
        )
    return None

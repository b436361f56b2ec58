"""A run folder: what was asked, what came out, and where it stands. It holds no pickle.

recipe.json        the resolved recipe; `resnets train --recipe` runs it again
source.json        data name, digest, classes, preprocessing, architecture
split.csv          which file went where, for folders and CSV
metrics.jsonl      one line for each logged step: a function of recipe and data alone
timing.jsonl       seconds and images a second for the same steps
tensorboard/       the same as events, with that package
bad_files.csv      unreadable images with the reason
checkpoints/       the two newest states
model.safetensors  the result, self-describing
result.json        figures on the test split
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from resnets.errors import CheckpointError, DiskError, UsageError
from resnets.files import sync_folder, write_synced, write_whole
from resnets.nets.modelfile import digest

KEEP = 2


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint that was read back, and why newer ones were passed over."""

    tensors: dict[str, Tensor]
    step: int
    problems: tuple[str, ...] = ()


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

    def check_free(self) -> None:
        """Raise UsageError when a run is already there."""
        if (self.path / "recipe.json").exists():
            raise UsageError(
                f"{self.path} already holds a run.\n"
                f"Go on with `resnets resume {self.path}` or give another folder with --run."
            )

    def create(self) -> None:
        """Make the folder. Raises UsageError when a run is already there, DiskError."""
        self.check_free()
        try:
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
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
        """Add one line to a JSON-lines file."""
        with (self.path / name).open("a") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self, name: str) -> list[dict[str, Any]]:
        """All lines of a JSON-lines file; a last line that a crash cut short is left out."""
        path = self.path / name
        if not path.exists():
            return []
        lines = path.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def write_csv(self, name: str, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
        """Write a CSV file."""
        with (self.path / name).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(rows)

    def save(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Write a checkpoint: temporary folder, synced, renamed; the oldest beyond two goes."""
        folder = self.path / "checkpoints"
        final, temporary = folder / f"step-{step:08d}", folder / f"step-{step:08d}.tmp"
        if final.exists():
            return
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
            manifest = {"step": step, "sha256": {k: digest(v) for k, v in tensors.items()}}
            data = safetensors.torch.save(dict(tensors))
            write_synced(temporary / "state.safetensors", data)
            write_synced(temporary / "state.json", json.dumps(manifest).encode())
            sync_folder(temporary)
            temporary.rename(final)
            sync_folder(folder)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise DiskError(
                f"cannot write {final}: {error.strerror}\n"
                f"The earlier checkpoints are whole; free space, then `resnets resume {self.path}`."
            ) from None
        for old in self.checkpoints()[:-KEEP]:
            shutil.rmtree(old)

    def checkpoints(self) -> list[Path]:
        """The finished checkpoints, oldest first."""
        return sorted(p for p in (self.path / "checkpoints").glob("step-*") if not p.suffix)

    def truncate(self, name: str, step: int) -> None:
        """Drop the lines of a JSON-lines file that are later than the checkpoint's step."""
        rows = [row for row in self.rows(name) if row["step"] <= step]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        write_whole(self.path / name, text.encode())

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint, and what was wrong with newer ones, which are set aside.

        None when there is no checkpoint yet. Raises CheckpointError when there are some and none
        is whole: training never starts afresh in silence.
        """
        problems: list[str] = []
        for path in reversed(self.checkpoints()):
            try:
                tensors, step = read_checkpoint(path)
            except CheckpointError as error:
                problems.append(f"{error}; the one before it is taken")
                path.rename(path.with_suffix(".damaged"))
                continue
            return Checkpoint(tensors, step, tuple(problems))
        if problems:
            raise CheckpointError("no checkpoint is whole: " + "; ".join(problems))
        return None


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], int]:
    """Tensors and step of one checkpoint, every tensor's digest checked."""
    try:
        manifest = json.loads((path / "state.json").read_text())
        tensors = safetensors.torch.load((path / "state.safetensors").read_bytes())
        step, digests = int(manifest["step"]), dict(manifest["sha256"])
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if tensors.keys() != digests.keys():
        raise CheckpointError(f"{path}: its tensors are not those of its manifest")
    for name, tensor in tensors.items():
        if digest(tensor) != digests[name]:
            raise CheckpointError(f"{path}: the digest of {name} is wrong")
    return tensors, step

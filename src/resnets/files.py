"""Files that survive a crash: written as a whole or not at all."""

from __future__ import annotations

import glob
import json
import os
import secrets
import shlex
from contextlib import suppress
from pathlib import Path

from resnets.errors import DataError, DiskError, UsageError


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file in one step that survives a crash. Raises DiskError; the old file stays."""
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.tmp")
    try:
        write_synced(temporary, data)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise DiskError(
            f"{path} could not be written: {error.strerror or error}.\n"
            "Free some space or choose another folder; an existing file is unchanged."
        ) from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_synced(path: Path, data: bytes) -> None:
    """Write a new file and wait until the disk has it."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the disk has the folder's names, as after a rename."""
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def glob_paths(pattern: str | Path) -> list[str]:
    """The path itself where it exists, else what the pattern matches, sorted.

    Of the pattern, the folders that exist are taken as they are called, brackets and all.
    """
    if not str(pattern):
        raise UsageError("an empty path: name a file, a folder or a pattern; . is this folder")
    if os.path.exists(pattern):
        return [str(pattern)]
    folder = Path(pattern)
    while not folder.is_dir():
        folder = folder.parent
    rest = os.path.relpath(pattern, folder) if folder.parts else str(pattern)
    return sorted(glob.glob(os.path.join(glob.escape(str(folder)), rest), recursive=True))


def cache_folder() -> Path:
    """The cache folder: $RESNETS_DATA, else `resnets` in $XDG_CACHE_HOME or ~/.cache."""
    if folder := os.environ.get("RESNETS_DATA"):
        return Path(folder)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "resnets"
    except RuntimeError:
        raise DataError("there is no home folder for a cache: set RESNETS_DATA") from None


def find_model_file(path: str | Path, option: str = "") -> Path:
    """The model file at a path or in a run folder. Raises UsageError if there is none."""
    file = Path(path)
    if not os.path.exists(file):  # False for what can be no name
        raise UsageError(f"{option}no such file or run folder: {path}")
    model = file / "model.safetensors" if file.is_dir() else file
    if model.exists():
        return model
    if (file / "recipe.json").exists():
        raise UsageError(
            f"{path} has no {model.name}: the run is not finished.\n"
            f"Resume with {resume_command(path)}."
        )
    raise UsageError(
        f"{path} is not a run folder: it has no {model.name}.\n"
        "The model comes first, then data or images."
    )


def code_option(run: str | Path, option: str = "--network") -> str:
    """What a command on a run needs: " --network my_module:build" for a custom network."""
    builder = network_builder(run)
    return f" {option} {shlex.quote(builder)}" if ":" in builder else ""


def resume_command(run: str | Path) -> str:
    """How a run is resumed; in Python where its network was given as a module."""
    if (builder := network_builder(run)) and ":" not in builder:
        return f"`resnets.resume({str(run)!r}, model=...)` in Python"
    return f"`resnets resume {shlex.quote(str(run))}{code_option(run, '--model')}`"


def network_builder(run: str | Path) -> str:
    """Where the network of a run comes from, if it is custom; else empty."""
    with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        arch = json.loads((Path(run) / "source.json").read_bytes())["arch"]
        return str(arch["builder"]) if arch["kind"] == "external" else ""
    return ""


def check_outside(path: Path, data: object) -> None:
    """Raise UsageError for a path inside the folder `data`; beside a CSV file is allowed."""
    root = Path(data) if isinstance(data, str | Path) else None
    if root and root.is_dir() and path.resolve().is_relative_to(root.resolve()):
        raise UsageError(f"{path} would be inside the data {data}: choose another --run or --out")


def check_inputs(inputs: object) -> None:
    """Raise UsageError for no inputs, DataError where paths are given and none of them is there."""
    if isinstance(inputs, str | Path):
        inputs = [inputs]
    inputs = [] if getattr(inputs, "shape", ())[:1] == (0,) else inputs  # a batch of none
    if isinstance(inputs, list | tuple):
        if not inputs:
            raise UsageError("no input: give image files, folders or patterns")
        if not any(not isinstance(item, str | Path) or glob_paths(item) for item in inputs):
            raise DataError(f"no such file, folder or pattern: {inputs[0]!s}")

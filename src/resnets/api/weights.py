"""Published weights as functions: what there is, download, import, and what a file is."""

from __future__ import annotations

import fnmatch
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnets.api import checks
from resnets.api.checks import public
from resnets.errors import Assumption, CheckpointError, DataError, UsageError

if TYPE_CHECKING:
    from resnets.config.weights import WeightsRow


@public
def list_weights(pattern: str = "*", /) -> list[dict[str, Any]]:
    """List published weights: name, network, figure, licence.

    In Python `published` is top-1, box AP or mean IoU in %, and `cached` whether it is here.

    Args:
        pattern: A pattern as 'resnet50*', or a part of the name.
    """
    from resnets.config.weights import imported, rows
    from resnets.models.io.fetch import cached_path

    if not any(sign in pattern for sign in "*?["):
        pattern = f"*{pattern}*"
    found = []
    for name in sorted(fnmatch.filter(rows(), pattern)):
        row = rows()[name]
        facts: dict[str, Any] = {"name": name, "model": row.model or "-", "task": row.task}
        facts |= {"licence": row.licence, "cached": cached_path(row) is not None}
        facts |= {"published": row.score, "parameters": row.parameters or None}
        found.append(facts | {"size": row.test_input_size and row.test_input_size[-1]})
    for name in fnmatch.filter(imported(), pattern):
        facts = {"name": name, "model": "imported", "task": "", "licence": "", "cached": True}
        found.append(facts | dict.fromkeys(("published", "parameters", "size")))
    return found


@public
def weights_get(
    name: str, /, *, accept_licence: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:  # fmt: skip
    """Download weights into the cache and check them.

    In Python the path of the file is returned.

    Args:
        name: A name from `resnets weights ls`, or that of a network: its best free ones.
        accept_licence: Your use is one that the licence of the weights allows.
        on_progress: Called with the bytes that have come, and their number or 0.
    """
    from resnets.config.weights import find, imported

    if name in imported():
        return imported()[name]
    row = find(name)
    from resnets.models.io import fetch

    return fetch.fetch(row, accept_licence=accept_licence, progress=on_progress)


@public
def weights_import(
    file: str | Path, /, *, name: str | None = None, classes: str | Path | None = None,
    overrides: Mapping[str, Any] | Sequence[str] | None = None,
) -> Path:  # fmt: skip
    """Copy a weights file into the cache, under a name.

    Network, class names and preprocessing are stored with it. A file of the published table is
    recognised by its digest, or takes its name with --name; it is copied as it is.

    Args:
        file: A weights file or a run folder.
        name: What to call it; the file's name by default.
        classes: A text file with one class name a line, where the weights file has none.
        overrides: arch.FIELD=VALUE for what a foreign file leaves open, as arch.stride_on=1x1; may
            be repeated.
    """
    from resnets.config.weights import check_weights, rows, weights_folder

    check_weights(Path(file))
    names = read_classes(classes)
    from resnets import http_files
    from resnets.evaluation.load import load
    from resnets.models.io import fetch
    from resnets.models.io.model_file import save

    path, row = fetch.locate_weights(file)
    if name is not None and name in rows():
        row = rows()[name]
    if row is not None and name in (None, row.name):
        return copy_published(row, path)
    name = name or (path.parent.name if Path(file).is_dir() else path.stem)
    check_new_name(name)
    model = load(path, classes=names, fields=checks.arch_overrides(overrides))
    digest = http_files.sha256_of(path)
    today = datetime.now(UTC).date().isoformat()
    facts = {"imported": f"{path.name}, {today}", "sha256": digest}
    target = weights_folder() / f"{name}.safetensors"
    target.parent.mkdir(parents=True, exist_ok=True)
    metadata = model.metadata
    save(target, model.network, replace(metadata, provenance=facts | metadata.provenance))
    return target


def copy_published(row: WeightsRow, path: Path) -> Path:
    """Copy a file of the table to where it is looked for, if it is that file.

    Raises UsageError for a file whose ending is not that of the published one; CheckpointError.
    """
    from resnets.config.weights import file_stem, weights_folder
    from resnets.evaluation.load import published_arch
    from resnets.models.io import fetch
    from resnets.models.io.model_file import open_model

    target = weights_folder() / f"{file_stem(row.name)}{path.suffix}"
    if target not in fetch.places(row):
        expected = fetch.copied_path(row).suffix
        raise UsageError(f"{path} is not the file of {row.name}, which ends in {expected}")
    open_model(path, known=published_arch(row))  # it has the tensors of the network
    fetch.verify(row, path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    shutil.copyfile(path, part)
    part.replace(target)
    fetch.verify(row, target)
    return target


def read_classes(file: str | Path | None) -> tuple[str, ...] | None:
    """The lines of a text file. Raises DataError."""
    if file is None:
        return None
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"--classes {file} cannot be read: {error}") from None
    return tuple(line.strip() for line in lines if line.strip())


def check_new_name(name: str) -> None:
    """Raise UsageError for a name that is no file's, that is taken, or that is a network's."""
    from resnets.config.families import ARCHS
    from resnets.config.weights import imported, rows

    if not name or Path(name).name != name or name.startswith("."):
        raise UsageError(f"--name {name}: letters, digits, points, dashes, as in moths-2026")
    if name in ARCHS or name in rows() or name.lower() in ("none", "imagenet"):
        raise UsageError(f"--name {name} is a network or published weights: choose another name")
    if name in imported():
        raise UsageError(
            f"{imported()[name]} is there already: remove it, or choose another --name"
        )


@public
def weights_inspect(
    file: str | Path, /, *, overrides: Mapping[str, Any] | Sequence[str] | None = None
) -> dict[str, Any]:
    """Say what a weights file is, and what is guessed.

    Network, classes, tensors, preprocessing and digest; nothing that the file contains is run, and
    nothing is downloaded.

    Args:
        file: A weights file, a run folder, or a name whose file is in a cache.
        overrides: arch.FIELD=VALUE for what a foreign file leaves open, as arch.stride_on=1x1; may
            be repeated.
    """
    from resnets.config.weights import check_weights

    check_weights(file)
    from resnets import http_files
    from resnets.config.families import label
    from resnets.evaluation.load import load
    from resnets.models.io import pretrained

    path, row = cached_file(file)
    tensors = pretrained.read(path)
    facts: dict[str, Any] = {"file": str(path), "bytes": path.stat().st_size}
    facts |= {"sha256": http_files.sha256_of(path), "published": row.name if row else ""}
    facts |= {"tensors": len(tensors), "numbers": sum(x.numel() for x in tensors.values())}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Assumption)
        try:
            model = load(file, fields=checks.arch_overrides(overrides))
        except CheckpointError as error:
            return facts | {"network": "", "problem": str(error), "guessed": []}
    metadata, arch = model.metadata, model.metadata.arch
    guessed = [str(x.message).removeprefix(f"{path}: ") for x in caught]
    if metadata.classes == tuple(map(str, range(arch.classes))):
        guessed.append("the names of the classes: numbers, since the file has none")
    facts |= {"network": label(arch), "layers": arch.depth, "classes": arch.classes}
    facts |= {"class_names": list(metadata.classes[:5]), "licence": row.licence if row else ""}
    see = {k: v for k, v in asdict(metadata.preprocess).items() if k != "white"}
    return facts | {"preprocess": see, "provenance": dict(metadata.provenance), "guessed": guessed}


def cached_file(file: str | Path) -> tuple[Path, WeightsRow | None]:
    """The file of a path or of a name, and its row. Raises CheckpointError where it is not here."""
    from resnets.config.weights import find, imported
    from resnets.models.io import fetch

    if Path(file).exists() or str(file) in imported():
        return fetch.locate_weights(file)
    row = find(str(file))
    if (path := fetch.cached_path(row)) is None:
        raise CheckpointError(f"{row.name} is not here: `resnets weights get {row.name}` first")
    return path, row


@public
def weights_where() -> list[dict[str, Any]]:
    """List the folders where weights are looked for."""
    from resnets.config.weights import weights_folder
    from resnets.models.io import fetch

    folders = {
        "imported or copied": weights_folder(),
        "Hugging Face hub": fetch.hub_cache(),
        "torch.hub": fetch.torch_cache(),
    }
    found = []
    for what, folder in folders.items():
        files = [
            x for x in folder.rglob("*") if x.is_file() and x.suffix in (".safetensors", ".pth")
        ]
        size = sum(x.stat().st_size for x in files)
        found.append({"what": what, "folder": str(folder), "files": len(files), "bytes": size})
    return found

"""Files of features: .npz, .safetensors and .parquet, written in one step."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from resnets.errors import DiskError, MissingPackage, UsageError
from resnets.evaluation.feature_store import FeatureOptions, Watch, store_features
from resnets.evaluation.features import Features
from resnets.evaluation.image_set import ImageSet
from resnets.files import sync_folder

if TYPE_CHECKING:
    from resnets.evaluation.predictor import Model

SUFFIXES = (".npz", ".safetensors", ".parquet")
CHUNK = 2**24  # numbers that are written at once
HEADER = 100_000_000  # bytes: safetensors reads no longer ones


@dataclass(frozen=True, slots=True)
class FeatureFile:
    """A file of features that was written."""

    file: Path
    images: int  # rows
    shape: tuple[int, ...]  # of the features of an image
    level: str
    classes: tuple[str, ...]  # none where the images have no labels
    unreadable: tuple[tuple[Path, str], ...]
    seconds: float


def write_features(
    path: Path,
    model: Model,
    images: ImageSet,
    options: FeatureOptions,
    watch: Watch | None = None,
) -> FeatureFile:
    """Compute features and write them as .npz, .safetensors or .parquet, in one step at the end.

    Until then they are in the folder FILE.partial, from which the same command continues. Raises
    as `store_features`, and UsageError for a file that is there or of another kind; MissingPackage
    without pyarrow for .parquet.
    """
    began = time.monotonic()
    check_feature_file(path)
    partial = path.with_name(f"{path.name}.partial")
    features = store_features(partial, model, images, options, watch)
    whole = partial / f"whole{path.suffix}"
    write = {".npz": write_npz, ".safetensors": write_safetensors, ".parquet": write_parquet}
    try:
        write[path.suffix](whole, features)
        with whole.open("rb+") as file:
            os.fsync(file.fileno())
        whole.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        whole.unlink(missing_ok=True)
        raise DiskError(
            f"{path} could not be written: {error.strerror or error}.\n"
            f"Free some space; the features are in {partial}, and the same command goes on."
        ) from None
    written = FeatureFile(
        path,
        len(features),
        features.vectors.shape[1:],
        features.level,
        features.classes,
        (*images.unreadable, *features.unreadable),
        time.monotonic() - began,
    )
    del features  # Windows deletes no file that is mapped
    shutil.rmtree(partial, ignore_errors=True)
    return written


def check_feature_file(path: Path) -> None:
    """Raise UsageError for a file of another kind, or one that is there; MissingPackage."""
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path}: features are written as {', '.join(SUFFIXES)}; name such a file")
    if path.exists():
        raise UsageError(f"{path} is there, and nothing here overwrites: choose a new --out")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is no folder: make it, or choose another --out")
    if path.suffix == ".parquet":
        import_pyarrow()


def import_pyarrow() -> Any:
    """The package. Raises MissingPackage with the line that installs it."""
    try:
        import pyarrow
    except ImportError:
        raise MissingPackage("Parquet needs pyarrow: pip install 'resnets[parquet]'") from None
    return pyarrow


def facts(features: Features) -> dict[str, Any]:
    """What a file says beside the vectors, for people and JSON."""
    return {"level": features.level, "classes": list(features.classes)}


def write_npz(path: Path, features: Features) -> None:
    """NumPy's format: names, splits, labels, classes, level, vectors; read by `numpy.load`."""
    with path.open("wb") as file:
        np.savez(
            file,
            names=np.array(features.names),
            splits=np.array(features.splits),
            labels=features.labels.numpy(),
            classes=np.array(features.classes),
            level=np.array(features.level),
            vectors=features.vectors,
        )


def write_safetensors(path: Path, features: Features) -> None:
    """Tensors `vectors` and `labels`; the rest is JSON under `features` of the metadata.

    It is written piece by piece, since `safetensors.save_file` keeps all in memory twice. Raises
    UsageError for more names than its header may have.
    """
    labels = features.labels.numpy()
    text = {**facts(features), "names": features.names, "splits": features.splits}
    header: dict[str, Any] = {"__metadata__": {"features": json.dumps(text)}}
    begin = 0
    for name, array, kind in (("vectors", features.vectors, "F32"), ("labels", labels, "")):
        end = begin + array.nbytes
        kind = kind or {"int64": "I64", "float32": "F32"}[str(array.dtype)]
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [begin, end]}
        begin = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    if len(encoded) > HEADER:
        raise UsageError(
            f"the names of {len(features):,} images are too long for safetensors: choose .npz"
        )
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for rows in chunks(features.vectors):
            file.write(np.ascontiguousarray(rows).data)
        file.write(np.ascontiguousarray(labels).data)


def write_parquet(path: Path, features: Features) -> None:
    """Columns name, split, label, class (null where not known), vector; a map is flattened."""
    pyarrow = import_pyarrow()
    from pyarrow import parquet

    size = math.prod(features.vectors.shape[1:])
    several = features.labels.ndim == 2
    text = {**facts(features), "shape": features.vectors.shape[1:]}
    schema = pyarrow.schema(
        [
            ("name", pyarrow.string()),
            ("split", pyarrow.string()),
            ("label", pyarrow.list_(pyarrow.int64()) if several else pyarrow.int64()),
            ("class", pyarrow.list_(pyarrow.string()) if several else pyarrow.string()),
            ("vector", pyarrow.list_(pyarrow.float32(), size)),
        ],
        metadata={"features": json.dumps(text)},
    )
    labels = label_lists(features)
    first = 0
    with parquet.ParquetWriter(path, schema) as writer:
        for rows in chunks(features.vectors):
            piece = slice(first, first + len(rows))
            classes = [name_classes(label, features.classes) for label in labels[piece]]
            flat = pyarrow.array(np.ascontiguousarray(rows).reshape(-1))
            columns = [
                features.names[piece],
                features.splits[piece],
                labels[piece],
                classes,
                pyarrow.FixedSizeListArray.from_arrays(flat, size),
            ]
            arrays = [
                pyarrow.array(column, kind.type)
                for column, kind in zip(columns[:4], schema, strict=False)
            ]
            writer.write_table(pyarrow.Table.from_arrays([*arrays, columns[4]], schema=schema))
            first = piece.stop


def label_lists(features: Features) -> list[Any]:
    """Of each image its class, or a list of those that it has; None where it is not known."""
    if features.labels.ndim == 1:
        return [None if label < 0 else label for label in features.labels.tolist()]
    return [[k for k, has in enumerate(row) if has] for row in features.labels.tolist()]


def name_classes(label: Any, classes: tuple[str, ...]) -> Any:
    """The name of a class, or of several."""
    if isinstance(label, list):
        return [classes[k] for k in label]
    return None if label is None else classes[label]


def chunks(vectors: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """The rows, some 64 MB at a time."""
    step = max(1, CHUNK // max(1, math.prod(vectors.shape[1:])))
    for first in range(0, len(vectors), step):
        yield vectors[first : first + step]

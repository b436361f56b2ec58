"""Tensors and their metadata in one safetensors file, with SHA-256 digests of both.

The file's metadata has one entry: a JSON object with the caller's metadata, the digest of each
tensor under "tensors", and last, under "sha256", the digest of all that. safetensors itself checks
no values.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from resnets.errors import CheckpointError, DiskError
from resnets.escape import shorten
from resnets.files import write_whole

T = TypeVar("T")
# What reading a damaged or hostile file may raise.
INVALID = (
    *(ValueError, LookupError, TypeError, AttributeError, RecursionError),
    SafetensorError,
)


def digest(tensor: Tensor) -> str:
    """SHA-256 of the bytes of a contiguous tensor on the CPU."""
    return hashlib.sha256(tensor.flatten().view(torch.uint8).numpy().data).hexdigest()


def check_tensors(tensors: Mapping[str, Tensor], digests: Mapping[str, str]) -> None:
    """Raise ValueError that names a tensor whose digest differs, or that has none."""
    for name, tensor in tensors.items():
        if digest(tensor) != digests.get(name):
            raise ValueError(f"{name} is not what was saved (SHA-256)")


def with_digest(body: Mapping[str, Any], key: str = "sha256", *, sort_keys: bool = False) -> str:
    """JSON of `body` and, under `key`, the SHA-256 of the JSON without it."""
    rest = json.dumps(body, sort_keys=sort_keys)
    return json.dumps({**body, key: hashlib.sha256(rest.encode()).hexdigest()})


def check_digest(text: str, key: str = "sha256", *, sort_keys: bool = False) -> dict[str, Any]:
    """The body of a text by `with_digest`. Raises ValueError where the text was changed."""
    try:
        body: dict[str, Any] = json.loads(text)
        del body[key]
        if with_digest(body, key, sort_keys=sort_keys) == text:
            return body
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    raise ValueError("its metadata is not what was saved (SHA-256)")


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], key: str, metadata: Mapping[str, Any]
) -> None:
    """Write tensors on the CPU and JSON-ready metadata as entry `key`, in one step.

    Raises ValueError or TypeError for metadata that is not JSON; DiskError, and a file that was
    there stays.
    """
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    digests = {name: digest(tensor) for name, tensor in tensors.items()}
    text = with_digest({**metadata, "tensors": digests})
    write_whole(Path(path), serialize(tensors, {key: text}))


def load_tensors(
    path: str | Path, key: str, build: Callable[[dict[str, Tensor], dict[str, Any]], T], advice: str
) -> T:
    """What `build` makes of the tensors and the metadata that `save_tensors` wrote under `key`.

    `build` may raise ValueError, LookupError or TypeError for what it refuses. `advice` is the last
    sentence of the message, what to do about the file.

    Raises CheckpointError for a file that is missing, broken, changed or another; DiskError for one
    that cannot be read now.
    """
    try:
        Path(path).read_bytes()  # safetensors does not say why a file cannot be read
        # Read, not mapped: a mapped file cannot be replaced on Windows.
        with safe_open(path, "pt", backend="pread") as file:
            names, entries = list(file.keys()), file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in names}
        text = entries[key]
        if "sha256" in entries:
            return build(tensors, _check_earlier(tensors, text, entries["sha256"]))
        metadata = check_digest(text)
        check_tensors(tensors, metadata.pop("tensors"))
        return build(tensors, metadata)
    except FileNotFoundError:
        reason = "it is missing"
    except OSError as error:
        raise DiskError(f"{path} cannot be read: {error.strerror}; try again") from None
    except KeyError as error:
        reason = f"{error} is missing"
    except (*INVALID, RuntimeError) as error:
        reason = shorten(str(error))
    raise CheckpointError(f"{path} has no {key} of this version ({reason}).\n{advice}")


def _check_earlier(tensors: Mapping[str, Tensor], text: str, expected: str) -> dict[str, Any]:
    """The metadata of an earlier file, which has one digest, of all tensors and the text."""
    digests = {name: [str(t.dtype), [*t.shape], digest(t)] for name, t in tensors.items()}
    content = json.dumps(digests, sort_keys=True) + text
    if hashlib.sha256(content.encode()).hexdigest() != expected:
        raise ValueError("not what was saved (SHA-256)")
    metadata: dict[str, Any] = json.loads(text)
    return metadata


def check_tensor(x: Tensor, dtype: torch.dtype, shape: tuple[int, ...], name: str) -> None:
    """Raise ValueError for a tensor of another type or shape."""
    if x.dtype != dtype or tuple(x.shape) != shape:
        raise ValueError(f"{name}: {x.dtype} {tuple(x.shape)}, not {dtype} {shape}")


def check_range(x: Tensor, end: int, name: str) -> None:
    """Raise ValueError for numbers below 0, or of `end` and more."""
    if x.numel() and not 0 <= float(x.min()) <= float(x.max()) < end:
        raise ValueError(f"{name}: values beyond 0 to {end - 1}")


def check_text(value: object) -> str:
    """The value. Raises ValueError for one that is no text."""
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:50]} is not a string")
    return value

"""Weights files of others: the tensors of the network in them, and its name if the file has it.

Nothing that a file contains is run: safetensors is data, pickles are scanned first (`pickle_scan`).
"""

from __future__ import annotations

import argparse
import json
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from resnets.config.preprocessing import PretrainedConfig, parse_config
from resnets.errors import CheckpointError, ResnetsError, naming_file
from resnets.escape import shorten
from resnets.models.io.bit import read_bit
from resnets.models.io.caffe import read_caffe
from resnets.models.io.detectron import read_detectron
from resnets.models.io.infer_arch import COUNTER
from resnets.models.io.keras import read_keras
from resnets.models.io.pickle_scan import load_pickle
from resnets.models.io.tensor_names import FIRST_TENSOR, PREFIXES, describe_tensors, network_tensors

FILE_LIMIT = 8 * 2**30  # bytes; the largest network of the family has 0.4 GB
HEADER_LIMIT = 16 * 2**20  # bytes of a safetensors header
CONFIG_LIMIT = 2**20  # bytes of a config.json
PICKLES = (".pth", ".pt", ".th", ".bin", ".ckpt", ".tar")
# Tensors under our names, the network, and notes, of files of other frameworks.
CONVERTERS = {
    ".npz": read_bit,
    ".caffemodel": read_caffe,
    ".h5": read_keras,
    ".hdf5": read_keras,
    ".pkl": read_detectron,
}
DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64}
# Where a training script keeps the weights; the averaged ones are what it evaluates.
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "params_ema", "ema")
STATES = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights"),
    *("params", "module"),
)
# Where it keeps the name of the network.
MODEL_NAMES = ("architecture", "arch", "model_name", "model", "backbone", "encoder_name")
KeyPath = tuple[str, ...]  # the keys that lead to a dict in a checkpoint


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """What a weights file holds: the network's tensors, and what was noted while reading it."""

    tensors: dict[str, Tensor]
    metadata: Mapping[str, str]  # of a safetensors file
    notes: tuple[str, ...] = ()
    model: str = ""  # the network's name, where the file or its folder has it


def read(path: str | Path) -> dict[str, Tensor]:
    """The named tensors of a weights file, on the CPU. Nothing that the file contains is run.

    Of a training script's checkpoint the averaged weights are taken, else the plain ones; prefixes
    that wrappers add to names are removed; what is no tensor of the network is left out.

    Raises CheckpointError: the file is missing, broken, too large, not a weights file, holds code,
    or has a tensor with values that are not finite.
    """
    return read_file(Path(path)).tensors


def read_file(path: Path, own_key: str = "resnets") -> WeightsFile:
    """What `read` gives, with metadata, notes and the network's name.

    The tensors of a file with `own_key` in its metadata are given as they are. Raises as `read`.
    """
    with naming_file(path):
        size, start = open_regular(path)
        header = int.from_bytes(start[:8], "little")
        metadata, notes, model = dict[str, str](), list[str](), ""
        if start[8:] == b"{" and header <= size - 8:  # a JSON header, of a length that fits
            state, metadata = read_safetensors(path, header)
            model = next((metadata[key] for key in MODEL_NAMES if key in metadata), "")
        elif path.suffix == ".safetensors":
            raise CheckpointError("not a safetensors file, or cut short.\nDownload it again.")
        elif path.suffix in PICKLES:
            checkpoint = load_pickle(path, start)
            state, model = pick_state(checkpoint, notes), model_name(checkpoint)
        elif path.suffix in CONVERTERS:
            state, model, notes = convert(path)
            size = FILE_LIMIT  # the readers compare with the file what they take from it
        else:
            known = f"Known: .safetensors {' '.join([*PICKLES, *CONVERTERS])}."
            raise CheckpointError(f"not a weights file.\n{known}")
        if not state:
            raise CheckpointError("no tensors in it.\nSave `model.state_dict()`.")
        if own_key not in metadata:
            state = network_tensors(state, notes)
        tensors = clone_tensors(state, size)
    model = model or ("" if own_key in metadata else name_beside(path))
    return WeightsFile(tensors, metadata, tuple(notes), model)


def convert(path: Path) -> tuple[dict[str, Tensor], str, list[str]]:
    """Tensors under our names, the network and notes, of a file of another framework.

    Raises CheckpointError, and MissingPackage for one that needs h5py.
    """
    try:
        return CONVERTERS[path.suffix](path)
    except ResnetsError:
        raise
    except Exception as error:  # a hostile file may raise anything
        reason = f"{type(error).__name__}: {shorten(error)}"
        raise CheckpointError(f"broken or cut short ({reason}).\nDownload it again.") from None


def open_regular(path: Path) -> tuple[int, bytes]:
    """The size of a file and its first nine bytes. Raises CheckpointError."""
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise CheckpointError("not a regular file.\nGive the path of a weights file.")
        with path.open("rb") as file:
            start = file.read(9)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"cannot be read: {reason}.\nCheck the path.") from None
    if not start:
        raise CheckpointError("empty.\nDownload or save it again.")
    if info.st_size > FILE_LIMIT:
        raise CheckpointError(f"larger than {FILE_LIMIT >> 30} GiB.\nKeep only the weights in it.")
    return info.st_size, start


def read_safetensors(path: Path, header: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file with a header of so many bytes.

    Raises CheckpointError for a file that is broken, or has one name twice: the library checks that
    tensors neither overlap nor leave holes, but takes the last of two entries of one name, so two
    readers could see two files.
    """
    if header > HEADER_LIMIT:
        raise CheckpointError(f"a header of {header} bytes.\nSave the weights without metadata.")
    try:
        with path.open("rb") as file:
            file.seek(8)
            json.loads(file.read(header), object_pairs_hook=unique_keys)
        # Not mapped: the tensors stay what they are when the file changes.
        with safe_open(path, framework="pt", backend="pread") as file:
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
            return tensors, file.metadata() or {}
    except (SafetensorError, RuntimeError, ValueError, AttributeError, OSError) as error:
        raise CheckpointError(
            f"broken or cut short ({shorten(error)}).\nDownload it again."
        ) from None


def unique_keys(entries: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError where a key stands twice."""
    values = dict(entries)
    if len(values) < len(entries):
        raise ValueError("a name twice in its header")
    return values


def model_name(checkpoint: object) -> str:
    """The network's name, where a training script kept it, itself or in its arguments."""
    if not isinstance(checkpoint, dict):
        return ""
    # `dict.get`: a pickle may give an OrderedDict an attribute of the name "get".
    arguments = [dict.get(checkpoint, key) for key in ("args", "hyper_parameters", "config")]
    for table in [checkpoint, *arguments]:
        if isinstance(table, argparse.Namespace):
            table = vars(table)
        if not isinstance(table, dict):
            continue
        for key in MODEL_NAMES:
            name = dict.get(table, key)
            if isinstance(name, str) and len(name) < 100:
                return name
    return ""


def name_beside(path: Path) -> str:
    """The network's name in a JSON file beside the weights, or in torchvision's file names."""
    hashed = re.fullmatch(r"(.+)-[0-9a-f]{8}", path.stem)
    return config_beside(path).architecture or (hashed[1] if hashed else "")


def config_beside(path: Path) -> PretrainedConfig:
    """What FILE.json, or else a config.json, beside a weights file says, in the form of timm's.

    One that is no JSON object says nothing. Raises CheckpointError for wrong values in it.
    """
    for config in (path.with_suffix(".json"), path.with_name("config.json")):
        try:
            if not config.is_file() or config.stat().st_size > CONFIG_LIMIT:
                continue
            data = json.loads(config.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(data, dict):
            with naming_file(config):
                return parse_config(data)
    return PretrainedConfig()


def find_states(
    value: object, visited: set[int], at: KeyPath = ()
) -> dict[KeyPath, dict[str, Tensor]]:
    """The dicts of named tensors in a checkpoint, by the keys that lead to them; each dict once."""
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if not isinstance(value, dict) or len(at) > 3 or id(value) in visited:
        return {}
    visited.add(id(value))
    entries = [(key, x) for key, x in dict.items(value) if isinstance(key, str)]
    tensors = {key: x for key, x in entries if isinstance(x, Tensor) and key != "n_averaged"}
    states = {at: tensors} if tensors else {}
    for key, inner in entries:
        states |= find_states(inner, visited, (*at, key))
    return states


def pick_state(checkpoint: object, notes: list[str]) -> dict[str, Tensor]:
    """The weights among all that a training script keeps: averaged before plain ones.

    Raises CheckpointError where several networks have equal claims.
    """
    states = find_states(checkpoint, set())
    if not states:
        return {}
    networks = {at for at, state in states.items() if any(map(FIRST_TENSOR.fullmatch, state))}
    known_keys, unknown = AVERAGED + STATES, len(AVERAGED + STATES) + 1

    def rank(at: KeyPath) -> tuple[bool, int, int]:
        positions = [known_keys.index(key) for key in at if key in known_keys]
        default = unknown if at else unknown - 1
        return at not in networks, min(positions, default=default), -len(states[at])

    first, *others = sorted(states, key=rank)
    if rank(first)[:2] == (True, unknown):
        return {}
    others = [at for at in others if at in networks]
    if rank(first)[1] == unknown and others:
        names = ", ".join(shorten(".".join(at), 40) for at in sorted((first, *others))[:4])
        raise CheckpointError(f"several networks in it: {names}.\nSave the state dict of one.")
    name = shorten(".".join(first), 40)
    plain = next((at for at in others if not set(at) & set(AVERAGED)), None)
    if set(first) & set(AVERAGED):
        if plain is not None:
            beside = shorten(".".join(plain), 40) or "the rest"
            notes.append(f"the averaged weights `{name}` were taken, not `{beside}` beside them")
            return fill_missing(states[first], states[plain], name, beside, notes)
    elif isinstance(checkpoint, dict):
        empty = [key for key in AVERAGED if dict.get(checkpoint, key)]
        if empty:
            notes.append(f"`{name}` was taken: `{empty[0]}` beside it holds no named weights")
    return states[first]


def fill_missing(
    averaged: dict[str, Tensor], plain: dict[str, Tensor], name: str, beside: str, notes: list[str]
) -> dict[str, Tensor]:
    """Averaged weights with what only the plain ones have, as averages without buffers do."""
    present = {PREFIXES.sub("", key) for key in averaged}
    missing = {key: x for key, x in plain.items() if PREFIXES.sub("", key) not in present}
    if not missing:
        return averaged
    notes.append(f"`{name}` lacks {describe_tensors(missing)}: taken from `{beside}`")
    return {PREFIXES.sub("", key): x for key, x in (averaged | missing).items()}


def clone_tensors(state: Mapping[str, Tensor], size: int) -> dict[str, Tensor]:
    """Checked copies of the tensors of a file of `size` bytes.

    Raises CheckpointError for a tensor of a strange type, of values that are not finite, or larger
    than the file.
    """
    tensors: dict[str, Tensor] = {}
    total = 0
    for name, tensor in state.items():
        shown, counter = shorten(name, 80), name.endswith(COUNTER) and tensor.ndim == 0
        strange = tensor.dtype not in DTYPES and not counter
        if tensor.layout != torch.strided or tensor.is_meta or strange:
            raise CheckpointError(f"{shown} is a {tensor.dtype} tensor.\nSave it as float32.")
        total += tensor.numel() * tensor.element_size()
        if total > size:  # a stride of 0 makes terabytes of one number
            raise CheckpointError(f"{shown} is larger than the file.\nSave contiguous tensors.")
        # A copy: a mapped file that is overwritten or cut later would change or end the process.
        tensors[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
        if not torch.isfinite(tensors[name]).all():
            raise CheckpointError(
                f"{shown} has values that are not finite.\nTrain it again, or get the file again."
            )
    return tensors

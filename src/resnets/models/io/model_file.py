"""A trained network in one safetensors file: its tensors, and metadata that says how to use them.

The file's header has one entry, `resnets`, a JSON object: the format's version, the metadata
(as "card"), a SHA-256 of each tensor's bytes, and last a SHA-256 of all that. safetensors itself
checks no values.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pydantic
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from resnets import errors
from resnets.config import arch as architectures
from resnets.config.arch import Arch, ExternalArch
from resnets.config.families import label
from resnets.config.recipe import FINITE, Preprocess
from resnets.errors import Assumption, CheckpointError, MissingCode, UsageError, naming_file
from resnets.escape import shorten
from resnets.models import Network
from resnets.models.io import pretrained
from resnets.models.io.infer_arch import (
    differences,
    infer_arch,
    meta_model,
)
from resnets.models.io.network_names import assumed_fields, name_settles
from resnets.tensor_files import check_digest, check_tensors, save_tensors

FORMAT = 1
KEY = "resnets"
UNITS = 2000  # of a network; the deepest of the papers, of 1202 layers, has 600


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMetadata:
    """What a network is and how to use it. `classes` has one name for each logit."""

    __pydantic_config__ = FINITE

    arch: Arch
    classes: tuple[str, ...]
    preprocess: Preprocess
    # Data, its digest, the recipe, versions, a licence: text for people.
    provenance: dict[str, str] = field(default_factory=dict)
    temperature: pydantic.PositiveFloat | None = None  # logits are divided by it before the softmax


def save(path: str | Path, network: Network, metadata: ModelMetadata) -> None:
    """Write the file in one step: at every moment `path` is the old file or the new one.

    Raises UsageError for metadata that cannot be read back, or of another network; CheckpointError
    for a value that is not finite, with nothing written; DiskError.
    """
    path = Path(path)
    tensors = {
        name: tensor.detach().to(
            "cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype
        )
        for name, tensor in network.state_dict().items()
    }
    entry = {"format": FORMAT, "card": to_dict(metadata)}
    try:
        if from_dict(json.loads(json.dumps(entry["card"], allow_nan=False))) != metadata:
            raise ValueError("what is read back differs")
    except (ValueError, TypeError) as error:
        raise UsageError(f"this metadata cannot be saved: {error}") from None
    if problems := differences(meta_model(metadata.arch).state_dict(), tensors):
        raise UsageError(f"the metadata describes another network: {problems}")
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{path}: not written, {name} is not finite.\nTrain with a lower rate."
            )
    save_tensors(path, tensors, KEY, entry)


def load(path: str | Path, external: ExternalArch | None = None) -> tuple[Network, ModelMetadata]:
    """The network, in evaluation mode on the CPU, and its metadata.

    A custom network needs its code again, as `external`.

    Raises CheckpointError: the file is missing, broken, of another version, not one of ours; a
    digest, name, shape or type is wrong (the tensor is named), or a value is not finite.
    """
    path = Path(path)
    return load_model_file(path, pretrained.read_file(path, KEY), external)


def read_metadata(path: Path) -> ModelMetadata | None:
    """The metadata of one of our model files, whose tensors are not read; None of another file.

    Raises CheckpointError where it makes no sense.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(KEY, "")
    except (SafetensorError, OSError):  # which `open_model` explains
        return None
    with naming_file(path):
        return parse_metadata(text)[0] if text else None


def open_model(
    path: str | Path,
    chosen: Mapping[str, Any] = MappingProxyType({}),
    external: ExternalArch | None = None,
    hints: Mapping[str, Any] = MappingProxyType({}),
    known: Arch | None = None,
) -> tuple[Network, ModelMetadata | None]:
    """One of our model files with its metadata, or a foreign weights file without; by content.

    Of a foreign file an `Assumption` warns: what was taken and left, and what was assumed where
    neither its tensors nor a name settle it. Such a name is the checkpoint's own ("arch"), timm's
    ("architecture" in a config.json beside the file), or torchvision's (NAME-<8 digits>.pth).
    `external` is the code of a network that is not of this package, as in `load`.
    `chosen` fields of the network settle what is assumed, whatever a name says; so do `hints`, but
    those that a file does not leave open are ignored. `known` is the network of a published file.

    Raises CheckpointError for a file that is refused or not recognised, or whose tensors are not of
    a network with those fields; UsageError where one of them is not open.
    """
    path = Path(path)
    file = pretrained.read_file(path, KEY)
    # One wrong letter in the key does not make a foreign file of ours.
    if KEY in file.metadata or any(', "sha256": "' in text for text in file.metadata.values()):
        if chosen:
            raise UsageError(f"arch.{min(chosen)}: {path} says what its network is, leave it out")
        return load_model_file(path, file, external)
    name = file.model or "/".join(path.parts[-4:])
    with naming_file(path):
        arch, tensors = infer_arch(file.tensors, known, name=name)
        unseen, fixed = assumed_fields(arch)
        if settled := [field for field in chosen if field not in unseen]:
            open_ones = ", ".join(f"arch.{name}" for name in unseen) or "nothing"
            raise UsageError(f"arch.{settled[0]}: {path} leaves open {open_ones}")
        chosen = {key: value for key, value in hints.items() if key in unseen} | dict(chosen)
        if chosen:
            changed = architectures.with_fields(arch, chosen)
            arch, tensors = infer_arch(file.tensors, changed)
    notes = list(file.notes)
    if known is None and not name_settles(file.model, arch):
        left = {field: value for field, value in unseen.items() if field not in chosen}
        notes.append(describe_assumptions(arch, left, fixed))
    if notes:
        warnings.warn("\n".join(f"{path}: {note}" for note in notes), Assumption, stacklevel=2)
    network = meta_model(arch)
    network.load_state_dict(tensors, assign=True)
    return network.eval(), None


def describe_assumptions(arch: Arch, fields: Mapping[str, str], fixed: Sequence[str]) -> str:
    """What the tensors of a foreign file do not show, and how to settle it.

    `fields` are those of the network that can be set, with the values assumed; `fixed` the rest.
    """
    assumed = ", ".join([*(f"{field} {value}" for field, value in fields.items()), *fixed])
    setting = f"--set arch.{next(iter(fields))}=VALUE (and so on), or " if fields else ""
    return (
        f"taken for {label(arch)}, by its tensors; they do not show {assumed}.\n"
        f"To settle that: {setting}the network's name as "
        '{"architecture": "NAME"} in a config.json beside the file'
    )


def load_model_file(
    path: Path, file: pretrained.WeightsFile, external: ExternalArch | None = None
) -> tuple[Network, ModelMetadata]:
    """The network of one of our files, whose tensors are those of its metadata, bit for bit."""
    with naming_file(path):
        metadata, digests = parse_metadata(file.metadata.get(KEY, ""))
        metadata = replace(metadata, arch=with_code(path, metadata.arch, external))
        network = meta_network(metadata.arch, len(file.tensors))
        expected, tensors = network.state_dict(), file.tensors
        if layout(tensors) != layout(expected) or digests.keys() != expected.keys():
            problems = differences(expected, tensors) or "types or digests"
            if isinstance(metadata.arch, ExternalArch):
                raise CheckpointError(
                    f"{metadata.arch.builder} builds another network than was trained "
                    f"({problems}).\nGive the code as it was."
                )
            raise CheckpointError(
                f"its tensors are not those of its metadata ({problems}).\nGet the file again."
            )
        try:
            check_tensors(tensors, digests)
        except ValueError as error:
            raise CheckpointError(f"{error}.\nGet the file again.") from None
    network.load_state_dict(tensors, assign=True)
    return network.eval(), metadata


def layout(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.dtype, torch.Size]]:
    """Type and shape of each tensor."""
    return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}


def with_code(path: Path, arch: Arch, external: ExternalArch | None) -> Arch:
    """The description with custom code. Raises UsageError where that lacks, or is unused.

    An `Assumption` warns of code that has changed.
    """
    if not isinstance(arch, ExternalArch):
        if external is not None:
            raise UsageError(f"{path} is {label(arch)}: leave the custom {external.builder} out")
        return arch
    if external is None:
        raise MissingCode(f"{path} was trained from", shorten(arch.builder), "--network")
    if external.builder != arch.builder:
        other = f"{path} was trained from {shorten(arch.builder)}: {external.builder} may differ"
        warnings.warn(other, Assumption, stacklevel=2)
    elif external.digest != arch.digest:
        changed = f"{path}: {external.builder} has changed since it was trained"
        warnings.warn(changed, Assumption, stacklevel=2)
    return replace(arch, make=external.make)


def to_dict(metadata: ModelMetadata) -> dict[str, Any]:
    """JSON-ready; `from_dict` is the inverse."""
    return {**asdict(metadata), "arch": architectures.to_dict(metadata.arch)}


def from_dict(data: Mapping[str, Any]) -> ModelMetadata:
    """Metadata from JSON. Raises ValueError for values of wrong types or out of any use."""
    known = {f.name for f in fields(ModelMetadata)}
    if set(data) != known or not isinstance(data["arch"], dict):
        raise ValueError(f"metadata has {', '.join(sorted(known))}")
    arch = architectures.from_dict(data["arch"])
    metadata = pydantic.TypeAdapter(ModelMetadata).validate_python({**data, "arch": arch})
    see = metadata.preprocess
    lengths = (see.channels, see.channels * see.size**2)
    checks = {
        "classes": len(metadata.classes) == arch.classes,
        "channels": see.channels == arch.channels,
        "arch": isinstance(arch, ExternalArch)  # of which numbers build nothing
        or max(magnitudes(asdict(arch)), default=0) <= 1e6,
        "arch.size": arch.size <= 2**12
        and (see.size == arch.size or not isinstance(arch, architectures.VitArch)),
        "arch.crop": getattr(arch, "crop", 0) <= 2**10,
        "arch.regions": max(getattr(arch, "regions", (0,))) <= 10_000,
        "arch.proposals": max(getattr(arch, "proposals", (0,))) <= 10_000,
        # Of pixels in 0..1: what is far from them makes every output NaN.
        "mean": len(see.mean) in lengths and max(map(abs, see.mean)) <= 1000,
        "std": len(see.std) in lengths and 1e-6 <= min(see.std) <= max(see.std) <= 1000,
        "temperature": 1e-6 <= (metadata.temperature or 1) <= 1e6,
    }
    if wrong := [name for name, good in checks.items() if not good]:
        raise ValueError(f"wrong {', '.join(wrong)} in the metadata")
    return metadata


def magnitudes(value: object) -> Iterator[float]:
    """The magnitudes of all numbers in nested dictionaries and tuples; of NaN infinity."""
    if isinstance(value, dict | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from magnitudes(inner)
    elif isinstance(value, int | float):
        yield math.inf if value != value else abs(value)


def parse_metadata(text: str) -> tuple[ModelMetadata, dict[str, str]]:
    """The metadata of a model file, and the digests of its tensors."""
    if not text:
        raise CheckpointError(
            "not a model file of resnets, no metadata.\nOpen it as foreign weights."
        )
    try:
        data = check_digest(text)
    except ValueError as error:
        raise CheckpointError(f"{error}.\nGet the file again.") from None
    try:
        version = data["format"]
        if version != FORMAT:
            raise CheckpointError(f"format {shorten(version)}, not {FORMAT}.\nUpgrade resnets.")
        return from_dict(data["card"]), dict(data["tensors"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        reason = str(error)
        if isinstance(error, pydantic.ValidationError):
            reason = architectures.field_problem(error)[0]
        raise CheckpointError(
            f"invalid metadata ({shorten(reason)}).\nGet the file again."
        ) from None


def meta_network(arch: Arch, tensors: int) -> Network:
    """A network without memory; each unit has tensors, so the file bounds their number."""
    if isinstance(arch, ExternalArch):
        return meta_model(arch)
    counted = arch.backbone if isinstance(arch, architectures.DenseTaskArch) else arch
    blocks = counted.blocks if isinstance(counted.blocks, tuple) else (counted.blocks,)
    try:
        # A convolution and its normalisation have three tensors at least.
        if min(blocks) < 1 or sum(blocks) > min(tensors / 3, UNITS):
            raise ValueError(
                f"arch.blocks: {shorten(sum(blocks))} units in {tensors} tensors, at most {UNITS:,}"
            )
        return meta_model(arch)
    except (errors.ResnetsError, ValueError, ArithmeticError, RuntimeError, TypeError) as error:
        raise CheckpointError(
            f"an impossible network ({shorten(error)}).\nGet the file again."
        ) from None

"""Weight files of others: read without running anything in them, recognised by their tensors.

A pickle is a program. Its instructions are listed first, and only those that rebuild plain tensors
pass; then `torch.load(weights_only=True)` reads it, whose own list of harmless calls is longer and
includes some that allocate whatever a file of 40 bytes asks for. There is no second attempt.
"""

from __future__ import annotations

import argparse
import json
import pickletools
import re
import stat
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from resnets.arch import LAYERS, Arch, ResNetArch, VitArch
from resnets.errors import CheckpointError, ResnetsError
from resnets.nets.recognition import candidates, clip, differences, seen, skeleton
from resnets.nets.transformer import NAMES, renamed

FILE_LIMIT = 8 * 2**30  # bytes; the largest network of the family has 0.4 GB
HEADER_LIMIT = 16 * 2**20  # bytes of a safetensors header
# Of a pickle; ResNet-1202 and its momentum have 416,000 and 44,000. A tuple in a tuple in ...
# ends the interpreter above 130,000 levels, as the key of a dict.
INSTRUCTION_LIMIT, TUPLE_LIMIT = 1_200_000, 80_000

PICKLES = (".pth", ".pt", ".th", ".bin", ".ckpt", ".tar")
# Where a training script keeps the weights, the averaged ones first: they are what it evaluates.
STATES = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema"),
    *("state_dict", "model_state_dict", "model_state", "model", "net", "weights"),
)
PREFIXES = re.compile(r"^(?:module\.|_orig_mod\.|model\.)+")  # data parallel, compiled, Lightning
DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64}

PLAIN = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor|tensor_v2|parameter)"
    r"|torch\.nn\.parameter Parameter|torch (\w+Storage|Size|device|float16|bfloat16|float32|int64)"
    # The command line that torchvision's and timm's training scripts keep: attributes only.
    r"|argparse Namespace"
)
OTHERS: dict[str, str | Callable[[re.Match[str]], str]] = {
    r"^linear\.": "fc.",
    r"^(layer\d+\.\d+)\.shortcut\.": r"\1.downsample.",
    # torchvision's DenseNet files of 2017: norm.1 for norm1.
    r"(denselayer\d+\.(?:norm|conv))\.([12])\.": r"\1\2.",
    # Its detectors' files of 2019: convolutions that are not in blocks.
    r"(\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$": r"\1.0.\2",
    r"^rpn\.head\.conv\.(weight|bias)$": r"rpn.head.conv.0.0.\1",
    r"\.mask_fcn([1-4])\.": lambda found: f".{int(found[1]) - 1}.0.",
    r"(_head\.conv)\.([0246])\.(weight|bias)$": (
        lambda found: f"{found[1]}.{int(found[2]) // 2}.0.{found[3]}"
    ),
}
CALLS = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}  # torch.save: none


def read(path: str | Path) -> dict[str, Tensor]:
    """The named tensors of a weights file, on the CPU. Nothing that the file contains is run.

    Of a training script's checkpoint the averaged weights are taken, else the plain ones (`STATES`
    in its order); prefixes that wrappers add to names are taken off; all that is no tensor is left.

    Raises CheckpointError: the file is missing, broken, too large, not a weights file, holds code,
    or has a tensor with values that are not finite.
    """
    return contents(Path(path))[0]


def contents(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What `read` gives, and a safetensors file's metadata. Raises as `read` does."""
    size, start = _look(path)
    length = int.from_bytes(start[:8], "little")
    metadata: dict[str, str] = {}
    if start[8:] == b"{" and length <= size - 8:  # the length of a header that fits; it is JSON
        found, metadata = _safetensors(path, length)
    elif path.suffix == ".safetensors":
        raise refused(path, "not a safetensors file, or cut short", "Download it again.")
    elif path.suffix in PICKLES:
        found = _state(_unpickle(path, start))
    else:
        raise refused(path, "not a weights file", f"Known: .safetensors {' '.join(PICKLES)}.")
    if not found:
        raise refused(path, "no tensors in it", "Save `model.state_dict()`.")
    return _checked(path, found, size), metadata


def refused(path: Path, what: str, todo: str) -> CheckpointError:
    """What is wrong with which file, and what to do."""
    return CheckpointError(f"{path}: {what}.\n{todo}")


def _look(path: Path) -> tuple[int, bytes]:
    """The size of a file and its first bytes."""
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise refused(path, "not a regular file", "Give the path of a weights file.")
        with path.open("rb") as file:
            start = file.read(9)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise refused(path, f"cannot be read: {reason}", "Check the path.") from None
    if not start:
        raise refused(path, "empty", "Download or save it again.")
    if info.st_size > FILE_LIMIT:
        raise refused(path, f"larger than {FILE_LIMIT >> 30} GiB", "Keep only the weights in it.")
    return info.st_size, start


def _safetensors(path: Path, length: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    # The library checks that tensors neither overlap nor leave holes, and takes the last of two
    # entries of one name: two readers could see two files.
    if length > HEADER_LIMIT:
        raise refused(path, f"a header of {length} bytes", "Save the weights without metadata.")
    try:
        with path.open("rb") as header:
            header.seek(8)
            json.loads(header.read(length), object_pairs_hook=_once)
        # Not mapped: the tensors stay what they are when the file changes.
        with safe_open(path, framework="pt", backend="pread") as file:
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
            return tensors, file.metadata() or {}
    except (SafetensorError, RuntimeError, ValueError, AttributeError, OSError) as error:
        raise refused(path, f"broken or cut short ({clip(error)})", "Download it again.") from None


def _once(entries: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(entries)
    if len(values) < len(entries):
        raise ValueError("one name twice in its header")
    return values


def _unpickle(path: Path, start: bytes) -> object:
    try:
        if zipped := start.startswith(b"PK\x03\x04"):
            _inspect_zip(path)
        elif start.startswith(b"\x80"):
            with path.open("rb") as file:
                for _ in range(5):  # magic number, version, system, the object, storage keys
                    _inspect(path, file)
        else:
            raise refused(path, f"not a checkpoint: it starts with {start!r}", "Download it again.")
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except CheckpointError:
        raise
    except Exception as error:  # what a hostile file raises is its choice
        reason = f"{type(error).__name__}: {clip(error)}"
        raise refused(path, f"broken or cut short ({reason})", "Download it again.") from None


def _inspect_zip(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = [entry.filename.lower() for entry in entries]
        if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
            todo = "Save `module.state_dict()` of it where it comes from."
            raise refused(path, "a TorchScript archive: code, not only weights", todo)
        pickled = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
        if len(pickled) != 1 or len(set(names)) != len(names):
            raise refused(path, "a zip file that is no checkpoint", "Save `model.state_dict()`.")
        # torch.save does not compress, so a compressed entry is there to grow.
        if any(entry.compress_type or entry.file_size != entry.compress_size for entry in entries):
            raise refused(path, "a compressed zip file", "Save it with `torch.save`.")
        with archive.open(pickled[0]) as file:
            _inspect(path, file)


def _inspect(path: Path, file: IO[bytes]) -> None:
    """Read one pickle's instructions without following them."""
    tuples = 0
    for count, (instruction, value, _) in enumerate(pickletools.genops(file)):
        name = instruction.name
        if name in CALLS or (name == "GLOBAL" and not PLAIN.fullmatch(str(value))):
            call = str(value).replace(" ", ".") if name == "GLOBAL" else f"instruction {name}"
            what = f"holds code or objects ({clip(call)}), not only tensors; nothing of it was run"
            todo = (
                "Ask its author for a .safetensors file, or for `torch.save(model.state_dict())`."
            )
            raise refused(path, what, todo)
        tuples += name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
        if count > INSTRUCTION_LIMIT or tuples > TUPLE_LIMIT:
            raise refused(path, "too much besides tensors", "Save only `model.state_dict()`.")


def _state(value: object, depth: int = 0) -> dict[str, Tensor]:
    # dict.items and not value.items: a pickle may give an OrderedDict an attribute of that name.
    if not isinstance(value, dict) or depth > 2:
        return {}
    for key in STATES:
        if found := _state(dict.get(value, key), depth + 1):
            return found
    return {
        name: tensor
        for name, tensor in dict.items(value)
        if isinstance(name, str) and isinstance(tensor, Tensor) and name != "n_averaged"
    }


def _checked(path: Path, found: Mapping[str, Tensor], size: int) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    total = 0
    for key, tensor in found.items():
        name = PREFIXES.sub("", key)
        shown = clip(name, 80)
        if name in tensors:
            raise refused(path, f"two tensors for {shown}", "Keep one of them.")
        if tensor.layout != torch.strided or tensor.is_meta or tensor.dtype not in DTYPES:
            raise refused(path, f"{shown} is a {tensor.dtype} tensor", "Save it as float32.")
        total += tensor.numel() * tensor.element_size()
        if total > size:  # a stride of 0 makes terabytes of one number
            raise refused(path, f"{shown} is larger than the file", "Save contiguous tensors.")
        # A copy: a mapped file that is overwritten or cut later would change or end the process.
        tensors[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
        if not torch.isfinite(tensors[name]).all():
            raise refused(path, f"{shown} has values that are not finite", "Train or get it again.")
    return tensors


def recognise(
    tensors: Mapping[str, Tensor], arch: Arch | None = None
) -> tuple[Arch, dict[str, Tensor]]:
    """The network that has these tensors, and the tensors under our names, in float32.

    Known are our own names, torchvision's (its ResNets, DenseNets and ViTs; detectors on a pyramid
    and segmenters on a ResNet, and their names of 2019), timm's ResNets, and the CIFAR ResNets of
    akamaster/pytorch_resnet_cifar10 (`linear`, and option A with zeros half before and half after:
    channels are moved so that our zeros, all after, compute the same).

    Names and shapes do not show everything. Where several networks of `FAMILY` have them the first
    is given: the stride of a bottleneck on its 3x3 convolution ("v1.5"), option A and not a plain
    network where nothing projects, ReLU after the addition, ViT heads 64 wide, an output stride of
    8 below FCN and DeepLabv3. With `arch` the tensors are taken for that network.

    Raises CheckpointError: no network has them, with what was seen; or `arch`, with differences.
    """
    named = _named(tensors)
    shapes = {name: tuple(tensor.shape) for name, tensor in named.items()}
    for candidate in [arch] if arch else candidates(shapes):
        try:
            wanted = skeleton(candidate).state_dict()
        except (ResnetsError, ValueError, ArithmeticError, RuntimeError):
            if arch:
                raise
            continue
        problems = differences(wanted, named)
        if arch and problems:
            raise CheckpointError(f"the tensors are not those of the given network: {problems}")
        if not problems:
            zero = torch.zeros(())  # of the counters that a file may lack
            ours = {name: named.get(name, zero).to(like.dtype) for name, like in wanted.items()}
            if "linear.weight" in tensors and isinstance(candidate, ResNetArch):
                ours = _zeros_after(ours, candidate)
            return candidate, ours
    raise CheckpointError(
        f"not a network that is known here: {seen(shapes)}.\n"
        "Give its description (`arch`), or rename its tensors as torchvision does."
    )


def to_torchvision(tensors: Mapping[str, Tensor], arch: Arch) -> dict[str, Tensor]:
    """Our tensors under torchvision's names: a ViT has others, the rest of the family the same."""
    return renamed(tensors, NAMES) if isinstance(arch, VitArch) else dict(tensors)


def _named(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if "encoder.pos_embedding" in tensors:
        try:
            return renamed(tensors, {theirs: ours for ours, theirs in NAMES.items()})
        except KeyError as error:
            raise CheckpointError(f"a ViT with a tensor that is not known: {error}") from None
    changed = {}
    for key, tensor in tensors.items():
        name = key
        for theirs, ours in OTHERS.items():
            name = re.sub(theirs, ours, name)
        changed[name] = tensor
    return changed if len(changed) == len(tensors) else dict(tensors)


def _zeros_after(tensors: dict[str, Tensor], arch: ResNetArch) -> dict[str, Tensor]:
    """Move channels from "zeros half before, half after" to ours, where all zeros come after.

    `order[i]` is the channel of the other network that is our channel i. The new channels of a
    stage are written by its last convolutions and normalisations, and read by the next first ones.
    """
    if arch.shortcut != "A":
        return tensors
    last, moved = LAYERS[arch.unit], dict(tensors)
    order = list(range(arch.stem_width))
    for stage, (count, width) in enumerate(zip(arch.blocks, arch.widths, strict=True), 1):
        before, kept = order, len(order)
        half = (width - kept) // 2
        order = [i + half for i in before] + [*range(half), *range(half + kept, width)]
        for unit in range(count):
            prefix = f"layer{stage}.{unit}."
            reads = f"{prefix}conv1.weight"
            moved[reads] = moved[reads][:, before if unit == 0 else order]
            for name in tensors:
                if name.startswith((f"{prefix}conv{last}.", f"{prefix}bn{last}.")):
                    moved[name] = moved[name][order] if moved[name].ndim else moved[name]
    moved["fc.weight"] = moved["fc.weight"][:, order]
    return moved

"""Pickled checkpoints, read without running anything in them.

A pickle is a program. Its instructions are listed first, and only those pass that rebuild plain
tensors, or that name an object which training scripts keep beside the weights. Then
`torch.load(weights_only=True)` reads it: its own list of harmless calls is longer, and includes
some that allocate whatever a file of 40 bytes asks for. An object that is no tensor is replaced by
a placeholder. There is no second attempt.
"""

from __future__ import annotations

import argparse
import pickletools
import re
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from pathlib import Path
from typing import IO, Any

import torch

from resnets.errors import CheckpointError
from resnets.escape import shorten

# ResNet-1202 and its momentum have 416,000 instructions and 44,000 tuples. Tuples nested more than
# 130,000 deep end the interpreter when they are the key of a dict.
INSTRUCTION_LIMIT, TUPLE_LIMIT = 1_200_000, 80_000

ALLOWED = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor|tensor_v2|parameter)"
    r"|torch\.nn\.parameter Parameter|torch (\w+Storage|Size|device)"
    r"|torch (float(16|32|64)|bfloat16|u?int(8|16|32|64)|bool|complex(64|128))"
    # The command line that torchvision's and timm's training scripts keep: attributes only.
    r"|argparse Namespace"
)
# What training scripts keep beside the weights: none of it is made, placeholders stand for it.
REPLACED = re.compile(
    r"collections (defaultdict|deque)|(pathlib|pathlib\._local) (Pure)?(Posix|Windows)?Path"
    r"|numpy (dtype|ndarray|bool_?|[uif](nt|loat)\d+)|numpy\.dtypes \w+DType"
    r"|numpy\.(core|_core)\.(multiarray (scalar|_reconstruct)|numeric _frombuffer)"
    r"|numpy\.random\._pickle \w+|datetime (datetime|date|timedelta|timezone)|types SimpleNamespace"
    r"|(__builtin__|builtins) (list|dict|tuple|frozenset|int|float|str|bool|long|unicode|object)"
    r"|typing (Any|Union|Optional)|torch\.torch_version TorchVersion"
    r"|(omegaconf|mmengine|mmcv|lightning_fabric|lightning|pytorch_lightning)(\.\w+)+ "
    r"(\w*(Config|Node|Metadata)|HistoryBuffer|AttributeDict)"
)
# Calls on torch's own list: how far behind the call its argument is, and the one argument that
# checkpoints give it. Others could count an endless tensor, or double a text again and again.
ALLOWED_ARGUMENTS = {
    "collections Counter": (1, "EMPTY_DICT"),
    "__builtin__ set": (1, "EMPTY_LIST"),
    "builtins set": (1, "EMPTY_LIST"),
    "_codecs encode": (2, "latin1"),
}
FORBIDDEN = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}  # torch.save: none


class PlaceholderObject:
    """Stands for an object that is no tensor: it takes any arguments and state, and keeps none."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


class PlaceholderDict:
    """Makes a plain dict that may be filled: state dicts are in such."""

    def __new__(cls, *_: object) -> dict[str, Any]:  # type: ignore[misc]
        return {}


class PlaceholderList(list[Any]):
    """An empty list, which may be filled."""

    def __init__(self, *_: object) -> None: ...


PLACEHOLDERS = {
    "defaultdict": PlaceholderDict,
    "AttributeDict": PlaceholderDict,
    "deque": PlaceholderList,
}


def load_pickle(path: Path, start: bytes) -> object:
    """What a checkpoint of `torch.save` holds; `start` are its first bytes.

    Raises CheckpointError: it holds code or objects, is broken, or has too much besides tensors.
    """
    try:
        if zipped := start.startswith(b"PK\x03\x04"):
            replaced = scan_zip(path)
        elif start.startswith(b"\x80"):
            with path.open("rb") as file:  # magic number, version, system, the object, storage keys
                replaced = set[str]().union(*(scan_pickle(file) for _ in range(5)))
        else:
            raise CheckpointError(
                f"not a checkpoint: it starts with {start!r}.\nDownload it again."
            )
        allowed: list[Any] = [argparse.Namespace, *map(placeholder, replaced)]
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except CheckpointError:
        raise
    except Exception as error:  # a hostile file may raise anything
        reason = f"{type(error).__name__}: {shorten(error)}"
        raise CheckpointError(f"broken or cut short ({reason}).\nDownload it again.") from None


def placeholder(call: str) -> tuple[type, str]:
    """What stands for "MODULE NAME" of a pickle, and the name by which torch looks it up."""
    module, name = call.split(" ")
    # Python 2's names are read as torch reads them.
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return PLACEHOLDERS.get(name, PlaceholderObject), f"{module}.{name}"


def scan_zip(path: Path) -> set[str]:
    """As `scan_pickle`, of the pickle in a zip file of `torch.save`."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = [entry.filename.lower() for entry in entries]
        if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
            raise CheckpointError(
                "a TorchScript archive: code, not only weights.\n"
                "Save `module.state_dict()` of it where it comes from."
            )
        pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
        if len(pickles) != 1 or len(set(names)) != len(names):
            raise CheckpointError("a zip file, but no checkpoint.\nSave `model.state_dict()`.")
        # torch.save does not compress: a compressed entry is there to grow.
        if any(entry.compress_type or entry.file_size != entry.compress_size for entry in entries):
            raise CheckpointError("a compressed zip file.\nSave it with `torch.save`.")
        with archive.open(pickles[0]) as file:
            return scan_pickle(file)


def scan_pickle(file: IO[bytes]) -> set[str]:
    """Read one pickle's instructions without following them; the calls to be replaced.

    Raises CheckpointError for an instruction that is not allowed, and for too many.
    """
    replaced, tuples, memo = set[str](), 0, dict[int, str]()
    # The last three values on the stack: a call or text as itself, others as their instruction.
    stack = ["", "", ""]
    for count, (instruction, value, _) in enumerate(pickletools.genops(file)):
        name, text = instruction.name, str(value)
        if name in FORBIDDEN:
            raise refuse_code(f"instruction {name}")
        if name == "GLOBAL":
            if REPLACED.fullmatch(text):
                replaced.add(text)
            elif not ALLOWED.fullmatch(text) and text not in ALLOWED_ARGUMENTS:
                raise refuse_code(text.replace(" ", "."))
        if name.endswith("PUT"):
            memo[int(text)] = stack[-1]
        else:
            pushed = memo.get(int(text), name) if name.endswith("GET") else text
            stack = [*stack[1:], name if value is None else pushed]
            check_argument(stack)
        tuples += name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
        if count > INSTRUCTION_LIMIT or tuples > TUPLE_LIMIT:
            raise CheckpointError("too much besides tensors.\nSave only `model.state_dict()`.")
    return replaced


def check_argument(stack: list[str]) -> None:
    """Raise CheckpointError where the last value is an argument that its call may not have."""
    for back in (1, 2):
        call = stack[-1 - back]
        distance, allowed = ALLOWED_ARGUMENTS.get(call, (0, ""))
        if distance == back and stack[-1] != allowed:
            raise refuse_code(f"{call.replace(' ', '.')} of {stack[-1]}")


def refuse_code(call: str) -> CheckpointError:
    """The refusal of a file with `call` in it."""
    return CheckpointError(
        f"holds code or objects ({shorten(call)}), not only tensors; nothing of it was run.\n"
        "Ask its author for a .safetensors file, or for `torch.save(model.state_dict())`."
    )

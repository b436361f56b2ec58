"""Backbones of Detectron (Caffe2) and Detectron2: pickles of numpy arrays, of which nothing is run.

An own unpickler knows dictionaries, lists, texts, numbers and arrays; arrays are made here, from
their bytes, so that a file cannot ask for more memory than it has.
"""

from __future__ import annotations

import pickle
import pickletools
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from resnets.errors import CheckpointError, quantify
from resnets.escape import shorten
from resnets.models.io.caffe import BGR_NOTE, EPSILON, depth

DETECTRON2_NOTE = (
    "Detectron2's configurations put the stride on the 1x1 or the 3x3 convolution and read BGR or "
    "RGB, which the file does not show: taken for its default, 1x1 and BGR"
)


def read_detectron(path: Path) -> tuple[dict[str, Tensor], str, list[str]]:
    """The backbone in a file of Detectron or Detectron2, its name, and what to know of it.

    The names are those of Caffe2 ("res2_0_branch2a_w", a scale and a shift as normalisation) or of
    Detectron2 ("res2.0.conv1.weight"). Files of the author "torchvision" read RGB and have the
    stride on the 3x3 convolution. Raises CheckpointError: code in it, broken, or no such backbone.
    """
    with path.open("rb") as file:
        check_memo(file)
        file.seek(0)
        content = ArrayUnpickler(file, encoding="latin1").load()
    author = content.get("__author__", "") if isinstance(content, dict) else ""
    author = author if isinstance(author, str) else ""
    for key in ("model", "blobs"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    arrays = content.items() if isinstance(content, dict) else ()
    tensors, left, total = dict[str, Tensor](), list[str](), 0
    for name, value in arrays:
        if not isinstance(name, str):  # the text of nested tuples may be endless
            raise CheckpointError("a name that is no text.\nSave its arrays by name.")
        ours = backbone_name(name)
        if ours and isinstance(value, Array) and value.type in FLOATS:
            total += len(value.data)
            if total > path.stat().st_size:
                raise CheckpointError("one array under several names.\nSave each once.")
            tensors[ours] = value.tensor()
        elif not ours:
            left.append(name)
    needed = {"conv1.weight", "bn1.weight", "layer1.0.conv3.weight"}
    if not needed <= tensors.keys():
        raise CheckpointError("no backbone of Detectron in it.\nSave its tensors instead.")
    add_statistics(tensors)
    notes = [f"{quantify(len(left), 'arrays')} left out: not of the backbone"] if left else []
    if "fc.weight" not in tensors:  # as in the files of detectors
        width = tensors[max(name for name in tensors if name.endswith("conv3.weight"))].shape[0]
        tensors |= {"fc.weight": torch.zeros(1000, width), "fc.bias": torch.zeros(1000)}
        notes.append("has no classifier: all of its 1,000 logits are 0 until one is trained")
    if "torchvision" in author.lower():
        return tensors, f"resnet{depth(tensors)}", notes
    tensors["conv1.weight"] = tensors["conv1.weight"].flip(1)
    return tensors, f"resnet{depth(tensors)}_v1", [*notes, BGR_NOTE, DETECTRON2_NOTE]


def check_memo(file: IO[bytes]) -> None:
    """Raise ValueError where a number of the memo, for which Python makes space, is too large."""
    for count, (instruction, value, _) in enumerate(pickletools.genops(file)):
        if instruction.name.endswith("PUT") and int(str(value)) > count:
            raise ValueError(f"object {value} of {count}")


def backbone_name(name: str) -> str:
    """Our name for an array of a backbone, "" for another."""
    name = name.removeprefix("backbone.bottom_up.").removeprefix("backbone.")
    ends = {"w": "weight", "b": "bias", "s": "weight"}
    if match := re.fullmatch(r"(?:conv1|res_conv1_bn)_([wsb])", name):
        return f"{'conv1' if name == 'conv1_w' else 'bn1'}.{ends[match[1]]}"
    if match := re.fullmatch(r"(?:fc1000|pred|stem\.fc)(?:_|\.)(w|b|weight|bias)", name):
        return f"fc.{ends.get(match[1], match[1])}"
    caffe2 = re.fullmatch(r"res([2-5])_(\d{1,3})_branch(1|2[abc])(_bn)?_([wsb])", name)
    if caffe2:
        stage, unit, branch, norm, end = caffe2.groups()
        number = "abc".find(branch[-1]) + 1  # 0 for the shortcut
        return unit_name(stage, unit, number, bool(norm), ends[end])
    if match := re.fullmatch(r"stem\.conv1\.(norm\.)?(\w+)", name):
        return f"{'bn1' if match[1] else 'conv1'}.{match[2]}"
    detectron2 = re.fullmatch(r"res([2-5])\.(\d{1,3})\.(shortcut|conv[123])\.(norm\.)?(\w+)", name)
    if detectron2:
        stage, unit, layer, norm, end = detectron2.groups()
        number = 0 if layer == "shortcut" else int(layer[-1])
        return unit_name(stage, unit, number, bool(norm), end)
    return ""


def unit_name(stage: str, unit: str, number: int, is_norm: bool, end: str) -> str:
    """Our name for a tensor of a unit; convolution 0 is the shortcut's."""
    layer = f"{'bn' if is_norm else 'conv'}{number}"
    if number == 0:
        layer = f"downsample.{int(is_norm)}"
    return f"layer{int(stage) - 1}.{unit}.{layer}.{end}"


def add_statistics(tensors: dict[str, Tensor]) -> None:
    """Mean 0 and variance 1 for normalisations that are a scale and a shift alone, in place."""
    for name in list(tensors):
        norm = name.removesuffix(".weight")
        if re.search(r"(bn\d|downsample\.1)\.weight$", name):
            weight = tensors[name]
            tensors.setdefault(f"{norm}.running_mean", torch.zeros_like(weight))
            tensors.setdefault(f"{norm}.running_var", torch.full_like(weight, 1 - EPSILON))


FLOATS = {"f2": "<f2", "f4": "<f4", "f8": "<f8"}


class ArrayType:
    """Stands for `numpy.dtype` in a pickle."""

    def __init__(self, text: object = "", *_: object) -> None:
        self.text = text if isinstance(text, str) else ""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] == ">":
            raise ValueError("numbers in big-endian order")


class Array:
    """Stands for `numpy.ndarray`: shape, type and bytes."""

    def __init__(self, *_: object) -> None:
        self.shape: tuple[int, ...] = ()
        self.type, self.data, self.fortran = "f4", b"", False

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, kind, self.fortran, data = state
        self.type = kind.text
        self.data = data.encode("latin1") if isinstance(data, str) else data

    def tensor(self) -> Tensor:
        """float32. Raises CheckpointError where the bytes are not of the shape."""
        try:
            flat = np.frombuffer(self.data, FLOATS[self.type])
            array = flat.reshape(self.shape, order="F" if self.fortran else "C")
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"a broken array ({shorten(error)}).\nGet it again.") from None
        return torch.from_numpy(np.array(array, np.float32, order="C"))


KNOWN: Mapping[str, Callable[..., Any]] = {
    "collections OrderedDict": OrderedDict,
    "_codecs encode": lambda text, _: text.encode("latin1"),
    "numpy dtype": ArrayType,
    "numpy ndarray": Array,
    **{f"numpy.{c}.multiarray _reconstruct": Array for c in ("core", "_core")},
    # Single numbers beside the weights: not made.
    **{f"numpy.{c}.multiarray scalar": lambda *_: None for c in ("core", "_core")},
}


class ArrayUnpickler(pickle.Unpickler):
    """Reads dictionaries of arrays; `find_class` gives nothing but what is in `KNOWN`."""

    def find_class(self, module: str, name: str) -> Any:
        call = f"{module} {name}"
        if call not in KNOWN:
            raise CheckpointError(
                f"holds code or objects ({shorten(call)}), not only arrays; nothing was run.\n"
                "Ask its author for a .safetensors file."
            )
        return KNOWN[call]

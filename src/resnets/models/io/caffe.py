"""Residual networks of Caffe: `.caffemodel` files, read without Caffe; and names and helpers for
networks that descend from them.

A file is a protobuf message of which blobs and layers alone are read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from resnets.errors import CheckpointError
from resnets.escape import shorten

Value = int | memoryview
EPSILON = 1e-5  # of our normalisations
BGR_NOTE = (
    "trained on pixels 0..255 in the order BGR, less their mean: its first convolution takes RGB "
    "here, with the mean 0.485 0.458 0.408 and the deviation 0.00392 (1/255) of pixels in 0..1"
)
# Numbers of fields in caffe.proto.
LAYER, OLD_LAYER = 100, 2  # of a net
NAME, TYPE, BLOB = 1, 2, 7  # of a layer
DATA, SHAPE, OLD_SHAPE = 5, 7, (1, 2, 3, 4)  # of a blob


def read_caffe(path: Path) -> tuple[dict[str, Tensor], str, list[str]]:
    """The tensors of a file of Caffe, the network ("resnet50_caffe"), and what to know of it.

    Raises CheckpointError: broken, or not of a residual network with the authors' names.
    """
    tensors = dict[str, Tensor]()
    for name, kind, blobs in read_layers(memoryview(path.read_bytes())):
        if blobs:
            tensors |= layer_tensors(name, kind, blobs)
    if "conv1.weight" not in tensors:
        raise CheckpointError("no layer conv1: not a residual network.\nSave its tensors instead.")
    move_biases(tensors, EPSILON)
    tensors["conv1.weight"] = tensors["conv1.weight"].flip(1)
    return tensors, f"resnet{depth(tensors)}_caffe", [BGR_NOTE]


def layer_tensors(name: str, kind: str, blobs: list[Tensor]) -> dict[str, Tensor]:
    """The tensors of a layer under our names. Raises CheckpointError for one that is unknown."""
    names = {
        "Convolution": ("weight", "bias"),
        "InnerProduct": ("weight", "bias"),
        "BatchNorm": ("running_mean", "running_var"),
        "Scale": ("weight", "bias"),
    }
    ours = residual_name(name)
    if kind not in names or not ours or len(blobs) > 3:
        raise CheckpointError(
            f"layer {shorten(name, 40)} ({shorten(kind, 20)}) is of no residual network known here."
            "\nSave its tensors under torchvision's names instead."
        )
    if kind == "BatchNorm":  # sums, and the number that they are divided by
        mean, variance, count = blobs
        blobs = [blob / (float(count.flatten()[0]) or 1.0) for blob in (mean, variance)]
    if kind == "InnerProduct":
        blobs = [blobs[0].reshape(blobs[0].shape[-2:]), *blobs[1:]]
    flat = kind in ("BatchNorm", "Scale")
    values = [blob.flatten() if flat or i else blob for i, blob in enumerate(blobs)]
    return {f"{ours}.{part}": value for part, value in zip(names[kind], values, strict=False)}


def residual_name(name: str) -> str:
    """Our name for a layer of He et al.'s networks in Caffe, and of Keras until 2019; "" if none.

    "res2a_branch2b" is layer1.0.conv2 and "bn4b22_branch1" layer3.22.downsample.1.
    """
    ends = {"conv1": "conv1", "bn_conv1": "bn1", "scale_conv1": "bn1", "fc1000": "fc"}
    if name in ends:
        return ends[name]
    match = re.fullmatch(r"(res|bn|scale)([2-5])([a-z])(\d{0,3})_branch(1|2[abc])", name)
    if match is None:
        return ""
    kind, stage, letter, number, branch = match.groups()
    unit = int(number) if number else ord(letter) - ord("a")
    is_conv = kind == "res"
    if branch == "1":
        layer = "downsample.0" if is_conv else "downsample.1"
    else:
        layer = ("conv" if is_conv else "bn") + str("abc".index(branch[1]) + 1)
    return f"layer{int(stage) - 1}.{unit}.{layer}"


def move_biases(tensors: dict[str, Tensor], epsilon: float) -> None:
    """Move the biases of convolutions into the means of the normalisations after them, in place.

    `epsilon` is that of the normalisations in the file; ours is 1e-5, and the variances make up.
    """
    for name in [name for name in tensors if name.endswith(".running_mean")]:
        norm = name.removesuffix(".running_mean")
        conv = norm.replace("downsample.1", "downsample.0")
        conv = re.sub(r"bn(\d)$", r"conv\1", conv)
        if (bias := tensors.pop(f"{conv}.bias", None)) is not None:
            tensors[name] = tensors[name] - bias
        if epsilon != EPSILON:
            variance = tensors[f"{norm}.running_var"]
            tensors[f"{norm}.running_var"] = variance + (epsilon - EPSILON)


def depth(tensors: dict[str, Tensor]) -> int:
    """How deep a network with these bottlenecks is."""
    return 3 * sum(bool(re.fullmatch(r"layer\d\.\d+\.conv1\.weight", n)) for n in tensors) + 2


def read_layers(message: memoryview) -> Iterator[tuple[str, str, list[Tensor]]]:
    """Name, type and blobs of each layer of a NetParameter. Raises ValueError, CheckpointError."""
    for number, value in read_fields(message):
        if number == OLD_LAYER and isinstance(value, memoryview):
            raise CheckpointError("layers as before 2014.\nUse upgrade_net_proto_binary on it.")
        if number != LAYER or not isinstance(value, memoryview):
            continue
        texts, blobs = {NAME: "", TYPE: ""}, []
        for field, inner in read_fields(value):
            if field in texts and isinstance(inner, memoryview):
                texts[field] = bytes(inner).decode()
            elif field == BLOB and isinstance(inner, memoryview):
                blobs.append(read_blob(inner))
        yield texts[NAME], texts[TYPE], blobs


def read_blob(message: memoryview) -> Tensor:
    """The numbers of a BlobProto. Raises ValueError where its shape is of another number."""
    data, shape = np.zeros(0, "<f4"), list[int]()
    old_shape = dict.fromkeys(OLD_SHAPE, 1)
    for number, value in read_fields(message):
        if number == DATA and isinstance(value, memoryview):
            data = np.frombuffer(value, "<f4")
        elif number == SHAPE and isinstance(value, memoryview):
            for _, dims in read_fields(value[:400]):  # more would be no shape
                shape += read_varints(dims) if isinstance(dims, memoryview) else [dims]
        elif number in old_shape and isinstance(value, int):
            old_shape[number] = value
    shape = shape or list(old_shape.values())
    if math.prod(shape) != len(data):
        raise ValueError(f"{len(data):,} numbers for the shape {shape[:5]}")
    return torch.from_numpy(data.reshape(shape).astype(np.float32))


def read_fields(message: memoryview) -> Iterator[tuple[int, Value]]:
    """Number and value of each field of a protobuf message. Raises ValueError, IndexError."""
    at = 0
    while at < len(message):
        key, at = read_varint(message, at)
        kind, value = key & 7, 0
        if kind == 0:
            value, at = read_varint(message, at)
            yield key >> 3, value
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"wire type {kind}")
        length = {1: 8, 5: 4}.get(kind, 0)
        if kind == 2:
            length, at = read_varint(message, at)
        if length > len(message) - at:
            raise ValueError("a field that is longer than the file")
        yield key >> 3, message[at : at + length]
        at += length


def read_varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where it ends. Raises ValueError, IndexError."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number of more than ten bytes")


def read_varints(message: memoryview) -> list[int]:
    """The numbers of a packed field."""
    values, at = [], 0
    while at < len(message):
        value, at = read_varint(message, at)
        values.append(value)
    return values

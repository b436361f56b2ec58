"""Networks of keras-applications: ResNet (v1) and VGG, in `.h5` files, read with h5py."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resnets.errors import CheckpointError, MissingPackage
from resnets.escape import shorten
from resnets.models.io.caffe import BGR_NOTE, depth, move_biases, residual_name

PARTS = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
TOO_LARGE = "{} is compressed, elsewhere or no numbers.\nSave it with `model.save_weights`."
HEADS = ("predictions", "probs", "fc1000")
# The epsilon of Keras' own default, in its ResNet50 of before 2019, and of those after it.
OLD_EPSILON, EPSILON = 1e-3, 1.001e-5


def read_keras(path: Path) -> tuple[dict[str, Tensor], str, list[str]]:
    """The tensors of a file of keras-applications, the network, and what to know of it.

    Raises MissingPackage, and CheckpointError: broken, or of no ResNet (v1) or VGG.
    """
    try:
        import h5py
    except ImportError:
        raise MissingPackage(
            'weights of Keras (.h5) need h5py: pip install "resnets[keras]"'
        ) from None
    layers, sizes = dict[str, dict[str, Tensor]](), list[int]()

    def keep(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            layer, _, part = name.removeprefix("model_weights/").rpartition("/")
            sizes.append(item.nbytes)
            if sum(sizes) > path.stat().st_size:
                raise CheckpointError(TOO_LARGE.format(shorten(name, 60)))
            array = read_array(item)
            layers.setdefault(layer.partition("/")[0], {})[part.partition(":")[0]] = array

    with h5py.File(path, "r") as file:
        file.visititems(keep)  # hard links alone: nothing outside of the file is opened
    layers.pop("optimizer_weights", None)
    if "block1_conv1" in layers:
        return vgg_tensors(layers)
    tensors = {
        f"{residual_layer(layer)}.{PARTS[part]}": value
        for layer, parts in layers.items()
        for part, value in parts.items()
        if part in PARTS
    }
    if "conv1.weight" not in tensors:
        raise CheckpointError("no layer conv1 of keras-applications.\nSave its tensors instead.")
    move_biases(tensors, EPSILON if "conv1_conv" in layers else OLD_EPSILON)
    tensors["conv1.weight"] = tensors["conv1.weight"].flip(1)
    return tensors, f"resnet{depth(tensors)}_v1", [BGR_NOTE]


def read_array(dataset: Any) -> Tensor:
    """An array as a tensor in PyTorch's order. Raises CheckpointError for what is elsewhere."""
    whole = dataset.chunks is None and not dataset.external and not dataset.is_virtual
    if not whole or dataset.dtype.kind not in "fiu":
        raise CheckpointError(TOO_LARGE.format(shorten(dataset.name, 60)))
    array = torch.from_numpy(np.asarray(dataset[()], np.float32))
    if array.ndim == 4:
        return array.permute(3, 2, 0, 1)
    return array.T if array.ndim == 2 else array


def residual_layer(name: str) -> str:
    """Our name for a layer of a ResNet. Raises CheckpointError for one that is unknown."""
    if name in HEADS:
        return "fc"
    if match := re.fullmatch(r"conv1_(conv|bn)", name):
        return {"conv": "conv1", "bn": "bn1"}[match[1]]
    if match := re.fullmatch(r"conv([2-5])_block(\d+)_([0-3])_(conv|bn)", name):
        stage, unit, number, kind = match.groups()
        layer = f"{kind}{number}"
        if number == "0":
            layer = "downsample.0" if kind == "conv" else "downsample.1"
        return f"layer{int(stage) - 1}.{int(unit) - 1}.{layer}"
    if ours := residual_name(name):
        return ours
    raise CheckpointError(
        f"layer {shorten(name, 40)} is of no network of Keras known here: ResNet (v1), VGG.\n"
        "Save its tensors under torchvision's names instead."
    )


def vgg_tensors(
    layers: dict[str, dict[str, Tensor]],
) -> tuple[dict[str, Tensor], str, list[str]]:
    """As `read_keras`, of a VGG. Raises CheckpointError for a layer that is unknown."""
    tensors, number, before = dict[str, Tensor](), 0, "1"
    numbers = {"fc1": "classifier.0", "fc2": "classifier.3", "predictions": "classifier.6"}
    for layer in sorted(name for name in layers if re.fullmatch(r"block[1-5]_conv[1-9]", name)):
        number += layer[5] != before  # a pool
        numbers[layer], before = f"features.{number}", layer[5]
        number += 2
    for layer, parts in layers.items():
        if layer not in numbers or not parts.keys() <= {"kernel", "bias"}:
            raise CheckpointError(f"layer {shorten(layer, 40)} is of no VGG.\nRemove it.")
        for part, value in parts.items():
            tensors[f"{numbers[layer]}.{PARTS[part]}"] = value
    convs = [name for name in tensors if name.startswith("features.")]
    if {"fc1", "fc2", "predictions"} - layers.keys():
        raise CheckpointError("a VGG without its classifier.\nSave it with `include_top=True`.")
    linear = tensors["classifier.0.weight"]  # Keras flattens maps (h, w, c)
    channels = layers[max(name for name in layers if "_conv" in name)]["bias"].numel()
    side = round((linear.shape[1] / channels) ** 0.5)
    maps = linear.reshape(len(linear), side, side, channels)
    tensors["classifier.0.weight"] = maps.permute(0, 3, 1, 2).flatten(1)
    tensors["features.0.weight"] = tensors["features.0.weight"].flip(1)
    return tensors, f"vgg{len(convs) // 2 + 3}", [BGR_NOTE]

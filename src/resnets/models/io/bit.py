"""The `.npz` files of Big Transfer (BiT), Kolesnikov et al. 2019, as tensors under our names."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from resnets.errors import CheckpointError
from resnets.escape import shorten

# google-research/big_transfer's names, and ours; convolutions are stored as (H, W, in, out).
BIT_NAMES = (
    (r"root_block/standardized_conv2d/kernel", "conv1.weight"),
    (r"(block\d+/unit\d+)/a/proj/standardized_conv2d/kernel", r"\1.downsample.0.weight"),
    (r"(block\d+/unit\d+)/([abc])/standardized_conv2d/kernel", r"\1.conv\2.weight"),
    (r"(block\d+/unit\d+)/([abc])/group_norm/(gamma|beta)", r"\1.norm\2.\3"),
    (r"group_norm/(gamma|beta)", r"final.bn.\1"),
    (r"head/conv2d/kernel", "fc.weight"),
    (r"head/conv2d/bias", "fc.bias"),
)
BIT_PARTS = {
    **{f"conv{letter}": f"conv{i}" for i, letter in enumerate("abc", 1)},
    "norma": "pre.bn",
    "normb": "bn1",
    "normc": "bn2",
    "gamma": "weight",
    "beta": "bias",
}


def read_bit(path: Path) -> tuple[dict[str, Tensor], str, list[str]]:
    """The tensors of a file of Big Transfer (numpy arrays), and the network, "resnetv2_50x1_bit".

    Raises CheckpointError: not such a file, compressed, broken, or with objects in it.
    """
    tensors = {}
    for name, weight in read_npz(path).items():
        if weight.ndim == 4:
            weight = weight.permute(3, 2, 0, 1)
        new = bit_name(name)
        tensors[new] = weight.flatten(1) if new == "fc.weight" else weight
    blocks = {name.rpartition(".conv1.")[0] for name in tensors if ".conv1." in name}
    if not blocks or "conv1.weight" not in tensors:
        raise CheckpointError("not the arrays of Big Transfer (BiT).\nSave tensors instead.")
    factor = len(tensors["conv1.weight"]) // 64
    return tensors, f"resnetv2_{3 * len(blocks) + 2}x{factor}_bit", []


def read_npz(path: Path) -> dict[str, Tensor]:
    """The arrays of a file of `numpy.savez`. Raises CheckpointError; nothing in it is run."""
    with zipfile.ZipFile(path) as archive:
        # Compressed entries are there to grow; BiT's are not compressed.
        entries = archive.infolist()
        whole = all(entry.file_size == entry.compress_size for entry in entries)
        if not whole or sum(e.file_size for e in entries) > path.stat().st_size:
            raise CheckpointError("a compressed .npz file.\nSave it with `numpy.savez`.")
    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def bit_name(name: str) -> str:
    """Our name for an array of Big Transfer. Raises CheckpointError for one that is unknown."""
    for theirs, ours in BIT_NAMES:
        if match := re.fullmatch(f"(?:resnet/)?{theirs}", name):
            return rename_units(match.expand(ours), BIT_PARTS)
    raise CheckpointError(f"{shorten(name, 60)} is no array of Big Transfer (BiT).\nRemove it.")


def rename_units(name: str, parts: Mapping[str, str]) -> str:
    """ "block2/unit01.conva.gamma" as "layer2.0.conv1.weight"."""
    if match := re.match(r"block(\d+)/unit(\d+)\.", name):
        name = f"layer{match[1]}.{int(match[2]) - 1}.{name[match.end() :]}"
    return ".".join(parts.get(part, part) for part in name.split("."))

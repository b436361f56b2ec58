"""Files of other frameworks, made here: our networks compute what theirs do."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.layers import StdConv2d
from timm.models.resnetv2 import ResNetV2
from torch import nn

from resnets.config.families import ARCHS
from resnets.errors import Assumption, CheckpointError
from resnets.models.io.model_file import open_model
from resnets.models.io.pretrained import read_file


def randomised(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if tensor.ndim > 1:
            tensor.normal_(0, tensor[0].numel() ** -0.5, generator=generator)
        elif tensor.is_floating_point():
            low = 0.5 if name.endswith(("weight", "var")) else -0.2
            tensor.uniform_(low, low + 0.5, generator=generator)
    return network.eval()


def bit_arrays(network: ResNetV2) -> dict[str, np.ndarray]:
    """The tensors as google-research/big_transfer names and stores them."""
    kernel = lambda conv: conv.weight.detach().permute(2, 3, 1, 0).numpy()  # noqa: E731
    arrays = {
        "resnet/root_block/standardized_conv2d/kernel": kernel(network.stem.conv),
        "resnet/head/conv2d/kernel": kernel(network.head.fc),
        "resnet/head/conv2d/bias": network.head.fc.bias.detach().numpy(),
    }
    norms = {"resnet/": network.norm}
    for i, stage in enumerate(network.stages, 1):
        for j, unit in enumerate(stage.blocks, 1):
            prefix = f"resnet/block{i}/unit{j:02d}/"
            for number, letter in enumerate("abc", 1):
                conv = getattr(unit, f"conv{number}")
                arrays[f"{prefix}{letter}/standardized_conv2d/kernel"] = kernel(conv)
                norms[f"{prefix}{letter}/"] = getattr(unit, f"norm{number}")
            if unit.downsample is not None:
                name = f"{prefix}a/proj/standardized_conv2d/kernel"
                arrays[name] = kernel(unit.downsample.conv)
    for prefix, norm in norms.items():
        arrays[f"{prefix}group_norm/gamma"] = norm.weight.detach().numpy()
        arrays[f"{prefix}group_norm/beta"] = norm.bias.detach().numpy()
    return arrays


def small_bit() -> ResNetV2:
    return randomised(
        ResNetV2(
            layers=[1, 2, 1, 1],
            channels=(128, 128, 256, 256),
            num_classes=5,
            stem_type="fixed",
            conv_layer=partial(StdConv2d, eps=1e-8),
        )
    )


def test_big_transfer(tmp_path: Path) -> None:
    theirs = small_bit()
    np.savez(tmp_path / "BiT.npz", **bit_arrays(theirs))
    with pytest.warns(Assumption, match="weight_standardised True"):  # 17 layers are of no row
        ours, _ = open_model(tmp_path / "BiT.npz")
    known = ARCHS["resnetv2_50x1_bit"]
    fields = {"blocks": (1, 2, 1, 1), "widths": (128, 128, 256, 256), "classes": 5}
    assert ours.arch == replace(known, **fields)
    assert read_file(tmp_path / "BiT.npz").model == "resnetv2_17x1_bit"
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)
        theirs.load_pretrained(str(tmp_path / "BiT.npz"))  # timm reads the same from it
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("damage", ["cut", "compressed", "objects", "texts", "foreign", "other"])
def test_arrays_that_are_refused(damage: str, tmp_path: Path) -> None:
    path, arrays = tmp_path / "BiT.npz", bit_arrays(small_bit())
    name = "resnet/head/conv2d/bias"
    match damage:
        case "objects":
            arrays[name] = np.array([print, 1], dtype=object)
        case "texts":
            arrays[name] = np.array(["a", "b"])
        case "foreign":
            arrays["resnet/head/extra"] = arrays[name]
        case "other":
            arrays = {name: arrays[name]}
    (np.savez_compressed if damage == "compressed" else np.savez)(path, **arrays)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-500])
    messages = {"compressed": "compressed", "foreign": "extra", "other": "not the arrays"}
    with pytest.raises(CheckpointError, match=messages.get(damage, "broken or cut short")):
        read_file(path)

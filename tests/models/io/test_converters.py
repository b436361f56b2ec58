"""Files of other frameworks, made here: our networks compute what theirs do."""

import pickle
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.layers import StdConv2d
from timm.models.resnetv2 import ResNetV2
from torch import Tensor, nn

from resnets.config.arch import ResNetArch, VggArch
from resnets.config.families import ARCHS
from resnets.errors import Assumption, CheckpointError, MissingPackage
from resnets.models import build
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


# --- He et al.'s networks in Caffe, keras-applications and Detectron ------------------------------

THIN = replace(
    ARCHS["resnet50_v1"], blocks=(1, 2, 1, 1), widths=(16, 32, 64, 64), stem_width=8, classes=5
)


class Theirs(nn.Module):
    """A network that reads BGR, with a bias in each convolution, of another epsilon."""

    def __init__(self, arch: ResNetArch, epsilon: float = 1e-5, bias: bool = True) -> None:
        super().__init__()
        self.network = build(arch)
        for module in list(self.network.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Conv2d):
                    sizes = (child.in_channels, child.out_channels, child.kernel_size)
                    conv = nn.Conv2d(*sizes, child.stride, child.padding, bias=bias)
                    setattr(module, name, conv)
                elif isinstance(child, nn.BatchNorm2d):
                    child.eps = epsilon
        randomised(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.flip(1))

    def layers(self) -> dict[str, nn.Module]:
        kinds = nn.Conv2d | nn.BatchNorm2d | nn.Linear
        return {n: m for n, m in self.network.named_modules() if isinstance(m, kinds)}


def caffe_name(name: str) -> str:
    """The name of a layer in He et al.'s files: of units after the first "b1", as in ResNet-101."""
    if "." not in name:
        return {"bn1": "bn_conv1", "fc": "fc1000"}.get(name, name)
    stage, unit, layer = name.removeprefix("layer").split(".", 2)
    kind = "res" if layer.startswith("conv") or layer == "downsample.0" else "bn"
    branch = "1" if layer.startswith("down") else f"2{'abc'[int(layer[-1]) - 1]}"
    return f"{kind}{int(stage) + 1}{'a' if unit == '0' else f'b{unit}'}_branch{branch}"


def varint(value: int) -> bytes:
    data = b""
    while value > 127:
        data, value = data + bytes([value & 127 | 128]), value >> 7
    return data + bytes([value])


def field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def blob(tensor: Tensor) -> bytes:
    shape = field(1, b"".join(map(varint, tensor.shape)))
    return field(7, shape) + field(5, tensor.detach().numpy().astype("<f4").tobytes())


def caffe_layer(name: str, kind: str, *blobs: Tensor) -> bytes:
    texts = field(1, name.encode()) + field(2, kind.encode())
    return field(100, texts + b"".join(field(7, blob(x)) for x in blobs))


def caffe_file(theirs: Theirs) -> bytes:
    data = field(1, b"ResNet-50") + caffe_layer("data", "Input")
    for name, layer in theirs.layers().items():
        match layer:
            case nn.BatchNorm2d():
                factor = torch.tensor([4.0])  # Caffe keeps sums
                sums = (4 * layer.running_mean, 4 * layer.running_var, factor)
                data += caffe_layer(caffe_name(name), "BatchNorm", *sums)
                scale = "scale" + caffe_name(name).removeprefix("bn")
                data += caffe_layer(scale, "Scale", layer.weight, layer.bias)
            case nn.Conv2d() | nn.Linear():
                kind = "Convolution" if isinstance(layer, nn.Conv2d) else "InnerProduct"
                data += caffe_layer(caffe_name(name), kind, layer.weight, layer.bias)
    return data


def test_caffe(tmp_path: Path) -> None:
    arch = replace(THIN, stem_pool="ceil")
    theirs = Theirs(arch)
    path = tmp_path / "ResNet-17-model.caffemodel"
    path.write_bytes(caffe_file(theirs))
    same(path, theirs, arch, "BGR")


def same(path: Path, theirs: nn.Module, arch: object, note: str) -> None:
    with pytest.warns(Assumption, match=note):
        ours, _ = open_model(path)
    assert ours.arch == arch
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "damage", ["cut", "shape", "layer", "norm", "bias", "flat", "old", "endless", "random"]
)
def test_caffe_files_that_are_refused(damage: str, tmp_path: Path) -> None:
    data = caffe_file(Theirs(replace(THIN, stem_pool="ceil")))
    match damage:
        case "cut":
            data = data[:-100]
        case "shape":
            shape = field(7, field(1, varint(2**40)))
            data += field(100, field(1, b"conv1") + field(2, b"Convolution") + field(7, shape))
        case "layer":
            data += caffe_layer("conv9", "Convolution", torch.ones(1, 1, 1, 1))
        case "norm":
            data += caffe_layer("bn_conv1", "BatchNorm", torch.ones(8), torch.ones(8))
        case "bias":
            data += caffe_layer("conv1", "Convolution", torch.ones(8, 3, 7, 7), torch.ones(9))
        case "flat":
            data += caffe_layer("conv1", "Convolution", torch.ones(8))
        case "old":
            data += field(2, b"")
        case "endless":
            data = b"\xff" * 50
        case "random":
            data = np.random.default_rng(0).bytes(2000)
    path = tmp_path / "w.caffemodel"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"broken|layer conv9|before 2014"):
        read_file(path)


def keras_name(name: str, old: bool) -> str:
    if old:
        return caffe_name(name)
    if name in ("conv1", "bn1", "fc"):
        return {"conv1": "conv1_conv", "bn1": "conv1_bn", "fc": "predictions"}[name]
    stage, unit, layer = name.removeprefix("layer").split(".", 2)
    number = "0" if layer.startswith("down") else layer[-1]
    kind = "conv" if layer.startswith("conv") or layer == "downsample.0" else "bn"
    return f"conv{int(stage) + 1}_block{int(unit) + 1}_{number}_{kind}"


def keras_arrays(layer: nn.Module) -> dict[str, Tensor]:
    match layer:
        case nn.BatchNorm2d():
            names = {"weight": "gamma", "running_mean": "moving_mean", "bias": "beta"}
            names["running_var"] = "moving_variance"
            return {name: getattr(layer, ours) for ours, name in names.items()}
        case nn.Conv2d():
            return {"kernel": layer.weight.permute(2, 3, 1, 0), "bias": layer.bias}
        case _:
            return {"kernel": layer.weight.T, "bias": layer.bias}


def write_keras(path: Path, layers: dict[str, nn.Module]) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for name, layer in layers.items():
            for part, tensor in keras_arrays(layer).items():
                file[f"{name}/{name}/{part}:0"] = tensor.detach().numpy()


@pytest.mark.parametrize(("old", "epsilon"), [(False, 1.001e-5), (True, 1e-3)])
def test_keras(old: bool, epsilon: float, tmp_path: Path) -> None:
    theirs = Theirs(THIN, epsilon)
    layers = {keras_name(name, old): layer for name, layer in theirs.layers().items()}
    write_keras(tmp_path / "w.h5", layers)
    same(tmp_path / "w.h5", theirs, THIN, "BGR")


class KerasVgg(nn.Module):
    """Reads BGR, and flattens maps with their channels last."""

    def __init__(self, arch: VggArch) -> None:
        super().__init__()
        self.network = randomised(build(arch))

    def forward(self, x: Tensor) -> Tensor:
        maps = self.network.features(x.flip(1))
        x = self.network.pool(maps["stage5"]).permute(0, 2, 3, 1).flatten(1)
        return self.network.classifier(x)


def test_vgg_of_keras(tmp_path: Path) -> None:
    arch = VggArch(widths=((4,), (6, 6), (8,), (8,), (8, 8)), hidden=16, classes=5)
    theirs = KerasVgg(arch)
    layers: dict[str, nn.Module] = {}
    blocks = iter(f"block{s}_conv{i + 1}" for s, n in enumerate(arch.blocks, 1) for i in range(n))
    for layer in theirs.network.features:
        if isinstance(layer, nn.Conv2d):
            layers[next(blocks)] = layer
    heads = [m for m in theirs.network.classifier if isinstance(m, nn.Linear)]
    layers |= dict(zip(("fc1", "fc2", "predictions"), heads, strict=True))
    write_keras(tmp_path / "w.h5", layers)
    with pytest.warns(Assumption, match="BGR"):
        ours, _ = open_model(tmp_path / "w.h5")
    assert ours.arch == arch
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)


def test_files_of_keras_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "w.h5"
    with h5py.File(path, "w") as file:
        file["conv2_block1_preact_bn/x/gamma:0"] = np.ones(4)
    with pytest.raises(CheckpointError, match=r"ResNet \(v1\), VGG"):
        read_file(path)
    with h5py.File(path, "w") as file:
        file.create_dataset("conv1_conv/kernel:0", (9000, 9000), "f4", compression="gzip")
    with pytest.raises(CheckpointError, match="compressed"):
        read_file(path)
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(CheckpointError, match="broken"):
        read_file(path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingPackage, match=r'pip install "resnets\[keras\]"'):
        read_file(path)


def detectron2_name(name: str) -> str:
    """The name of a layer in Detectron2's files."""
    if "." not in name:
        return {"conv1": "stem.conv1", "bn1": "stem.conv1.norm", "fc": "stem.fc"}[name]
    stage, unit, layer = name.removeprefix("layer").split(".", 2)
    number = "shortcut" if layer.startswith("down") else f"conv{layer[-1]}"
    norm = ".norm" if layer.startswith("bn") or layer == "downsample.1" else ""
    return f"backbone.bottom_up.res{int(stage) + 1}.{unit}.{number}{norm}"


@pytest.mark.parametrize("author", ["torchvision", "Detectron2 Model Zoo"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_detectron2(author: str, protocol: int, tmp_path: Path) -> None:
    rgb = author == "torchvision"
    arch = replace(THIN, stride_on="3x3") if rgb else THIN
    theirs = Theirs(arch, bias=False)
    arrays = {
        f"{detectron2_name(layer)}.{part}": tensor.numpy()
        for layer, module in theirs.layers().items()
        for part, tensor in module.state_dict().items()
    }
    arrays["proposal_generator.rpn_head.conv.weight"] = np.ones((2, 2), np.float32)
    data = {"model": arrays, "__author__": author, "matching_heuristics": True}
    path = tmp_path / "R-17.pkl"
    path.write_bytes(pickle.dumps(data, protocol))
    same(
        path, theirs.network if rgb else theirs, arch, "1 array left out" if rgb else "1x1 and BGR"
    )


def test_a_backbone_of_detectron_has_no_classifier(tmp_path: Path) -> None:
    theirs = Theirs(THIN, bias=False)
    arrays = {
        f"{detectron2_name(layer)}.{part}": tensor.numpy()
        for layer, module in theirs.layers().items()
        for part, tensor in module.state_dict().items()
        if layer != "fc"
    }
    (tmp_path / "R-17.pkl").write_bytes(pickle.dumps({"model": arrays}))
    with pytest.warns(Assumption, match="no classifier"):
        ours, _ = open_model(tmp_path / "R-17.pkl")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        level = theirs.network.features(images.flip(1))["layer4"]
        torch.testing.assert_close(ours.features(images)["layer4"], level, rtol=1e-4, atol=1e-5)
        assert not ours(images).any()


def test_detectron_of_caffe2(tmp_path: Path) -> None:
    """A normalisation is a scale and a shift."""
    theirs = Theirs(THIN, bias=False)
    blobs = {"fc1000_w": theirs.network.fc.weight, "fc1000_b": theirs.network.fc.bias}
    for name, layer in theirs.layers().items():
        stage, _, rest = caffe_name(name).partition("_")
        unit = name.split(".")[1] if "." in name else ""
        caffe2 = f"{stage[:-1] if unit == '0' else stage[:-2]}_{unit}_{rest}".replace("bn", "res")
        if isinstance(layer, nn.Conv2d):
            blobs["conv1_w" if name == "conv1" else f"{caffe2}_w"] = layer.weight
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.zeros_(layer.running_mean)
            nn.init.constant_(layer.running_var, 1 - 1e-5)
            prefix = "res_conv1_bn" if name == "bn1" else f"{caffe2}_bn"
            blobs |= {f"{prefix}_s": layer.weight, f"{prefix}_b": layer.bias}
    arrays = {name: tensor.detach().numpy() for name, tensor in blobs.items()}
    (tmp_path / "R-17.pkl").write_bytes(pickle.dumps({"blobs": arrays}, 2))
    same(tmp_path / "R-17.pkl", theirs, THIN, "BGR")


class Evil:
    def __reduce__(self) -> object:
        return print, ("run",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"stem.conv1.weight": Evil()}}, r"builtins print\), not only arrays"),
        ({"model": {"a": np.ones(3, np.float32)}}, "no backbone of Detectron"),
        ([1, 2], "no backbone of Detectron"),
        ({"model": {"stem.conv1.weight": np.array([1, "x"], object)}}, "no backbone of Detectron"),
    ],
)
def test_pickles_that_are_refused(
    content: object, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "w.pkl"
    for protocol in (3, 4):
        path.write_bytes(pickle.dumps(content, protocol))
        with pytest.raises(CheckpointError, match=message):
            read_file(path)
    assert capsys.readouterr().out == ""


def test_small_pickles_that_would_take_all_memory_or_time(tmp_path: Path) -> None:
    path, doubled = tmp_path / "w.pkl", []
    path.write_bytes(b"\x80\x02}r\xff\xff\xff\x0f.")  # the memo would have 2**28 entries
    with pytest.raises(CheckpointError, match="broken"):
        read_file(path)
    for _ in range(60):
        doubled = [doubled, doubled]
    path.write_bytes(pickle.dumps({"__author__": doubled, "model": {}}, 2))
    with pytest.raises(CheckpointError, match="no backbone"):
        read_file(path)
    path.write_bytes(pickle.dumps({"model": {(1, 2): 3}}, 2))
    with pytest.raises(CheckpointError, match="no text"):
        read_file(path)


def test_an_array_of_another_shape_than_its_name_promises(tmp_path: Path) -> None:
    name = "resnet/root_block/standardized_conv2d/kernel"
    unit = "resnet/block1/unit01/a/standardized_conv2d/kernel"
    for arrays in ({name: np.ones(()), unit: np.ones(2)}, {f"block{'1' * 5000}/unit1/a/x": name}):
        np.savez(tmp_path / "w.npz", **{k[:200]: np.asarray(v) for k, v in arrays.items()})
        with pytest.raises(CheckpointError):
            read_file(tmp_path / "w.npz")

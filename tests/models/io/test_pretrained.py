"""Networks of others, and their files: our networks compute what theirs do."""

import argparse
import json
import re
import warnings
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import resnets
from resnets.config.arch import MlpArch, ResNetArch, VitArch
from resnets.config.families import ARCHS, cifar, densenet_bc, dilated, label, plain, pre
from resnets.errors import Assumption, CheckpointError, UsageError
from resnets.models import build
from resnets.models.io.infer_arch import infer_arch, meta_model
from resnets.models.io.model_file import open_model
from resnets.models.io.pretrained import read
from resnets.models.io.tensor_names import to_torchvision


def randomised(network: nn.Module) -> nn.Module:
    """Every tensor random, so that no two channels are alike."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if name.endswith(("running_var", "bn1.weight", "norm1.weight")):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.is_floating_point() and tensor.ndim == 1:
            tensor.normal_(0, 0.1, generator=generator)
    return network.eval()


def close(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= 1e-5 * max(1.0, float(theirs.abs().max())))


def agree(network: nn.Module, path: Path, side: int, known: str = "") -> None:
    """Save, open, recognise: the same outputs."""
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(network.state_dict(), path)
    else:
        torch.save(network.state_dict(), path)
    opened, card = open_model(path)
    assert card is None
    if known:
        assert opened.arch == ARCHS[known]
    x = torch.randn(2, 3, side, side)
    with torch.no_grad():
        assert close(opened(x), network(x))


def once(name: str) -> object:
    return pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "name",
    [
        *("resnet18", "resnext50_32x4d", "densenet121"),
        *map(once, ("resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2")),
        *map(once, ("wide_resnet101_2", "resnext101_32x8d", "resnext101_64x4d")),
        *map(once, ("densenet161", "densenet169", "densenet201")),
    ],
)
def test_torchvision(name: str, tmp_path: Path) -> None:
    network = randomised(getattr(torchvision.models, name)(weights=None))
    agree(network, tmp_path / "weights.pth", 64, name)


@pytest.mark.parametrize(
    "name",
    [
        *("resnet18d", "seresnet50"),
        *map(once, ("resnet18", "resnet50", "resnet50c", "resnet50d", "resnet101d", "seresnet101")),
        *map(once, ("resnext50_32x4d", "resnet200")),
    ],
)
def test_timm(name: str, tmp_path: Path) -> None:
    network = randomised(timm.create_model(name, pretrained=False))
    agree(network, tmp_path / "weights.safetensors", 64, name)


def test_auxiliary_classifiers_are_left_out(tmp_path: Path) -> None:
    torch.save(torchvision.models.googlenet(init_weights=False).state_dict(), tmp_path / "w.pth")
    with pytest.warns(Assumption, match=r"tensors \(aux1.conv.conv.weight, ...\) left out"):
        opened, _ = open_model(tmp_path / "w.pth")
    assert opened.arch == ARCHS["googlenet"]


@pytest.mark.slow
def test_vit_b_16(tmp_path: Path) -> None:
    network = torchvision.models.vit_b_16(weights=None).eval()
    nn.init.normal_(network.heads.head.weight)
    agree(network, tmp_path / "weights.pth", 224, "vit_b_16")


def test_a_small_vit(tmp_path: Path) -> None:
    network = torchvision.models.VisionTransformer(32, 8, 2, 2, 128, 256, num_classes=5).eval()
    nn.init.normal_(network.heads.head.weight)
    agree(network, tmp_path / "weights.pth", 32)
    arch, ours = infer_arch(network.state_dict())
    assert to_torchvision(ours, arch).keys() == network.state_dict().keys()


def test_to_torchvision_is_the_identity_for_resnets() -> None:
    state = torchvision.models.resnet18().state_dict()
    arch, ours = infer_arch(state)
    assert to_torchvision(ours, arch).keys() == state.keys()


# --- akamaster/pytorch_resnet_cifar10 -------------------------------------------------------------


class AkamasterBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.stride, self.pad = stride, (c_out - c_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        skip = x[:, :, :: self.stride, :: self.stride]
        return F.relu(y + F.pad(skip, (0, 0, 0, 0, self.pad, self.pad)))


class Akamaster(nn.Module):
    """Option A with the zeros half before and half after the channels of x."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        for stage, (c_in, c_out) in enumerate([(16, 16), (16, 32), (32, 64)], 1):
            first = AkamasterBlock(c_in, c_out, 1 if stage == 1 else 2)
            rest = [AkamasterBlock(c_out, c_out, 1) for _ in range(n - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(first, *rest))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


@pytest.mark.parametrize("n", [1, 3, 4])
def test_akamaster_channels_are_moved(n: int) -> None:
    theirs = randomised(Akamaster(n))
    arch, tensors = infer_arch(theirs.state_dict())
    assert arch == cifar(n)
    ours = build(arch).eval()
    ours.load_state_dict(tensors)
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert close(ours(x), theirs(x))
        # Without the move they differ, so the comparison can fail.
        state = {k.replace("linear", "fc"): v for k, v in theirs.state_dict().items()}
        ours.load_state_dict(state)
        assert not close(ours(x), theirs(x))


def test_akamaster_as_a_plain_network_is_not_moved() -> None:
    state = Akamaster(3).state_dict()
    arch, tensors = infer_arch(state, plain(cifar(3)))
    assert arch == ARCHS["plain20"]
    assert torch.equal(tensors["layer3.0.conv2.weight"], state["layer3.0.conv2.weight"])


@pytest.mark.parametrize(
    ("file", "name"),
    [("resnet20-12fca82f.th", "resnet20"), ("resnet32-d509ac18.th", "resnet32")],
)
def test_akamaster_files(file: str, name: str, shared: Path) -> None:
    path = shared / "checkpoints" / file
    network, card = open_model(path)
    assert card is None
    assert network.arch == ARCHS[name]
    theirs = Akamaster(len(network.layer1)).eval()
    theirs.load_state_dict(read(path), strict=False)  # saved before num_batches_tracked
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert close(network(x), theirs(x))


def test_projections_called_shortcut_and_linear() -> None:
    arch = replace(cifar(2), shortcut="B")
    state = {
        k.replace("downsample", "shortcut").replace("fc.", "linear."): v
        for k, v in build(arch).state_dict().items()
    }
    found, tensors = infer_arch(state)
    assert found == arch
    assert torch.equal(tensors["layer2.0.downsample.0.weight"], state["layer2.0.shortcut.0.weight"])


# --- Ours -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arch",
    [
        *(ARCHS[n] for n in ("resnet18", "resnet18_option_a", "resnet18_option_c", "preresnet18")),
        *(ARCHS[n] for n in ("resnet18_1d", "resnet18_3d", "resnet50d", "seresnet20", "resnet164")),
        *(ARCHS[n] for n in ("wrn_16_8", "resnext29_8x64d", "densenet_bc100_12", "mlp_resnet")),
        *(ARCHS[n] for n in ("resnet110_exclusive_gate_0", "resnet110_bn_after_add", "vit_s_16")),
        *(replace(a, classes=7, channels=2) for a in (ARCHS["resnet18"], MlpArch(), cifar(3))),
        *(
            replace(cifar(4), stem_width=8, widths=(8, 24, 40), norm="group"),
            pre(cifar(4)),
            densenet_bc(28, 6),
        ),
        replace(MlpArch(), blocks=2, width=24),
        VitArch(blocks=2, width=128, heads=2, hidden=64, patch=4, size=32, classes=3),
    ],
    ids=lambda arch: type(arch).__name__ + str(arch.depth),
)
def test_ours_are_recognised(arch: object) -> None:
    state = meta_model(arch).state_dict()  # type: ignore[arg-type]
    found, tensors = infer_arch(state)
    assert found == arch
    assert list(tensors) == list(state)


def test_what_shapes_do_not_show_is_said_with_arch() -> None:
    state = meta_model(ARCHS["resnet50"]).state_dict()
    assert infer_arch(state)[0] == ARCHS["resnet50"]
    assert infer_arch(state, ARCHS["resnet50_v1"])[0] == ARCHS["resnet50_v1"]


def test_half_precision_and_missing_counters() -> None:
    network = build(cifar(1))
    state = {k: v.half() for k, v in network.state_dict().items() if "num_batches" not in k}
    arch, tensors = infer_arch(state)
    assert arch == ARCHS["resnet8"]
    assert tensors["conv1.weight"].dtype == torch.float32
    network.load_state_dict(tensors)


def test_densenet_names_of_2017() -> None:
    state = torchvision.models.densenet121().state_dict()
    old = OrderedDict()
    for name, tensor in state.items():
        for part in ("norm1", "norm2", "conv1", "conv2"):
            if "denselayer" in name:
                name = name.replace(f".{part}.", f".{part[:-1]}.{part[-1]}.")
        old[name] = tensor
    assert old.keys() != state.keys()
    arch, tensors = infer_arch(old)
    assert arch == ARCHS["densenet121"]
    assert tensors.keys() == state.keys()


# --- What is not recognised -----------------------------------------------------------------------


def test_the_message_says_what_was_seen() -> None:
    state = build(cifar(1)).state_dict()
    state["layer2.0.conv1.weight"] = torch.zeros(32, 16, 5, 5)
    with pytest.raises(CheckpointError, match=r"layers, stages 1-1-1, from conv1\.weight"):
        infer_arch(state)


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"a": torch.zeros(3)},
        {"fc.weight": torch.zeros(10, 64)},
        {"layer1.0.conv1.weight": torch.zeros(0, 0, 0, 0)},
        {"layer1.9999999999999.conv1.weight": torch.zeros(1, 1, 3, 3)},
        {f"layer{'9' * 5000}.0.conv1.weight": torch.zeros(1, 1, 3, 3)},
        {"features.conv0.weight": torch.zeros(3)},
        {"class_token": torch.zeros(1)},
        {"encoder.pos_embedding": torch.zeros(1), "x": torch.zeros(1)},
        {"first.weight": torch.zeros(1)},
    ],
)
def test_strange_tensors_are_refused(tensors: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError) as error:
        infer_arch(tensors)
    assert str(error.value).count("\n") < 3


def test_a_given_arch_that_does_not_fit_names_tensors() -> None:
    state = build(cifar(1)).state_dict()
    with pytest.raises(CheckpointError, match=r"no layer1\.1\.conv1\.weight.*and \d+ more"):
        infer_arch(state, cifar(2))
    with pytest.raises(CheckpointError, match=r"unexpected layer1\.1\.conv1\.weight"):
        infer_arch(build(cifar(2)).state_dict(), cifar(1))
    with pytest.raises(CheckpointError, match=r"fc\.weight is \(10, 64\), not \(9, 64\)"):
        infer_arch(state, replace(cifar(1), classes=9))


# --- What a file may look like --------------------------------------------------------------------


def state_of(value: float) -> dict[str, Tensor]:
    return {"conv1.weight": torch.full((2, 2), value), "bn1.bias": torch.zeros(2)}


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "net", "weights"])
def test_nested_states_are_found(key: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth.tar"
    torch.save({key: state_of(1.0), "epoch": 3, "optimizer": {"state": {}}}, path)
    assert read(path)["conv1.weight"].unique().item() == 1.0


@pytest.mark.parametrize("key", ["model_ema", "state_dict_ema", "ema"])
def test_the_averaged_state_is_taken(key: str, tmp_path: Path) -> None:
    averaged = {"n_averaged": torch.tensor(9)}
    averaged |= {f"module.{k}": v for k, v in state_of(2.0).items()}
    args = argparse.Namespace(lr=0.1)
    torch.save({"model": state_of(1.0), key: averaged, "args": args}, tmp_path / "c.pth")
    found = read(tmp_path / "c.pth")
    assert found.keys() == state_of(0).keys()
    assert found["conv1.weight"].unique().item() == 2.0


def test_an_empty_average_is_passed_over(tmp_path: Path) -> None:
    torch.save({"ema": {"decay": 0.9}, "model": state_of(1.0)}, tmp_path / "c.pt")
    assert read(tmp_path / "c.pt").keys() == state_of(0).keys()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_prefixes_are_taken_off(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    state = {f"_orig_mod.module.{k}": v for k, v in state_of(1.0).items()}
    (safetensors.torch.save_file if suffix != ".pth" else torch.save)(state, path)
    assert read(path).keys() == state_of(0).keys()


def test_the_old_format_of_torch(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(state_of(1.0), path, _use_new_zipfile_serialization=False)
    assert torch.equal(read(path)["conv1.weight"], torch.ones(2, 2))


def test_parameters_and_other_values(tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    torch.save({"a": nn.Parameter(torch.ones(2)), "names": ["x"], "best": 0.5}, path)
    found = read(path)
    assert list(found) == ["a"]
    assert type(found["a"]) is Tensor


def test_what_was_read_does_not_change_with_the_file(tmp_path: Path) -> None:
    for path in (tmp_path / "w.pth", tmp_path / "w.safetensors"):
        if path.suffix == ".pth":
            torch.save(state_of(1.0), path)
        else:
            safetensors.torch.save_file(state_of(1.0), path)
        found = read(path)
        path.write_bytes(b"")
        assert torch.equal(found["conv1.weight"], torch.ones(2, 2))


def test_a_safetensors_file_under_another_name(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    safetensors.torch.save_file(state_of(1.0), path)
    assert read(path).keys() == state_of(0).keys()


# --- Checkpoints as training scripts and services write them --------------------------------------

SMALL = replace(cifar(1), shortcut="B", classes=7)


def behind(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def moved(state: dict[str, Tensor], body: str, head: str) -> dict[str, Tensor]:
    """The body's tensors under one prefix and the classifier's under another."""
    return {(head + k[3:] if k.startswith("fc.") else body + k): v for k, v in state.items()}


def more(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v + 1 if v.is_floating_point() else v for k, v in state.items()}


def parameters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if "running" not in k and "num_" not in k}


def scheduler(kind: type, *arguments: object) -> dict[str, Any]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1)
    return dict(kind(optimizer, *arguments).state_dict())


MULTISTEP = torch.optim.lr_scheduler.MultiStepLR
WRITTEN: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    # Beside the weights.
    "Counter": (lambda s: {"model": s, "lr_scheduler": scheduler(MULTISTEP, [3, 6])}, ""),
    "two Counters": (
        lambda s: {"model": s, "a": Counter("aab"), "b": [Counter(), Counter("x")]},
        "",
    ),
    "defaultdict": (lambda s: {"model": s, "log": defaultdict(list, a=[1.0])}, ""),
    "in a defaultdict": (lambda s: {"model": defaultdict(int, s)}, ""),
    "in an OrderedDict": (lambda s: OrderedDict(model=OrderedDict(s), epoch=3), ""),
    "deque": (lambda s: {"model": s, "window": deque([1.0, 2.0], maxlen=3)}, ""),
    "a number of numpy's": (lambda s: {"state_dict": s, "best": np.float64(91.2)}, ""),
    "more of numpy's": (
        lambda s: {"state_dict": s, "n": np.int32(3), "log": [np.float32(0.5), np.bool_(True)]},
        "",
    ),
    "random numbers' state": (lambda s: {"state_dict": s, "rng": np.random.get_state()}, ""),
    "an array": (lambda s: {"state_dict": s, "mean": np.zeros((3, 2))}, ""),
    "path": (lambda s: {"model": s, "args": argparse.Namespace(out=Path("x"))}, ""),
    "set, bytes, types": (lambda s: {"model": s, "a": {"b"}, "c": b"x", "d": torch.float64}, ""),
    "wrapped in a list": (lambda s: [s], ""),
    "counters of 32 bits": (
        lambda s: {k: v.int() if v.dtype == torch.int64 else v for k, v in s.items()},
        "",
    ),
    # Prefixes.
    **{
        f"prefix {prefix}": (lambda s, prefix=prefix: {"state_dict": behind(prefix, s)}, "")
        for prefix in (
            *("net.", "backbone.", "encoder.", "module.", "model.", "_orig_mod.", "module.net."),
            *("_orig_mod.module.", "model.backbone.", "model._orig_mod.encoder.", "learner.cnn."),
        )
    },
    "head.fc": (lambda s: {"state_dict": moved(s, "backbone.", "head.fc.")}, "`head.fc` is taken"),
    "classifier": (lambda s: moved(s, "model.net.", "model.classifier."), "`model.classifier` is"),
    "fc in a Sequential": (lambda s: moved(s, "", "fc.1."), "`fc.1` is taken"),
    "loss": (
        lambda s: behind("model.", s) | {"criterion.weight": torch.full((7,), torch.inf)},
        r"1 tensor \(criterion\.weight\) left out",
    ),
    "loss beside bare names": (lambda s: s | {"loss_fn.weight": torch.ones(7)}, "loss_fn"),
    "metrics": (
        lambda s: behind("net.", s) | {"val_acc.tp": torch.zeros(7, dtype=torch.uint8)},
        "val_acc",
    ),
    "metrics beside bare names": (lambda s: s | {"train_accuracy.total": torch.zeros(1)}, "total"),
    "MoCo": (
        lambda s: (
            behind("module.encoder_q.", s)
            | behind("module.encoder_k.", more(s))
            | {"module.queue": torch.zeros(4, 4)}
        ),
        r"of 2 networks `module\.encoder_q\.`",
    ),
    # Averages.
    **{
        f"average in {key}": (
            lambda s, key=key: {"model": more(s), key: behind("module.", s)},
            f"the averaged weights `{key}` were taken, not `model`",
        )
        for key in ("ema", "model_ema", "state_dict_ema")
    },
    "shadow": (lambda s: {"model": more(s), "ema": {"decay": 0.9, "shadow": s}}, r"`ema\.shadow`"),
    "average of the parameters alone": (
        lambda s: {"model": s | more(parameters(s)), "ema": behind("module.", parameters(s))},
        r"`ema` lacks .*running_mean, \.\.\.\): taken from `model`",
    ),
    "average without names": (
        lambda s: {"model": s, "ema": {"decay": 0.9, "shadow_params": [*s.values()]}},
        "`model` was taken: `ema` beside it holds no named weights",
    ),
    "no average": (lambda s: {"model": s, "ema": None, "model_ema": {}}, ""),
    "deep": (lambda s: {"checkpoint": {"epoch": 1, "model": behind("module.", s)}}, ""),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_checkpoints_as_scripts_write_them(name: str, tmp_path: Path) -> None:
    network = randomised(build(SMALL))
    write, note = WRITTEN[name]
    state = {k: v.clone() for k, v in network.state_dict().items()}
    torch.save(write(state), tmp_path / "c.pth")
    with pytest.warns(Assumption, match=note) as caught:
        opened, _ = open_model(tmp_path / "c.pth")
    assert opened.arch == SMALL
    assert note or str(caught[0].message).count(str(tmp_path)) == 1  # what tensors do not show
    for key, tensor in opened.state_dict().items():
        assert torch.equal(tensor, state[key]), key


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (lambda s: {"G": s, "D": more(s)}, "several networks in it: D, G"),
        (lambda s: behind("a.", s) | behind("b.", s), r"several networks in it: a\., b\."),
        (lambda s: s | behind("module.", s), "several networks"),
        (
            lambda s: behind("backbone.", s) | {"classifier.weight": torch.ones(3, 7)},
            r"classifier\.weight beside fc\.weight",
        ),
        (lambda s: s | {"attnpool.weight": torch.ones(3)}, r"not a known network|unexpected"),
    ],
)
def test_networks_that_cannot_be_told_are_refused(
    state: Callable[[dict[str, Tensor]], object], message: str, tmp_path: Path
) -> None:
    torch.save(state(build(SMALL).state_dict()), tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=message):
        open_model(tmp_path / "c.pth")


# --- What tensors do not show ---------------------------------------------------------------------

THIN = replace(ARCHS["resnet50"], widths=(16, 32, 64, 128), stem_width=8, classes=3)
SCENE = replace(
    ARCHS["fcn_resnet50"], backbone=dilated(replace(THIN, stride_on="1x1", classes=1000))
)


@pytest.mark.parametrize(
    ("arch", "note"),
    [
        (THIN, r"resnet50-like \(widths \(16, 32, 64, 128\), stem_width 8\).* stride_on 3x3 \(1x1"),
        (
            cifar(1),
            r'taken for resnet8, .* shortcut A \(plain: "none"\), .* ReLU, an epsilon of 1e-5',
        ),
        (replace(SMALL, norm="group"), "norms of 32 groups"),
        (VitArch(blocks=1, width=64, heads=1, hidden=8, patch=4, size=8), "heads 1 "),
    ],
    ids=["thin", "option A", "group", "vit"],
)
def test_a_guess_is_said(arch: Any, note: str, tmp_path: Path) -> None:
    torch.save(build(arch).state_dict(), tmp_path / "resnet50.pth")
    with pytest.warns(Assumption, match=note) as caught:
        open_model(tmp_path / "resnet50.pth")
    text = str(caught[0].message)
    assert "config.json" in text
    name = re.search(r"--set arch\.(\w+)=VALUE", text)[1]  # what is named can be set
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = {"heads": 2}.get(name, getattr(arch, name, None))
        opened, _ = open_model(tmp_path / "resnet50.pth", {name: value})
    assert getattr(opened.arch, name) == value
    assert f" {name} " not in str(caught[0].message).partition("do not show")[2]


@pytest.mark.parametrize(
    ("arch", "settled"),
    [
        (replace(THIN, stride_on="1x1"), "stride_on=1x1"),
        (replace(THIN, output_stride=8), "output_stride=8"),
        (replace(cifar(1), shortcut="none"), "shortcut=none"),
        (replace(SMALL, order="relu_before_add"), "order=relu_before_add"),
        (SCENE, "stride_on=1x1"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_guess_is_settled_where_a_model_is_used(arch: Any, settled: str, tmp_path: Path) -> None:
    """The same answers as the true network's, which the guess does not give."""
    theirs = randomised(build(arch))
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    x = torch.randn(1, 3, 64, 64)
    with pytest.warns(Assumption):
        guess = resnets.load(tmp_path / "w.pth").network
    with pytest.warns(Assumption):
        model = resnets.load(tmp_path / "w.pth", overrides=[f"arch.{settled}"])
    assert model.network.arch == replace(arch, size=model.network.arch.size)
    if isinstance(arch, ResNetArch):
        with torch.no_grad():
            assert torch.equal(model.network(x), theirs(x))
            assert not close(guess(x), theirs(x))


@pytest.mark.parametrize(
    ("settled", "error", "words"),
    [
        (
            "arch.act=gelu",
            UsageError,
            r"arch\.act: .* leaves open arch\.order, arch\.output_stride",
        ),
        ("arch.blur=true", UsageError, "leaves open"),
        ("arch.order=posts", UsageError, r"arch\.order: Input should be 'post'"),
        ("arch.order=pre", CheckpointError, "not those of the given network: no layer2"),
        ("lr=1", UsageError, "--set lr: only arch.FIELD=VALUE"),
    ],
)
def test_what_cannot_be_settled(settled: str, error: Any, words: str, tmp_path: Path) -> None:
    torch.save(build(SMALL).state_dict(), tmp_path / "w.pth")
    with pytest.raises(error, match=words):
        resnets.load(tmp_path / "w.pth", overrides=[settled])


def test_fields_of_a_new_network_settle_what_they_can(tmp_path: Path) -> None:
    """As in training, where most fields are not of what a file leaves open."""
    torch.save(build(replace(THIN, stride_on="1x1")).state_dict(), tmp_path / "w.pth")
    hints = {"stride_on": "1x1", "order": "post", "output_stride": 32, "drop_path": 0.1}
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        network, _ = open_model(tmp_path / "w.pth", hints=hints)
    assert isinstance(network.arch, ResNetArch)
    assert network.arch.stride_on == "1x1"
    assert "stride_on" not in str(notes[0].message)


@pytest.mark.parametrize("heads", ["0", "-1", "7", "999999999"])
def test_heads_that_cannot_be(heads: str, tmp_path: Path) -> None:
    arch = VitArch(blocks=1, width=64, heads=1, hidden=8, patch=4, size=8)
    torch.save(build(arch).state_dict(), tmp_path / "w.pth")
    with pytest.raises((CheckpointError, UsageError), match="heads"):
        resnets.load(tmp_path / "w.pth", overrides={"arch.heads": heads})


@pytest.mark.parametrize(
    ("named", "stride_on"),
    [
        ("config.json", "3x3"),
        ("config.json v1", "1x1"),
        ("arch", "3x3"),
        ("args", "3x3"),
        ("file", "3x3"),
    ],
)
def test_a_name_settles_it(named: str, stride_on: str, tmp_path: Path) -> None:
    arch, checkpoint = replace(ARCHS["resnet50"], blocks=(1, 1, 1, 1)), dict[str, Any]()
    name, file = "resnet14", "w.pth"
    if named.endswith("v1"):
        arch, name = ARCHS["resnet50_v1"], "resnet50_v1"
    if named.startswith("config"):
        (tmp_path / "config.json").write_text(json.dumps({"architecture": name}))
    elif named == "args":
        checkpoint["args"] = argparse.Namespace(model=name)
    elif named == "arch":
        checkpoint["arch"] = name
    else:
        file = "resnet14-0123abcd.pth"
    torch.save(checkpoint | {"state_dict": build(arch).state_dict()}, tmp_path / file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened, _ = open_model(tmp_path / file)
    assert opened.arch.stride_on == stride_on  # type: ignore[union-attr]


@pytest.mark.parametrize("named", ["config.json", "arch", "file", "folder", "cache"])
@pytest.mark.parametrize(
    ("name", "blur"),
    [("resnetblur18", "branch"), ("resnetaa50", "mean"), ("seresnextaa101d_32x8d", "mean")],
)
def test_pools_without_tensors_are_known_by_name(
    name: str, blur: str, named: str, tmp_path: Path
) -> None:
    """Of any residual network, though it is not a row of the family."""
    folders = {"folder": f"{name}.bt_in1k", "cache": f"models--timm--{name}.bt_in1k/snapshots/0a"}
    folder = tmp_path / folders.get(named, "x")
    folder.mkdir(parents=True)
    path = folder / (f"{name}-84f4748f.pth" if named == "file" else "model.pth")
    state = {"arch": name} if named == "arch" else {}
    if named == "config.json":
        (folder / named).write_text(json.dumps({"architecture": name}))
    torch.save(state | {"state_dict": build(SMALL).state_dict()}, path)
    with pytest.warns(Assumption):  # resnet8 is not 18 or 50 deep
        opened, _ = open_model(path)
    assert opened.arch == replace(SMALL, blur=blur)


def test_pools_that_no_network_here_has_are_refused(tmp_path: Path) -> None:
    state = build(densenet_bc(10, 6)).state_dict()
    torch.save({"arch": "densenetblur121d", "state_dict": state}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="blur or average pools"):
        open_model(tmp_path / "w.pth")


def test_pools_that_nothing_names_are_said(tmp_path: Path) -> None:
    arch = replace(ARCHS["resnet18"], blocks=(1, 1, 1, 1), blur="mean")
    theirs = randomised(build(arch))
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    with pytest.warns(Assumption, match=r"blur False \(branch or mean.*stem_pool pad \(ceil"):
        open_model(tmp_path / "w.pth")
    with pytest.warns(Assumption):
        opened, _ = open_model(tmp_path / "w.pth", {"blur": "mean"})
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(opened(x), theirs(x))


@pytest.mark.parametrize("name", ["seresnet18", once("seresnet34"), once("seresnext26d_32x4d")])
def test_excitations_in_multiples_of_eight(name: str, tmp_path: Path) -> None:
    agree(randomised(timm.create_model(name)), tmp_path / "w.pth", 64)
    arch, _ = infer_arch(timm.create_model(name).state_dict())
    assert label(arch) == (name if name.startswith("seresnext") else f"timm_{name}")


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_no_network_of_timm_is_taken_for_another() -> None:
    """All of timm's residual and dense names: refused, or the same outputs."""
    kinds = ("resnet", "resnext", "densenet", "senet", "resnest", "seresne")
    taken = 0
    for name in timm.list_models():
        if not any(kind in name for kind in kinds):
            continue
        with torch.device("meta"):
            shapes = timm.create_model(name).state_dict()
        if sum(t.numel() for t in shapes.values()) > 50e6:  # their shallower twins are compared
            continue
        try:
            with torch.device("cpu"):
                infer_arch(shapes, name=name)
        except CheckpointError:
            continue
        theirs = randomised(timm.create_model(name))
        arch, tensors = infer_arch(theirs.state_dict(), name=name)
        ours = meta_model(arch)
        ours.load_state_dict(tensors, assign=True)
        x = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            assert close(ours.eval()(x), theirs(x)), name
        taken += 1
    assert taken >= 60

"""The model file: what is saved is what is loaded, and nothing else is loaded."""

import errno
import hashlib
import json
import os
import random
import re
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from resnets.config.arch import MlpArch, ResNetArch, VitArch
from resnets.config.arch import to_dict as arch_to_dict
from resnets.config.families import ARCHS, cifar
from resnets.config.recipe import Preprocess
from resnets.errors import CheckpointError, DiskError, NotFinite, UsageError
from resnets.models import Network, build, create
from resnets.models.io.model_file import (
    KEY,
    ModelMetadata,
    from_dict,
    load,
    open_model,
    save,
    to_dict,
)
from resnets.tensor_files import with_digest
from tests._helpers import needs_posix_files

TINY = ResNetArch(
    blocks=(1, 1), widths=(4, 8), shortcut="A", stem="cifar", stem_width=4, classes=2, size=8
)
CARD = ModelMetadata(
    arch=TINY,
    classes=("cat", 'dog "é" \n'),
    preprocess=Preprocess(size=8),
    provenance={"data": "made", "licence": "CC0"},
    temperature=1.5,
)


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return build(TINY)


@pytest.fixture
def path(tmp_path: Path, network: Network) -> Path:
    path = tmp_path / "model.safetensors"
    save(path, network, CARD)
    return path


def body(path: Path) -> dict[str, object]:
    with safetensors.safe_open(path, "pt") as file:
        return json.loads(file.metadata()[KEY])


def rewrite(path: Path, **changes: object) -> None:
    """Change the metadata and seal it again, as someone would who means it."""
    tensors = safetensors.torch.load_file(path)
    values = {**body(path), **changes}
    values.pop("sha256")
    text = with_digest(values)
    path.write_bytes(safetensors.torch.save(tensors, {KEY: text}))


# --- Round trip -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arch",
    [
        *(TINY, MlpArch(blocks=2, width=8, hidden=8, channels=4, classes=3)),
        *(ARCHS[name] for name in ("resnet20", "densenet_bc100_12", "preresnet164")),
    ],
    ids=lambda arch: f"{type(arch).__name__}-{arch.depth}",
)
def test_round_trip_is_exact(arch: ResNetArch, tmp_path: Path) -> None:
    network, path = build(arch), tmp_path / "m.safetensors"
    see = Preprocess(size=8, channels=arch.channels, mean=(0.1,) * arch.channels, std=(0.3,))
    see = replace(see, std=(1 / 3,) * arch.channels)
    card = ModelMetadata(
        arch=arch, classes=tuple(f"c{i}" for i in range(arch.classes)), preprocess=see
    )
    save(path, network, card)
    loaded, read_back = load(path)
    assert read_back == card
    assert loaded.arch == arch
    assert not loaded.training
    state = loaded.state_dict()
    assert list(state) == list(network.state_dict())
    for name, tensor in network.state_dict().items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor)
    assert [p.requires_grad for p in loaded.parameters()] == [
        p.requires_grad for p in network.parameters()
    ]
    assert open_model(path)[1] == card


def test_the_same_network_is_the_same_file(path: Path, network: Network) -> None:
    first = path.read_bytes()
    save(path, load(path)[0].to(memory_format=torch.channels_last), CARD)
    assert path.read_bytes() == first


def test_loading_draws_no_random_number(path: Path) -> None:
    before = torch.get_rng_state()
    load(path)
    assert torch.equal(torch.get_rng_state(), before)


def test_bfloat16_is_saved_as_float32(path: Path, network: Network) -> None:
    save(path, network.bfloat16(), CARD)
    assert {t.dtype for t in load(path)[0].parameters()} == {torch.float32}


def test_the_loaded_network_can_be_trained(path: Path) -> None:
    network = load(path)[0].train()
    network(torch.randn(2, 3, 8, 8)).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_digests_are_of_the_bytes(path: Path, network: Network) -> None:
    digests = body(path)["tensors"]
    assert isinstance(digests, dict)
    bytes_ = network.fc.weight.detach().numpy().tobytes()
    assert digests["fc.weight"] == hashlib.sha256(bytes_).hexdigest()


def test_a_file_without_a_card(tmp_path: Path) -> None:
    path, network = tmp_path / "w.safetensors", build(cifar(1)).eval()
    safetensors.torch.save_file(network.state_dict(), path)
    with pytest.raises(CheckpointError, match="not a model file of resnets"):
        load(path)
    opened, card = open_model(path)
    assert card is None
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(opened(x), network(x))
    safetensors.torch.save_file({"a": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match=r"w\.safetensors: not a known network"):
        open_model(path)


def test_a_checkpoint_of_others_is_no_model_file(tmp_path: Path) -> None:
    torch.save(build(cifar(1)).state_dict(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"w\.pth: not a model file of resnets, no metadata"):
        load(tmp_path / "w.pth")


cards = st.builds(
    lambda arch, names, size, mean, std, provenance, temperature: ModelMetadata(
        arch=replace(arch, classes=len(names)),
        classes=tuple(names),
        preprocess=Preprocess(
            size=arch.size if isinstance(arch, VitArch) else size,
            channels=arch.channels,
            mean=(mean,) * arch.channels,
            std=(std,) * arch.channels,
        ),
        provenance=provenance,
        temperature=temperature,
    ),
    st.sampled_from(list(ARCHS.values())),
    st.lists(st.text(max_size=40), min_size=1, max_size=5),
    st.integers(1, 2**12),
    st.floats(-1000, 1000),
    st.floats(1e-6, 1000),
    st.dictionaries(st.text(max_size=40), st.text(max_size=40), max_size=4),
    st.none() | st.floats(1e-6, 1e6),
)


@settings(max_examples=30)
@given(cards)
def test_cards_survive_json(card: ModelMetadata) -> None:
    assert from_dict(json.loads(json.dumps(to_dict(card)))) == card


# --- Saving ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_failed_save_leaves_the_old_file(
    operation: str, number: int, path: Path, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()
    torch.nn.init.zeros_(network.fc.weight)

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, operation, fail)
    with pytest.raises(DiskError, match=f"{path.name} could not be written: {os.strerror(number)}"):
        save(path, network, CARD)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_missing_folder(tmp_path: Path, network: Network) -> None:
    with pytest.raises(DiskError, match="No such file"):
        save(tmp_path / "nowhere" / "m.safetensors", network, CARD)


def test_permissions_are_those_of_any_new_file(path: Path) -> None:
    (path.parent / "other").touch()
    assert path.stat().st_mode == (path.parent / "other").stat().st_mode


def test_values_that_are_not_finite_are_not_saved(path: Path, network: Network) -> None:
    before = path.read_bytes()
    torch.nn.init.constant_(network.fc.bias, float("nan"))
    with pytest.raises(CheckpointError, match=r"fc\.bias"):
        save(path, network, CARD)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        {"classes": ("one",)},
        {"arch": replace(TINY, blocks=(1, 2))},
        {"arch": replace(TINY, classes=3), "classes": ("a", "b", "c")},
        {"preprocess": Preprocess(size=8, mean=(float("nan"),) * 3)},
        {"preprocess": Preprocess(size=8, std=(0.0,) * 3)},
        {"preprocess": Preprocess(size=10**9)},
        {"temperature": float("inf")},
        {"provenance": {"steps": 3}},
    ],
)
def test_a_card_that_load_would_refuse_is_not_saved(
    change: dict[str, object], tmp_path: Path, network: Network
) -> None:
    with pytest.raises(UsageError):
        save(tmp_path / "m.safetensors", network, replace(CARD, **change))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


# --- Damage ---------------------------------------------------------------------------------------


def damaged(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    for opening in (load, open_model):
        with pytest.raises(CheckpointError) as error:
            opening(path)
        assert str(error.value).count("\n") < 3
        assert path.name in str(error.value)


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_flipped_bits_are_found(path: Path) -> None:
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    draw = random.Random(0)
    header = [draw.randrange(8 * 8, 8 * end) for _ in range(40)]
    values = [draw.randrange(8 * end, 8 * len(data)) for _ in range(40)]
    for bit in [*range(0, 64, 3), *header, *values]:
        damaged(path, flipped(data, bit))


@pytest.mark.slow
def test_a_flipped_bit_anywhere_is_found(path: Path) -> None:
    data = path.read_bytes()
    for byte in range(0, len(data), 7):
        damaged(path, flipped(data, 8 * byte + byte % 8))


def test_a_flipped_value_names_its_tensor(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(flipped(data, 8 * len(data) - 1))
    with pytest.raises(CheckpointError, match=r"[a-z0-9.]+ is not what was saved \(SHA-256\)"):
        load(path)


def test_every_truncation_is_found(path: Path) -> None:
    data = path.read_bytes()
    for length in [*range(12), *(len(data) * part // 100 for part in range(100)), len(data) - 1]:
        damaged(path, data[:length])
    damaged(path, data + b"\0")


def test_the_metadata_of_another_file(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save(other, build(TINY), CARD)
    with safetensors.safe_open(other, "pt") as file:
        metadata = file.metadata()
    damaged(path, safetensors.torch.save(safetensors.torch.load_file(path), metadata))


# --- Malice: the seal is right --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2, not 1"),
        ({"format": "1"}, "format"),
        ({"card": 3}, "card"),
        ({"card": {}}, "card"),
        ({"tensors": {}}, "digests"),
        ({"tensors": 7}, "card"),
    ],
)
def test_a_wrong_body(change: dict[str, object], message: str, path: Path) -> None:
    rewrite(path, **change)
    with pytest.raises(CheckpointError, match=message):
        load(path)


@pytest.mark.parametrize(
    "change",
    [
        *({"blocks": [10**12, 1]}, {"blocks": [1] * 10**5}, {"blocks": []}, {"blocks": "ab"}),
        *({"blocks": [-1, 2]}, {"blocks": [True, None]}, {"widths": [10**12, 10**12]}),
        *({"widths": [2**70, 4]}, {"widths": [4]}, {"widths": [0, 0]}, {"classes": 10**12}),
        *({"channels": 10**9}, {"dims": True}, {"unit": "os.system"}),
        *(
            {"unit": "bottleneck", "bottleneck_ratio": 0},
            {"unit": "bottleneck", "groups": 0},
            {"dims": 9},
            {"size": -1, "channels": 0},
        ),
        *({"join": 4}, {"join": {"kind": "conv", "x": 1}}, {"kind": "mlp"}, {"kind": "x"}),
        *({"dropout": 1e999}, {"unknown": 1}, {"norm": []}, {"stem_width": -4}),
        {"kind": "vit", "blocks": 2, "patch": 0},
    ],
    ids=lambda change: str(change)[:40],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_an_impossible_network(change: dict[str, object], path: Path) -> None:
    card = to_dict(CARD)
    rewrite(path, card={**card, "arch": {**arch_to_dict(TINY), **change}})
    with pytest.raises(CheckpointError):
        load(path)


@pytest.mark.parametrize(
    "change",
    [
        *({"size": 10**9}, {"size": 0}, {"resize": 10**9}, {"channels": 1}, {"mean": [0.5]}),
        *({"std": [0, 1, 1]}, {"std": [1e999, 1, 1]}, {"mean": [1e999, 0, 0]}, {"mean": "abc"}),
    ],
    ids=lambda change: str(change)[:40],
)
def test_impossible_preprocessing(change: dict[str, object], path: Path) -> None:
    card = to_dict(CARD)
    rewrite(path, card={**card, "preprocess": {**asdict(CARD.preprocess), **change}})
    with pytest.raises(CheckpointError):
        load(path)


def test_sealed_values_that_are_not_finite(path: Path) -> None:
    tensors = safetensors.torch.load_file(path)
    tensors["fc.bias"][0] = float("inf")
    values = body(path)
    values.pop("sha256")
    values["tensors"]["fc.bias"] = hashlib.sha256(tensors["fc.bias"].numpy()).hexdigest()
    text = with_digest(values)
    path.write_bytes(safetensors.torch.save(tensors, {KEY: text}))
    with pytest.raises(CheckpointError, match=r"fc\.bias has values that are not finite"):
        load(path)


def test_other_types_names_and_shapes(path: Path) -> None:
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = safetensors.torch.load_file(path)
    weight = tensors["fc.weight"]
    for name, tensor in {
        "fc.weight": weight.half(),
        "fc.bias": tensors["fc.bias"].view(torch.int32),
        "extra": weight.clone(),
        "conv1.weight": tensors["conv1.weight"].flatten(),
        "bn1.num_batches_tracked": torch.zeros(1, dtype=torch.int64),
    }.items():
        damaged(path, safetensors.torch.save({**tensors, name: tensor}, metadata))
    del tensors["bn1.num_batches_tracked"]
    damaged(path, safetensors.torch.save(tensors, metadata))


@pytest.mark.parametrize(
    ("key", "value"),
    [("mean", 1e308), ("mean", -1e5), ("std", 1e-300), ("std", 1e308), ("std", 0), ("std", -1)],
)
def test_a_card_whose_numbers_make_nan_is_refused(key, value):
    from resnets.config import families
    from resnets.models.io.model_file import from_dict, to_dict

    see = Preprocess(size=8, mean=(0.5,) * 3, std=(0.2,) * 3)
    arch = families.get_arch("resnet8")
    classes = tuple(map(str, range(arch.classes)))
    data = to_dict(ModelMetadata(arch=arch, classes=classes, preprocess=see))
    from_dict(data)
    data["preprocess"][key] = [value] * 3
    with pytest.raises(ValueError, match=key):
        from_dict(data)
    data = to_dict(ModelMetadata(arch=arch, classes=classes, preprocess=see)) | {
        "temperature": 1e-300
    }
    with pytest.raises(ValueError, match="temperature"):
        from_dict(data)


@pytest.mark.parametrize(
    ("where", "change", "message"),
    [
        ("preprocess", {"size": 16384}, "preprocess.size"),
        ("preprocess", {"resize": 16384}, "preprocess.resize"),
        ("preprocess", {"size": 4096}, r"preprocess\.size 4096 .* GiB"),
        ("arch", {"size": 10**5}, r"arch\.size"),
        ("arch", {"blocks": [45000, 45000]}, r"arch\.blocks: 90000 units in 32 tensors"),
        ("arch", {"widths": [10**8, 10**8]}, "arch"),
        ("arch", {"join": {"x_scale": 1e30}}, "arch"),
    ],
)
def test_a_card_that_asks_for_gigabytes_is_refused_at_once(
    where, change, message, path, tmp_path, cli
):
    arch = replace(TINY, widths=(128, 128), stem_width=128)
    save(path, build(arch), replace(CARD, arch=arch))
    card = to_dict(replace(CARD, arch=arch))
    rewrite(path, card={**card, where: {**card[where], **change}})
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    import resnets.evaluation.predictor  # noqa: F401 - whose import takes its time

    began = time.process_time()
    code, out, err = cli("predict", path, "a.png")
    assert (code, out) == (4, "")
    assert time.process_time() - began < 1
    assert re.search(message, err), err
    assert path.name in err
    assert "Traceback" not in err


@pytest.mark.parametrize("count", [1, 3000])
def test_the_units_of_a_file_are_limited_whatever_it_holds(count, path):
    tensors = {f"layer1.{k}.{i}": torch.zeros(1) for k in range(count) for i in range(3)}
    card = to_dict(replace(CARD, arch=replace(TINY, blocks=(count, 1))))
    text = with_digest({"format": 1, "card": card, "tensors": {}})
    path.write_bytes(safetensors.torch.save(tensors, {KEY: text}))
    with pytest.raises(CheckpointError, match=f"{count + 1} units in {3 * count} tensors"):
        load(path)


def class_folders(root):
    for kind in ("train", "test"):
        for k, name in enumerate(CARD.classes):
            folder = root / kind / name.strip()
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8), (255 - 40 * k, 255, 255)).save(folder / f"{kind}.png")


@pytest.mark.parametrize(
    "recipe", ["[" * 10**5, "9" * 5000, "7", '{"seed": "x"}', '{"val_fraction": -1}']
)
@needs_posix_files
def test_a_recipe_in_a_card_that_makes_no_sense_is_refused(recipe, path, network, tmp_path, cli):
    class_folders(tmp_path / "data")
    save(path, network, replace(CARD, provenance={"recipe": recipe}))
    code, _, err = cli("evaluate", path, "data", "--workers", 0)
    assert code == 4, err
    assert f"{path}: provenance.recipe" in err


@needs_posix_files
def test_answers_that_are_not_finite_are_an_error(path, network, tmp_path, cli):
    class_folders(tmp_path / "data")
    torch.nn.init.constant_(network.conv1.weight, 3e38)
    torch.nn.init.constant_(network.fc.weight, 3e38)
    card = replace(CARD, classes=tuple(name.strip() for name in CARD.classes))
    save(path, network, card)
    for arguments in (("predict", path, "data"), ("evaluate", path, "data", "--workers", 0)):
        code, out, err = cli(*arguments)
        assert (code, out) == (4, ""), (out, err)
        assert f"{path}: its outputs are NaN or infinite" in err.replace("\n", " ")


@pytest.mark.parametrize("name", ["fasterrcnn_resnet18_fpn", "retinanet_resnet18_fpn"])
def test_objects_of_scores_that_are_not_finite_are_an_error(name):
    network = create(name, classes=2).eval()
    for parameter in network.parameters():
        torch.nn.init.constant_(parameter, 1e30)
    with torch.inference_mode(), pytest.raises(NotFinite):
        network(torch.ones(1, 3, 64, 64))

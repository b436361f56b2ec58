"""A foreign file's images are prepared as its publisher says: options, JSON beside it, a guess."""

import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torchvision.models import ResNet18_Weights, ResNet50_Weights

import resnets
from resnets.config.arch import ResNetArch
from resnets.config.preprocessing import parse_config
from resnets.config.recipe import Preprocess
from resnets.data.decode import decode
from resnets.data.transforms import normalize, statistics
from resnets.errors import Assumption, CheckpointError, UsageError
from resnets.evaluation.predictor import preprocess_image
from resnets.models import build
from resnets.models.io.model_file import save

THIN = ResNetArch(blocks=(1, 1), widths=(32, 64), unit="bottleneck", classes=2, size=224)
SAID = {"input_size": [3, 64, 64], "crop_pct": 0.9, "interpolation": "bicubic",
        "mean": [0.5, 0.4, 0.3], "std": [0.25] * 3}  # fmt: skip
PREPROCESS = Preprocess(
    size=64, resize=71, interpolation="bicubic", mean=(0.5, 0.4, 0.3), std=(0.25,) * 3
)


@pytest.fixture
def file(tmp_path):
    torch.manual_seed(0)
    torch.save(build(THIN).state_dict(), tmp_path / "thin.pth")
    return tmp_path / "thin.pth"


def say(path, **values):
    path.write_text(json.dumps({"pretrained_cfg": SAID} | values))


def prepared(path, preprocess):
    """What the network gets of an image file: float32 (C, size, size)."""
    pixels = torch.from_numpy(decode(path, preprocess.channels))
    view = preprocess_image(pixels, preprocess)[None]
    return normalize(view, *statistics(preprocess, "cpu"))[0]


@pytest.mark.parametrize("beside", ["thin.json", "config.json"])
def test_a_json_file_beside_it_says_how_images_are_prepared(file, beside):
    say(file.with_name(beside), label_names=["cat", "dog"], arch={"stride_on": "1x1"})
    with pytest.warns(Assumption) as caught:
        model = resnets.load(file)
    assert "images are prepared" not in "".join(str(note.message) for note in caught)
    assert model.metadata.preprocess == PREPROCESS
    assert model.metadata.classes == ("cat", "dog")
    assert model.network.arch.stride_on == "1x1"  # which no shape shows
    assert "stride_on" not in str(caught[0].message)


def test_the_file_of_that_name_comes_before_that_of_the_folder(file):
    say(file.with_name("config.json"), mean=[0.1])
    say(file.with_name("thin.json"))
    with pytest.warns(Assumption):
        assert resnets.load(file).metadata.preprocess == PREPROCESS


def test_options_come_first_and_a_guess_comes_last_and_is_told(file):
    with pytest.warns(Assumption, match=r"a guess: mean 0.485 0.456 .* crop 0.875, size 224"):
        model = resnets.load(file)
    assert model.metadata.preprocess == Preprocess(size=224, resize=256)
    say(file.with_name("thin.json"))
    options = {"mean": "0.2", "std": (0.1, 0.2, 0.3), "crop": 1.0, "interpolation": "bilinear"}
    with pytest.warns(Assumption):
        chosen = resnets.load(file, **options)
    expected = Preprocess(size=64, resize=64, mean=(0.2,) * 3, std=(0.1, 0.2, 0.3))
    assert chosen.metadata.preprocess == expected
    file.with_name("thin.json").unlink()
    with pytest.warns(Assumption) as caught:
        resnets.load(file, mean=0.5, std=0.5, crop=0.9, interpolation="bicubic")
    assert "a guess: size 224." in str(caught[-1].message)


def test_the_row_of_published_weights_comes_before_a_json_file(file, tmp_path, monkeypatch):
    cached = tmp_path / "models--me--thin" / "snapshots" / "main" / "thin.pth"
    cached.parent.mkdir(parents=True)
    file.rename(cached)
    say(cached.with_name("thin.json"))
    row = {"name": "thin.mine", "source": "me/thin", "file": "thin.pth", "licence": "mit",
           "classes": 2, "input_size": [3, 48, 48], "interpolation": "bicubic"}  # fmt: skip
    (tmp_path / "table.json").write_text(json.dumps({"weights": [row]}))
    monkeypatch.setenv("RESNETS_WEIGHTS_TABLE", str(tmp_path / "table.json"))
    with pytest.warns(Assumption):
        found = resnets.load(cached).metadata.preprocess
    assert found == Preprocess(size=48, resize=54, interpolation="bicubic")


def test_options_hold_for_a_file_that_says_its_own(file, tmp_path):
    say(file.with_name("thin.json"))
    with pytest.warns(Assumption):
        model = resnets.load(file)
    ours = tmp_path / "ours.safetensors"
    save(ours, model.network, model.metadata)
    assert resnets.load(ours).metadata.preprocess == PREPROCESS
    for name, value in (("interpolation", "bilinear"), ("mean", (0.1, 0.2, 0.3))):
        found = resnets.load(ours, **{name: value}).metadata.preprocess
        assert found == replace(PREPROCESS, **{name: value})


@pytest.mark.filterwarnings("ignore::resnets.errors.Assumption")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": "a"}, "invalid mean 'a'"),
        ({"std": "0.5,0.5"}, "write one number, or three"),
        ({"std": 0.0}, "std from 1e-6 on"),
        ({"mean": "nan"}, "invalid mean"),
        ({"crop": 1.5}, "from 0 to 1"),
        ({"crop": 0.0}, "a fraction of the shorter side"),
        ({"interpolation": "cubic"}, "did you mean bicubic"),
    ],
)
def test_wrong_options_are_refused(file, options, message):
    with pytest.raises(UsageError, match=message):
        resnets.load(file, **options)


def test_a_mean_by_name_and_by_number_is_refused(file):
    with pytest.raises(UsageError, match="give one of them"):
        resnets.predict(file, [file], normalize="imagenet", mean=0.5)
    with pytest.raises(UsageError, match="omit --crop"):
        resnets.evaluate(file, "digits", size=32, crop=0.9)


def test_wrong_values_in_the_json_are_refused_by_its_name(file):
    say(file.with_name("thin.json"), interpolation="nearest")
    with pytest.raises(CheckpointError, match=r"thin\.json: interpolation"):
        resnets.load(file)
    file.with_name("thin.json").write_text("[1]")  # some other file
    with pytest.warns(Assumption, match="a guess: mean"):
        resnets.load(file)


def synthetic(folder):
    """Photograph-like files: smooth colours, edges and noise, high, wide and small ones."""
    generator = np.random.default_rng(0)
    for k, (height, width) in enumerate([(375, 500), (500, 333), (90, 120), (240, 240)]):
        coarse = generator.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        pixels = np.asarray(Image.fromarray(coarse).resize((width, height), 3)).copy()
        pixels[height // 3 : height // 2] = generator.integers(0, 256, (width, 3))
        Image.fromarray(pixels).save(folder / f"{k}.png")
    return sorted(folder.glob("*.png"))


TIMM = ("resnet18.tv_in1k", "resnet18.a1_in1k", "resnet34d.ra2_in1k", "resnet50.tv2_in1k",
        "resnet50_gn.a1h_in1k", "resnetv2_50.a1h_in1k")  # fmt: skip
PRESETS = (ResNet18_Weights.IMAGENET1K_V1, ResNet50_Weights.IMAGENET1K_V2)


def timms(name, test_size):
    """A preprocessing of ours and a transform of timm's, of the same `pretrained_cfg`."""
    cfg = timm.get_pretrained_cfg(name).to_dict()
    settings = resolve_data_config({}, pretrained_cfg=cfg, use_test_size=test_size)
    return parse_config(cfg).preprocess(test_size=test_size), create_transform(**settings)


def torchvisions(weights):
    """The same of a preset of torchvision's; no weights are fetched."""
    preset = weights.transforms()
    said = {
        "crop_size": preset.crop_size[0],
        "resize_size": preset.resize_size[0],
        "interpolation": preset.interpolation.value,
        "mean": preset.mean,
        "std": preset.std,
    }
    return parse_config(said).preprocess(), preset


CASES = [*((name, size) for name in TIMM for size in (True, False)), *((x, None) for x in PRESETS)]


def compare(files, network, cases):
    """The most levels of grey between our inputs and theirs, by interpolation; equal top-1s."""
    levels, equal = {"bilinear": 0.0, "bicubic": 0.0}, 0
    for case, test_size in cases:
        ours, theirs = torchvisions(case) if test_size is None else timms(case, test_size)
        for path in files:
            with Image.open(path) as picture:
                expected = theirs(picture.convert("RGB"))
            found = prepared(path, ours)
            scale = torch.tensor(ours.std).view(3, 1, 1) * 255
            difference = ((found - expected) * scale).abs().max().item()
            levels[ours.interpolation] = max(levels[ours.interpolation], round(difference, 2))
            with torch.inference_mode():
                first, second = network(torch.stack([found, expected])).argmax(1).tolist()
            equal += first == second
    return levels, equal


def test_inputs_are_those_of_timm_and_of_torchvision(tmp_path):
    torch.manual_seed(0)
    network = build(replace(THIN, classes=1000)).eval()
    cases = [("resnet50.a1_in1k", False), ("resnet50.tv2_in1k", True), (PRESETS[1], None)]
    levels, equal = compare(synthetic(tmp_path), network, cases)
    assert levels == {"bilinear": 1.0, "bicubic": 0.0}
    assert equal == 3 * 4


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_inputs_of_photographs_are_those_of_timm_and_of_torchvision(shared):
    files = sorted((shared / "data" / "imagenet_sample").glob("*.[jJ]*"))[:50]
    if len(files) < 50:
        pytest.skip("the shared data has no photographs")
    torch.manual_seed(0)
    network = build(replace(THIN, classes=1000)).eval()
    levels, equal = compare(files, network, CASES)
    print(levels, equal)
    assert levels == {"bilinear": 1.0, "bicubic": 0.0}
    assert equal == 14 * 50

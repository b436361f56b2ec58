"""What a training takes along from the weights that it starts from: how images are prepared."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import resnets
from resnets.api.training import plan_to_resume
from resnets.config.arch import ResNetArch
from resnets.config.recipe import Preprocess
from resnets.errors import Assumption, UsageError
from resnets.models import build
from resnets.training import runner

SAID = {"input_size": [3, 64, 64], "crop_pct": 0.9, "interpolation": "bicubic",
        "mean": [0.5, 0.4, 0.3], "std": [0.25]}  # fmt: skip
STATISTICS = {"mean": (0.5, 0.4, 0.3), "std": (0.25,) * 3}
OF_THE_WEIGHTS = Preprocess(size=64, resize=71, interpolation="bicubic", **STATISTICS)
pytestmark = pytest.mark.filterwarnings("ignore::resnets.errors.Assumption")


@pytest.fixture
def photos(tmp_path):
    """Eight images of each of two classes."""
    generator = np.random.default_rng(0)
    for k in range(16):
        folder = tmp_path / "photos" / "ab"[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (70, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
    return tmp_path / "photos"


@pytest.fixture
def weights(tmp_path):
    """Foreign weights, and beside them what their publisher says of their inputs."""
    arch = ResNetArch(blocks=(1,), widths=(16,), unit="basic", classes=2, size=224)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "w.json").write_text(json.dumps({"pretrained_cfg": SAID}))
    torch.save(build(arch).state_dict(), tmp_path / "foreign" / "w.pth")
    return tmp_path / "foreign" / "w.pth"


def planned(photos, weights, **options):
    overrides = {"epochs": 1, "size": 0} | options.pop("overrides", {})
    return resnets.plan(photos, weights=weights, recipe="fine-tune", batch=4, overrides=overrides,
                        device="cpu", workers=0, **options)  # fmt: skip


def test_the_preprocessing_comes_along_with_the_weights(photos, weights):
    found = planned(photos, weights).preprocess
    assert found == OF_THE_WEIGHTS
    # Size and crop are those of the training where it asks for a size.
    assert planned(photos, weights, overrides={"size": 96}).preprocess == replace(
        found, size=96, resize=109
    )
    cropped = planned(photos, weights, overrides={"crop_pct": 1.0}).preprocess
    assert cropped == replace(found, resize=64)


def test_fields_of_the_recipe_come_before_the_weights(photos, weights):
    fields = {"mean": [0.1], "std": [1, 2, 3], "interpolation": "bilinear"}
    found = planned(photos, weights, overrides={"normalize": "data", **fields}).preprocess
    expected = replace(OF_THE_WEIGHTS, mean=(0.1,) * 3, std=(1, 2, 3), interpolation="bilinear")
    assert found == expected
    with pytest.raises(UsageError, match="normalize=none is a mean and std too: give one"):
        planned(photos, weights, overrides={"normalize": "none", "mean": 0.1})
    from_scratch = resnets.plan(photos, model="resnet18", overrides={**fields, "size": 64})
    assert from_scratch.preprocess == replace(expected, resize=73)


def test_folded_normalisation_is_told_unless_it_is_frozen(photos, weights):
    tensors = torch.load(weights)
    folded = {n: torch.full_like(x, 0.1) if "bn" in n and "bias" in n else x
              for n, x in tensors.items()}  # fmt: skip
    torch.save(folded, weights)
    with pytest.warns(Assumption, match="is folded into its convolutions.*\n.*norm=frozen"):
        planned(photos, weights, overrides={"norm": "batch"})
    with pytest.warns(Assumption) as caught:
        planned(photos, weights, overrides={"norm": "frozen"})
    assert "is folded into" not in "".join(str(note.message) for note in caught)


def test_a_run_goes_on_with_the_inputs_that_it_was_started_with(photos, weights, tmp_path):
    started = planned(photos, weights)
    run = runner.create_run(started, tmp_path / "run")
    weights.with_name("w.json").unlink()
    resumed = plan_to_resume(run, run.read_recipe(), None, None, "cpu", 0)
    assert resumed.preprocess == started.preprocess == OF_THE_WEIGHTS
    assert resumed.arch == started.arch

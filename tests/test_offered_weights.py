"""Photographs start from published weights: those of the cache, or after a question."""

import hashlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

import resnets
from resnets.cli import commands
from resnets.config import weights
from resnets.models import build
from resnets.models.io import fetch
from resnets.models.io.fetch import cached_path
from tests.models.io._helpers import running_site


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A server with weights of a small network, empty caches, and a folder of photographs."""
    for name in ("RESNETS_DATA", "HF_HOME", "TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    torch.manual_seed(0)
    data = save(build(weights.ARCHS["resnet20"]).state_dict())
    file = f"net-{hashlib.sha256(data).hexdigest()[:8]}.safetensors"
    row = {
        "name": "resnet20.tiny", "model": "resnet20", "source": f"{fetch.TORCHVISION}{file}",
        "file": file, "bytes": len(data), "licence": "mit", "labels": "imagenet", "classes": 10,
        "top1": 99.9, "input_size": [3, 32, 32], "mean": [0.4] * 3, "std": [0.2] * 3,
    }  # fmt: skip
    (tmp_path / "table.json").write_text(json.dumps({"weights": [row]}))
    monkeypatch.setenv("RESNETS_WEIGHTS_TABLE", str(tmp_path / "table.json"))
    generator = np.random.default_rng(0)
    for name, shade in (("dark", 40), ("light", 160)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(20):
            pixels = generator.integers(shade, shade + 60, (70, 70, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    with running_site() as running:
        running.files[f"/mirror/{file}"] = data
        monkeypatch.setenv("RESNETS_TORCHVISION_MIRROR", f"{running.url}/mirror")
        yield running


def test_without_a_terminal_nothing_is_downloaded_but_what_helps_is_named(site):
    plan = resnets.plan("photos", model="resnet20")
    assert plan.suggested.name == "resnet20.tiny"
    assert plan.pretrained is None
    assert "--weights resnet20.tiny" in plan.summary()["method"]
    assert not commands.wants_weights(plan.suggested)
    assert not site.requests


@pytest.mark.parametrize(("answer", "wanted"), [("\n", True), ("y\n", True), ("n\n", False)])
def test_a_person_at_a_terminal_is_asked_once(site, monkeypatch, capsys, answer, wanted):
    row = resnets.plan("photos", model="resnet20").suggested
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    assert commands.wants_weights(row) == wanted
    question = " ".join(capsys.readouterr().err.split())
    assert "resnet20.tiny, 1 MB, from https://" in question
    assert "licence mit" in question
    monkeypatch.setenv("RESNETS_OFFLINE", "1")
    assert not commands.wants_weights(row)


def test_yes_downloads_them_and_later_the_cache_is_used(site, cli):
    arguments = ("train", "photos", "--model", "resnet20", "--epochs", "1", "--run")
    code, _, err = cli(*arguments, "first", "--yes")
    assert code == 0, err
    assert cached_path(weights.find("resnet20.tiny")).exists()
    recipe = json.loads(Path("first/recipe.json").read_text())
    assert (recipe["weights"], recipe["head"]) == ("resnet20.tiny", "probe")
    site.requests.clear()
    plan = resnets.plan("photos", model="resnet20")
    assert plan.recipe.weights == "resnet20.tiny"
    assert plan.suggested is None
    assert plan.preprocess.mean == (0.4, 0.4, 0.4)
    without = resnets.plan("photos", model="resnet20", weights="none")
    assert without.pretrained is None
    assert resnets.plan("photos", recipe="quick-cifar10").pretrained is None
    assert not site.requests

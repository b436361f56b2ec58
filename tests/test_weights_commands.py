"""`resnets weights`, and a name of weights in place of a model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save, save_file

import resnets
from resnets.config import weights
from resnets.config.families import ARCHS
from resnets.errors import Assumption, UsageError
from resnets.models import build
from resnets.models.io import fetch

pytest.importorskip("huggingface_hub")


@pytest.fixture(scope="module")
def tensors():
    torch.manual_seed(0)
    return build(ARCHS["resnet20"]).state_dict()


@pytest.fixture
def site(weights_site, tensors):
    weights_site.hub_file("lab/net", "model.safetensors", save(tensors))
    plain = {"source": "lab/net", "model": "resnet20", "classes": 10, "top1": 91.25}
    weights_site.publish(
        {"name": "lab-net", "licence": "mit", **plain},
        {"name": "lab-closed", "licence": "cc-by-nc-4.0", **plain},
    )
    return weights_site


def picture(path):
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(path)
    return path


def test_ls_shows_what_is_published_and_what_is_here(cli, site):
    assert len(json.loads(cli("weights", "ls", "--json")[1])) >= 62
    code, out, _ = cli("weights", "ls", "lab-")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["lab-closed", "lab-net"]
    assert "91.25 %" in out
    row = json.loads(cli("weights", "ls", "lab-net", "--json")[1])[0]
    assert row | {"cached": False, "licence": "mit", "model": "resnet20"} == row
    assert cli("weights", "get", "lab-net")[0] == 0
    assert json.loads(cli("weights", "ls", "lab-net", "--json")[1])[0]["cached"] is True


def test_get_prints_the_path_and_notes_the_digest(cli, site):
    code, out, err = cli("weights", "get", "lab-net")
    assert code == 0
    assert Path(out.strip()) == fetch.cached_path(weights.find("lab-net"))
    assert "no digest is published" in err
    assert cli("weights", "get", "lab-net", "--quiet")[1:] == (out, "")


def test_a_licence_is_accepted_by_an_option(cli, site):
    code, out, err = cli("weights", "get", "lab-closed")
    assert (code, out) == (4, "")
    assert "cc-by-nc-4.0" in err
    assert cli("weights", "get", "lab-closed", "--accept-licence")[0] == 0


@pytest.mark.parametrize("place", [0, -1])
def test_offline_takes_the_cache_only(cli, site, place):
    command = ["weights", "get", "lab-net"]
    command.insert(place % 4, "--offline")
    code, _, err = cli(*command)
    assert code == 4
    assert "this is offline" in err
    assert site.requests == []


def test_a_name_stands_for_a_model(cli, site, tmp_path):
    image = picture(tmp_path / "x.png")
    code, out, err = cli("predict", "lab-net", image, "--json")
    assert code == 0, err
    assert json.loads(out)[0]["file"] == str(image)
    code, out, err = cli("predict", "lab-nett", image)
    assert (code, out) == (2, "")
    assert "did you mean lab-net" in err


def test_a_training_starts_from_a_name_and_keeps_it(cli, site):
    start = ("train", "digits", "--weights", "lab-net", "--epochs", "0.05", "--run", "run")
    code, _, err = cli(*start)
    assert code == 2  # the digits are grey
    assert "lab-net takes images of 3 channels" in err


def test_a_plan_keeps_the_name_and_knows_the_network(site, tmp_path):
    for k, name in enumerate(("cat", "dog")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(20):
            pixels = np.full((40, 40, 3), 100 * k + i, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    with pytest.warns(Assumption, match="no digest is published"):
        plan = resnets.plan(tmp_path / "photos", weights="lab-net", size=32, epochs=1)
    assert (plan.recipe.weights, plan.recipe.model) == ("lab-net", "resnet20")
    assert plan.pretrained.path == fetch.cached_path(weights.find("lab-net"))
    wrong = {"model": "resnet32", "weights": "lab-net", "size": 32}
    with pytest.raises(UsageError, match="resnet32: lab-net is resnet20; leave it out"):
        resnets.plan(tmp_path / "photos", **wrong)


def test_none_is_random_weights(cli, site):
    plan = resnets.plan("digits", weights="none", epochs=1)
    assert plan.recipe.weights == ""


def test_import_makes_a_name_with_classes_and_preprocessing(cli, site, tmp_path, tensors):
    save_file(tensors, tmp_path / "mine.safetensors")
    (tmp_path / "names.txt").write_text("\n".join(f"moth {k}" for k in range(10)) + "\n\n")
    command = ("weights", "import", "mine.safetensors", "--name", "moths", "--classes", "names.txt")
    code, out, _ = cli(*command)
    assert code == 0
    assert Path(out.strip()) == weights.weights_folder() / "moths.safetensors"
    model = resnets.load("moths")
    assert model.metadata.classes[3] == "moth 3"
    assert torch.equal(model.network.state_dict()["conv1.weight"], tensors["conv1.weight"])
    assert "moths" in cli("weights", "ls", "moths")[1]
    assert cli("weights", "get", "moths")[1].strip() == out.strip()
    assert "is there already" in cli(*command)[2]
    assert "choose another name" in cli(*command[:4], "resnet50")[2]
    assert "letters, digits" in cli(*command[:4], "../evil")[2]


def test_a_file_of_the_table_is_copied_as_it_is(cli, site, tmp_path, tensors):
    save_file(tensors, tmp_path / "usb.safetensors")
    code, out, _ = cli("weights", "import", "usb.safetensors", "--name", "lab-net")
    assert code == 0
    assert Path(out.strip()) == fetch.copied_path(weights.find("lab-net"))
    assert cli("--offline", "weights", "get", "lab-net")[1] == out
    save_file(
        {name: x for name, x in tensors.items() if "fc" not in name}, tmp_path / "b.safetensors"
    )
    Path("usb.pt").write_bytes(Path("usb.safetensors").read_bytes())
    code, _, err = cli("weights", "import", "usb.pt", "--name", "lab-net")
    assert (code, "which ends in .safetensors" in err) == (2, True)
    code, _, err = cli("weights", "import", "b.safetensors", "--name", "lab-net")
    assert code == 4
    assert "no fc.weight" in err


def test_inspect_says_what_a_file_is_and_what_is_guessed(cli, site, tmp_path, tensors):
    save_file(tensors, tmp_path / "mine.safetensors")
    facts = json.loads(cli("weights", "inspect", "mine.safetensors", "--json")[1])
    assert facts["network"] == "resnet20"
    assert facts["tensors"] == len(tensors)
    assert facts["classes"] == 10
    assert any("shortcut A" in text for text in facts["guessed"])
    code, out, _ = cli("weights", "inspect", "mine.safetensors")
    assert "\\n" not in out  # a guess of two lines is printed as text, not as an escape
    assert code == 0
    assert "    network  resnet20\n" in out
    save_file({"odd.weight": torch.ones(3, 3)}, tmp_path / "odd.safetensors")
    facts = json.loads(cli("weights", "inspect", "odd.safetensors", "--json")[1])
    assert "not a known network" in facts["problem"]
    assert cli("weights", "inspect", "lab-net")[0] == 4  # which is not here
    assert site.requests == []


def test_where_lists_the_caches(cli, site, tmp_path):
    assert cli("weights", "get", "lab-net")[0] == 0
    rows = json.loads(cli("weights", "where", "--json")[1])
    assert [Path(row["folder"]) for row in rows] == [
        tmp_path / "cache-RESNETS_DATA" / "weights",
        tmp_path / "cache-HF_HOME" / "hub",
        tmp_path / "cache-TORCH_HOME" / "hub" / "checkpoints",
    ]
    assert [row["files"] for row in rows] == [0, 1, 0]


def test_models_with_weights(cli, site):
    rows = json.loads(cli("models", "resnet[25]0", "--pretrained", "--json")[1])
    assert [(row["name"], row["weights"]) for row in rows if row["name"] == "resnet50"] == [
        ("resnet50", "resnet50.a1_in1k")
    ]

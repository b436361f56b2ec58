"""Testing, calibrating, explaining and reporting as people type them."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

import resnets
from resnets.cli.main import main
from resnets.data import dataset
from resnets.evaluation import scores as room
from resnets.models.io import model_file

FEW = ["--set", "size=8", "--set", "batch=32", "--model", "resnet8", "--set", "steps=12"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two short runs, the second with validation images."""
    root = tmp_path_factory.mktemp("runs")
    for name, more in (("one", []), ("two", ["--set", "val_fraction=200", "--seed", "3"])):
        with pytest.raises(SystemExit) as caught:
            main(["-q", "train", "digits", "--run", str(root / name), *FEW, *more])
        assert caught.value.code == 0
    return root / "one", root / "two"


@pytest.fixture
def runs(folders, tmp_path):
    return [shutil.copytree(folder, tmp_path / folder.name) for folder in folders]


def right(scores):
    return scores.logits.argmax(1) == scores.labels


def test_an_ensemble_is_the_mean_of_the_probabilities(cli, runs):
    code, out, _ = cli("evaluate", *runs, "digits", "--json")
    assert code == 0
    one, two = (room.load(run / "scores.safetensors") for run in runs)
    mean = (one.probabilities + two.probabilities) / 2
    assert json.loads(out)["top1"] == pytest.approx(
        float((mean.argmax(1) == one.labels).double().mean()), abs=1e-6
    )


def test_each_model_may_have_its_view(cli, runs):
    code, out, _ = cli("evaluate", *runs, "digits", "--view", "flip,center", "--json")
    assert code == 0
    parts = [
        resnets.load(run).scores(dataset.load("digits").test, view=view).probabilities
        for run, view in zip(runs, ("flip", "center"), strict=True)
    ]
    right = (sum(parts).argmax(1) == dataset.load("digits").test.labels).double().mean()
    assert json.loads(out)["top1"] == pytest.approx(float(right), abs=1e-6)
    for view, told in (("flip,flip,flip", "3 views for 2 models"), ("flop", "one of center")):
        code, _, err = cli("evaluate", *runs, "digits", "--view", view)
        assert code == 2
        assert told in err


def test_the_comparison_names_the_images(cli, runs):
    _, out, _ = cli("evaluate", *runs, "digits", "--compare", "--json")
    said = json.loads(out)["comparison"]
    one, two = (right(room.load(run / "scores.safetensors")) for run in runs)
    assert said["fixed"] == (two & ~one).nonzero()[:, 0].tolist()
    assert said["broken"] == (one & ~two).nonzero()[:, 0].tolist()
    _, out, _ = cli("evaluate", *runs, "digits", "--compare", "-q")
    assert f"{len(said['fixed'])} images newly right" in out
    assert cli("evaluate", runs[0], "digits", "--compare")[0] == 2
    assert cli("evaluate", *runs, "digits", "--corruptions")[0] == 2


def test_extras_are_told(cli, runs):
    asked = ["--at-precision", "0.9", "--ood", "digits", "--corruptions"]
    code, out, _ = cli("evaluate", runs[0], "digits", *asked)
    assert code == 0
    for words in (
        "predictions with a probability of",
        "AUROC of the greatest probability",
        "gaussian-noise",
        "mean corruption",
    ):
        assert words in out


@pytest.mark.parametrize(
    ("demand", "code", "words"),
    [
        ("top1=0.01", 0, ""),
        ("top1=0.999", 1, "--fail-under: top1"),
        ("tpo1=0.9", 2, "top1"),
        ("top1=high", 2, "write a number"),
    ],
)
def test_a_figure_can_be_demanded(cli, runs, demand, code, words):
    found, _, err = cli("evaluate", runs[0], "digits", "--fail-under", demand, "-q")
    assert found == code
    assert words in err


def test_the_seal_counts_looks_at_the_runs_own_test_images(cli, runs):
    def looks():
        return len((runs[1] / "test_access.jsonl").read_text().splitlines())

    assert looks() == 1
    cli("evaluate", runs[1], "digits")
    assert looks() == 2
    cli("evaluate", runs[1], "digits", "--split", "val")
    cli("calibrate", runs[1], "digits")
    assert looks() == 2
    cli("evaluate", runs[1] / "model.safetensors", "digits")
    assert looks() == 3
    assert cli("report", runs[1])[0] == 0
    assert "evaluated 3 times" in (runs[1] / "report.html").read_text()


def test_the_temperature_is_of_the_images_kept_from_training(cli, runs):
    one, two = (model_file.load(run / "model.safetensors")[1].temperature for run in runs)
    assert one is None
    network, card = model_file.load(runs[1] / "model.safetensors")
    model_file.save(runs[1] / "model.safetensors", network, replace(card, temperature=None))
    code, out, _ = cli("calibrate", runs[1], "digits", "--json")
    assert code == 0
    said = json.loads(out)
    before, after = said["figures"]
    assert said["temperature"] == pytest.approx(two, rel=1e-3)
    assert before["images"] == after["images"] == 200
    assert after["loss"] < before["loss"]
    assert model_file.load(runs[1] / "model.safetensors")[1].temperature == pytest.approx(
        two, rel=1e-3
    )
    code, _, err = cli("calibrate", runs[0], "digits")
    assert code == 3
    assert "no val split" in err


@pytest.mark.slow
def test_explaining_a_file_and_a_data_set(cli, runs, tmp_path):
    from PIL import Image

    Image.new("L", (9, 9), 40).save(tmp_path / "x.png")
    code, out, err = cli("explain", runs[0], "x.png", "--out", "why", "--data", "digits")
    assert code == 0
    assert "x.png" in out
    assert "random network" in err
    assert (tmp_path / "why" / "0001-x.png").exists()
    code, out, _ = cli("explain", runs[0], "--data", "digits", "--out", "found")
    assert code == 0
    assert "most-wrong" in out
    assert cli("explain", runs[0], "--out", "other")[0] == 2
    assert cli("explain", runs[0], "x.png", "--out", "found")[0] == 2  # it has files


def test_runs_side_by_side(cli, runs):
    code, out, _ = cli("runs", "compare", *runs, "--json")
    assert code == 0
    found = json.loads(out)
    assert list(map(str, found["differences"]["seed"].values())) == ["0", "3"]
    (test,) = found["networks_against_the_first"]
    assert test["run"] == str(runs[1])
    assert 0 <= test["p"] <= 1
    assert cli("runs", "compare", runs[0])[0] == 2


@pytest.mark.slow
def test_several_labels_from_end_to_end(cli, tmp_path):
    from PIL import Image

    lines = ["path,label"]
    for i in range(60):
        red, green = i % 2, i // 2 % 2
        pixels = torch.zeros(12, 12, 3, dtype=torch.uint8)
        pixels[..., 0], pixels[..., 1] = 200 * red, 200 * green
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{'|'.join(n for n, has in (('red', red), ('green', green)) if has)}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    code, out, err = cli("train", "list.csv", "--run", "run", *FEW, "--set", "lr=0.5")
    assert code == 0, err
    code, out, _ = cli("evaluate", "run", "list.csv", "--json")
    said = json.loads(out)
    assert code == 0
    assert 0 <= said["mean_average_precision"] <= 1
    assert resnets.load("run").multi_label
    assert cli("predict", "run", "0.png")[0] == 0
    assert cli("explain", "run", "--data", "list.csv", "--out", "found")[0] == 0
    assert cli("data", "info", "list.csv")[0] == 0


def test_a_report_of_scores_of_other_images_is_refused(cli, runs):
    path = runs[0] / "scores.safetensors"
    scores = room.load(path)
    room.save(path, replace(scores, indices=scores.indices + 10**6))
    code, _, err = cli("report", runs[0])
    assert code == 4
    assert "scores of images that are not in its split" in err

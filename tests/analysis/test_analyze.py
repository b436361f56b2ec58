"""`resnets analyze` from the command line to its folder."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import resnets
from resnets.analysis.instruments import INSTRUMENTS
from resnets.cli.main import main
from resnets.models.io.model_file import load

KINDS = {kind: plot for kind, (_, plot) in INSTRUMENTS.items()}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("analyzed") / "one"
    few = ["model=resnet14", "size=8", "steps=6", "batch=32", "val_fraction=0.2"]
    with pytest.raises(SystemExit) as caught:
        main(["-q", "train", "digits", "--run", str(folder), *(f"--set={item}" for item in few)])
    assert caught.value.code == 0
    return folder


def accesses(run):
    return len((run / "test_access.jsonl").read_text().splitlines())


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_on_a_run_and_its_data(cli, run, tmp_path, kind):
    before, known = (run / "model.safetensors").read_bytes(), accesses(run)
    code, out, err = cli("analyze", kind, run, "digits", "--json", "--workers", 0)
    assert code == 0, err
    found = json.loads(out)
    folder = tmp_path / "analysis" / f"{kind}-one"
    assert tmp_path / found["folder"] == folder
    assert {path.name for path in folder.iterdir()} == {f"{kind}.csv", f"{kind}.svg"}
    with (folder / f"{kind}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found["rows"])
    assert list(rows[0]) == list(found["rows"][0])
    assert {KINDS[kind].x, *KINDS[kind].ys} <= set(rows[0])
    assert "<svg" in (folder / f"{kind}.svg").read_text()
    assert found["verdict"].endswith(".")
    assert "noise" not in found["verdict"]
    assert (run / "model.safetensors").read_bytes() == before
    assert accesses(run) == known  # errors are on the validation images


def test_a_table_and_a_sentence_for_people_and_nothing_is_overwritten(cli, run):
    code, out, err = cli("analyze", "lesions", run, "digits", "--workers", 0)
    assert code == 0
    assert out.splitlines()[0].split() == ["unit", "name", "error", "whole", "error"]
    assert "The error on the val images is" in out.splitlines()[-1]
    assert "analysis/lesions-one" in err
    assert cli("analyze", "lesions", run, "digits")[::2] == (
        2,
        "resnets: analysis/lesions-one has files, which nothing here overwrites: choose a new "
        "--out\n",
    )
    assert "lesions-one" not in cli("analyze", "-q", "lesions", run, "digits", "--out", "other")[1]


def test_an_error_on_the_test_images_leaves_a_trace(cli, run):
    known = accesses(run)
    assert cli("analyze", "lesions", run, "digits", "--split", "test", "--workers", 0)[0] == 0
    assert accesses(run) == known + 1


@pytest.mark.slow
def test_fresh_weights_see_noise_or_data(cli):
    code, out, _ = cli("analyze", "equations", "preresnet20", "--batch", 4)
    assert code == 0
    assert ": exact." in out
    assert "inputs were noise, the labels random" in out
    code, out, _ = cli("analyze", "responses", "resnet8", "digits", "--workers", 0, "--json")
    stds = [row["std"] for row in json.loads(out)["rows"]]
    assert stds == pytest.approx([1.0] * 7, abs=0.01)
    code, out, _ = cli("analyze", "signal", "mlp_resnet", "--json")
    assert len(json.loads(out)["rows"]) == 10
    assert cli("analyze", "signal", "resnet18_1d", "--batch", 4)[0] == 0
    first, second = (resnets.analyze("signal", "resnet8", out=Path(name), seed=3) for name in "ab")
    assert first.rows == second.rows


MINE = """
import torch
from torch import nn
def build():
    return nn.Sequential(*(nn.Linear(6, 6) for _ in range(3)))
def convolutions():
    layers = nn.Conv2d(1, 10, 3), nn.BatchNorm2d(10), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers)
def huge():
    net = build()
    nn.init.constant_(net[1].weight, float("inf"))
    return net
def number(): return 3
def broken(): return 1 / 0
value = 3
"""


def test_a_module_of_ones_own(cli, tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    code, out, _ = cli("analyze", "gradients", "mine:build", "--input", 6, "--json")
    assert code == 0
    assert [row["name"] for row in json.loads(out)["rows"]] == ["0", "1", "2"]
    assert (tmp_path / "analysis" / "gradients-mine-build" / "gradients.csv").exists()
    code, out, _ = cli(
        "analyze", "responses", "mine:convolutions", "digits", "--workers", 0, "--json"
    )
    assert [row["name"] for row in json.loads(out)["rows"]] == ["0"]
    code, out, _ = cli(
        "analyze", "precise", "mine:convolutions", "digits", "--workers", 0, "--json"
    )
    assert [row["statistics"] for row in json.loads(out)["rows"]] == ["running", "precise"]
    code, out, _ = cli("analyze", "signal", "mine:huge", "--input", 6, "--json")
    assert json.loads(out)["rows"][1]["forward"] is None
    assert "not finite from layer 2" in json.loads(out)["verdict"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["signal", "mine:build"], "does not say its input: --input 3x32x32"),
        (["signal", "mine:build", "--input", "3x"], "write the shape of one input"),
        (["signal", "mine:build", "--input", "7"], "mine:build takes no input of 7"),
        (["signal", "mine:number"], "mine:number returns int, not a torch.nn.Module"),
        (["signal", "mine:broken"], "ZeroDivisionError: division by zero"),
        (["signal", "mine:value"], "is not a function, but int"),
        (["signal", "mine:nothing"], "has no attribute 'nothing'"),
        (["signal", "nowhere:build"], "No module named 'nowhere'"),
        (["signal", "resnet21"], "unknown model 'resnet21': did you mean"),
        (["signal", "no/such.pth"], "no such file or run folder: no/such.pth"),
        (["lesions", "resnet8"], "lesions measures errors on images"),
        (["lesions", "plain20", "digits"], "no residual units"),
        (["lesions", "mine:build", "digits"], "takes no input of 1x8x8"),
        (["equations", "mine:build", "--input", "6"], "no residual units"),
        (["signal", "resnet18_1d", "digits"], "resnet18_1d takes no input of 1x8x8"),
    ],
)
def test_what_is_wrong_is_said(cli, tmp_path, arguments, said):
    (tmp_path / "mine.py").write_text(MINE)
    code, _, err = cli("analyze", *arguments)
    assert code == 2
    assert said in err
    assert not (tmp_path / "analysis").exists()


def test_precise_statistics_are_of_training_images_alone(cli, run, monkeypatch):
    from resnets.training import precise_bn

    seen, own = [], precise_bn.precise_bn

    def count(network, batches):
        kept = [batch.clone() for batch in batches]
        seen.extend(kept)
        own(network, kept)

    monkeypatch.setattr(precise_bn, "precise_bn", count)
    code, out, _ = cli("analyze", "precise", run, "digits", "--workers", 0, "--json")
    assert code == 0
    assert sum(map(len, seen)) == round(0.8 * 899)  # without the fifth that was held out
    errors = [row["error"] for row in json.loads(out)["rows"]]
    assert all(math.isfinite(error) for error in errors)
    network, _ = load(run / "model.safetensors")
    assert isinstance(network, nn.Module)
    assert all(torch.isfinite(p).all() for p in network.parameters())


def test_a_module_is_analyzed_as_the_function_that_builds_it(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    module = nn.Sequential(*(nn.Linear(6, 6) for _ in range(3)))
    before = [p.clone() for p in module.parameters()]
    by_module = resnets.analyze("gradients", module, input="6")
    by_name = resnets.analyze("gradients", "mine:build", input="6")
    assert by_module.rows == by_name.rows
    assert by_module.folder == Path("analysis/gradients-Sequential")
    assert all(p.grad is None for p in module.parameters())  # a copy was measured
    assert all(map(torch.equal, before, module.parameters()))

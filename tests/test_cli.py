"""What people type, and what they get: figures, files, errors with their exit codes."""

import io
import json
import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import resnets
from resnets import __version__
from resnets.cli import terminal
from resnets.cli.main import main
from resnets.data import dataset
from resnets.errors import Interrupted
from resnets.models.io import model_file
from resnets.training.clock import ProgressReport

FEW = ["--model", "resnet8", "--set", "size=8", "--set", "steps=6", "--set", "batch=32"]


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    """A finished run of a few steps."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.raises(SystemExit) as caught:
        main(["-q", "train", "digits", "--run", str(folder), *FEW])
    assert caught.value.code == 0
    return folder


@pytest.fixture
def models_white(digits_run, tmp_path):
    """A model of three classes to which 4,095 is white."""
    network, card = model_file.load(digits_run / "model.safetensors")
    network.fc = torch.nn.Linear(network.fc.in_features, 3)
    arch = replace(card.arch, classes=3)
    see = replace(card.preprocess, white=4095)
    path = tmp_path / "white.safetensors"
    model_file.save(
        path, network, replace(card, arch=arch, classes=("a", "b", "c"), preprocess=see)
    )
    return path


def pictures(root, per_class=10, classes=("bird", "cat"), broken=0):
    """A folder of class folders with photographs of noise around a class's own brightness."""
    generator = np.random.default_rng(0)
    for k, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            pixels = generator.integers(120 * k, 120 * k + 100, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.jpg")
        for i in range(broken):
            (root / name / f"broken{i}.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a photograph")
    return root


def test_help_needs_no_torch():
    code = "import sys, resnets.cli.main; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_version_and_module(cli):
    code, out, _ = cli("--help")
    assert code == 0
    for verb in ("train", "resume", "evaluate", "predict", "models", "analyze", "reproduce"):
        assert verb in out
    assert "Usage: resnets train DATA [OPTIONS]" in cli("train", "--help")[1]
    assert cli("--version")[1].strip() == __version__
    done = subprocess.run(
        [sys.executable, "-m", "resnets", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == __version__


def test_train_leaves_a_readable_run_folder(digits_run):
    names = {p.name for p in digits_run.iterdir()}
    assert names >= {
        "recipe.json", "source.json", "environment.json", "metrics.jsonl", "timing.jsonl",
        "checkpoints", "model.safetensors", "result.json", "scores.safetensors", "report.html",
        "README.md", "test_access.jsonl",
    }  # fmt: skip
    for path in digits_run.rglob("*"):
        if path.is_file():
            with pytest.raises(Exception):  # noqa: B017, PT011 - any refusal will do
                pickle.loads(path.read_bytes())
    assert json.loads((digits_run / "recipe.json").read_text())["model"] == "resnet8"
    assert json.loads((digits_run / "result.json").read_text())["images"] == 898


def test_the_plan_has_eleven_lines_and_dry_run_stops_there(cli, tmp_path):
    code, out, err = cli("train", "digits", "--dry-run", *FEW)
    assert code == 0
    assert out == ""
    assert len(err.splitlines()) == 11
    for word in ("digest", "10: 0, 1", "resnet8", "parameters", "6 steps of 32", "measured"):
        assert word in err
    assert list(tmp_path.iterdir()) == []


def test_seeds_are_trained_where_they_stand_and_compared(cli, tmp_path, monkeypatch):
    """Errors of two seeds: s = |a - b| / sqrt(2), and 12.7062 s / sqrt(2) is half the interval."""

    def pages(run, source, **_):  # the true ones take seconds
        for name in ("README.md", "report.html"):
            (run.path / name).touch()

    monkeypatch.setattr("resnets.api.training.write_report", pages)
    monkeypatch.setattr("resnets.training.clock.estimate_duration", lambda plan: 1.0)
    seeds = ["--seed", "4", "--seeds", "2", "--run", "r", "--json"]
    line = ["train", "digits", *FEW, *seeds]
    code, out, _ = cli("train", "digits", *FEW[:4], *seeds, "--dry-run", "--budget", "90s")
    planned = json.loads(out)
    assert (code, planned["seconds"]) == (0, 180)
    assert planned["runs"] == "2 with a seed each, r-seed4 to r-seed5, each with this budget"
    assert not list(tmp_path.iterdir())

    def stop(progress):  # as Ctrl-C in the second run
        if Path("r-seed5").exists() and progress.step == 3:
            signal.raise_signal(signal.SIGINT)

    fields = FEW[3::2]
    with pytest.raises(Interrupted, match="`resnets resume r-seed5`, with all seeds by the same"):
        resnets.train(
            "digits", model="resnet8", overrides=fields, seed=4, seeds=2, run="r", on_progress=stop
        )
    results = [tmp_path / f"r-seed{seed}" / "result.json" for seed in (4, 5)]
    assert [path.exists() for path in results] == [True, False]
    before = results[0].stat().st_mtime_ns
    code, out, err = cli(*line)
    assert "run folder r-seed5" in err
    assert "run folder r-seed4" not in err  # which is finished
    (group,) = (found := json.loads(out))["seeds"]
    assert (code, group["runs"]) == (0, ["r-seed4", "r-seed5"])
    one, other = (json.loads(path.read_text())["error"] for path in results)
    assert group["mean"] == pytest.approx((one + other) / 2)
    assert group["deviation"] == pytest.approx(abs(one - other) / 2**0.5, rel=1e-3)
    half = 12.7062 * abs(one - other) / 2
    assert group["mean_interval_95"][1] == pytest.approx(group["mean"] + half, rel=1e-3)
    assert [row["steps"] for row in found["runs"]] == [6, 6]
    assert found["differences"]["seed"] == {"r-seed4": 4, "r-seed5": 5}
    assert results[0].stat().st_mtime_ns == before
    again = resnets.train(
        "digits", model="resnet8", overrides=fields, seed=4, seeds=2, run=tmp_path / "r"
    )
    assert again.compared["seeds"][0]["mean"] == group["mean"]
    code, _, err = cli(*line, "--set", "lr=0.3")
    assert code == 2
    assert "r-seed4 holds a run with other lr:" in err


@pytest.mark.parametrize("more", [["--seeds", "0"], ["--seeds", "2", "--devices", "2"]])
def test_seeds_that_cannot_be(cli, more):
    assert cli("train", "digits", *more)[0] == 2


def test_evaluate_repeats_the_result_of_the_run(cli, digits_run):
    code, out, _ = cli("evaluate", digits_run, "digits", "--json")
    assert code == 0
    there = json.loads((digits_run / "result.json").read_text())
    assert json.loads(out) == there
    code, text, _ = cli("evaluate", digits_run / "model.safetensors", "digits")
    assert code == 0
    assert f"{100 * there['error']:.2f} %" in text
    assert "precision" in text


def test_recipe_json_runs_again_exactly(cli, digits_run, tmp_path):
    assert cli("train", "digits", "--recipe", digits_run / "recipe.json", "--run", "again")[0] == 0
    for name in ("metrics.jsonl", "result.json"):
        assert (tmp_path / "again" / name).read_text() == (digits_run / name).read_text()


def test_resume_without_a_name_writes_a_report_that_is_missing(cli, digits_run, tmp_path):
    whole = shutil.copytree(digits_run, tmp_path / "runs" / "whole")
    assert cli("resume")[0] == 2  # none is unfinished
    (shutil.copytree(whole, whole.with_name("odd")) / "source.json").write_text("{")
    assert cli("resume")[0] == 2
    killed = shutil.copytree(whole, whole.with_name("killed"))
    for name in ("README.md", "report.html"):
        (killed / name).unlink()
    code, _, err = cli("resume")
    assert (code, "runs/killed" in err) == (0, True)
    assert (killed / "README.md").exists()
    assert (killed / "report.html").exists()
    assert (killed / "result.json").read_bytes() == (whole / "result.json").read_bytes()
    assert cli("resume")[0] == 2


def test_signs_that_a_stream_lacks_are_escaped(digits_run, tmp_path, monkeypatch):
    Image.new("L", (8, 8)).save(tmp_path / "bör 猫.png")
    stream = io.TextIOWrapper(io.BytesIO(), "latin-1")
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(SystemExit) as caught:
        main(["predict", str(digits_run), str(tmp_path / "bör 猫.png")])
    assert caught.value.code == 0
    assert "bör \\u732b.png" in stream.buffer.getvalue().decode("latin-1")


def test_predict_files_folders_globs_and_stdin(cli, digits_run, tmp_path, monkeypatch):
    folder = pictures(tmp_path / "pictures", per_class=2)
    code, out, _ = cli("predict", digits_run, folder, "--top", 2, "--json")
    assert code == 0
    rows = json.loads(out)
    assert len(rows) == 4
    assert all(len(row["classes"]) == 2 for row in rows)
    code, out, _ = cli("predict", digits_run, str(folder / "*" / "0.jpg"))
    assert (code, len(out.splitlines())) == (0, 2)
    data = (folder / "cat" / "0.jpg").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    code, out, _ = cli("predict", digits_run, "-", "--json")
    assert code == 0
    assert json.loads(out)[0]["classes"][:2] == rows[2]["classes"]


def test_a_broken_image_is_named_and_the_others_are_answered(cli, digits_run, tmp_path):
    folder = pictures(tmp_path / "pictures", per_class=1, broken=1)
    code, out, err = cli("predict", digits_run, folder)
    assert code == 3
    assert len(out.splitlines()) == 2
    assert err.count("broken0.jpg") == 2


def test_what_is_no_image_is_skipped_in_a_folder_and_refused_by_name(cli, digits_run, tmp_path):
    folder = pictures(tmp_path / "pictures", per_class=1)
    for name in ("notes.txt", "cat/list.csv"):
        (folder / name).write_text("no image")
    code, out, err = cli("predict", digits_run, folder)
    assert (code, len(out.splitlines())) == (0, 2)
    assert "2 files other than images are skipped, first" in err
    code, out, err = cli("predict", digits_run, folder / "notes.txt", folder / "cat" / "0.jpg")
    assert (code, len(out.splitlines())) == (3, 1)
    assert "notes.txt': not a JPEG" in err
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "notes.txt").write_text("no image")
    code, _, err = cli("predict", digits_run, "texts")
    assert (code, "texts holds no image; its files: 1" in err) == (3, True)


def test_grey_above_the_models_white_is_told(cli, digits_run, models_white, tmp_path):
    for name, value in (("a", 4095), ("b", 5000), ("c", 180)):
        image = Image.fromarray(np.full((8, 8), value, np.uint16))
        (tmp_path / "data" / name).mkdir(parents=True)
        image.save(tmp_path / "data" / name / "0.png")
    told = "1 of 3 images has values above 4,095, which is white to the model: they become white"
    code, _, err = cli("predict", models_white, "data")
    assert (code, err.count(told)) == (0, 1)
    assert "data/b/0.png (up to 5,000)" in err
    code, _, err = cli("evaluate", models_white, "data", "--split", "all")
    assert (code, err.count(told)) == (0, 1)
    assert "become white" not in cli("predict", digits_run, "data")[2]
    shutil.copytree("data", "again")  # Python does not repeat the same words
    code, _, err = cli("explain", models_white, "again", "--out", "why")
    assert (code, err.count(told)) == (0, 1)


@pytest.mark.parametrize("utf8", ["0", "1"])
def test_a_path_shows_as_it_was_typed_in_the_c_locale(tmp_path, utf8):
    environment = {"LC_ALL": "C", "PYTHONUTF8": utf8, "PATH": os.environ["PATH"]}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-m", "resnets", "data", "info", "bör 猫"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, env=environment, check=False)
    assert done.returncode == 3
    assert "no data 'bör 猫', neither" in done.stderr.decode()


def test_a_wrong_field_in_a_runs_recipe_is_named_with_its_file(cli, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.json").write_text('{"model": "resnet8", "lrr": 1}')
    code, _, err = cli("resume", "run")
    assert code == 2
    assert "run/recipe.json: unknown field 'lrr': did you mean lr?" in err


def test_a_missing_input_does_not_lose_the_answers_for_the_others(cli, digits_run, tmp_path):
    folder = pictures(tmp_path / "a [1] {b}", per_class=1)
    code, out, err = cli("predict", digits_run, "no.png", folder / "*" / "0.jpg", folder / "cat")
    assert code == 3
    assert len(out.splitlines()) == 3
    assert "no.png" in err


def test_the_command_that_is_named_after_a_training_works(cli, tmp_path):
    for split in ("train", "val"):
        pictures(tmp_path / "my pets" / split, per_class=8)
    few = ["--size", "16", "--batch", "8", "--set", "steps=2", "--workers", "0"]
    code, _, err = cli("train", "my pets", "--model", "resnet8", "--run", "r", *few)
    assert code == 0
    command = shlex.split(re.search(r"resnets evaluate (.*)", err)[1])
    assert command[-2:] == ["--split", "val"]
    assert cli("evaluate", *command, "--workers", "0")[0] == 0


def test_a_folder_with_broken_files_is_trained_and_each_is_named(cli, tmp_path):
    folder = pictures(tmp_path / "pets", per_class=20, broken=2)
    small = ["--set", "size=32", "--set", "steps=4", "--set", "batch=8", "--workers", "0"]
    code, _, err = cli("train", folder, *small)
    assert code == 3
    assert "4 of 44" in err
    assert "max_unreadable" in err
    code, _, err = cli("train", folder, *small, "--set", "max_unreadable=0.2", "--run", "r")
    assert code == 0
    for name in ("bird", "cat"):
        for i in range(2):
            assert f"{name}/broken{i}.jpg" in err
            assert f"{name}/broken{i}.jpg" in (tmp_path / "r" / "bad_files.csv").read_text()
    assert len((tmp_path / "r" / "split.csv").read_text().splitlines()) == 41
    code, out, _ = cli("evaluate", "r", folder, "--max-unreadable", "0.2", "--json")
    assert code == 0
    assert len(json.loads(out)["unreadable"]) == 4


def bad_pickle(path):
    class Evil:
        def __reduce__(self):
            return os.system, ("touch canary",)

    torch.save({"state_dict": {"conv1.weight": Evil()}}, path)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["train", "digit"], 3, "digits"),
        (["train", "digits", "--model", "resnet5O"], 2, "resnet50"),
        (["train", "digits", "--recipe", "paper-cifar"], 2, "paper-cifar10"),
        (["train", "digits", "--set", "lrr=1"], 2, "lr"),
        (["train", "digits", "--set", "lr=quick"], 2, "lr"),
        (["train", "digits", "--set", "lr"], 2, "FIELD=VALUE"),
        (["train", "digits", "--set", "batch=0", "--set", "lr=nan"], 2, "batch"),
        (["train", "digits", "--epochs", "-1"], 2, "epochs"),
        (["train", "digits", "--device", "cuda:9"], 2, "--device cuda:9"),
        (["train", "digits", "--model", "mlp_resnet"], 2, "2-D images"),
        (["train", "digits", "--model", "resnet18_1d"], 2, "2-D images"),
        (["train", "digits", "--recipe", "list.json"], 2, "not a table"),
        (["train", "digits", "--recipe", "paper-cifar10", "--set", "size=16"], 2, "normalize"),
        (["train", "cats", "--run", "cats/run", *FEW], 2, "--run"),
        (["train", "digits", "--workers", "-1"], 2, "workers"),
        (["evaluate", "evil.pth", "digits", "--batch", "0"], 2, "batch"),
        (["predict", "evil.pth", "--tpo", "3"], 2, "--tpo"),
        (["evaluate", "evil.pth", "digits", "--tpo", "3"], 2, "--tpo"),
        (["explain", "evil.pth", "x.png", "--out", "why", "--tpo", "3"], 2, "--top"),
        (["train", "digits", "--epochs", "many"], 2, "many"),
        (["trian", "digits"], 2, "train"),
        (["train", "digits", "--modle", "resnet18"], 2, "--model"),
        (["train", "empty"], 3, "empty"),
        (["train", "single"], 3, "two"),
        (["evaluate", "nothing", "digits"], 2, "nothing"),
        (["evaluate", "text.pth", "digits"], 4, "text.pth"),
        (["evaluate", "evil.pth", "digits"], 4, "evil.pth"),
        (["predict", "evil.pth"], 2, "no input"),
        (["resume"], 2, "no unfinished run"),
        (["runs", "ls", "--set"], 2, "--set"),
        (["data", "get", "mnist"], 2, "cifar10"),
    ],
)
def test_bad_input_is_told_in_three_lines_with_its_exit_code(cli, tmp_path, arguments, code, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.json").write_text("[1]")
    pictures(tmp_path / "cats")
    pictures(tmp_path / "single", classes=("only",))
    (tmp_path / "text.pth").write_text("not a checkpoint")
    bad_pickle(tmp_path / "evil.pth")
    got, _, err = cli(*arguments)
    assert got == code, err
    assert words in err
    assert len(err.strip().splitlines()) <= 3
    assert "Traceback" not in err
    assert not (tmp_path / "canary").exists()


def test_a_model_of_other_classes_is_refused(cli, digits_run, tmp_path):
    folder = pictures(tmp_path / "pets")
    code, _, err = cli("evaluate", digits_run, folder, "--split", "train")
    assert code == 4
    assert "bird" in err


@pytest.mark.slow
def test_a_grey_network_of_others_reads_colour_and_the_other_way(cli, tmp_path):
    for channels in (1, 3):
        network = resnets.create("resnet8", classes=10, channels=channels)
        torch.save(network.state_dict(), tmp_path / f"{channels}.pth")
        for normalize in ("imagenet", "data", "none"):
            code, out, err = cli(
                "evaluate", f"{channels}.pth", "digits", "--normalize", normalize, "--json"
            )
            assert (code, json.loads(out)["images"]) == (0, 898), err


def test_a_guess_is_settled_where_a_model_is_used(cli, digits_run, tmp_path):
    """A plain network and one with shortcuts have the same tensors, and other answers."""
    plain = resnets.create("plain20", classes=10, channels=1)
    torch.save(plain.state_dict(), "w.pth")
    settled, images = ["--set", "arch.shortcut=none"], tmp_path / "x.png"
    Image.new("L", (8, 8), 99).save(images)
    answers = [cli("predict", "w.pth", images, "--json", *more)[1] for more in ([], settled)]
    assert answers[0] != answers[1]
    wrong = [
        ("evaluate", "w.pth", "digits"),
        ("explain", "w.pth", images, "--out", "o"),
        ("analyze", "signal", "w.pth", "--out", "a"),
        ("predict", digits_run, images),  # which says what it is
    ]
    for line in wrong:
        code, _, err = cli(*line, "--set", "arch.act=gelu")
        assert (code, "arch.act" in err) == (2, True), err


def test_a_folder_that_the_model_never_saw_is_not_split_in_silence(cli, tmp_path):
    folder = pictures(tmp_path / "pets", per_class=20)
    small = ["--set", "size=32", "--set", "steps=2", "--set", "batch=8", "--model", "resnet8"]
    assert cli("train", folder, "--run", "r", "--workers", "0", *small)[0] == 0
    new = pictures(tmp_path / "new", per_class=3)
    code, _, err = cli("evaluate", "r", new)
    assert code == 2
    assert "--split all" in err
    code, out, _ = cli("evaluate", "r", new, "--split", "all", "--json", "--workers", "0")
    assert (code, json.loads(out)["images"]) == (0, 6)


def test_images_of_the_training_are_named_where_they_are_evaluated(cli, tmp_path):
    folder = pictures(tmp_path / "pets", per_class=20)
    small = ["--set", "size=32", "--set", "steps=2", "--set", "batch=8", "--model", "resnet8"]
    assert cli("train", folder, "--run", "r", "--workers", "0", *small)[0] == 0
    for split, images in (("all", 40), ("train", 32)):
        code, _, err = cli("evaluate", "r", folder, "--split", split, "--workers", "0")
        assert (code, f"trained on 32 of these {images} images" in err) == (0, True), err
    assert "trained on" not in cli("evaluate", "r", folder, "--workers", "0")[2]
    code, _, err = cli("evaluate", folder, "r")
    assert (code, "model comes first" in err) == (2, True)


def test_a_run_resumes_from_another_folder_and_not_on_other_data(cli, tmp_path, monkeypatch):
    folder = pictures(tmp_path / "pets", per_class=20)
    small = ["--set", "size=32", "--set", "steps=2", "--set", "batch=8", "--model", "resnet8"]
    assert cli("train", "pets", "--run", "r", "--workers", "0", *small)[0] == 0
    (tmp_path / "r" / "result.json").unlink()  # as if it was ended just before
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert cli("resume", "../r", "--workers", "0")[0] == 0
    assert (tmp_path / "r" / "result.json").exists()
    (tmp_path / "r" / "result.json").unlink()
    (folder / "cat" / "0.jpg").unlink()
    code, _, err = cli("resume", "../r", "--workers", "0")
    assert code == 3
    assert "has changed" in err


def test_the_bar_on_a_terminal(monkeypatch):
    text = io.StringIO()
    monkeypatch.setattr(terminal, "quiet", False)
    monkeypatch.setattr(
        terminal, "err", Console(file=text, force_terminal=True, width=120, highlight=False)
    )
    with terminal.training_bar() as update:
        report = ProgressReport(
            step=3, steps=9, epoch=0.5, images_per_second=812.0, remaining_seconds=61.0, lr=0.1
        )
        update(report)
        update(replace(report, loss=1.5, train_error=0.25, notes=("set aside",)))
    assert "25.00 %" in text.getvalue()
    assert "set aside" in text.getvalue()


def test_dry_run_as_json(cli):
    code, out, _ = cli("train", "digits", "--dry-run", "--json", *FEW)
    assert code == 0
    assert json.loads(out)["network"] == "resnet8, 8 layers"


def test_verbose_shows_the_traceback(cli):
    _, _, err = cli("-v", "train", "nothing-like-this")
    assert "Traceback" in err


def test_models_lists_counts(cli):
    code, out, _ = cli("models", "resnet50", "--json")
    assert code == 0
    rows = {row["name"]: row for row in json.loads(out)}
    assert rows["resnet50"]["parameters"] == 25_557_032
    assert rows["wide_resnet50_2"]["depth"] == 50
    code, out, _ = cli("models", "resnet1*")
    names = re.findall(r"^(\S+)", out, re.MULTILINE)[1:]
    assert names.index("resnet18") < names.index("resnet101") < names.index("resnet1202")


def test_runs_ls(cli, digits_run):
    code, out, _ = cli("runs", "ls", digits_run.parent, "--json")
    assert code == 0
    assert [row["finished"] for row in json.loads(out)] == [True]


def test_runs_ls_says_which_images_an_error_is_of(cli, tmp_path):
    for split in ("test", "val"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "recipe.json").write_text('{"data": "digits", "model": "resnet8"}')
        (tmp_path / split / "result.json").write_text(json.dumps({"split": split, "error": 0.25}))
    rows = json.loads(cli("runs", "ls", tmp_path, "--json")[1])
    assert [(r["val_error"], r["test_error"]) for r in rows] == [(None, 0.25), (0.25, None)]
    code, out, _ = cli("runs", "ls", tmp_path)
    assert (code, out.count("25.00 %")) == (0, 2)


def test_a_damaged_run_does_not_hide_the_others(cli, tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.json").write_text('{"data": "digits", "model": "resnet8"}')
    (tmp_path / "a" / "metrics.jsonl").write_text("[1, 2\n{}\n")
    (tmp_path / "b" / "recipe.json").write_text('{"data": "digits"}')
    code, out, _ = cli("runs", "ls", tmp_path, "--json")
    assert code == 0
    rows = json.loads(out)
    assert [row["model"] for row in rows] == ["?", "?", "resnet8"]
    assert "metrics.jsonl" in rows[0]["data"]
    assert "model" in rows[1]["data"]
    assert cli("runs", "ls", tmp_path)[0] == 0


def test_data_info(cli):
    code, out, _ = cli("data", "info", "digits", "--json")
    assert code == 0
    assert sum(map(sum, json.loads(out)["images"].values())) == 1797


def test_what_a_source_notes_is_said_by_info_check_and_plan(cli, monkeypatch):
    noted = replace(dataset.load("digits"), notes=("2 files left out, first a.txt",))
    monkeypatch.setattr(dataset, "load", lambda *_, **__: noted)
    assert "note: 2 files left out, first a.txt" in cli("data", "info", "digits")[1]
    assert json.loads(cli("data", "info", "digits", "--json")[1])["notes"] == list(noted.notes)
    code, out, _ = cli("data", "check", "digits", "--json")
    row = {"place": "digits", "problem": "2 files left out, first a.txt", "refused": False}
    assert (code, json.loads(out)) == (0, [row])
    plan = cli("train", "digits", "--dry-run", "--set", "steps=1", "--model", "resnet8")
    assert "2 files left out, first a.txt" in "".join(map(str, plan))


def test_doctor(cli):
    code, out, _ = cli("doctor", "--quick", "--json")
    assert code == 0
    assert set(json.loads(out)) >= {
        "torch", "processor", "features", "gpu", "memory", "disk", "training kernels",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143)],
)
@pytest.mark.slow
def test_a_signal_saves_and_resume_goes_on(tmp_path, number, code):
    command = [sys.executable, "-m", "resnets"]
    steps = ["--model", "resnet8", "--set", "size=8", "--set", "steps=200", "--set", "eval_every=1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "train", "digits", "--run", "r", *steps],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = tmp_path / "r" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "resnets resume r" in err
    done = subprocess.run(
        [*command, "-q", "resume", "r", "--json"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["images"] == 898
    assert [row["step"] for row in map(json.loads, log.read_text().splitlines())][-1] == 200


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["evaluate"], ("Side length of the input", "ten-crop,flip", "Images per forward pass")),
        (["localize", "evaluate"], ("Box refinement", "Image scales", "five candidate classes")),
        (["segment", "predict"], ("Images per forward pass", "Mean and standard deviation")),
    ],
)
def test_options_that_verbs_share_are_explained(cli, command, words):
    _, out, _ = cli(*command, "--help")
    text = " ".join(out.replace("│", " ").split())
    assert all(word in text for word in words)


def test_what_python_sets_is_what_the_command_line_sets():
    said = [["schedule=step", "augment.flip=true", "milestones=0.5,0.75"],
            {"schedule": "step", "augment.flip": True, "milestones": [0.5, 0.75]}]  # fmt: skip
    one, other = (resnets.plan("digits", model="resnet8", overrides=x).recipe for x in said)
    assert one == other
    assert (one.schedule, one.augment.flip, one.milestones) == ("step", True, (0.5, 0.75))


def test_python_has_the_same_verbs(digits_run):
    model = resnets.load(digits_run)
    assert model.metadata.classes == tuple("0123456789")
    network = resnets.create("resnet20", classes=7)
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    with pytest.raises(AttributeError):
        resnets.nothing  # noqa: B018
    assert Path(resnets.__file__).with_name("py.typed").exists()

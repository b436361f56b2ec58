"""The Python of docs/python.md and docs/extending.md runs as it stands there."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

import resnets
from resnets.data import dataset
from resnets.errors import UsageError

DOCS = Path(__file__).parents[1] / "docs"


def run_section(page: str, title: str = "") -> dict[str, object]:
    """What the blocks of a section, or of the whole page, define; one after the other."""
    text = (DOCS / page).read_text()
    if title:
        text = text.split(f"## {title}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {"__name__": "docs"}
    exec(compile("\n".join(blocks), page, "exec"), names)
    return names


@pytest.mark.slow
def test_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RESNETS_DATA", str(tmp_path / "cache"))
    names = run_section("python.md")
    assert names["result"].split == "all"
    assert names["model"].predict(names["images"][0]).file == "input 0"


@pytest.mark.slow
def test_a_block_of_your_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_section("extending.md", "A custom block")
    assert names["outcome"].result.images == 898
    assert len(names["model"].metadata.classes) == 10
    text = (DOCS / "extending.md").read_text()
    block = text[text.index("class AttentionBlock") : text.index("network = resnets.create")]
    assert len(block.strip().splitlines()) < 30


@pytest.mark.slow
def test_a_loss_of_your_own_is_asked_for_when_its_run_is_resumed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_section("extending.md", "A custom loss")
    run = names["outcome"].run
    model = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="trained with a custom make_loss"):
        resnets.resume(run)
    other = resnets.plan("digits", model="resnet8", epochs=2)
    with pytest.raises(UsageError, match=r"another recipe than .*recipe\.json"):
        resnets.resume(run, data=other)
    resnets.resume(run, data=names["plan"])
    assert (run / "model.safetensors").read_bytes() == model


@pytest.mark.slow
def test_a_metric_of_your_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_section("extending.md", "A custom metric")
    rows = (names["outcome"].run / "metrics.jsonl").read_text().splitlines()
    logged = json.loads(rows[-1])["val_top3"]
    right = (names["best"] == names["scores"].labels[:, None]).any(1).float().mean()
    assert logged == pytest.approx(float(right), abs=5e-3)  # bfloat16 or float32


@pytest.mark.slow
def test_the_loop_in_your_hands(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    names = run_section("extending.md", "The loop in your hands")
    assert list(Path("events").iterdir())
    assert Path("runs/mine/report.html").exists()
    assert names["progress"].step == names["progress"].steps


@pytest.mark.slow
def test_a_data_format(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RESNETS_DATA", str(tmp_path / "cache"))
    for name in ("a.png", "b.png"):
        Image.new("RGB", (32, 32)).save(name)
    names = run_section("extending.md", "A custom data format")
    assert names["outcome"].result.images == 20
    assert names["outcome"].result.classes == ("dark", "bright")
    source = dataset.load("boxes.csv", task="detect", training=False)
    assert source.classes == ("cell",)
    assert source.files == 2


def test_a_loop_that_is_left_early_is_resumed(tmp_path):
    plan = resnets.plan(
        "digits", model="resnet8", recipe="digits", device="cpu",
        overrides={"steps": 6, "size": 8, "batch": 8, "eval_every": 0.01},
    )  # fmt: skip
    for progress in resnets.fit(plan, run=tmp_path / "run"):
        assert progress.run == tmp_path / "run"
        if progress.step >= 2:
            break
    assert not (tmp_path / "run" / "result.json").exists()
    with pytest.raises(UsageError, match="already holds a run"):
        resnets.fit(plan, run=tmp_path / "run")
    assert resnets.plan(plan) is plan
    assert resnets.resume(tmp_path / "run", device="cpu").result.images == 898

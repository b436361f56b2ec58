"""A task that the package does not have, as docs/extending.md writes it: one number an image."""

import re
from pathlib import Path

import pytest
import torch

import resnets
from resnets.config.recipes import replace_fields
from resnets.data.splits import Split, in_memory
from resnets.errors import UsageError
from resnets.models.io.model_file import load
from resnets.training import checkpoint, tasks
from resnets.training.resolve import resolve
from tests.training._helpers import run_to

PAGE = Path(__file__).parents[3] / "docs" / "extending.md"
CPU = torch.device("cpu")


def python_blocks():
    section = PAGE.read_text().split("## A custom task")[1].split("\n## ")[0]
    return re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def regression():
    names = {"__name__": "regression"}
    exec(compile(python_blocks()[0], str(PAGE), "exec"), names)
    return names["REGRESSION"]


def bright(count, seed):
    """Images of 8 x 8 pixels; the label is their brightness, in 0..1."""
    generator = torch.Generator().manual_seed(seed)
    levels = torch.rand(count, generator=generator)
    noise = torch.rand(count, 1, 8, 8, generator=generator) - 0.5
    images = (255 * (levels[:, None, None, None] + 0.2 * noise)).clamp(0, 255).byte()
    return Split(images, levels)


def planned(task, steps=40):
    source = in_memory("bright", ("brightness",), bright(256, 0), bright(64, 1))
    recipe = task.default_recipe(source, source.train, CPU)
    recipe = replace_fields(recipe, {"steps": steps, "eval_every": 2, "ema": 0.5})
    return resolve(recipe, source, CPU, 0, task=task)


def test_it_learns_by_the_real_loop(regression, tmp_path):
    plan = planned(regression)
    assert plan.arch.classes == 1
    assert plan.train.labels.dtype == torch.float32
    rows = run_to(tmp_path / "run", plan).rows("metrics.jsonl")
    losses = [row["loss"] for row in rows]
    assert losses[-1] < losses[0] / 4
    assert rows[-1]["train_error"] < rows[0]["train_error"]


def test_a_resume_is_bit_equal(regression, tmp_path):
    whole = run_to(tmp_path / "whole", planned(regression, 12))
    halves = run_to(tmp_path / "halves", planned(regression, 12), stop_after=5)
    assert checkpoint.read_newest(halves.path / "checkpoints").progress.step < 12
    run_to(halves.path, planned(regression, 12))
    one, other = (
        checkpoint.read_newest(run.path / "checkpoints").tensors for run in (whole, halves)
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_its_result_model_and_report_name_it(regression, tmp_path, monkeypatch):
    monkeypatch.setitem(tasks.TASKS, "regress", regression)
    outcome = resnets.train(planned(regression), run=tmp_path / "run")
    assert outcome.task == "regress"
    assert outcome.result.error < 0.15  # levels are uniform in 0..1: 0.25 by their mean alone
    _, card = load(tmp_path / "run" / "model.safetensors")
    assert card.provenance["task"] == "regress"
    for page in ("report.html", "README.md"):
        assert "Mean absolute error" in (tmp_path / "run" / page).read_text()
    monkeypatch.delitem(tasks.TASKS, "regress")
    with pytest.raises(UsageError, match="no task 'regress'"):
        resnets.report(tmp_path / "run")


@pytest.mark.slow
def test_the_whole_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tasks, "TASKS", dict(tasks.TASKS))
    names = {"__name__": "regression"}
    for block in python_blocks():
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["outcome"].result.error < 0.05

"""Runs that 0.1.0 began, whose recipe.json has the old names of the fields, go on."""

import json
from dataclasses import asdict, replace

import pytest

import resnets
from resnets.config.recipe import OLD_FIELDS, Augment, Recipe, to_dict
from resnets.errors import UsageError
from resnets.evaluation.evaluate import TrainingData
from resnets.tensor_files import digest
from resnets.training import checkpoint, runner, tune
from resnets.training.run import Run
from resnets.training.tune import Trial
from tests.training._helpers import run_to

FIELDS = {
    "model": "resnet8", "size": 8, "steps": 4, "batch": 16, "val_fraction": 100, "ema": 0.9,
    "micro_batch": 8, "select": "best", "early_stop_patience": 9, "progressive_from": 4,
    "schedule": "step", "milestones": [0.5], "gamma": 0.5, "eval_every": 0.025,
    "precision": "float32",
    "augment": {"policy": "randaugment", "random_erasing": 0.5, "repeated_aug": 2},
}  # fmt: skip


def old_names(recipe):
    """A recipe.json as 0.1.0 wrote it."""
    old = {new: old for old, new in OLD_FIELDS.items()}
    augment = recipe["augment"].items()
    nested = {old.get(f"augment.{k}", k).removeprefix("augment."): v for k, v in augment}
    return {old.get(k, k): v for k, v in recipe.items()} | {
        "augment": nested | {"policy": {"randaugment": "rand"}[nested["policy"]]}
    }


def tensors(run):
    found = checkpoint.read_newest(run.path / "checkpoints")
    return found.progress.step, {name: digest(value) for name, value in found.tensors.items()}


@pytest.mark.slow
def test_a_run_of_0_1_0_is_resumed_and_ends_as_the_unbroken_one(tmp_path, monkeypatch):
    monkeypatch.setattr("resnets.api.training.write_report", lambda *_, **__: None)
    plan = resnets.plan("digits", overrides=FIELDS)
    whole, halves = (runner.create_run(plan, tmp_path / name) for name in ("whole", "halves"))
    run_to(whole.path, plan)
    written = json.dumps(old_names(halves.read_json("recipe.json")))
    (halves.path / "recipe.json").write_text(written)
    run_to(halves.path, plan, stop_after=2)
    assert 2 <= tensors(halves)[0] < 4
    with pytest.warns(FutureWarning, match="micro is now micro_batch"):
        resnets.resume(halves.path)
    assert tensors(halves) == tensors(whole)
    assert (halves.path / "recipe.json").read_text() == written  # the identity of checkpoints
    logs = [(run.path / "metrics.jsonl").read_text() for run in (whole, halves)]
    assert logs[0] == logs[1]
    assert halves.finished


def test_a_model_file_of_0_1_0_is_tested_on_the_images_that_were_held_out():
    text = json.dumps(old_names({"holdout": 100, "seed": 3, "augment": {"policy": "randaugment"}}))
    assert TrainingData.model_validate_json(text) == TrainingData(val_fraction=100, seed=3)


def test_a_study_of_0_1_0_is_the_same_study(tmp_path):
    recipe = to_dict(Recipe(model="resnet8", augment=Augment(policy="randaugment")))
    space = {"stop_after": "0,3", "augment.policy": "none,trivial", "lr": "0.1:1:log"}
    study = {"recipe": old_names(recipe), "digest": "d", "space": space, "length": {}}
    Run(tmp_path).write_json("study.json", study)
    trial = Trial(1, {"stop_after": "3", "augment.policy": "trivial", "lr": 0.2}, "complete", 0.5)
    (tmp_path / "trial-0001").mkdir()
    Run(tmp_path / "trial-0001").write_json("trial.json", asdict(trial))
    today = study | {"recipe": json.loads(json.dumps(recipe))}
    today["space"] = {
        "early_stop_patience": "0,3", "augment.policy": "none,trivialaugment", "lr": "0.1:1:log",
    }  # fmt: skip
    asked = [f"{field}={values}" for field, values in space.items()]
    with pytest.warns(FutureWarning, match="stop_after is now early_stop_patience"):
        assert tune.search_ranges(Recipe(model="resnet8"), asked) == today["space"]
    tune.claim(Run(tmp_path), today)  # which refuses another study
    with pytest.raises(UsageError, match="other recipe"):
        tune.claim(Run(tmp_path), today | {"recipe": {}})
    (found,), _ = tune.read_trials(Run(tmp_path))
    fields = {"early_stop_patience": "3", "augment.policy": "trivialaugment", "lr": 0.2}
    assert found == replace(trial, fields=fields)

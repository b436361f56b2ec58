import csv
import importlib
import json
import shutil
import signal
import sys
from dataclasses import asdict, replace

import pytest
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

import resnets
from resnets.cli.main import main
from resnets.config import recipes
from resnets.errors import CheckpointError, Interrupted, MissingPackage, UsageError
from resnets.training import tune
from resnets.training.run import Run
from resnets.training.tune import Trial, best, distribution, propose, search_ranges

SPACE = ("lr=0.001:1:log", "batch=32,64")


def a_plan(**changes):
    few = {"size": 8, "steps": 6, "precision": "float32", "eval_every": 0.1} | changes
    return resnets.plan("digits", model="resnet8", overrides=few)


def run(folder, trials=3, search=SPACE, plan=None, **more):
    *_, done = resnets.tune(plan or a_plan(), run=folder, trials=trials, search=search, **more)
    return done


def ends(trials):
    return [replace(trial, seconds=0.0) for trial in trials]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune") / "study"
    return folder, run(folder)


def test_each_trial_is_a_run_that_never_saw_the_test_images(study):
    folder, done = study
    assert [t.state for t in done] == ["complete"] * 3
    for trial in done:
        path = folder / f"trial-{trial.number:04d}"
        recipe = json.loads((path / "recipe.json").read_text())
        assert (recipe["lr"], str(recipe["batch"])) == tuple(trial.fields.values())
        assert (recipe["monitor"], recipe["val_fraction"], recipe["seed"]) == ("val", 0.1, 0)
        result = json.loads((path / "result.json").read_text())
        assert (result["split"], result["images"]) == ("val", 90)
        assert result["error"] == trial.error
        assert (path / "model.safetensors").exists()


def test_the_table_and_the_best_recipe_say_the_same(study):
    folder, done = study
    with (folder / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["error"]) for row in rows] == [trial.error for trial in done]
    assert [float(row["lr"]) for row in rows] == [trial.fields["lr"] for trial in done]
    winner = recipes.read_recipe(str(folder / "best.json"))
    wanted = replace(a_plan().recipe, lr=best(done).fields["lr"])
    assert winner == replace(wanted, batch=int(best(done).fields["batch"]))


@pytest.mark.slow
def test_a_study_goes_on_and_ends_as_one_that_was_not_interrupted(study, tmp_path):
    _, done = study
    seen = []

    def interrupt(progress):
        seen.append(progress)
        if len(done_before(tmp_path)) == 1 and progress.step == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match="the same command") as caught:
        run(tmp_path, on_progress=interrupt)
    assert caught.value.exit_code == 130
    state = json.loads((tmp_path / "trial-0002/trial.json").read_text())
    assert state["state"] == "running"
    assert ends(run(tmp_path)) == ends(done)
    assert ends(run(tmp_path)) == ends(done)  # nothing is left to do
    assert len(run(tmp_path, trials=4)) == 4


def done_before(folder):
    return [p for p in folder.glob("*/trial.json") if "complete" in p.read_text()]


class Killed(BaseException):
    """What no handler catches."""


@pytest.mark.slow
@pytest.mark.parametrize("ended", ["complete", "pruned"])
def test_a_kill_before_the_end_of_a_trial_is_recorded_loses_nothing(tmp_path, monkeypatch, ended):
    """Its curve is what the pruner compares later trials with."""
    if ended == "pruned":
        better_ones(tmp_path)
    count = 6 if ended == "pruned" else 2
    plan, write = a_plan(steps=24), Run.write_json

    def killed(run, name, data):
        if data.get("state") == ended:
            (run.path / ".trial.json.0a1b2c3d.tmp").write_text("{")
            raise Killed
        write(run, name, data)

    search = ["lr=0.001:1:log"]
    with monkeypatch.context() as patch:
        patch.setattr(Run, "write_json", killed)
        with pytest.raises(Killed):
            run(tmp_path, trials=count, plan=plan, search=search)
    done = run(tmp_path, trials=count, plan=plan, search=search)
    assert list(tmp_path.rglob("*.tmp")) == []
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    if ended == "pruned":
        better_ones(tmp_path)
    assert ends(run(tmp_path, trials=count, plan=plan, search=search)) == ends(done)
    assert done[-1].state == ended
    assert len(done[-1].curve) > 2


def test_a_changed_trial_is_named(tmp_path):
    better_ones(tmp_path)
    path = tmp_path / "trial-0002" / "trial.json"
    path.write_text(path.read_text().replace("state", "stale"))
    with pytest.raises(CheckpointError, match=r"trial-0002/trial\.json: stale: "):
        run(tmp_path, trials=5)


def better_ones(folder):
    """Five trials that are hard to beat."""
    for number in range(1, 6):
        trial = Trial(number, {"lr": 0.1}, "complete", 0.01, 1.0, [0.01] * 6)
        (folder / f"trial-{number:04d}").mkdir()
        Run(folder / f"trial-{number:04d}").write_json("trial.json", asdict(trial))


def test_another_study_in_the_folder_is_refused(study):
    folder, _ = study
    with pytest.raises(UsageError, match="other space"):
        run(folder, search=["lr=0.01:1:log"])
    with pytest.raises(UsageError, match="other recipe"):
        run(folder, plan=a_plan(seed=1))
    with pytest.raises(UsageError, match="other length"):
        run(folder, budget=60.0)


def test_a_trial_behind_the_median_is_saved_and_stopped(tmp_path):
    plan = a_plan(steps=24)
    better_ones(tmp_path)
    *_, last = run(tmp_path, trials=6, plan=plan, search=["lr=0.001:1:log"])
    assert (last.state, last.error, len(last.curve)) == ("pruned", None, 3)
    assert list((tmp_path / "trial-0006/checkpoints").glob("step-*"))
    with pytest.raises(UsageError, match=f"resnets tune digits --run {tmp_path}"):
        resnets.resume(tmp_path / "trial-0006")  # it would be tested on the test images


@pytest.mark.slow
def test_a_trial_that_cannot_be_trained_is_the_worst_and_not_the_end(tmp_path):
    done = run(tmp_path, trials=2, search=["lr=1e30:2e30:log"])
    assert [(t.state, t.error) for t in done] == [("failed", 1.0)] * 2


@pytest.mark.slow
def test_the_trials_share_the_budget(tmp_path):
    plan = a_plan(steps=0, epochs=1000, eval_every=1000)
    done = run(tmp_path, trials=2, budget=8.0, plan=plan)
    for trial in done:
        recipe = json.loads((tmp_path / f"trial-{trial.number:04d}/recipe.json").read_text())
        assert recipe["budget"] == 4.0
    assert recipes.read_recipe(str(tmp_path / "best.json")).epochs == 1000


def test_what_is_proposed_is_a_function_of_the_seed_and_the_trials():
    space = {"lr": FloatDistribution(0.01, 1.0, log=True)}
    done = [Trial(1, {"lr": 0.1}, "complete", 0.2), Trial(2, {"lr": 0.3}, "pruned", curve=[0.5])]
    first, again = (propose(space, 3, done, []).params for _ in range(2))
    assert first == again
    assert propose(space, 4, done, []).params != first
    assert propose(space, 3, done[:1], []).params != first
    assert propose(space, 3, done, [Trial(3, {"lr": 0.77})]).params == {"lr": 0.77}


def test_ranges_are_of_the_kind_of_their_field():
    recipe = recipes.digits()
    assert distribution(recipe, "lr", "0.01:1:log") == FloatDistribution(0.01, 1.0, log=True)
    assert distribution(recipe, "warmup", "0:1") == FloatDistribution(0.0, 1.0)
    assert distribution(recipe, "augment.cutout", "0:4") == IntDistribution(0, 4)
    assert distribution(recipe, "batch", "64,128") == CategoricalDistribution(["64", "128"])
    assert search_ranges(recipe, ["lr"]) == {"lr": "0.01:1:log"}
    assert all(distribution(recipe, k, v) for k, v in search_ranges(recipe, []).items())


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ("rl=0.1:1", "unknown field 'rl'"),
        ("rl", "unknown field 'rl'"),
        ("warmup=0:0.1:0.2", "write FIELD"),
        ("lr=0:1", "greater than 0"),
        ("batch=a,b", "valid integer"),
        ("augment.flip=", "write FIELD"),
        ("lr=0:1:ln", "write FIELD"),
    ],
)
def test_a_wrong_range_is_told_before_anything_runs(asked, reason):
    recipe = recipes.digits()
    texts = search_ranges(recipe, [asked])
    with pytest.raises(UsageError, match=reason):
        [distribution(recipe, key, text) for key, text in texts.items()]


def test_without_optuna_the_install_line_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingPackage, match=r"pip install 'resnets\[tune\]'") as caught:
        importlib.reload(tune)
    assert caught.value.exit_code == 8


@pytest.mark.slow
def test_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    few = ["--model", "resnet8", "--set", "size=8", "--set", "steps=3"]
    with pytest.raises(SystemExit) as caught:
        main(["tune", "digits", *few, "--trials", "2", "--search", "lr"])
    out, err = capsys.readouterr()
    assert caught.value.code == 0
    assert out.count("complete") == 2
    assert "trial 2 of 2: complete" in err
    assert "optimistic" in err
    with pytest.raises(SystemExit):
        main(["-q", "train", "digits", "--recipe", "runs/digits-resnet8-tune/best.json"])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["tune", "digits", *few, "--rate-only", "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["rates"]) == len(answer["losses"])
    assert answer["suggestion"] < 1

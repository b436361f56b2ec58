import json
from pathlib import Path

import pytest
import torch

from resnets.config.recipe import Recipe
from resnets.errors import UsageError
from resnets.evaluation.scores import Scores
from resnets.reporting import compare, facts, report

from ._helpers import RIGHT, folder, two


def said(run, counts=()):
    return report.sentences(facts.read_facts(run), lambda index: f"image {index}", (), counts)


def row(epoch, train, test=None):
    errors = {"train_error": train} | ({} if test is None else {"test_error": test})
    return {"step": int(epoch), "epoch": epoch, "lr": 0.1, "loss": 1.0, **errors}


def test_the_headline_has_the_figure_and_its_interval(tmp_path):
    head, sure = facts.headline(facts.read_facts(folder(tmp_path / "a", said=two())))
    assert head == "resnet8 classifies 62.50\u00a0% of the test images of made correctly."
    start = "Tested on 8 images; the 95 % confidence interval (Wilson) is 30.57\u00a0% to "
    assert sure.startswith(start)


def test_an_unfinished_run_says_where_it_stands(tmp_path):
    run = folder(tmp_path / "a", rows=[row(2.0, 0.25)], ended=False)
    assert facts.headline(facts.read_facts(run)) == (
        "resnet8 on made is not trained to the end.",
        "It stands at epoch 2.0, training error 25.00\u00a0%.",
    )


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"recipe\.json"):
        facts.read_facts(compare.Run(tmp_path))


def test_what_the_answers_say(tmp_path):
    sentences = said(folder(tmp_path / "a", said=two()))
    assert "“dog” and “cat” are confused 3 times." in sentences  # two dogs and a cat
    assert "The weakest class is “dog”: 50.00\u00a0% of its images are found." in sentences
    sure = 100 * float(torch.maximum(RIGHT, 1 - RIGHT).double().mean())
    assert (
        "The network is over-confident, trust it less than it says: mean confidence "
        f"{sure:.2f}\u00a0%, accuracy 62.50\u00a0%."
    ) in sentences


def test_a_label_that_looks_wrong_is_named(tmp_path):
    labels = torch.arange(2).repeat(20)
    labels[7] = 0
    logits = 3.0 * torch.eye(2)[torch.arange(2).repeat(20)]
    logits[7] *= 2  # surely of class 1
    run = folder(tmp_path / "a", said=Scores(logits, labels, torch.arange(40) + 100, ("a", "b")))
    (found,) = [s for s in said(run) if "label" in s]
    assert found == "1 label may be wrong, look first at image 107 (“a”, looks like “b”)."


@pytest.mark.parametrize(
    ("errors", "words"),
    [
        ([0.5, 0.4, 0.3], "The test error was still falling, from 40.00\u00a0% to 30.00\u00a0%"),
        ([0.5, 0.2, 0.3], "The test error rose again, from 20.00\u00a0% to 30.00\u00a0%"),
        ([0.5, 0.3, 0.3], "It trained only 3.0 epochs"),
    ],
)
def test_too_short_or_too_long(tmp_path, errors, words):
    rows = [row(float(k), 0.1, error) for k, error in enumerate(errors, 1)]
    run = folder(tmp_path / "a", rows=rows, said=two(), recipe=Recipe(model="resnet8", data="made"))
    sentences = said(run)
    assert any(s.startswith(words) for s in sentences)
    assert sentences[0].startswith("The test split was evaluated 3 times during training")


def test_less_than_an_epoch_is_told(tmp_path):
    recipe = Recipe(model="resnet8", data="made", budget=20)
    run = folder(tmp_path / "a", rows=[row(0.25, 0.1, 0.5)], said=two(), recipe=recipe)
    words = "It saw less than one epoch in 20 seconds: 75.00\u00a0% of the training images"
    assert any(s.startswith(words) for s in said(run))


def test_rare_classes_and_tests_on_the_test_split_are_told(tmp_path):
    run = folder(tmp_path / "a", said=two())
    for name in ("opened.jsonl", "test_access.jsonl"):  # the first is that of 0.1.0
        run.append(name, {})
    sentences = said(run, counts=[1200, 100])
    assert (
        "Training has 1,200 of “cat” and 100 of “dog”: class_weights=balanced may help."
        in sentences
    )
    assert sentences[0].startswith("The test split was evaluated 2 times for a result; each use")


def test_two_runs_side_by_side(tmp_path):
    better = two()
    better.logits[6:] = better.logits[6:].flip(1)  # the two dogs that were cats
    one = folder(tmp_path / "a", said=two())
    other = folder(tmp_path / "b", said=better, recipe=Recipe(model="resnet8", data="made", lr=0.2))
    rows = {
        r.pop("what"): list(r.values()) for r in compare.table_rows(compare.compare([one, other]))
    }
    assert rows["lr"] == ["0.1", "0.2"]
    against = "this network against the first (not their recipes)"
    assert set(rows) == {"error", against, "lr"}
    assert rows["error"][1].startswith("12.50\u00a0% (")
    # Both changes are for the better: p = 2 / 2**2.
    assert rows[against][0] == "-"
    assert rows[against][1].startswith("+25.00 points right (")
    assert rows[against][1].endswith("p = 0.5, 2 newly right, 0 newly wrong")


def test_folds_of_one_recipe_are_a_group(tmp_path):
    recipes = [Recipe(model="resnet8", data="made", folds=2, fold=fold) for fold in (0, 1)]
    runs = [folder(tmp_path / str(r.fold), said=two(), recipe=r) for r in recipes]
    (group,) = (found := compare.compare(runs))["seeds"]
    assert (group["over"], group["mean"]) == ("folds", 0.375)
    assert any("over 2 folds" in row["what"] for row in compare.table_rows(found))


def test_seeds_of_one_recipe_are_a_group(tmp_path):
    """Errors of 37.5, 12.5 and 37.5 %: mean 29.17, s = 14.43, t(0.975, 2) = 4.3027."""
    better = two()
    better.logits[6:] = better.logits[6:].flip(1)
    runs = [
        folder(tmp_path / f"{s}", said=x, recipe=Recipe(model="resnet8", data="made", seed=s))
        for s, x in enumerate((two(), better, two()))
    ]
    runs.append(
        folder(tmp_path / "x", said=two(), recipe=Recipe(model="resnet8", data="made", lr=1))
    )
    found = json.loads(json.dumps(compare.compare(runs)))
    (group,) = found["seeds"]
    assert group["runs"] == [str(run.path) for run in runs[:3]]
    assert group["mean"] == pytest.approx(7 / 24)
    assert group["over"] == "seeds"
    assert group["deviation"] == pytest.approx(0.1443376)
    half = 4.302653 * 0.1443376 / 3**0.5
    assert group["mean_interval_95"] == pytest.approx([7 / 24 - half, 7 / 24 + half], rel=1e-5)
    assert found["schema"] == 1
    assert [row["error"] for row in found["runs"]] == [0.375, 0.125, 0.375, 0.375]
    assert found["networks_against_the_first"][0]["difference"] == 0.25
    assert found["differences"]["seed"][str(runs[1].path)] == 1


@pytest.mark.parametrize("names", [["a"], ["a", "a"]])
def test_a_comparison_needs_two_runs(tmp_path, names):
    folder(tmp_path / "a")
    with pytest.raises(UsageError, match="two runs or more"):
        compare.compare([compare.Run(tmp_path / name) for name in names])


def test_a_folder_may_be_called_as_the_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ("a", "what")
    for seed, name in enumerate(names):
        folder(tmp_path / name, recipe=Recipe(model="resnet8", data="made", seed=seed))
    rows = compare.table_rows(compare.compare([compare.Run(Path(name)) for name in names]))
    assert {"what": "seed", "a": "0", "./what": "1"} in rows
    with pytest.raises(UsageError, match="each once"):
        compare.compare([compare.Run(Path("a")), compare.Run(tmp_path / "a")])


@pytest.mark.parametrize(
    ("trial", "words"), [(False, "There is no test split: "), (True, "Test images are kept away")]
)
def test_figures_of_validation_images_say_why(tmp_path, trial, words):
    run = folder(tmp_path / "a", said=two())
    run.write_json("result.json", run.read_json("result.json") | {"split": "val"})
    if trial:
        run.write_json("trial.json", {})
    assert said(run)[0].startswith(words)

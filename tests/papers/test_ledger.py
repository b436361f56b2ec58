"""What rows of the ledger say of the protocol and of the recipe."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from resnets.config.recipe import Augment, Recipe
from resnets.papers import ledger, reproduce, results
from resnets.papers.budgets import Job, changed_fields, jobs
from resnets.papers.experiment import Arm, Experiment
from resnets.papers.experiments import get_experiment
from resnets.training import checkpoint
from resnets.training.distributed import SINGLE_PROCESS
from resnets.training.log import open_events
from resnets.training.run import Run
from resnets.training.saver import Saver
from resnets.training.state import TrainProgress

ROOT = Path(__file__).parents[2]
RECIPE = Recipe(model="resnet8", data="digits", size=8, steps=2, batch=32, precision="float32")
ONE = Experiment(id="t.one", title="One", arms=(Arm(name="resnet8", recipe=RECIPE),))
CHANGED = [
    "step 7 was left out: it was not finite",
    "3 steps to 9, or the state, are not finite: back to the newest checkpoint, at 0.5 times "
    "the rate",
    "out of memory: from step 4 on 16 images in a forward pass, 32 in a step as before",
    "best.safetensors is gone: the best state after this one is the result, or the last",
]


def harmless_notes(folder, monkeypatch):
    """The notes of a run whose disk failed beside the training, as the code writes them."""
    run, notes = Run(folder), list[str]()
    run.create()
    for step in (1, 2):
        checkpoint.write(run.path / "checkpoints", {"w": torch.ones(2)}, TrainProgress(step=step))
    (checkpoint.list_finished(run.path / "checkpoints")[-1] / "state.json").write_text("{")
    notes += checkpoint.read_newest(run.path / "checkpoints").problems
    (run.path / "timing.jsonl").write_text("no JSON\n")
    notes += [run.truncate(name, 1, (3, "0" * 64)) for name in ("metrics.jsonl", "timing.jsonl")]

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write", full)
    saver = Saver(run, SINGLE_PROCESS)
    saver.write({"w": torch.ones(2)}, TrainProgress(step=3))
    saver.wait()
    notes += saver.new_failures()
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter", full)
    open_events(run.path / "tensorboard", 1, notes)
    return notes


def test_notes_of_files_beside_the_training_do_not_change_it(tmp_path, monkeypatch):
    notes = harmless_notes(tmp_path / "run", monkeypatch)
    assert len(notes) == 5
    assert [note for note in notes if ledger.changes_training(note)] == []
    assert all(map(ledger.changes_training, CHANGED))
    assert ledger.changes_training("a note that nobody knows")


@pytest.mark.parametrize(
    ("note", "protocol"),
    [
        (None, "paper"),
        ("step-00000002 is damaged: {}; the one before it is used", "paper"),
        ("step-00000002 is damaged: {}; the one before it is taken", "paper"),  # an older run's
        ("metrics.jsonl is gone: what it said up to step 9 is lost", "paper"),
        (CHANGED[0], False),
    ],
)
def test_only_a_note_that_changes_the_training_takes_a_run_out_of_the_papers_column(
    tmp_path, note, protocol
):
    job = Job(ONE, ONE.arms[0], "full", 0)
    run = Run(tmp_path / "run")
    run.create()
    arch = {"kind": "resnet", "blocks": [1, 1, 1], "widths": [16, 32, 64]}
    run.write_json("source.json", {"data": "digits", "digest": "d", "arch": arch})
    run.write_json("result.json", {"error": 0.1})
    run.write_json("recipe.json", {"precision": "float32"})
    run.write_json("cost.json", {"seconds": 1.0})
    run.append("metrics.jsonl", {"step": 2, "train_error": 0.5})
    if note:
        run.append("notes.jsonl", {"step": 1, "note": note})
    row = reproduce.describe_run(job, RECIPE, run, tmp_path)
    assert row["protocol"] == protocol
    assert row["notes"] == ([note] if note else [])


def test_a_row_of_another_recipe_is_not_the_jobs_and_one_without_a_digest_is():
    job = Job(ONE, ONE.arms[0], "full", 0)
    row = job.key | {"precision": "float32"}
    assert job.ledger_rows([row]) == [row]
    assert job.ledger_rows([row | {"recipe": job.recipe_digest}])
    assert not job.ledger_rows([row | {"recipe": "0" * 64}])
    faster = replace(job, arm=replace(job.arm, recipe=replace(RECIPE, lr=0.2)))
    assert faster.key == job.key
    assert not faster.ledger_rows([row | {"recipe": job.recipe_digest}])
    for same in (replace(job, precision="bfloat16"), replace(job, data="there")):
        assert same.recipe_digest == job.recipe_digest


def test_the_digest_is_of_the_fields_that_differ_from_their_defaults():
    defaults = {"lr": 0.1, "batch": 128, "augment": {"flip": False, "pad": 4}}
    fields = {"lr": 0.2, "batch": 128, "augment": {"flip": True, "pad": 4}}
    assert changed_fields(fields, defaults) == {"lr": 0.2, "augment": {"flip": True}}
    recipe = replace(RECIPE, augment=Augment(flip=True))
    assert len({Job(ONE, Arm(name="a", recipe=r), "full", 0).recipe_digest
                for r in (RECIPE, recipe, replace(recipe))}) == 2  # fmt: skip


def test_the_page_leaves_out_rows_of_another_recipe_and_keeps_older_ones():
    tab6 = get_experiment("r1.tab6")
    job = next(iter(jobs(tab6, "cpu")))
    old = job.key | {"protocol": False}
    new = old | {"seed": 1, "recipe": replace(job, seed=1).recipe_digest}
    other = old | {"seed": 2, "recipe": "0" * 64}
    assert results.latest_rows(tab6, [old, new, other]) == [old, new]


def test_every_row_of_the_ledger_is_still_read():
    rows = ledger.read(ROOT)
    lines = (ROOT / "results" / "ledger.jsonl").read_text().splitlines()
    assert rows == [json.loads(line) for line in lines]
    for row in rows:
        job = {job.arm.name: job for job in jobs(get_experiment(row["experiment"]), row["budget"])}
        found = job.get(row["arm"])
        if found and found.iterations == row["iterations"]:
            assert replace(found, seed=row["seed"]).ledger_rows([row]) == [row]

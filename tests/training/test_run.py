import json
import os

import pytest
import torch

from resnets.errors import CheckpointError, DiskError, UsageError
from resnets.tensor_files import with_digest
from resnets.training import checkpoint
from resnets.training.distributed import SINGLE_PROCESS
from resnets.training.run import Run
from resnets.training.saver import Saver
from resnets.training.state import TrainProgress


@pytest.fixture
def run(tmp_path):
    made = Run(tmp_path / "run")
    made.create()
    return made


def tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "network.w": torch.randn(4, 3, generator=generator),
        "totals": torch.zeros(3, dtype=torch.float64),
        "network.n": torch.tensor(7),
    }


def save(run, values, step):
    checkpoint.write(run.path / "checkpoints", values, TrainProgress(step=step))


def newest(run):
    return checkpoint.read_newest(run.path / "checkpoints")


def finished(run):
    return checkpoint.list_finished(run.path / "checkpoints")


def test_what_is_saved_comes_back_bit_for_bit(run):
    save(run, tensors(), 5)
    found = newest(run)
    assert found.progress.step == 5
    assert found.problems == ()
    assert found.tensors.keys() == tensors().keys()
    for name, value in tensors().items():
        assert torch.equal(found.tensors[name], value)
        assert found.tensors[name].dtype == value.dtype


def test_a_checkpoint_of_before_has_other_names_for_the_same_numbers(run):
    save(run, tensors(), 5)
    path = finished(run)[0] / "state.json"
    body = json.loads(path.read_text())
    del body["seal"], body["progress"]
    body["course"] = {
        "step": 5, "steps": 9, "logged": 4, "micro": 8, "factor": 0.5, "skipped": 1, "rewinds": 2,
        "drops": 3, "best": 0.25, "waited": 6, "waited_drop": 7, "seconds": 1.5, "logs": {},
    }  # fmt: skip
    path.write_text(with_digest(body, checkpoint.SEAL, sort_keys=True))
    assert newest(run).progress == TrainProgress(
        step=5, steps=9, last_logged_step=4, micro_batch=8, lr_scale=0.5, skipped_in_a_row=1,
        rollbacks=2, lr_drops=3, best_figure=0.25, evals_since_best=6, evals_since_drop=7,
        seconds=1.5,
    )  # fmt: skip


def test_two_are_kept(run):
    for step in (1, 2, 3, 10):
        save(run, tensors(step), step)
    assert [p.name for p in finished(run)] == ["step-00000003", "step-00000010"]


@pytest.mark.parametrize("damage", ["truncate", "flip", "manifest", "missing"])
def test_a_damaged_newest_is_named_and_the_one_before_is_taken(run, damage):
    save(run, tensors(1), 1)
    save(run, tensors(2), 2)
    last = finished(run)[-1]
    data = last / "state.safetensors"
    raw = bytearray(data.read_bytes())
    if damage == "truncate":
        data.write_bytes(raw[:-5])
    elif damage == "flip":
        raw[-3] ^= 1
        data.write_bytes(raw)
    elif damage == "manifest":
        (last / "state.json").write_text("{")
    else:
        data.unlink()
    found = newest(run)
    assert found.progress.step == 1
    assert "step-00000002" in found.problems[0]
    save(run, tensors(2), 2)  # the way is free for a whole one
    assert newest(run).progress.step == 2


def test_never_a_silent_fresh_start(run):
    assert newest(run) is None
    save(run, tensors(), 1)
    (finished(run)[0] / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole"):
        newest(run)


def test_a_write_that_fails_leaves_the_earlier_ones_whole(run, monkeypatch):
    save(run, tensors(1), 1)

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_synced", full)
    saver = Saver(run, SINGLE_PROCESS)
    for _ in range(2):
        saver.write(tensors(2), TrainProgress(step=2))
        saver.wait()
        assert "No space left" in saver.new_failures()[0]
    saver.write(tensors(2), TrainProgress(step=2))
    saver.wait()
    with pytest.raises(DiskError, match=r"No space left(.|\n)*resnets resume"):
        saver.new_failures()
    assert newest(run).progress.step == 1
    assert [p.name for p in (run.path / "checkpoints").iterdir()] == ["step-00000001"]


def test_the_log_goes_back_to_the_checkpoint(run):
    for step in (1, 2, 3):
        run.append("metrics.jsonl", {"step": step})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4')  # what a crash leaves
    run.truncate("metrics.jsonl", 2)
    assert [row["step"] for row in run.rows("metrics.jsonl")] == [1, 2]


def test_a_second_run_in_the_folder_is_refused(run):
    run.write_json("recipe.json", {})
    with pytest.raises(UsageError, match="resnets resume"):
        run.create()


@pytest.mark.parametrize("name", ["README.md", "report.html", "model.safetensors"])
def test_files_that_are_of_no_run_are_not_replaced(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match=rf"{name} does not belong to a run(.|\n)*--run"):
        Run(tmp_path).create()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_names_that_are_not_utf8_are_written(run):
    name = os.fsdecode(b"\xff.png")
    run.write_csv("split.csv", ("file",), [(name,)])
    run.append("notes.jsonl", {"note": name})
    run.write_json("source.json", {"data": name})
    assert (run.path / "split.csv").read_text().splitlines() == ["file", "\\udcff.png"]
    assert run.rows("notes.jsonl") == [{"note": name}]
    assert run.read_json("source.json") == {"data": name}


def test_broken_json_is_named(run):
    (run.path / "recipe.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"recipe\.json"):
        run.read_json("recipe.json")
    with pytest.raises(UsageError, match="not a run folder"):
        run.read_json("nothing.json")


def test_a_run_that_was_broken_off_before_it_began_lost_nothing(run):
    with pytest.raises(UsageError, match=r"nothing was lost(.|\n)*Start again"):
        run.read_json("recipe.json")


def test_a_key_that_is_missing_is_named_with_its_file(run):
    run.write_json("source.json", {"data": "digits"})
    run.append("timing.jsonl", {"stap": 3})
    with pytest.raises(CheckpointError, match=r"source\.json was changed: it has no 'digest'"):
        run.read_json("source.json")["digest"]
    with pytest.raises(CheckpointError, match=r"timing\.jsonl was changed: it has no 'step'"):
        run.rows("timing.jsonl")[0]["step"]
    (run.path / "source.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"source\.json: not a JSON object"):
        run.read_json("source.json")


@pytest.mark.parametrize(
    ("damage", "left", "told"),
    [
        (lambda text: text, [1, 2], ""),
        (lambda text: text + '{"step": 4', [1, 2], ""),
        (lambda text: text.replace("0.25", "0.75"), [1, 2], "0 invalid lines"),
        (lambda text: text.replace("step", "stap", 1), [2], "1 invalid lines"),
        (lambda text: text.replace("{", "[", 1), [2], "1 invalid lines"),
        (lambda text: text[:30], [1], "0 invalid lines"),
        (lambda text: "", [], "metrics.jsonl is gone"),
    ],
)
def test_a_log_is_what_it_was_or_it_is_told(run, damage, left, told):
    for step in (1, 2):
        run.append("metrics.jsonl", {"step": step, "loss": step / 4})
    known = run.log_digests()["metrics.jsonl"]
    run.append("metrics.jsonl", {"step": 3})
    path = run.path / "metrics.jsonl"
    path.write_text(damaged := damage(path.read_text()))
    assert told in (note := run.truncate("metrics.jsonl", 2, known))
    assert bool(note) == bool(told)
    assert [row["step"] for row in run.rows("metrics.jsonl")] == left
    aside = run.path / "metrics.jsonl.damaged"
    assert aside.exists() == bool(told and damaged)
    if aside.exists():
        assert aside.read_text() == damaged

import pytest
import torch

from resnets.errors import CheckpointError, DiskError, UsageError
from resnets.training import run as room
from resnets.training.run import Run


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


def test_what_is_saved_comes_back_bit_for_bit(run):
    run.save(tensors(), 5)
    found = run.newest()
    assert found.step == 5
    assert found.problems == ()
    assert found.tensors.keys() == tensors().keys()
    for name, value in tensors().items():
        assert torch.equal(found.tensors[name], value)
        assert found.tensors[name].dtype == value.dtype


def test_two_are_kept(run):
    for step in (1, 2, 3, 10):
        run.save(tensors(step), step)
    assert [p.name for p in run.checkpoints()] == ["step-00000003", "step-00000010"]


@pytest.mark.parametrize("damage", ["truncate", "flip", "manifest", "missing"])
def test_a_damaged_newest_is_named_and_the_one_before_is_taken(run, damage):
    run.save(tensors(1), 1)
    run.save(tensors(2), 2)
    newest = run.checkpoints()[-1]
    data = newest / "state.safetensors"
    raw = bytearray(data.read_bytes())
    if damage == "truncate":
        data.write_bytes(raw[:-5])
    elif damage == "flip":
        raw[-3] ^= 1
        data.write_bytes(raw)
    elif damage == "manifest":
        (newest / "state.json").write_text("{")
    else:
        data.unlink()
    found = run.newest()
    assert found.step == 1
    assert "step-00000002" in found.problems[0]
    run.save(tensors(2), 2)  # the way is free for a whole one
    assert run.newest().step == 2


def test_never_a_silent_fresh_start(run):
    assert run.newest() is None
    run.save(tensors(), 1)
    (run.checkpoints()[0] / "state.json").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint is whole"):
        run.newest()


def test_a_write_that_fails_leaves_the_earlier_ones_whole(run, monkeypatch):
    run.save(tensors(1), 1)

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(room, "write_synced", full)
    with pytest.raises(DiskError, match=r"No space left(.|\n)*resnets resume"):
        run.save(tensors(2), 2)
    assert run.newest().step == 1
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


def test_broken_json_is_named(run):
    (run.path / "recipe.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"recipe\.json"):
        run.read_json("recipe.json")
    with pytest.raises(UsageError, match="not a run folder"):
        run.read_json("nothing.json")

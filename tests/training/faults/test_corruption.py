"""Checkpoints changed on the disk: each is noticed, named, and the one before is taken."""

import errno
import os
import random
import shutil
from pathlib import Path

import pytest
import torch

from resnets.errors import CheckpointError, DiskError
from resnets.evaluation import detections, scores
from resnets.evaluation.detections import SplitDetections
from resnets.tensor_files import digest
from resnets.training import checkpoint
from resnets.training.run import Run
from resnets.training.state import TrainProgress

FLIPS = 2000
FILES = ("state.json", "state.safetensors")


def tensors(step):
    generator = torch.Generator().manual_seed(step)
    return {
        "network.conv.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "average.bn.running_var": torch.rand(4, generator=generator),
        "network.bn.num_batches_tracked": torch.tensor(step),
        "totals": torch.zeros(3, dtype=torch.float64),
    }


def make(folder, seed=0):
    run = Run(folder)
    run.create()
    run.write_json("recipe.json", {"model": "resnet8", "seed": seed})
    for step in (1, 2):
        checkpoint.write(run.path / "checkpoints", tensors(step), TrainProgress(step=step))
    return run.path / "checkpoints"


@pytest.fixture
def folder(tmp_path):
    return make(tmp_path / "run")


def refused(folder, file="", tensor=""):
    """The newest is refused, both are named, and the one before is taken; then it is set right."""
    found = checkpoint.read_newest(folder)
    assert found is not None
    assert found.progress.step == 1
    assert digests(found.tensors) == digests(tensors(1))
    (problem,) = found.problems
    assert str(folder / "step-00000002" / file) in problem
    assert tensor in problem
    assert not (folder / "step-00000002").exists()


def digests(values):
    return {name: digest(value) for name, value in values.items()}


def restore(folder):
    shutil.rmtree(folder / "step-00000002.damaged")
    checkpoint.write(folder, tensors(2), TrainProgress(step=2))


@pytest.mark.parametrize("name", FILES)
def test_cut_short_or_gone(folder, name):
    file = folder / "step-00000002" / name
    for percent in range(0, 100, 5):
        file.write_bytes(file.read_bytes()[: file.stat().st_size * percent // 100])
        refused(folder, name)
        restore(folder)
    file.unlink()
    refused(folder, name)


def test_every_flipped_bit_is_noticed(folder):
    """And its tensor is named where the bit is one of a tensor's."""
    rng = random.Random(0)
    originals = {name: (folder / "step-00000002" / name).read_bytes() for name in FILES}
    header = 8 + int.from_bytes(originals["state.safetensors"][:8], "little")
    for _ in range(FLIPS):
        name = rng.choice(FILES)
        data = bytearray(originals[name])
        place = rng.randrange(len(data))
        data[place] ^= 1 << rng.randrange(8)
        (folder / "step-00000002" / name).write_bytes(data)
        with pytest.raises(CheckpointError) as told:
            checkpoint.read(folder / "step-00000002")
        assert name in str(told.value)
        if name == "state.safetensors" and place >= header:
            assert any(tensor in str(told.value) for tensor in tensors(0))
        (folder / "step-00000002" / name).write_bytes(originals[name])
    assert checkpoint.read_newest(folder).progress.step == 2


@pytest.mark.parametrize("name", FILES)
def test_files_of_two_checkpoints_swapped(folder, name):
    shutil.copy(folder / "step-00000001" / name, folder / "step-00000002" / name)
    refused(folder)


def contents(folder):
    """Every name and byte below a folder."""
    return {str(p): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def untouched(folder, match, error=CheckpointError):
    before = contents(folder.parent)
    with pytest.raises(error, match=match):
        checkpoint.read_newest(folder)
    assert contents(folder.parent) == before


def test_the_same_run_in_another_folder_lends_its_checkpoints(tmp_path):
    folder, other = make(tmp_path / "run"), make(tmp_path / "other")
    shutil.rmtree(folder / "step-00000002")
    shutil.copytree(other / "step-00000002", folder / "step-00000002")
    assert checkpoint.read_newest(folder).progress.step == 2


def test_a_checkpoint_of_another_run_is_refused_and_left_alone(tmp_path):
    folder, other = make(tmp_path / "run"), make(tmp_path / "other", seed=1)
    shutil.rmtree(folder / "step-00000002")
    shutil.copytree(other / "step-00000002", folder / "step-00000002")
    untouched(folder, r"step-00000002 belongs to another run(.|\n)*Nothing was touched")


@pytest.mark.parametrize("text", ['{"model": "resnet8", "seed": 7}', "{"])
def test_a_changed_recipe_touches_no_checkpoint(folder, text):
    (folder.parent / "recipe.json").write_text(text)
    untouched(folder, r"recipe\.json")


def test_a_space_more_in_the_recipe_changes_nothing(folder):
    recipe = folder.parent / "recipe.json"
    recipe.write_text(" " + recipe.read_text().replace(":", " :") + "\n")
    assert checkpoint.read_newest(folder).progress.step == 2


def test_the_identity_of_earlier_versions_is_taken(folder, monkeypatch):
    shutil.rmtree(folder / "step-00000002")
    identity = checkpoint.identity
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "identity", lambda run: identity(run)[::-1])
        checkpoint.write(folder, tensors(2), TrainProgress(step=2))
    assert checkpoint.read_newest(folder).progress.step == 2


def test_a_checkpoint_of_a_later_version_is_left_alone(folder, monkeypatch):
    shutil.rmtree(folder / "step-00000002")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "asdict", lambda progress: {"step": 2, "moon": 1})
        checkpoint.write(folder, tensors(2), TrainProgress(step=2))
    untouched(folder, "another version")


def test_never_a_fresh_start_in_silence(folder):
    for path in checkpoint.list_finished(folder):
        (path / "state.json").write_text("{}")
    for _ in range(2):  # the second time everything is set aside
        with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole"):
            checkpoint.read_newest(folder)


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ETIMEDOUT, errno.EACCES])
@pytest.mark.parametrize("name", [*FILES, "recipe.json"])
def test_what_cannot_be_read_now_is_no_damage(folder, monkeypatch, name, number):
    read = Path.read_bytes

    def fails(path):
        if path.name == name:
            raise OSError(number, os.strerror(number), str(path))
        return read(path)

    before = contents(folder.parent)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fails)
        with pytest.raises(DiskError, match=rf"{name} .*{os.strerror(number)}.*try again"):
            checkpoint.read_newest(folder)
    assert contents(folder.parent) == before
    assert checkpoint.read_newest(folder).progress.step == 2


def scores_file(path):
    labels = torch.tensor([0, 1, 1])
    scores.save(path, scores.Scores(torch.randn(3, 2), labels, torch.arange(3), ("a", "b")))
    return scores.load


def detections_file(path):
    one, two, three = (torch.tensor([n]) for n in (1, 2, 3))
    found = SplitDetections(
        one, two, torch.tensor([0.5]), torch.rand(1, 4), indices=three, masks=((2, 2, b"13"),)
    )
    detections.save(path, found)
    return detections.load


@pytest.mark.parametrize("write", [scores_file, detections_file])
def test_every_changed_byte_of_what_a_model_says_is_noticed(tmp_path, write):
    path = tmp_path / "file.safetensors"
    load, rng = write(path), random.Random(0)
    data = path.read_bytes()
    load(path)
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match="resnets resume"):
            load(path)

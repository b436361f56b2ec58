"""Checkpoints changed on the disk: each is noticed, named, and the one before is taken."""

import random
import shutil
from pathlib import Path

import pytest
import torch

from resnets.errors import CheckpointError, DiskError
from resnets.nets.modelfile import digest
from resnets.training import checkpoint
from resnets.training.run import Run
from resnets.training.state import Course

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
        checkpoint.write(run.path / "checkpoints", tensors(step), Course(step=step))
    return run.path / "checkpoints"


@pytest.fixture
def folder(tmp_path):
    return make(tmp_path / "run")


def refused(folder, file="", tensor=""):
    """The newest is refused, both are named, and the one before is taken; then it is set right."""
    found = checkpoint.newest(folder)
    assert found is not None
    assert found.course.step == 1
    assert digests(found.tensors) == digests(tensors(1))
    (problem,) = found.problems
    assert str(folder / "step-00000002" / file) in problem
    assert tensor in problem
    assert not (folder / "step-00000002").exists()


def digests(values):
    return {name: digest(value) for name, value in values.items()}


def restore(folder):
    shutil.rmtree(folder / "step-00000002.damaged")
    checkpoint.write(folder, tensors(2), Course(step=2))


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
    assert checkpoint.newest(folder).course.step == 2


@pytest.mark.parametrize("name", FILES)
def test_files_of_two_checkpoints_swapped(folder, name):
    shutil.copy(folder / "step-00000001" / name, folder / "step-00000002" / name)
    refused(folder)


@pytest.mark.parametrize("seed", [0, 1])
def test_only_the_run_s_own_checkpoints_are_taken(tmp_path, seed):
    """The same run in another folder may lend its own; another seed is another run."""
    folder, other = make(tmp_path / "run"), make(tmp_path / "other", seed)
    shutil.rmtree(folder / "step-00000002")
    shutil.copytree(other / "step-00000002", folder / "step-00000002")
    if seed:
        refused(folder, "state.json", "another run")
    else:
        assert checkpoint.newest(folder).course.step == 2


def test_never_a_fresh_start_in_silence(folder):
    for path in checkpoint.finished(folder):
        (path / "state.json").write_text("{}")
    for _ in range(2):  # the second time everything is set aside
        with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole"):
            checkpoint.newest(folder)


def test_too_many_open_files_are_no_damage(folder, monkeypatch):
    def busy(path):
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", busy)
        with pytest.raises(DiskError, match="Too many open files; try again"):
            checkpoint.newest(folder)
    assert checkpoint.newest(folder).course.step == 2

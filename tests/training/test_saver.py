"""When a state is saved, and what is not."""

import threading

import pytest
import torch

from resnets.training import checkpoint, saver
from resnets.training.distributed import SINGLE_PROCESS, World
from resnets.training.run import Run
from resnets.training.saver import SAVE_SECONDS, Saver
from resnets.training.state import TrainProgress

from .test_loop import small_plan


@pytest.fixture
def run(tmp_path):
    made = Run(tmp_path / "run")
    made.create()
    return made


def test_it_saves_no_more_often_than_the_interval(run):
    state, keeper = small_plan().start(), Saver(run, SINGLE_PROCESS)
    keeper.last_save = 100.0
    assert not keeper.due(state.progress, 100.0 + SAVE_SECONDS)
    assert keeper.due(state.progress, 100.1 + SAVE_SECONDS)
    assert keeper.save(state, 100.1 + SAVE_SECONDS)
    keeper.wait()
    assert not keeper.due(state.progress, 100.1 + 2 * SAVE_SECONDS)
    assert keeper.due(state.progress, 100.2 + 2 * SAVE_SECONDS)
    assert checkpoint.read_newest(keeper.folder).progress == state.progress


def test_it_never_saves_after_a_step_that_was_left_out_nor_on_another_rank(run):
    late = 10 * SAVE_SECONDS
    assert Saver(run, SINGLE_PROCESS).due(TrainProgress(), late)
    assert not Saver(run, SINGLE_PROCESS).due(TrainProgress(skipped_in_a_row=1), late)
    other = Saver(run, World(1, 2))
    assert not other.due(TrainProgress(), late)
    assert other.save(small_plan().start(), late)
    assert list(other.folder.iterdir()) == []


def test_one_checkpoint_is_written_at_a_time(run, monkeypatch):
    going_on = threading.Event()
    monkeypatch.setattr(saver.checkpoint, "write", lambda *_: going_on.wait(10))
    keeper = Saver(run, SINGLE_PROCESS)
    keeper.write({}, TrainProgress())
    assert keeper.busy
    assert not keeper.due(TrainProgress(), 10 * SAVE_SECONDS)
    going_on.set()
    keeper.wait()
    assert keeper.due(TrainProgress(), 10 * SAVE_SECONDS)


@pytest.mark.parametrize("where", ["weight", "moment"])
def test_a_state_that_is_not_finite_is_refused(run, where):
    state, keeper = small_plan().start(), Saver(run, SINGLE_PROCESS)
    weight = state.network.fc.weight
    moment = torch.zeros_like(weight)
    state.optimizer.state[weight]["momentum_buffer"] = moment
    with torch.no_grad():
        (weight if where == "weight" else moment)[0, 0] = float("nan")
    assert not keeper.save(state, 0.0)
    keeper.wait()
    assert list(keeper.folder.iterdir()) == []


def test_what_is_saved_is_the_state_of_that_moment(run):
    values, keeper = {"a": torch.zeros(3)}, Saver(run, SINGLE_PROCESS)
    keeper.write(values, TrainProgress(step=1))
    values["a"].add_(1)
    keeper.wait()
    assert torch.equal(checkpoint.read_newest(keeper.folder).tensors["a"], torch.zeros(3))

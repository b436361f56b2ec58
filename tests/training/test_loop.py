import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from resnets.config.recipe import Augment
from resnets.config.recipes import digits
from resnets.data import dataset, splits
from resnets.errors import CheckpointError, DiskError, Diverged, UsageError
from resnets.tensor_files import digest
from resnets.training import checkpoint
from resnets.training import resolve as plans
from resnets.training.loop import fit
from resnets.training.monitor import evaluation_interval, read_best
from resnets.training.run import Run
from resnets.training.signals import SignalFlags
from resnets.training.state import ema_update
from resnets.training.step import Step

from ._helpers import run_to

CPU = torch.device("cpu")


def small_plan(**changes):
    recipe = replace(digits(), model="resnet8", size=8, steps=24, batch=32, eval_every=0.4)
    recipe = replace(recipe, precision="float32", augment=Augment(crop="pad", pad=1))
    source = splits.hold_out(dataset.load("digits"), 100, 0)
    return plans.resolve(replace(recipe, **changes), source, CPU, 0)


def newest(run):
    return checkpoint.read_newest(run.path / "checkpoints")


def digests(run):
    found = newest(run)
    return found.progress.step, {name: digest(value) for name, value in found.tensors.items()}


def test_the_loss_falls_and_every_row_is_logged(tmp_path):
    run = run_to(tmp_path / "run", small_plan(steps=75))
    rows = run.rows("metrics.jsonl")
    assert [row["step"] for row in rows] == [10, 20, 30, 40, 50, 60, 70, 75]
    assert rows[-1]["loss"] < 0.6 * rows[0]["loss"]
    assert 0 <= rows[-1]["val_error"] <= 1


@pytest.mark.parametrize(
    ("changes", "steps", "every"),
    [
        ({"eval_every": 4}, 100, 100),  # 799 training images are 25 steps
        ({"eval_every": 4, "evaluations": 5}, 100, 20),
        ({"eval_every": 0.4, "evaluations": 5}, 100, 10),
        ({"eval_every": 4, "evaluations": 5}, 53, 10),
        ({"eval_every": 4, "evaluations": 5}, 52, 100),  # 5 * 100 / 3 is over a tenth of 52 * 32
        ({"eval_every": 4, "evaluations": 50}, 100, 100),
    ],
)
def test_a_short_run_is_evaluated_often_enough_where_that_costs_little(changes, steps, every):
    assert evaluation_interval(small_plan(**changes), steps) == every


def test_a_run_that_was_shortened_has_a_curve():
    import resnets

    plan = resnets.plan("digits", epochs=3)
    assert plan.recipe.evaluations == 5
    assert plan.steps / evaluation_interval(plan, plan.steps) >= 5
    again = resnets.plan("digits", recipe=plan.recipe)
    assert again.recipe == plan.recipe
    assert resnets.plan("digits", epochs=3, overrides={"eval_every": 3}).recipe.evaluations == 0


def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path):
    whole = run_to(tmp_path / "whole", small_plan())
    halves = run_to(tmp_path / "halves", small_plan(), stop_after=10)
    assert digests(halves)[0] < 24
    run_to(tmp_path / "halves", small_plan())
    assert digests(whole) == digests(halves)
    texts = [(r.path / "metrics.jsonl").read_text() for r in (whole, halves)]
    assert texts[0] == texts[1]


def test_a_damaged_last_checkpoint_is_trained_again_and_told(tmp_path):
    plan = small_plan()
    whole = run_to(tmp_path / "whole", plan)
    run = run_to(tmp_path / "run", plan, stop_after=10)
    run_to(tmp_path / "run", plan)
    (checkpoint.list_finished(run.path / "checkpoints")[-1] / "state.json").write_text("{")
    told = [note for progress in fit(run, plan, SignalFlags()) for note in progress.notes]
    assert len(told) == 1
    assert "step-00000024" in told[0]
    assert digests(run) == digests(whole)


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def test_a_damaged_best_state_is_told_at_once_with_a_way_out(tmp_path):
    plan = small_plan(select="best")
    run = run_to(tmp_path / "run", plan, stop_after=15)
    whole = run.best.read_bytes()
    flip(run.best)
    damaged = run.best.read_bytes()
    with pytest.raises(CheckpointError, match=r"best.safetensors(.|\n)*move it away, and `resnets"):
        next(fit(run, plan, SignalFlags()))
    assert run.best.read_bytes() == damaged
    assert len(checkpoint.list_finished(run.path / "checkpoints")) == 1
    run.best.unlink()
    told = [note for progress in fit(run, plan, SignalFlags()) for note in progress.notes]
    assert told == [
        "best.safetensors is gone: the best state after this one is the result, or the last"
    ]
    assert [row["note"] for row in run.rows("notes.jsonl")] == told
    run.best.write_bytes(whole)
    assert read_best(run, plan)


def test_a_best_state_that_cannot_be_read_now_is_left_alone(tmp_path, monkeypatch):
    plan = small_plan(select="best")
    run = run_to(tmp_path / "run", plan, stop_after=15)
    read = Path.read_bytes

    def fails(path):
        if path.name == "best.safetensors":
            raise OSError(5, "Input/output error", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", fails)
    with pytest.raises(DiskError, match=r"best\.safetensors cannot be read(.|\n)*try again"):
        next(fit(run, plan, SignalFlags()))


@pytest.mark.parametrize("name", ["metrics.jsonl", "timing.jsonl"])
def test_a_damaged_log_is_told_and_the_run_goes_on(tmp_path, name):
    plan = small_plan()
    run = run_to(tmp_path / "run", plan, stop_after=16)
    path = run.path / name
    path.write_text(path.read_text().replace('"step"', '"stap"', 1))
    told = [note for progress in fit(run, plan, SignalFlags()) for note in progress.notes]
    assert len(told) == 1
    assert re.match(rf"{name} is not what it was when step \d+ was saved: 1 invalid lines", told[0])
    assert [row["step"] for row in run.rows(name)] == [20, 24]
    assert newest(run).progress.done


def test_events_that_cannot_be_written_are_told(tmp_path, monkeypatch):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")

    def ascii_only(folder, **_):
        folder.encode("ascii")

    monkeypatch.setattr(tensorboard, "SummaryWriter", ascii_only)
    run = Run(tmp_path / "été")
    run.create()
    notes = [note for p in fit(run, small_plan(steps=2), SignalFlags()) for note in p.notes]
    assert len(notes) == 1
    assert "no events for TensorBoard" in notes[0]


def test_another_seed_is_another_run(tmp_path):
    one = run_to(tmp_path / "one", small_plan())
    two = run_to(tmp_path / "two", small_plan(seed=1))
    assert digests(one)[1] != digests(two)[1]


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    run_to(tmp_path / "run", small_plan(), stop_after=10)
    with pytest.raises(CheckpointError, match="another network"):
        run_to(tmp_path / "run", small_plan(model="resnet14"))


def test_a_run_that_always_diverges_ends_after_three_returns(tmp_path):
    plan = small_plan(lr=1e30, warmup=0.0)
    with pytest.raises(Diverged, match=r"after 3 rollbacks(.|\n)*--set lr="):
        run_to(tmp_path / "run", plan)
    assert newest(Run(tmp_path / "run")) is None


def test_a_run_folder_holds_no_pickle(tmp_path):
    run = run_to(tmp_path / "run", small_plan())
    for path in run.path.rglob("*"):
        if path.is_file():
            kinds = {".json", ".jsonl", ".safetensors"}
            events = path.name.startswith("events.out.tfevents")
            assert path.suffix in kinds or events or (path.name, path.stat().st_size) == ("lock", 0)
    for line in (run.path / "metrics.jsonl").read_text().splitlines():
        json.loads(line)


def test_decay_spares_norms_and_biases_where_the_recipe_says_so():
    plan = small_plan(decay_all=False)
    groups = plan.start().optimizer.param_groups
    assert [g["weight_decay"] for g in groups] == [5e-4, 0.0]
    assert all(p.ndim > 1 for p in groups[0]["params"])
    assert all(p.ndim == 1 for p in groups[1]["params"])
    groups = small_plan(decay_all=True).start().optimizer.param_groups
    assert len(groups) == 1


@pytest.mark.parametrize("keep", [0.0, 0.75])
def test_averaging_by_hand(keep):
    plan = small_plan()
    average, network = (plan.start().network for _ in range(2))
    with torch.no_grad():
        for p in network.parameters():
            p.add_(1.0)
    before = average.state_dict()["fc.weight"].clone()
    ema_update(*(list(n.state_dict().values()) for n in (average, network)), keep)
    expected = keep * before + (1 - keep) * network.state_dict()["fc.weight"]
    torch.testing.assert_close(average.state_dict()["fc.weight"], expected)


def gradient_of(state, batch):
    """Of the mean cross-entropy, by a twin that is thrown away."""
    twin = copy.deepcopy(state.network).train()
    F.cross_entropy(twin(batch.images), batch.labels).backward()
    return {name: p.grad for name, p in twin.named_parameters()}


def test_one_step_is_sgd_with_momentum_by_hand():
    """v = m v + g + wd w; w -= lr v, against the update of the loop."""
    from resnets.data.loader import train_batches

    plan = small_plan(nesterov=False, warmup=0.0, schedule="step", lr=0.05, decay_all=True)
    state = plan.start()
    step = Step(plan, state)
    weight = dict(state.network.named_parameters())["fc.weight"]
    velocity, expected = torch.zeros_like(weight), weight.detach().clone()
    batches = train_batches(
        plan.source.train,
        preprocess=plan.preprocess,
        augment=plan.recipe.augment,
        batch=plan.recipe.batch,
        seed=0,
        start=0,
        stop=3,
        device=CPU,
    )
    for batch in batches:
        before = weight.detach().clone()
        gradients = gradient_of(state, batch)
        assert step.update(batch) == "done"
        velocity = 0.9 * velocity + gradients["fc.weight"] + plan.recipe.weight_decay * before
        expected = expected - 0.05 * velocity
    torch.testing.assert_close(weight.detach(), expected)


def test_the_per_pixel_mean_is_the_mean_training_image():
    plan = small_plan(normalize="pixel")
    mean = torch.tensor(plan.preprocess.mean).view(8, 8)
    torch.testing.assert_close(mean, plan.source.train.images[:, 0].float().mean(0) / 255)


def test_one_value_to_normalise_is_a_wrong_batch(tmp_path):
    plan = small_plan(model="resnet18", size=16, batch=1, steps=1)
    with pytest.raises(UsageError, match=r"(?s)one image of 16 pixels.*batch=2"):
        run_to(tmp_path / "run", plan)

"""Values that are not finite, from outside, and memory that runs out."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from resnets.config.recipes import digits
from resnets.data import dataset, splits
from resnets.errors import Diverged
from resnets.evaluation import load as loading
from resnets.evaluation.classification import classification_metrics
from resnets.models.io.model_file import load
from resnets.training import checkpoint, loop, saver, step
from resnets.training import resolve as plans
from resnets.training.run import Run
from resnets.training.signals import SignalFlags

FIRST = 6  # the passing at which it begins
STEPS = 12


def small_plan():
    recipe = replace(digits(), model="resnet8", size=8, steps=STEPS, batch=32, eval_every=0.2)
    recipe = replace(recipe, precision="float32", select="best")
    source = splits.hold_out(dataset.load("digits"), 100, 0)
    return plans.resolve(recipe, source, torch.device("cpu"), 0)


def poison(tensor: torch.Tensor, value: float) -> None:
    with torch.no_grad():
        tensor.view(-1)[0] = value


def wrapped(patch, place: object, name: str, change: Callable) -> None:
    """Let `change` see the result and the arguments of a function, and return the result."""
    function = getattr(place, name)
    patch.setattr(place, name, lambda *rest: change(function(*rest), *rest))


def inject(request, patch, where: str, bad: Callable[[], float | None]) -> None:
    """Put what `bad` returns, if anything, in that place, at each passing."""

    def into(pick):
        def change(result, *rest):
            if (value := bad()) is not None:
                poison(pick(*rest), value)
            return result

        return change

    Step = step.Step
    if where == "loss":
        start = Step.__init__

        def started(self, *rest):
            start(self, *rest)
            loss_of = self.loss

            def loss(*inputs):
                mean, wrong = loss_of(*inputs)
                value = bad()
                return (mean if value is None else mean * value), wrong

            self.loss = loss

        patch.setattr(Step, "__init__", started)
    elif where == "input":
        accumulate = Step.accumulate

        def accumulated(self, batch):
            if (value := bad()) is not None:
                poison(batch.images, value)
            return accumulate(self, batch)

        patch.setattr(Step, "accumulate", accumulated)
    elif where == "gradient":
        wrapped(patch, Step, "accumulate", into(lambda self, _: self.parameters[0].grad))
    elif where == "statistics":
        wrapped(
            patch,
            Step,
            "accumulate",
            into(lambda self, _: self.state.network.get_buffer("bn1.running_var")),
        )
    elif where == "average":
        wrapped(patch, step, "ema_update", into(lambda average, *_: average[0]))
    else:

        def after(optimizer, *_):
            weight = optimizer.param_groups[0]["params"][0]
            moment = optimizer.state[weight]["momentum_buffer"]
            if (value := bad()) is not None:
                poison(moment if where == "moment" else weight, value)

        request.addfinalizer(register_optimizer_step_post_hook(after).remove)


PLACES = ("loss", "input", "gradient", "statistics", "weight", "moment", "average")
BEFORE = PLACES[:4]  # seen before the weights move, so that the step alone is left out


@pytest.mark.parametrize("value", [math.nan, pytest.param(math.inf, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "times",
    [1, *(pytest.param(times, marks=pytest.mark.slow) for times in (3, math.inf))],
)
@pytest.mark.parametrize("where", PLACES)
def test_nothing_of_it_is_kept(request, tmp_path, monkeypatch, where, times, value):
    passed = 0

    def bad() -> float | None:
        nonlocal passed
        passed += 1
        return value if FIRST <= passed < FIRST + times else None

    monkeypatch.setattr(saver, "SAVE_SECONDS", 0)
    seen = []
    write = checkpoint.write

    def checked(folder, tensors, progress):
        seen.append(progress.step)
        assert all(v.isfinite().all() for v in tensors.values())
        write(folder, tensors, progress)

    monkeypatch.setattr(checkpoint, "write", checked)
    run = Run(tmp_path / "run")
    run.create()
    inject(request, monkeypatch, where, bad)
    notes: list[str] = []

    def train():
        for progress in loop.fit(run, small_plan(), SignalFlags()):
            notes.extend(progress.notes)

    if times == math.inf:
        with pytest.raises(Diverged, match="after 3 rollbacks"):
            train()
    else:
        train()
    assert load(run.best)  # refuses what is not finite
    progress = checkpoint.read_newest(run.path / "checkpoints").progress
    if times == math.inf:
        assert progress.step < FIRST
        return
    assert progress.done
    if where in BEFORE and times == 1:
        assert (progress.rollbacks, progress.lr_scale) == (0, 1)
        assert notes == [f"step {FIRST} was left out: it was not finite"]
    else:
        returns = 1 if where in BEFORE else times
        assert 1 <= progress.rollbacks <= returns
        assert progress.lr_scale == 0.5**progress.rollbacks
        best = loading.load(run.best).scores(small_plan().monitor_split)
        assert classification_metrics(best).error == progress.best_figure
        assert sum("back to the newest checkpoint" in note for note in notes) == progress.rollbacks


def test_a_stop_right_after_a_return_keeps_the_halved_rate(tmp_path, monkeypatch):
    run, stop, passed = Run(tmp_path / "run"), SignalFlags(), 0
    update = step.Step.update

    def lost_once(self, batch):
        nonlocal passed
        passed += 1
        if passed != 8:
            return update(self, batch)
        stop.signal = 15
        return "diverged"

    monkeypatch.setattr(step.Step, "update", lost_once)
    monkeypatch.setattr(saver, "SAVE_SECONDS", 0)
    run.create()
    before = [progress.step for progress in loop.fit(run, small_plan(), stop)][-1]
    progress = checkpoint.read_newest(run.path / "checkpoints").progress
    assert (progress.step, progress.rollbacks, progress.lr_scale) == (before, 1, 0.5)
    assert 0 < before < 8
    for _ in loop.fit(run, small_plan(), SignalFlags()):
        pass
    progress = checkpoint.read_newest(run.path / "checkpoints").progress
    assert (progress.done, progress.rollbacks, progress.lr_scale) == (True, 1, 0.5)


def test_less_memory_means_smaller_passes_and_the_same_batch(tmp_path, monkeypatch):
    """A network that takes ten images at once gets eight, and every image of the step counts."""
    plan, run = small_plan(), Run(tmp_path / "run")
    run.create()
    passes = []
    start = plans.Plan.start

    def started(plan):
        state = start(plan)
        forward = state.network.forward

        def limited(images):
            if len(images) > 10:
                raise torch.OutOfMemoryError("no more")
            passes.append(len(images))
            return forward(images)

        state.network.forward = limited
        return state

    monkeypatch.setattr(plans.Plan, "start", started)
    notes = [note for p in loop.fit(run, plan, SignalFlags()) for note in p.notes]
    assert passes == [8] * 4 * STEPS
    told = "from step 1 on 8 images in a forward pass, 32 in a step as before"
    assert [note for note in notes if told in note] == notes
    assert len(notes) == 1
    assert checkpoint.read_newest(run.path / "checkpoints").progress.micro_batch == 8

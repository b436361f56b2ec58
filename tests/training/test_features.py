"""What a recipe can ask of the engine, each as a fact about a short run."""

import itertools
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

import resnets
from resnets.config.recipe import Augment
from resnets.data.loader import train_batches
from resnets.errors import Assumption, CheckpointError, UsageError
from resnets.evaluation.classification import classification_metrics
from resnets.evaluation.load import load
from resnets.training import clock
from resnets.training.distributed import World
from resnets.training.resolve import resolve
from resnets.training.run import Run
from resnets.training.state import TrainProgress, load_pretrained
from resnets.training.step import Step
from resnets.training.tasks.classification import default_recipe

from ._helpers import run_to
from .test_loop import CPU, newest, small_plan


def first_batch(plan):
    return next(
        train_batches(
            plan.train,
            preprocess=plan.preprocess,
            augment=plan.recipe.augment,
            batch=plan.recipe.batch,
            seed=0,
            start=0,
            stop=1,
            device=CPU,
        )
    )


def begin(plan):
    state = plan.start()
    return state, Step(plan, state)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    few = {"steps": 20, "size": 8, "batch": 32, "precision": "float32"}
    resnets.train("digits", model="resnet8", run=folder, overrides=few, device="cpu")
    return folder


@pytest.mark.parametrize("micro", [16, 8, 5])
def test_micro_batches_give_the_gradient_of_the_batch(micro):
    """Without batch statistics the sums are the same; 5 leaves a smaller last piece."""
    plan = small_plan(arch={"norm": "group"}, micro_batch=micro, label_smoothing=0.1)
    batch = first_batch(plan)
    state, step = begin(plan)
    step.accumulate(batch)
    F.cross_entropy(
        (twin := begin(plan)[0].network.train())(batch.images), batch.labels, label_smoothing=0.1
    ).backward()
    for (name, p), q in zip(state.network.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


def test_fewer_images_than_micro_batches_give_their_gradient():
    """Where a file cannot be read, one of the passes of a single image has none to compute."""
    plan = small_plan(arch={"norm": "group"}, micro_batch=1)
    whole = first_batch(plan)
    batch = replace(whole, images=whole.images[:31], labels=whole.labels[:31])
    state, step = begin(plan)
    loss, wrong, images = step.accumulate(batch).tolist()
    logits = begin(plan)[0].network.train()(batch.images)
    expected = F.cross_entropy(logits, batch.labels, reduction="sum")
    (expected / 32).backward()
    assert (loss, images) == (pytest.approx(expected.item(), rel=1e-5), 31)
    assert wrong == (logits.argmax(1) != batch.labels).sum()
    assert all(p.grad.isfinite().all() for p in state.network.parameters())


def test_batch_statistics_are_over_the_micro_batch():
    batch = first_batch(small_plan())
    state, step = begin(small_plan(micro_batch=8))
    step.accumulate(batch)
    twin = begin(small_plan())[0].network.train()
    for images in batch.images.split(8):
        twin(images)
    for mine, theirs in zip(state.network.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_training_begins_at_given_weights_with_a_new_classifier(trained):
    base = load(trained).network.state_dict()
    state, _ = begin(small_plan(weights=str(trained)))
    assert all(torch.equal(v, base[k]) for k, v in state.network.state_dict().items())
    fewer = small_plan(weights=str(trained))
    other = replace(fewer, pretrained=None, arch=replace(fewer.arch, classes=3)).start()
    load_pretrained(other.network, base)
    assert torch.equal(other.network.state_dict()["conv1.weight"], base["conv1.weight"])
    assert other.network.fc.weight.shape == (3, 64)
    deeper = small_plan(model="resnet14").start()
    with pytest.raises(CheckpointError, match="another network"):
        load_pretrained(deeper.network, base)


def test_the_network_is_that_of_the_weights(trained):
    assert small_plan(model="resnet20", weights=str(trained)).arch.depth == 8


def test_a_frozen_start_moves_the_classifier_alone(trained):
    plan = small_plan(weights=str(trained), freeze_backbone_epochs=0.1, ema=0.0)
    assert plan.frozen_steps == round(0.1 * len(plan.train) / 32)
    state, step = begin(plan)
    before = {k: v.clone() for k, v in state.network.state_dict().items()}
    for _ in range(plan.frozen_steps):
        assert step.update(first_batch(plan)) == "done"
    moved = {k for k, v in state.network.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {"fc.weight", "fc.bias"}
    step.update(first_batch(plan))
    moved = {k for k, v in state.network.state_dict().items() if not torch.equal(v, before[k])}
    assert {"conv1.weight", "bn1.running_mean", "fc.weight"} <= moved


def test_frozen_normalisation_keeps_the_statistics():
    state, step = begin(small_plan(norm="frozen"))
    step.update(first_batch(small_plan()))
    assert float(state.network.bn1.running_mean.abs().sum()) == 0
    assert not torch.equal(state.network.bn1.weight, torch.ones(16))


def test_the_teacher_has_its_share_of_the_loss(trained):
    plan = small_plan(teacher=str(trained), distill_weight=1.0, distill_temperature=2.0)
    batch = first_batch(plan)
    _, step = begin(plan)
    sums = step.accumulate(batch)
    teacher = load(trained).network
    with torch.no_grad():
        logits = begin(plan)[0].network.train()(batch.images)
        soft = F.softmax(teacher(batch.images) / 2, 1)
    expected = 4 * (soft * (soft.log() - F.log_softmax(logits / 2, 1))).sum(1).mean()
    torch.testing.assert_close(sums[0].float() / 32, expected)


def test_a_teacher_of_other_classes_is_refused(trained):
    plan = small_plan()
    other = replace(plan.source, classes=tuple("abcdefghij"))
    with pytest.raises(UsageError, match="other classes"):
        resolve(replace(plan.recipe, teacher=str(trained)), other, CPU, 0)


def errors_of(run):
    return [row["val_error"] for row in run.rows("metrics.jsonl")]


def test_early_stopping_ends_after_as_many_evaluations_without_a_better_one(tmp_path):
    run = run_to(tmp_path / "run", small_plan(steps=400, early_stop_patience=2, lr=0.4))
    errors = errors_of(run)
    best = errors.index(min(errors))
    assert len(errors) == best + 3
    assert newest(run).progress.done
    assert newest(run).progress.step < 400


def test_a_plateau_divides_the_rate(tmp_path):
    run = run_to(
        tmp_path / "run", small_plan(steps=200, schedule="plateau", patience=2, warmup=0, lr=0.2)
    )
    rows, best, waited, rate = run.rows("metrics.jsonl"), 2.0, 0, 0.2
    for row in rows:
        assert row["lr"] == pytest.approx(rate)
        waited = 0 if row["val_error"] < best else waited + 1
        best = min(best, row["val_error"])
        if waited == 2:
            rate, waited = rate / 10, 0
    assert rows[-1]["lr"] < 0.2


def test_the_best_state_is_kept_as_a_model_file(tmp_path):
    run = run_to(tmp_path / "run", small_plan(steps=100, select="best", lr=0.4))
    plan = small_plan()
    result = classification_metrics(load(run.best).scores(plan.source.val))
    assert result.error == pytest.approx(min(errors_of(run)))


def test_the_test_images_may_not_choose():
    with pytest.raises(UsageError, match="monitor=val"):
        small_plan(monitor="test", select="best")


def test_a_budget_sets_the_length_and_anneals_the_rate(tmp_path, monkeypatch):
    update, now = Step.update, [100.0]

    def slowly(self, batch):
        now[0] += 0.05
        return update(self, batch)

    # By a clock that other work on the machine does not touch.
    monkeypatch.setattr(Step, "update", slowly)
    fake = {name: lambda: now[0] for name in ("monotonic", "perf_counter")}
    monkeypatch.setattr(clock, "time", SimpleNamespace(**fake))
    plan = small_plan(budget=6.0, schedule="linear", eval_every=1.0)
    run = run_to(tmp_path / "run", plan := replace(plan, workers=0, began=now[0]))
    progress, rows = newest(run).progress, run.rows("metrics.jsonl")
    assert progress.done
    finishing = plan.tail_seconds(0.05 / 32 / 3, 0)  # some seconds are for the end
    assert progress.seconds == pytest.approx(6 - finishing, abs=0.2)
    assert progress.step != plan.steps
    assert rows[-1]["lr"] == pytest.approx(
        plan.recipe.lr / (progress.steps - 0.15 * progress.steps)
    )


def test_the_end_of_a_run_is_part_of_its_budget():
    plan = small_plan()
    assert (len(plan.monitor_split), len(plan.result_split)) == (100, 898)
    assert plan.tail_seconds(0.01, 0) == pytest.approx(3.5 + 1 + 9.98)  # temperature too
    assert plan.tail_seconds(0.01, 0.02) == pytest.approx(3.5 + 1 + 2 * 9.98)
    wider = replace(plan, world=World(0, 2))  # one rank alone tests the result
    assert wider.tail_seconds(0.01, 0) == pytest.approx(3.5 + 1 + 2 * 9.98)
    assert replace(plan, source=replace(plan.source, val=None)).tail_seconds(0.01, 0) == 3.5 + 8.98


def test_the_input_grows_over_three_quarters_of_the_run():
    plan = small_plan(size=16, progressive_from=8)
    assert [plan.side(step, 100) for step in (0, 18, 19, 56, 57, 99)] == [8, 8, 12, 12, 16, 16]
    plan = small_plan(size=16, train_size=12)
    assert {plan.side(step, 100) for step in range(100)} == {12}


def test_mixing_and_erasing_leave_a_finite_falling_loss(tmp_path):
    augment = Augment(crop="pad", pad=1, mixup=0.2, cutmix=1.0, random_erasing=0.2, repeated_aug=2)
    run = run_to(tmp_path / "run", small_plan(steps=120, augment=augment, loss="bce", clip=1.0))
    losses = [row["loss"] for row in run.rows("metrics.jsonl")]
    assert losses[-1] < 0.8 * losses[0]


FREQUENT = ["sgd", "muon"]
SELDOM = [pytest.param(name, marks=pytest.mark.slow) for name in ("adamw", "lamb", "lars")]


@pytest.mark.parametrize("optimizer", FREQUENT + SELDOM)
def test_every_optimiser_goes_on_bit_for_bit(tmp_path, optimizer):
    plan = small_plan(optimizer=optimizer, lr=0.01, steps=8, clip=1.0)
    whole = run_to(tmp_path / "whole", plan)
    run_to(tmp_path / "halves", plan, stop_after=4)
    halves = run_to(tmp_path / "halves", plan)
    one, two = newest(whole), newest(halves)
    assert one.tensors.keys() == two.tensors.keys()
    assert all(torch.equal(v, two.tensors[k]) for k, v in one.tensors.items())


def test_the_average_takes_every_nth_step(tmp_path):
    plan = small_plan(ema=0.5, ema_every=3)
    state, step = begin(plan)
    batch, seen = first_batch(plan), []
    for _ in range(6):
        step.update(batch)
        seen.append(state.average.fc.weight.clone())
    changed = [not torch.equal(a, b) for a, b in itertools.pairwise(seen)]
    assert changed == [False, True, False, False, True]


@pytest.mark.parametrize(
    ("steps", "swa", "every", "averaged"),
    [(6, 0.5, 1, [4, 5, 6]), (6, 1.0, 2, [2, 4, 6]), (7, 0.5, 2, [6, 7])],
)
def test_swa_is_the_mean_of_the_last_states(steps, swa, every, averaged):
    plan = small_plan(ema=0.0, swa=swa, ema_every=every, steps=steps)
    state, step = begin(plan)
    batch, weights = first_batch(plan), {}
    for number in range(1, steps + 1):
        step.update(batch)
        weights[number] = state.network.fc.weight.detach().double()
        if number == round((1 - swa) * steps):
            assert torch.equal(state.average.fc.weight, state.network.fc.weight)
    mean = torch.stack([weights[number] for number in averaged]).mean(0)
    torch.testing.assert_close(state.average.fc.weight.double(), mean, rtol=1e-6, atol=1e-7)
    assert not torch.equal(state.average.fc.weight, state.network.fc.weight)


def test_an_equal_average_is_resumed_exactly(tmp_path):
    plan = small_plan(ema=0.0, swa=0.75, ema_every=2, steps=7, sampler="balanced")
    whole = run_to(tmp_path / "whole", plan)
    run_to(tmp_path / "halves", plan, stop_after=4)
    halves = run_to(tmp_path / "halves", plan)
    one, two = newest(whole), newest(halves)
    assert one.tensors.keys() == two.tensors.keys()
    assert all(torch.equal(v, two.tensors[k]) for k, v in one.tensors.items())


def test_an_equal_average_is_not_a_moving_one():
    with pytest.raises(UsageError, match="swa is another average than ema"):
        small_plan(ema=0.9, swa=0.5)


def test_sam_is_its_algorithm_for_three_steps():
    """2010.01412, Algorithm 1, written out; micro-batches and momentum are those of any step."""
    plan = small_plan(
        ema=0.0,
        sam=0.3,
        steps=3,
        micro_batch=16,
        arch={"norm": "group"},
        label_smoothing=0.0,
        decay_all=True,
    )
    state, step = begin(plan)
    batch, recipe = first_batch(plan), plan.recipe
    network = plan.start().network.train()
    parameters = list(network.parameters())
    rule = torch.optim.SGD(
        parameters, 1.0, recipe.momentum, nesterov=recipe.nesterov, weight_decay=recipe.weight_decay
    )

    def gradient():
        rule.zero_grad()
        F.cross_entropy(network(batch.images), batch.labels).backward()
        return [p.grad.clone() for p in parameters]

    assert not recipe.clip
    for number in range(3):
        step.update(batch)
        at_w = gradient()
        length = sum(float(g.double().square().sum()) for g in at_w) ** 0.5
        before = [p.detach().clone() for p in parameters]
        with torch.no_grad():
            for p, g in zip(parameters, at_w, strict=True):
                p += recipe.sam * g / length
        gradient()
        with torch.no_grad():
            for p, w in zip(parameters, before, strict=True):
                p.copy_(w)
        rule.param_groups[0]["lr"] = recipe.rate(number, 3)
        rule.step()
        for ours, theirs in zip(state.network.parameters(), parameters, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_sam_keeps_the_statistics_of_its_first_pass():
    plain, sharp = begin(small_plan(ema=0.0)), begin(small_plan(ema=0.0, sam=5.0))
    for _, step in (plain, sharp):
        step.update(first_batch(small_plan()))
    for ours, theirs in zip(sharp[0].network.buffers(), plain[0].network.buffers(), strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(sharp[0].network.fc.weight, plain[0].network.fc.weight)
    with pytest.raises(UsageError, match="sam moves whole weights"):
        small_plan(sam=0.1, fsdp=True)


def test_exact_normalisation_statistics_are_in_the_result(tmp_path):
    few = {"steps": 6, "size": 8, "batch": 32, "precision": "float32", "precise_bn": 3}
    outcome = resnets.train("digits", model="resnet8", run=tmp_path / "r", overrides=few)
    recipe = json.loads((tmp_path / "r" / "recipe.json").read_text())
    assert recipe["precise_bn"] == 3
    model = load(outcome.run)
    raw = newest(Run(outcome.run)).tensors["average.bn1.running_mean"]
    assert not torch.equal(model.network.bn1.running_mean, raw)
    plan = resnets.plan("digits", recipe=str(tmp_path / "r" / "recipe.json"))
    images = torch.cat(
        [b.images for b in itertools.islice(plan.batches(TrainProgress(steps=3)), 3)]
    )
    means = F.conv2d(images, model.network.conv1.weight, padding=1).mean((0, 2, 3))
    torch.testing.assert_close(model.network.bn1.running_mean, means, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"select": "best"}, "val_fraction=0.1"),
        ({"freeze_backbone_epochs": 1}, "--weights"),
        ({"norm": "frozen"}, "--weights"),
        ({"momentun": 0.9, "lr": "abc"}, r"did you mean momentum(.|\n)*lr:"),
        ({"augment": 3}, "augment:"),
        ({"steps": 9, "warmup": 10}, "warmup=10 is longer than the 9 steps"),
        (
            {"milestones": [0.5], "schedule": "cosine"},
            "milestones are for --set schedule=step, not",
        ),
        (
            {"progressive_from": 9, "size": 8},
            "progressive_from=9 is larger than the input, which",
        ),
        (
            {"select": "best", "progressive_from": 9, "size": 8},
            r"val_fraction=0.1(.|\n)*progressive_from=9",
        ),
    ],
)
def test_contradictions_are_told_before_training(fields, message):
    with pytest.raises(UsageError, match=message):
        resnets.plan("digits", overrides=fields)


def test_a_teacher_that_sees_other_pixels_is_refused(trained):
    with pytest.raises(UsageError, match="normalises otherwise"):
        small_plan(teacher=str(trained), normalize="imagenet")


def test_another_model_than_that_of_the_weights_is_refused(trained):
    with pytest.raises(UsageError, match="resnet8"):
        resnets.plan("digits", model="resnet20", overrides={"weights": str(trained)})


def test_class_weights_do_not_depend_on_the_micro_batch():
    gradients = []
    for micro in (32, 8):
        plan = small_plan(arch={"norm": "group"}, micro_batch=micro, class_weights="balanced")
        state, step = begin(plan)
        step.accumulate(first_batch(plan))
        gradients.append([p.grad for p in state.network.parameters()])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)


def several_labels(**changes):
    """Of each digit whether it is odd, and whether it is above 4."""
    plan = small_plan(**{"loss": "bce", **changes})
    parts = {
        name: replace(split, labels=torch.stack([split.labels % 2, split.labels // 5], 1).float())
        for name, split in plan.source.splits.items()
    }
    source = replace(plan.source, classes=("odd", "large"), **parts)
    return resolve(plan.recipe, source, CPU, 0)


@pytest.mark.parametrize(
    "fields", [{}, {"class_weights": "balanced", "augment": Augment(mixup=0.2)}]
)
@pytest.mark.slow
def test_images_with_several_labels_are_learned(tmp_path, fields):
    run = run_to(tmp_path / "run", plan := several_labels(steps=150, warmup=0, lr=0.1, **fields))
    first, *_, last = run.rows("metrics.jsonl")
    assert last["loss"] < 0.7 * first["loss"]
    assert last["train_error"] < first["train_error"] < 0.9
    state = plan.start()
    state.restore(newest(run).tensors, newest(run).progress)
    val = plan.source.val
    mean, std = plan.preprocess.mean[0], plan.preprocess.std[0]
    with torch.no_grad():
        logits = state.average.eval()((val.images / 255 - mean) / std)
    right = ((logits.sigmoid() > 0.5) == (val.labels > 0)).all(1)
    assert last["val_error"] == pytest.approx(1 - float(right.float().mean()))
    assert last["val_error"] < 0.4  # by chance it is 0.75


def test_several_labels_have_their_own_loss_and_no_teacher(trained):
    plan = several_labels()
    assert default_recipe(replace(plan.source, name="table"), plan.train, CPU).loss == "bce"
    with pytest.raises(UsageError, match=r"several labels each: --set loss=bce"):
        several_labels(loss="cross-entropy")
    with pytest.raises(UsageError, match="leave teacher out"):
        resolve(replace(plan.recipe, teacher=str(trained)), plan.source, CPU, 0)


def test_without_an_average_the_result_is_the_last_state():
    state, step = begin(small_plan(ema=0.0, ema_every=1000))
    step.update(first_batch(small_plan()))
    assert torch.equal(state.average.fc.weight, state.network.fc.weight)


def test_a_large_seed_is_a_seed():
    _, step = begin(small_plan(seed=99_999_999_999))
    assert step.update(first_batch(small_plan())) == "done"


@pytest.mark.slow
def test_exact_statistics_after_a_budget_end(tmp_path):
    few = {"size": 8, "batch": 32, "precise_bn": 2, "budget": 3.0, "precision": "float32"}
    outcome = resnets.train("digits", model="resnet8", run=tmp_path / "r", overrides=few)
    assert outcome.result is not None


def test_inputs_whose_gradients_bfloat16_gets_wrong_are_trained_in_float32(monkeypatch):
    """PyTorch 2.14 leaves memory in the gradient of a stride over less than its own width."""
    monkeypatch.setattr("resnets.training.resolve.use_bfloat16", lambda precision, _: True)
    small = {"model": "resnet18", "precision": "auto"}
    with pytest.warns(Assumption, match="16 pixels shrink to maps narrower than a stride"):
        assert not small_plan(size=16, **small).bfloat16
    with pytest.warns(Assumption, match="16 pixels"):  # what it starts with counts
        assert not small_plan(size=32, progressive_from=16, **small).bfloat16
    assert small_plan(size=32, **small).bfloat16
    with pytest.raises(UsageError, match=r"--set precision=float32, or a larger size"):
        small_plan(size=16, model="resnet18", precision="bfloat16")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nesterov": True, "momentum": 0.0}, "nesterov needs a momentum"),
        ({"schedule": "one-cycle", "optimizer": "adamw"}, "adamw has none"),
        ({"schedule": "one-cycle", "optimizer": "sgd", "warmup": 0.0}, "rises before it falls"),
    ],
)
def test_an_optimiser_that_cannot_do_what_is_asked_is_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        small_plan(**changes)


def test_timing_a_network_leaves_frozen_normalisation_frozen():
    plan = small_plan(norm="frozen")
    network = begin(plan)[0].network
    modes = [module.training for module in network.modules()]
    assert clock.seconds_per_test_image(plan, network) > 0
    assert [module.training for module in network.modules()] == modes
    assert {True, False} <= set(modes)


def test_the_plan_says_how_often_images_of_a_rare_class_come():
    labels = torch.tensor([0] * 15 + [1] * 5 + [2] * 10)
    plan = small_plan(sampler="balanced")
    plan = replace(plan, train=replace(plan.train.take(torch.arange(30)), labels=labels))
    assert plan.summary()["sampling"] == (
        "each class equally often: in an epoch an image of 1 (5) 2 times, "
        "an image of 0 (15) 0.667 times on average"
    )
    assert "sampling" not in small_plan().summary()
    state = plan.start()
    batch = next(plan.batches(state.progress))
    assert set(torch.bincount(batch.labels).tolist()) == {10, 11}  # 32 of 3 classes
    with pytest.raises(UsageError, match="sampler=balanced is for images with one class each"):
        several_labels(sampler="balanced")

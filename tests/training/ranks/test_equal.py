"""One run is one run on any number of ranks.

Sums in another order differ in the last bits. A ReLU whose input is close to 0 makes them large (on
one process, too, where the first weights are changed by 1e-7), so the networks here have softplus.
"""

import hashlib
import json
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import nn

from resnets import models
from resnets.config.recipe import Augment, Preprocess
from resnets.config.recipes import digits
from resnets.data import dataset, splits
from resnets.data.loader import test_batches as shown
from resnets.data.loader import train_batches
from resnets.evaluation.classification import evaluate
from resnets.evaluation.load import load
from resnets.training import checkpoint
from resnets.training import resolve as plans
from resnets.training.distributed import SINGLE_PROCESS
from resnets.training.loop import fit
from resnets.training.run import Run
from resnets.training.signals import SignalFlags
from resnets.training.step import Step

from ._helpers import together

CPU = torch.device("cpu")


def smooth(arch, activation_checkpointing=0, build=models.build):
    network = build(arch, activation_checkpointing=activation_checkpointing)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.Softplus())
    return network


@pytest.fixture(autouse=True)
def smooth_networks(monkeypatch):
    monkeypatch.setattr(models, "build", smooth)


def smoothly(world, work, *rest):
    """A rank's work with networks as those of this process."""
    models.build = smooth
    work(world, *rest)


def small_plan(world, changes):
    recipe = replace(digits(), model="resnet8", size=8, steps=20, batch=32, eval_every=0.4)
    recipe = replace(recipe, lr=0.02, precision="float32", augment=Augment(crop="pad", pad=1))
    source = splits.hold_out(dataset.load("digits"), 101, 0)
    return plans.resolve(replace(recipe, **changes), source, CPU, 0, world)


def train(world, folder, changes, stop_after=None):
    run, stop = Run(folder), SignalFlags()
    if world.is_main and not folder.exists():
        run.create()
    for progress in fit(run, small_plan(world, changes), stop):
        if stop_after is not None and progress.step >= stop_after:
            stop.signal = 15
    world.leave()


def trained(ranks, folder, **changes):
    together(ranks, smoothly, train, folder, changes)
    return newest(folder)


def newest(folder):
    found = checkpoint.read_newest(folder / "checkpoints")
    assert found.progress.done
    return found.tensors


def distance(ours, theirs, names):
    """The greatest relative difference, in Euclidean norm, of any tensor."""
    return max(float((ours[n] - theirs[n]).norm() / theirs[n].norm()) for n in names)


def learned(tensors):
    """Weights, their averages and moments; neither running statistics nor counts."""
    skipped = ("running_mean", "running_var", "num_batches_tracked", "totals")
    return [name for name in tensors if not name.endswith(skipped)]


def floating(tensors):
    floats = [name for name, value in tensors.items() if value.is_floating_point()]
    return [name for name in floats if name != "totals"]


@pytest.mark.slow
def test_weights_do_not_depend_on_the_number_of_ranks(tmp_path):
    one, two, four = (trained(n, tmp_path / str(n), micro_batch=8) for n in (1, 2, 4))
    for other in (two, four):
        assert distance(other, one, learned(one)) < 1e-5
        # One rank has seen four forward passes a step, the mean of four ranks is as old as one.
        assert distance(other, one, floating(one)) > 1e-3
    rows = [Run(tmp_path / str(n)).rows("metrics.jsonl") for n in (1, 2, 4)]
    for other in rows[1:]:
        assert [r["loss"] for r in other] == pytest.approx([r["loss"] for r in rows[0]], rel=1e-5)
        assert [r["train_error"] for r in other] == [r["train_error"] for r in rows[0]]


@pytest.mark.slow
def test_sam_and_balanced_images_do_not_depend_on_the_number_of_ranks(tmp_path):
    changes = {"micro_batch": 8, "sam": 0.05, "sampler": "balanced", "ema": 0.0, "swa": 0.5}
    one, two = (trained(n, tmp_path / str(n), **changes) for n in (1, 2))
    assert distance(two, one, learned(one)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_synchronous_statistics_are_those_of_the_whole_batch(tmp_path, ranks):
    one, other = (trained(n, tmp_path / str(n), norm="sync") for n in (1, ranks))
    assert distance(other, one, floating(one)) < 1e-5


@pytest.mark.parametrize(
    "shares", [[(1, 8), (2, 6)], pytest.param([(2, 8), (4, 0)], marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_micro_batches_are_the_batch_where_nothing_normalises_over_it(tmp_path, shares):
    same = {"arch": {"norm": "group"}, "ema": 0.5}
    whole = trained(1, tmp_path / "whole", **same)
    for ranks, micro in shares:
        parts = trained(ranks, tmp_path / f"{ranks}-{micro}", **same, micro_batch=micro)
        assert distance(parts, whole, floating(whole)) < 1e-5


CHANCE = {
    "arch": {"drop_path": 0.5},
    "augment": Augment(crop="pad", pad=1, mixup=0.2, cutmix=1.0),
    "freeze_backbone_epochs": 0.3,
    "micro_batch": 8,
}


@pytest.mark.nightly
def test_chance_and_a_frozen_start_do_not_depend_on_the_number_of_ranks(tmp_path):
    one, two, four = (trained(n, tmp_path / str(n), **CHANCE) for n in (1, 2, 4))
    assert distance(two, one, learned(one)) < 1e-5
    assert distance(four, one, learned(one)) < 1e-5
    plan = small_plan(SINGLE_PROCESS, CHANCE)
    fresh = plan.start().network.state_dict()
    assert 0 < plan.frozen_steps < 20
    frozen = trained(2, tmp_path / "frozen", **CHANCE | {"steps": plan.frozen_steps})
    moved = [n for n in fresh if not torch.equal(fresh[n], frozen[f"network.{n}"])]
    assert moved == ["fc.weight", "fc.bias"]


@pytest.mark.parametrize("ranks", [1, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_run_of_two_ranks_goes_on_with_others(ranks, tmp_path):
    whole = trained(2, tmp_path / "whole", micro_batch=8)
    together(2, smoothly, train, tmp_path / "halves", {"micro_batch": 8}, 8)
    assert 0 < checkpoint.read_newest(tmp_path / "halves" / "checkpoints").progress.step < 20
    halves = trained(ranks, tmp_path / "halves", micro_batch=8)
    assert distance(halves, whole, learned(whole)) < 1e-5


def count_messages(world, folder):
    plan = small_plan(world, {"steps": 4, "micro_batch": 4})
    state = plan.start()
    state.progress.micro_batch = plan.local_batch
    step, counts = Step(plan, state), []

    for micro, batch in zip((plan.local_batch, 4, 4), plan.batches(state.progress), strict=False):
        state.progress.micro_batch = micro
        step.accumulate(batch)
        counts.append(len(step.sent))
    (folder / f"{world.rank}.json").write_text(json.dumps(counts))
    world.leave()


def test_only_the_last_micro_batch_sends_gradients(tmp_path):
    together(2, smoothly, count_messages, tmp_path)
    for rank in (0, 1):
        whole, *four = json.loads((tmp_path / f"{rank}.json").read_text())
        assert whole > 0
        assert four == [whole, whole]


def short_of_memory(world, folder, where):
    """Train; in the third step the second rank has too little memory, before or amid messages."""
    dist._DEFAULT_FIRST_BUCKET_BYTES = 50_000  # so that there are several messages
    accumulate, taken = Step.accumulate, []

    def accumulated(step, batch):
        taken.append(step.state.progress.micro_batch)
        if not world.rank or len(taken) != 3:
            return accumulate(step, batch)
        # The last gradient of the first pass to be known, or the output of it.
        place = step.parameters[0] if where == "backward" else step.state.network.fc
        add = place.register_hook if where == "backward" else place.register_forward_hook
        hook = add(no_memory)
        try:
            return accumulate(step, batch)
        finally:
            hook.remove()
            (folder / "sent").write_text(f"{len(step.sent)} of {len(step.messages_of_a_pass)}")

    Step.accumulate = accumulated
    train(world, folder / "run", GROUP)
    assert taken == [16, 16, 16, 8, 8, 8, 8]


GROUP = {"arch": {"norm": "group"}, "freeze_backbone_epochs": 0.05, "steps": 6}


def no_memory(*_):
    raise torch.OutOfMemoryError("no more")


@pytest.mark.slow
def test_where_one_rank_is_short_of_memory_all_halve_and_repeat_the_step(tmp_path):
    whole = trained(2, tmp_path / "whole", **GROUP)
    for where, sent in (("forward", "0 of 2"), ("backward", "1 of 2")):
        (folder := tmp_path / where).mkdir()
        together(2, smoothly, short_of_memory, folder, where)
        assert (folder / "sent").read_text() == sent
        found = checkpoint.read_newest(folder / "run" / "checkpoints")
        assert found.progress.micro_batch == 8
        assert distance(found.tensors, whole, floating(whole)) < 1e-5
        (note,) = Run(folder / "run").rows("notes.jsonl")
        assert "out of memory: from step 3 on 8 images in a forward pass" in note["note"]


def count_images(world, folder):
    results = {}
    plan = small_plan(world, {})
    torch.manual_seed(0)
    network = plan.start().network
    for images in (101, 3):
        split = plan.source.val
        part = replace(split, images=split.images[:images], labels=split.labels[:images])
        rows = shown(
            part,
            preprocess=plan.preprocess,
            batch=8,
            device=CPU,
            rank=world.rank,
            ranks=world.size,
        )
        results[images] = evaluate(network, rows, plan.source.classes, total=world.all_reduce_sum)
    torch.save(results, folder / f"{world.size}-{world.rank}")
    world.leave()


def test_every_image_is_tested_once(tmp_path):
    for ranks in (1, 2, 4):
        together(ranks, smoothly, count_images, tmp_path)
    one = torch.load(tmp_path / "1-0", weights_only=False)
    assert [(n, r.images) for n, r in one.items()] == [(101, 101), (3, 3)]
    for ranks in (2, 4):
        for rank in range(ranks):
            found = torch.load(tmp_path / f"{ranks}-{rank}", weights_only=False)
            for n, result in found.items():
                assert result.loss == pytest.approx(one[n].loss, rel=1e-6)
                assert replace(result, loss=0) == replace(one[n], loss=0)


def digest(split, ranks, workers):
    """Of indices and pixels of three steps, in the order of the ranks."""
    parts = [
        list(
            train_batches(
                split,
                preprocess=Preprocess(size=16, resize=20),
                augment=Augment(crop="area", flip=True, colour="jitter"),
                batch=8,
                seed=5,
                start=1,
                stop=4,
                device="cpu",
                workers=workers,
                rank=rank,
                ranks=ranks,
            )
        )
        for rank in range(ranks)
    ]
    sums = hashlib.sha256()
    for step in zip(*parts, strict=True):
        for column in ("indices", "labels", "images"):
            sums.update(torch.cat([getattr(b, column) for b in step]).numpy().tobytes())
    return sums.hexdigest()


# Three workers are more than some machines have processors.
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.slow
def test_indices_and_pixels_are_one_stream(tmp_path):
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for k in range(22):
        pixels = torch.randint(256, (20 + k, 24, 3), generator=generator, dtype=torch.uint8)
        path = tmp_path / ("cat", "dog")[k % 2] / f"{k}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels.numpy()).save(path)
    split = dataset.load(str(tmp_path)).train
    cases = [(ranks, workers) for ranks in (1, 2, 4) for workers in (0, 1, 3)]
    assert len({digest(split, *case) for case in cases}) == 1


@pytest.mark.parametrize(
    ("optimizer", "limit"), [("sgd", 1e-5), pytest.param("adamw", 1e-4, marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_split_states_learn_what_whole_ones_do(tmp_path, optimizer, limit):
    """FSDP2 against DDP, with clipping, micro-batches and an interruption; the file is the same.

    Adam divides by the root of moments that are close to 0, so last bits grow.
    """
    changes = {"optimizer": optimizer, "clip": 1.0, "micro_batch": 8, "select": "best", "ema": 0.9}
    whole = trained(2, tmp_path / "whole", **changes)
    together(2, smoothly, train, tmp_path / "split", changes | {"fsdp": True}, 8)
    split = trained(2, tmp_path / "split", **changes, fsdp=True)
    assert split.keys() == whole.keys()
    assert distance(split, whole, floating(whole)) < limit
    best = [load(tmp_path / name / "best.safetensors").network for name in ("whole", "split")]
    for ours, theirs in zip(*(n.state_dict().values() for n in best), strict=True):
        assert float((ours - theirs).float().norm()) <= limit * float(theirs.float().norm())
    alone = trained(1, tmp_path / "split", **changes)  # an ended run: nothing is left to do
    assert alone.keys() == whole.keys()

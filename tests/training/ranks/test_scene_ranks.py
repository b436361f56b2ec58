"""Scenes on two ranks: the gradients and the figures are those of one."""

import json
from dataclasses import replace

import pytest

import resnets
from resnets.config.families import TINY
from resnets.training import checkpoint
from resnets.training.loop import fit
from resnets.training.run import Run
from resnets.training.signals import SignalFlags

from ._helpers import together

FIELDS = {"size": 64, "batch": 8, "micro_batch": 4, "steps": 3, "precision": "float32", "lr": 1e-4}
GROUP = replace(TINY, norm="group")


def train(world, folder, data, task, model):
    plan = resnets.plan(
        data, task=task, overrides=FIELDS | {"model": model}, workers=0, device="cpu"
    )
    # Statistics of a batch would be each rank's own.
    plan = replace(plan, world=world, arch=replace(plan.arch, backbone=GROUP))
    run = Run(folder)
    if world.is_main:
        run.create()
    for _ in fit(run, plan, SignalFlags()):
        pass
    world.leave()


@pytest.mark.parametrize(
    ("task", "model"),
    [
        ("detect", "fasterrcnn_tiny_fpn"),
        pytest.param("segment", "semanticfpn_tiny", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_two_ranks_train_and_measure_as_one(drawn, tmp_path, task, model):
    ended = []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        together(ranks, train, folder, str(drawn[task]), task, model)
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        ended.append((checkpoint.read_newest(folder / "checkpoints").tensors, rows))
    (one, rows), (two, others) = ended
    for name in one:
        if name.startswith("network."):
            # Sums in another order; AdamW's first steps make much of the least difference.
            assert (one[name] - two[name]).abs().max() <= 1e-4, name
    for row, other in zip(rows, others, strict=True):
        assert row == pytest.approx(other, abs=2e-3)

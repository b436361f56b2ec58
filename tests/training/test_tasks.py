"""Runs of every task of scenes: exact, tested, and refused where they cannot be meant."""

from dataclasses import replace

import pytest
import torch

import resnets
from resnets import models
from resnets.config.families import ARCHS
from resnets.data.joint_transforms import fit_side
from resnets.errors import CheckpointError, UsageError
from resnets.evaluation import detections
from resnets.models.io.model_file import load
from resnets.tensor_files import digest
from resnets.training import checkpoint
from resnets.training.state import TrainProgress, load_pretrained

from ._helpers import run_to

SHORT = {"size": 64, "batch": 4, "augment.scale": [56, 80], "precision": "float32", "ema": 0.5}
MODELS = {
    "detect": "fasterrcnn_tiny_fpn",
    "localize": "localizer_tiny",
    "segment": "semanticfpn_tiny",
}


def planned(drawn, task, **changes):
    fields = SHORT | {"model": MODELS[task], "steps": 6, "eval_every": 1} | changes
    return resnets.plan(str(drawn[task]), task=task, overrides=fields, workers=0, device="cpu")


@pytest.mark.parametrize(
    "task", ["segment", *(pytest.param(t, marks=pytest.mark.slow) for t in ("detect", "localize"))]
)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(drawn, tmp_path, task):
    runs = [
        run_to(tmp_path / "whole", planned(drawn, task)),
        run_to(tmp_path / "halves", planned(drawn, task), stop_after=3),
    ]
    assert checkpoint.read_newest(runs[1].path / "checkpoints").progress.step < 6
    run_to(tmp_path / "halves", planned(drawn, task))
    ended = [checkpoint.read_newest(run.path / "checkpoints") for run in runs]
    one, other = ({k: digest(v) for k, v in x.tensors.items()} for x in ended)
    assert one == other
    assert len({(run.path / "metrics.jsonl").read_text() for run in runs}) == 1
    rows = runs[0].rows("metrics.jsonl")
    assert [row["step"] for row in rows] == [3, 6]
    assert all(0 <= row["val_error"] <= 1 and row["loss"] > 0 for row in rows)


def test_a_finished_run_is_tested_and_its_model_finds_the_same(drawn, tmp_path):
    outcome = resnets.train(
        str(drawn["detect"]),
        task="detect",
        run=tmp_path / "run",
        overrides=SHORT | {"steps": 2},
        workers=0,
    )
    kept = detections.load(tmp_path / "run" / "detections.safetensors")
    again = resnets.evaluate(tmp_path / "run", drawn["detect"], batch=4, workers=0)
    one, other = (dict(r.numbers()) for r in (again, outcome.result))
    assert one == pytest.approx(other, abs=1e-3)  # the convolutions are folded, and round otherwise
    assert len(kept.indices) == outcome.result.images == 6
    _, card = load(tmp_path / "run" / "model.safetensors")
    assert card.classes == ("dark", "red")
    with pytest.raises(UsageError, match="resnets detect predict`, or evaluate"):
        resnets.evaluate(tmp_path / "run", "digits", task="classify")


def test_validation_images_are_trained_on_when_that_is_said(drawn):
    assert len(planned(drawn, "detect").train) == 12
    merged = planned(drawn, "detect", trainval=True)
    assert (len(merged.train), merged.source.val) == (18, None)
    with pytest.raises(UsageError, match="trainval: digits has no validation images"):
        resnets.plan("digits", overrides={"trainval": True})


def test_a_classifier_becomes_the_backbone_and_a_detector_keeps_what_fits():
    torch.manual_seed(0)
    classifier = models.create("resnet18", classes=7)
    arch = replace(ARCHS["fasterrcnn_resnet18_fpn"], classes=2)
    detector = models.build(arch)
    load_pretrained(detector, classifier.state_dict())
    own = detector.state_dict()
    for name, value in classifier.state_dict().items():
        assert name.startswith("fc.") or torch.equal(own[f"backbone.body.{name}"], value)
    other = models.build(replace(arch, classes=5))
    fresh = other.roi_heads["box_predictor"].cls_score.weight.clone()
    load_pretrained(other, own)
    assert torch.equal(other.rpn.head.cls_logits.weight, detector.rpn.head.cls_logits.weight)
    assert torch.equal(other.roi_heads["box_predictor"].cls_score.weight, fresh)
    with pytest.raises(CheckpointError, match="another network"):
        load_pretrained(detector, models.create("resnet34").state_dict())


def test_a_classifier_becomes_both_networks_of_a_localiser():
    torch.manual_seed(0)
    classifier = models.create("resnet18", classes=7)
    alone = replace(ARCHS["localizer_resnet18"], classes=2)
    plain, judged = models.build(alone), models.build(replace(alone, regions=(2, 3)))
    load_pretrained(judged, classifier.state_dict())
    for part in (judged.backbone, judged.rcnn.body):
        assert all(
            torch.equal(value, part.state_dict()[name])
            for name, value in classifier.state_dict().items()
            if not name.startswith("fc.")
        )
    load_pretrained(judged, plain.state_dict())
    assert torch.equal(judged.backbone.conv1.weight, plain.backbone.conv1.weight)
    assert torch.equal(judged.regression.weight, plain.regression.weight)
    assert torch.equal(judged.rcnn.body.conv1.weight, plain.backbone.conv1.weight)


@pytest.mark.parametrize(
    ("task", "fields", "told"),
    [
        ("detect", {"label_smoothing": 0.1}, "label_smoothing is for classification"),
        ("detect", {"augment.mixup": 0.2}, "augment.mixup=0.2"),
        ("segment", {"loss": "bce"}, "loss is for classification"),
        ("segment", {"model": "fasterrcnn_tiny_fpn"}, "cannot segment"),
        ("detect", {"arch.anchors": [[8], [16]]}, "anchors"),
    ],
)
def test_what_cannot_be_meant_is_refused(drawn, tmp_path, task, fields, told):
    with pytest.raises(UsageError, match=told):
        run_to(tmp_path / "run", planned(drawn, task, **fields))


def test_a_steps_images_share_a_side_that_changes_from_step_to_step(drawn):
    plan = planned(drawn, "detect", **{"augment.crop": "resize", "augment.scale": [40, 80]})
    sides = [plan.side(step, 100) for step in range(100)]
    assert min(sides) >= 40
    assert max(sides) <= 80
    assert len(set(sides)) > 20
    assert sides == [plan.side(step, 1000) for step in range(100)]  # whatever the length
    batch = next(plan.batches(TrainProgress(steps=6)))
    height, width = fit_side(64, 80, sides[0])
    assert batch.images.shape[2:] == (-(-height // 32) * 32, -(-width // 32) * 32)
    classes = resnets.plan("digits", overrides={"augment.crop": "resize"})
    with pytest.raises(UsageError, match=r"augment.crop=resize is for boxes"):
        next(classes.batches(TrainProgress(steps=1)))

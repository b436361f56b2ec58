from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import resnets
from resnets import models
from resnets.config.recipe import Augment, Preprocess
from resnets.config.recipes import digits, fine_tune
from resnets.data import dataset
from resnets.data.splits import hold_out
from resnets.errors import UsageError
from resnets.models.io import model_file
from resnets.models.modes import evaluation_mode
from resnets.training import checkpoint
from resnets.training import resolve as plans
from resnets.training.loop import load_or_init
from resnets.training.monitor import describe_selection, read_best
from resnets.training.optim import set_training_mode
from resnets.training.probe_start import fit
from resnets.training.run import Run
from resnets.training.runner import create_run, finish

from ._helpers import run_to

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A network with random weights: its features separate digits well enough."""
    source = hold_out(dataset.load("digits"), 100, 0)
    recipe = replace(digits(), model="resnet8", size=8, precision="float32")
    plan = plans.resolve(recipe, source, CPU, 0)
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    model_file.save(path, plan.start().average, plan.metadata)
    return str(path)


def fine_tuning(weights, **changes):
    recipe = replace(
        digits(), model="resnet8", size=8, steps=8, batch=32, eval_every=0.1, precision="float32",
        augment=Augment(flip=True), weights=weights, head="probe", lr=0.01,
    )  # fmt: skip
    source = hold_out(dataset.load("digits"), 100, 0)
    return plans.resolve(replace(recipe, **changes), source, CPU, 0)


def validate(plan, network):
    with evaluation_mode(network):
        return plan.task.validate(plan, network, plan.source.val, lambda: False)


def test_the_first_state_is_a_probe_of_frozen_features(weights, tmp_path):
    plan, notes = fine_tuning(weights), list[str]()
    run = Run(tmp_path / "run")
    run.create()
    state = load_or_init(run, plan, notes)
    features = plan.start().average
    for name, tensor in features.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(state.network.state_dict()[name], tensor)
    assert validate(plan, features)["error"] > 0.5
    assert validate(plan, state.average)["error"] < 0.15
    images = 2 * len(plan.train)  # and their mirror images
    assert state.totals[2] == images
    assert state.totals[1] / images < 0.1
    assert "linear probe" in notes[0]
    assert "100 validation images" in notes[0]


def test_the_log_begins_with_the_probe_and_a_stopped_run_goes_on_bit_for_bit(weights, tmp_path):
    plan = fine_tuning(weights, select="lowest-loss", freeze_stages=2, norm="frozen")
    whole = run_to(tmp_path / "whole", plan)
    rows = whole.rows("metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 2, 4, 6, 8]
    assert rows[0]["train_error"] < 0.1
    halves = run_to(tmp_path / "halves", plan, stop_after=3)
    assert len(halves.rows("metrics.jsonl")) < len(rows)
    run_to(tmp_path / "halves", plan)
    texts = [(run.path / "metrics.jsonl").read_text() for run in (whole, halves)]
    assert texts[0] == texts[1]
    states = [checkpoint.read_newest(run.path / "checkpoints").tensors for run in (whole, halves)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_fine_tuning_that_does_not_help_leaves_the_probe(weights, tmp_path):
    plan = fine_tuning(weights, select="lowest-loss", lr=3.0)
    create_run(plan, tmp_path / "run")
    run = run_to(tmp_path / "run", plan)
    probe = validate(plan, read_best(run, plan))
    assert probe["loss"] == pytest.approx(run.rows("metrics.jsonl")[0]["val_loss"], rel=1e-5)
    finish(run, plan, 0.0)
    ended = run.read_json("result.json")
    assert ended["selected_step"] == 0
    assert "is the linear probe: 8 steps" in describe_selection(plan.recipe, ended, 8)
    assert model_file.load(run.model)[1].provenance["steps"] == "0"


@pytest.mark.parametrize(
    ("selected", "sentence"),
    [(8, "the last state, step 8, fine-tuned"), (6, "step 6 of 8, fine-tuned"), (None, "")],
)
def test_what_is_the_result_is_said(selected, sentence):
    recipe = replace(fine_tune(), select="lowest-loss")
    text = describe_selection(recipe, {"selected_step": selected}, 8)
    assert sentence in text
    assert bool(text) == bool(sentence)


def test_frozen_stages_and_their_normalisation_do_not_move(weights):
    network = fine_tuning(weights).start().network
    set_training_mode(network, heads_only=False, frozen_norm=False, frozen_stages=2)
    learning = {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad}
    assert learning == {"layer2", "layer3", "fc"}
    assert not network.bn1.training
    assert network.layer2[0].bn1.training


def test_without_validation_images_folds_of_the_training_images_choose(weights):
    plan = fine_tuning(weights)
    plan = replace(plan, source=replace(plan.source, val=None))
    probe, _ = fit(plan, plan.start())
    assert probe.chosen_by.startswith("5-fold cross-validation")


@pytest.mark.parametrize("changes", [{"head": "probe"}, {"freeze_stages": 1}])
def test_what_needs_weights_says_so(changes):
    with pytest.raises(UsageError, match=r"need weights to start(.|\n)*--weights"):
        resnets.plan("digits", overrides=changes)


@pytest.fixture
def photographs(tmp_path):
    """Two classes of coloured noise, and a small network of colour images with random weights."""
    generator = np.random.default_rng(0)
    for name, shade in (("dark", 40), ("light", 160)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(40):
            pixels = generator.integers(shade, shade + 60, (80, 70, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    torch.manual_seed(0)
    network = models.create("resnet8", classes=5)
    preprocess = Preprocess(size=64, resize=80, mean=(0.4, 0.4, 0.4), std=(0.3, 0.3, 0.3))
    metadata = model_file.ModelMetadata(
        arch=replace(network.arch, size=64), classes=tuple("abcde"), preprocess=preprocess
    )
    model_file.save(tmp_path / "weights.safetensors", network, metadata)
    return tmp_path


def test_with_weights_the_default_is_a_probe_and_then_fine_tuning(photographs):
    def plan(**arguments):
        return resnets.plan(
            photographs / "photos", weights=photographs / "weights.safetensors", **arguments
        )

    chosen = plan()
    recipe, preprocess = chosen.recipe, chosen.preprocess
    assert (recipe.model, recipe.head, recipe.select) == ("resnet8", "probe", "lowest-loss")
    assert (recipe.norm, recipe.freeze_stages, recipe.epochs, recipe.batch) == ("frozen", 2, 20, 8)
    assert (preprocess.size, preprocess.resize, preprocess.mean) == (80, 80, (0.4, 0.4, 0.4))
    assert chosen.side(0, 10) == 64
    assert chosen.summary()["method"].startswith("pretrained weights: a linear probe on their")
    changed = plan(epochs=2, size=72, overrides={"head": "random", "select": "last"})
    assert (changed.recipe.head, changed.recipe.epochs) == ("random", 2)
    assert (changed.preprocess.size, changed.preprocess.resize) == (72, 72)
    assert changed.summary()["method"] == "pretrained weights: fine-tuning"
    named = plan(recipe="quick-cifar10")
    assert named.recipe.head == "random"


def test_without_weights_the_plan_says_what_is_lost(photographs):
    method = resnets.plan(photographs / "photos").summary()["method"]
    assert "With 64 images, weights that others trained usually do much better" in method
    assert resnets.plan("digits").summary()["method"] == "random weights"


def test_a_run_says_which_state_it_chose(photographs, cli):
    code, out, _ = cli(
        "train", photographs / "photos", "--weights", photographs / "weights.safetensors",
        "--epochs", "1", "--run", "run",
    )  # fmt: skip
    assert code == 0
    assert "lowest loss on the validation images" in out or "is the linear probe" in out
    report = (photographs / "run" / "report.html").read_text("utf-8")
    assert "The result is" in report

"""A custom module through the public functions: trained, saved, loaded, explained."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import resnets
from resnets.analysis.cam import grad_cam
from resnets.config.arch import ExternalArch, from_dict, to_dict
from resnets.config.types import InferenceOptions
from resnets.errors import Assumption, CheckpointError, UsageError
from resnets.evaluation.evaluate import task_of_model
from resnets.files import resume_command
from resnets.models import external
from resnets.training.run import Run

QUICK = {"recipe": "digits", "overrides": {"steps": 4, "size": 8, "batch": 16}, "device": "cpu"}
FILE = """
from torch import nn
def build(classes=10):
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))
def wrong(): return build(3)
def broken(): return 1 / 0
number = 7
"""


def own(classes=10):
    torch.manual_seed(0)
    convolution = nn.Conv2d(1, 4, 3, padding=1)
    return nn.Sequential(
        convolution, nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, classes),
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return resnets.train("digits", model=own(), run=tmp_path_factory.mktemp("own") / "run", **QUICK)


def test_a_module_is_trained_and_loaded_again_with_its_code(run):
    with pytest.raises(UsageError, match=r"trained from Sequential, custom code.*\n.*network"):
        resnets.load(run.run)
    model = resnets.load(run.run, network=own())
    assert repr(model).startswith("Model(Sequential, 1 x 8 x 8, 10 classes")
    result = resnets.evaluate(model, "digits")
    assert result.top1 == run.result.top1
    tensors = safetensors.torch.load_file(run.run / "model.safetensors")
    plain = own()
    plain.load_state_dict(tensors)  # the names are the module's own
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(plain.eval()(x), model.network(x))
    with pytest.raises(CheckpointError, match="builds another network than was trained"):
        resnets.load(run.run, network=nn.Sequential(own(), nn.Identity()))
    with pytest.raises(UsageError, match="has 9 outputs, the data has 10 classes"):
        resnets.load(run.run, network=own(9))


def test_training_starts_from_the_weights_that_a_module_has(tmp_path):
    module = own()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module[0].requires_grad_(False)
    plan = resnets.plan("digits", model=module, **QUICK)
    state = plan.start()
    assert all(torch.equal(t, before[name]) for name, t in state.network.state_dict().items())
    outcome = resnets.train(plan, run=tmp_path / "run")
    after = safetensors.torch.load_file(outcome.run / "model.safetensors")
    assert torch.equal(after["0.weight"], before["0.weight"])  # frozen
    assert not torch.equal(after["5.weight"], before["5.weight"])
    assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())


def test_a_run_of_a_module_is_resumed_with_it_and_reported(run, tmp_path):
    folder = Run(run.run)
    whole = folder.model.read_bytes()
    folder.model.unlink()
    with pytest.raises(UsageError, match="custom code, which no file runs"):
        resnets.resume(run.run)
    resnets.resume(run.run, model=own(), device="cpu")
    assert folder.model.read_bytes() == whole
    assert "There are no heat maps" not in (run.run / "report.html").read_text()
    resnets.report(run.run)
    assert "There are no heat maps" in (run.run / "report.html").read_text()
    resnets.report(run.run, network=own())
    assert "There are no heat maps" not in (run.run / "report.html").read_text()


def test_a_module_is_explained_by_its_last_map_or_one_that_is_named(run, tmp_path):
    image = torch.rand(1, 8, 8)
    model = resnets.load(run.run, network=own())
    assert model.network.levels == {"2": (4, 1)}
    for level in (None, "0"):
        answers = resnets.explain(model, image, out=tmp_path / str(level), level=level)
        said, check = answers
        assert isinstance(answers, list)
        assert (tmp_path / str(level) / said.picture).exists()
        assert "correlation" in check.verdict or "cannot be told" in check.verdict
    with pytest.raises(UsageError, match="no module 'layer4'"):
        resnets.explain(model, image, out=tmp_path / "x", level="layer4")


def test_a_function_of_the_working_folder_is_a_model_on_the_command_line(cli, tmp_path):
    name = f"mine_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(FILE)
    build = f"{name}:build"
    steps = ("--recipe", "digits", "--set", "steps=2", "--set", "size=8", "--set", "batch=16")
    code, _, err = cli("train", "digits", "--model", build, "--run", "run", *steps)
    assert code == 0, err
    source = json.loads(Path("run/source.json").read_text())
    assert source["arch"]["builder"] == build
    assert len(source["arch"]["digest"]) == 64
    assert "make" not in source["arch"]
    assert cli("evaluate", "run", "digits", "--network", build)[0] == 0
    code, _, err = cli("evaluate", "run", "digits")
    assert code == 2
    assert f"--network {build}" in err
    for wrong, words in (
        ("wrong", "has 3 outputs"),
        ("broken", "ZeroDivisionError"),
        ("none", "cannot be imported"),
        ("number", "is not a function, but int"),
    ):
        code, _, err = cli("train", "digits", "--model", f"{name}:{wrong}", *steps)
        assert code == 2
        assert words in err
    assert cli("train", "digits", "--model", build, "--set", "layer_decay=0.5", *steps)[0] == 2


def test_code_that_has_changed_is_noted(run):
    described = external.describe(own())
    changed = ExternalArch(builder="Sequential", digest="0" * 64, make=described.make)
    with pytest.warns(Assumption, match="Sequential has changed since it was trained"):
        resnets.load(run.run, network=changed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resnets.load(run.run, network=own())


def test_another_layer_is_another_network():
    digest = external.describe(own()).digest
    changed = own()
    changed[2] = nn.GELU()
    assert external.describe(own()).digest == digest != external.describe(changed).digest


class Wrong(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how, self.network = how, own()

    def forward(self, x):
        if self.how == "in place":
            x -= 0.5
        logits = self.network(x[:1] if self.how == "first" else x)
        if self.how == "detached":
            return logits.detach()
        return (logits, logits) if self.how == "two" and self.training else logits


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("first", r"2 images of 1x8x8 give \(1, 10\)"),
        ("detached", "has nothing to train: its logits have no gradient"),
        ("two", "2 images of 1x8x8 in training mode give tuple"),
    ],
)
def test_a_module_that_cannot_be_trained_is_refused(how, words):
    with pytest.raises(UsageError, match=words):
        resnets.plan("digits", model=Wrong(how), **QUICK)
    with pytest.raises(UsageError, match="nothing to train"):
        resnets.plan("digits", model=own().requires_grad_(False), **QUICK)


def test_a_module_may_change_its_input_in_place():
    described = external.describe(Wrong("in place"))
    arch = ExternalArch(builder="x", channels=1, classes=10, size=8, make=described.make)
    network, images = external.build(arch).eval(), torch.rand(2, 1, 8, 8)
    heat = grad_cam(network, images, torch.tensor([0, 1]))
    assert torch.equal(heat, grad_cam(network, images, torch.tensor([0, 1])))
    before = images.clone()
    assert torch.equal(network(images), network(before))
    assert torch.equal(images, before)


def test_a_file_holds_no_code():
    arch = external.describe(own())
    data = to_dict(arch)
    assert "make" not in data
    assert from_dict(json.loads(json.dumps(data))) == arch
    with pytest.raises(ValueError, match="unknown fields of a external: make"):
        from_dict({**data, "make": "os:system"})


def test_a_module_that_is_not_trained_is_no_model(tmp_path):
    calls = (
        lambda: resnets.load(own()),
        lambda: resnets.evaluate(own(), "digits"),
        lambda: resnets.predict(own(), torch.rand(1, 8, 8)),
        lambda: resnets.explain(own(), torch.rand(1, 8, 8), out=tmp_path / "out"),
    )
    for call in calls:
        with pytest.raises(UsageError, match="a Sequential is not a model: give a run folder"):
            call()
    with pytest.raises(UsageError, match="not a type"):
        resnets.plan("digits", model=nn.Linear)


@pytest.mark.slow
def test_each_seed_and_each_trial_trains_the_module(tmp_path):
    pytest.importorskip("optuna")
    quick = {**QUICK, "overrides": {**QUICK["overrides"], "val_fraction": 0.1}}
    outcome = resnets.train("digits", model=own(), run=tmp_path / "run", seeds=2, **quick)
    for seed in (0, 1):
        source = Run(tmp_path / f"run-seed{seed}").read_json("source.json")
        assert source["arch"]["builder"] == "Sequential"
    assert outcome.compared
    *_, trials = resnets.tune(
        "digits", model=own(), run=tmp_path / "study", trials=1, search=["lr"], **quick
    )
    assert len(trials) == 1


def test_advice_about_a_function_of_ones_own_works_as_it_stands(cli, tmp_path, monkeypatch):
    monkeypatch.setattr("resnets.training.clock.estimate_duration", lambda plan: 1.0)
    name = f"mine_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(FILE)
    build, steps = f"{name}:build", ["--set", "steps=2", "--set", "size=8", "--set", "batch=16"]
    code, _, err = cli("train", "digits", "--model", build, "--run", "run", *steps)
    assert code == 0, err
    (after,) = (line for line in err.splitlines() if line.startswith("next: "))
    assert after.endswith(f"resnets evaluate run digits --network {build}")
    assert f"resnets predict run IMAGE --network {build}" in Path("run/README.md").read_text()
    page = Path("run/report.html").read_text().partition('id="next"')[2]
    assert f"resnets train digits --recipe run/recipe.json --model {build}" in page
    for wrong, right in (
        (("evaluate", "run", "digits"), f"--network {build}"),
        (("resume", "run"), f"run is finished; `resnets evaluate run DATA --network {build}`"),
        (("train", "digits", "--recipe", "run/recipe.json"), f"give it again, --model {build}"),
        (("train", "digits", "--weights", "run"), f"give it again, --model {build}"),
        (("train", "digits", "--set", "teacher=run"), "a teacher must be of resnets"),
        (("train", "digits", "--run", "run"), f"`resnets resume run --model {build}`"),
    ):
        code, _, err = cli(*wrong)
        assert code == 2
        assert right in err
    state = resnets.plan("digits", model=build, weights="run", **QUICK).start()
    trained = safetensors.torch.load(Path("run/model.safetensors").read_bytes())
    assert all(torch.equal(t, trained[n]) for n, t in state.network.state_dict().items())
    Path("run/model.safetensors").unlink()
    assert (
        f"Resume with `resnets resume run --model {build}`" in cli("evaluate", "run", "digits")[2]
    )


def test_advice_about_a_module_is_for_python(run, tmp_path):
    with pytest.raises(UsageError, match=r"runs:\ngive it again, network=\.\.\. in Python$"):
        resnets.load(run.run)
    with pytest.raises(UsageError, match=r"the recipe is for Sequential.*\ngive it again, model="):
        resnets.plan("digits", recipe=run.run / "recipe.json")
    assert resume_command(run.run) == f"`resnets.resume({str(run.run)!r}, model=...)` in Python"
    assert "resnets predict" not in (run.run / "README.md").read_text()
    described = replace(external.describe(own()), builder="mine:build")
    with pytest.warns(Assumption, match="from Sequential: mine:build may differ"):
        resnets.load(run.run, network=described)


def test_an_error_in_ones_own_code_is_shown_with_its_line(cli, tmp_path):
    name = f"faults_{tmp_path.name.replace('-', '_')}"
    text = """import torch
class Bug(torch.nn.Module):
    def forward(self, x):
        return undefined_name
def bug(): return Bug()
def broken(): return 1 / 0
"""
    (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / f"{name}_2.py").write_text("import no_such_module")
    for model, words in (
        (f"{name}:bug", f"NameError: name 'undefined_name' is not defined\n  {name}.py, line 4"),
        (f"{name}:broken", f"ZeroDivisionError: division by zero\n  {name}.py, line 6"),
        (f"{name}:nope", "cannot be imported: AttributeError"),
        (f"{name}_2:build", f"No module named 'no_such_module'\n  {name}_2.py, line 1"),
    ):
        code, _, err = cli("train", "digits", "--model", model, "--run", "run")
        assert code == 2
        assert words in err.replace(f"{tmp_path}/", "")


def test_what_a_module_does_not_have_is_refused_by_its_name(run, tmp_path):
    model = resnets.load(run.run, network=own())
    with pytest.raises(UsageError, match="no module 'nope': known: 0, 1, 2, 3, 4, 5"):
        list(resnets.explain(model, torch.rand(1, 8, 8), out=tmp_path / "x", level="nope"))
    with pytest.raises(UsageError, match=r"arch\.width: Sequential is custom: leave it out"):
        resnets.plan("digits", model=own(), recipe="digits", overrides={"arch.width": 2})
    assert {row["error_is"] for row in resnets.runs(run.run.parent)} == {"wrong predictions"}


def test_an_ensemble_has_networks_of_ones_own_beside_ours(run, tmp_path):
    quick = {**QUICK, "overrides": {**QUICK["overrides"], "model": "resnet8"}}
    ours = resnets.train("digits", run=tmp_path / "ours", **quick).run
    result = resnets.evaluate(run.run, ours, "digits", network=own())
    loaded = [resnets.load(run.run, network=own()), resnets.load(ours)]
    assert result == resnets.evaluate(*loaded, "digits")
    with pytest.raises(UsageError, match=r"is resnet8.*: leave the custom Sequential out"):
        resnets.evaluate(ours, ours, "digits", network=own())


def test_a_task_is_read_from_a_file_without_its_tensors(run, monkeypatch):
    monkeypatch.setattr("resnets.evaluation.evaluate.load", lambda *_, **__: pytest.fail("loaded"))
    assert task_of_model(run.run, InferenceOptions()) == "classify"

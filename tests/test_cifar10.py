"""What the project claims on the real CIFAR-10, which must be in the cache already."""

import json

import pytest

import resnets
from resnets.cli.main import main
from resnets.training import runner
from resnets.training.loop import fit
from resnets.training.signals import SignalFlags

pytestmark = [pytest.mark.usefixtures("cifar10"), pytest.mark.timeout(1800)]


@pytest.mark.parametrize(
    ("file", "error"),
    [
        pytest.param("resnet20-12fca82f.th", 0.0827, marks=pytest.mark.slow),
        pytest.param("resnet32-d509ac18.th", 0.0737, marks=pytest.mark.nightly),
    ],
)
def test_other_peoples_networks_have_exactly_their_published_error(shared, capsys, file, error):
    path = shared / "checkpoints" / file
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", str(path), "cifar10", "--normalize", "imagenet", "--json"])
    assert caught.value.code == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["images"], result["error"]) == (10_000, error)


@pytest.mark.nightly
def test_the_papers_recipe_through_its_first_thousand_iterations(tmp_path):
    """Per-pixel mean, 64,000 full batches of 128, and a network that learns."""
    plan = resnets.plan("cifar10", recipe="paper-cifar10", overrides={"eval_every": 0.64})
    assert (plan.steps, plan.recipe.batch, len(plan.train)) == (64_000, 128, 50_000)
    assert len(plan.preprocess.mean) == 3 * 32 * 32
    run = runner.create_run(plan, tmp_path / "run")
    stop = SignalFlags()
    for progress in fit(run, plan, stop):
        if progress.step >= 1000:
            stop.signal = 15
    rows = run.rows("metrics.jsonl")
    assert [row["step"] for row in rows[:4]] == [250, 500, 750, 1000]
    assert {row["lr"] for row in rows} == {0.1}
    losses = [row["loss"] for row in rows[:4]]
    assert losses == sorted(losses, reverse=True)
    assert rows[3]["train_error"] < 0.5
    assert rows[3]["test_error"] < 0.7

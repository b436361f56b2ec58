"""What the project claims on the real CIFAR-10, which must be in the cache already."""

import json

import pytest

from resnets import verbs
from resnets.cli import main
from resnets.data.get import cache

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(autouse=True)
def cifar10():
    if not (cache() / "cifar10.safetensors").exists():
        pytest.skip("CIFAR-10 is not in the cache: resnets data get cifar10")


@pytest.mark.parametrize(
    ("file", "error"), [("resnet20-12fca82f.th", 0.0827), ("resnet32-d509ac18.th", 0.0737)]
)
def test_other_peoples_networks_have_exactly_their_published_error(shared, capsys, file, error):
    path = shared / "checkpoints" / file
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", str(path), "cifar10", "--normalize", "imagenet", "--json"])
    assert caught.value.code == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["images"], result["error"]) == (10_000, error)


def test_the_papers_recipe_starts_as_it_should(tmp_path):
    """The first 100 of its 64,000 iterations: per-pixel mean, full batches, falling loss."""
    outcome = verbs.train(
        "cifar10",
        recipe="paper-cifar10",
        run=tmp_path / "run",
        overrides={"steps": 100, "eval_every": 0.064},
    )
    rows = [json.loads(line) for line in (outcome.run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [25, 50, 75, 100]
    assert rows[-1]["loss"] < rows[0]["loss"] < 2.6
    plan = verbs.plan("cifar10", recipe="paper-cifar10")
    assert (plan.steps, plan.recipe.batch, len(plan.train)) == (64_000, 128, 50_000)
    assert len(plan.preprocess.mean) == 3 * 32 * 32

"""The table of experiments against the papers, and what a budget may change."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from resnets.config import arch as archs
from resnets.config import families, recipes
from resnets.config.families import ARCHS
from resnets.config.recipe import parse
from resnets.errors import UsageError
from resnets.models.cost import cost
from resnets.papers import measures
from resnets.papers.budgets import MACS, Job, jobs
from resnets.papers.experiments import EXPERIMENTS, get_experiment

ARMS = [
    (one, arm)
    for one in EXPERIMENTS.values()
    for first in one.arms
    for arm in (first, *first.members)
]
TRAINED = [
    (one, arm)
    for one, arm in ARMS
    if arm.recipe and archs.task_for_arch(ARCHS[arm.recipe.model]) == "classify"
]
DENSE = [(one, arm) for one, arm in ARMS if arm.recipe and (one, arm) not in TRAINED]


def test_every_table_and_figure_of_both_papers_is_there():
    ids = {f"r1.tab{n}" for n in range(1, 15)} | {f"r2.tab{n}" for n in (1, 2, 3, 5)}
    figures = {"r1.fig1", "r1.fig6a", "r1.fig6c", "r1.fig7", "r2.fig1", "r2.eq"}
    assert ids | figures | {"r1.warm110", "r1.3x", "r1.grads", "r2.bnadd"} <= set(EXPERIMENTS)
    titles = " ".join(one.title for one in EXPERIMENTS.values())
    assert all(
        text in titles for text in ("Figure 3", "Figure 4", "Figure 6, middle", "Tables 3 and 4")
    )


def test_arms_of_one_name_are_trained_alike():
    known = {}
    for _, arm in TRAINED + DENSE:
        assert known.setdefault(arm.name, arm.recipe) == arm.recipe, arm.name


def test_pairs_are_of_arms_that_there_are():
    for one in EXPERIMENTS.values():
        names = {arm.name for arm in one.arms}
        assert all(name in names for pair in one.expected_order for name in pair), one.id


@pytest.mark.slow  # every network of both papers is built on the meta device
def test_estimates_use_multiply_adds_within_a_tenth():
    for _, arm in TRAINED:
        network = ARCHS[arm.recipe.model]
        assert MACS[network.depth] * 1e6 == pytest.approx(cost(network).macs, rel=0.1), arm.name


@pytest.mark.parametrize(
    "one", [one for one in EXPERIMENTS.values() if one.id.endswith(("tab1", "counts"))]
)
def test_counts_are_what_the_papers_print(one):
    for arm in one.arms:
        if arm.recipe is None:
            found = arm.compute()
            for name, printed in arm.paper.items():
                assert found[name] == pytest.approx(printed, rel=0.04), arm.name


def test_equations_hold_in_double_precision():
    for arm in get_experiment("r2.eq").arms:
        ((name, value),) = arm.paper.items()
        assert arm.compute()[name] == pytest.approx(value, abs=1e-10)


@pytest.mark.slow
def test_gradients_of_a_plain_network_with_normalisation_do_not_vanish():
    """They grow on their way back (1512.03385 says only that they are healthy)."""
    plain, residual = (measures.gradient_norms(name) for name in ("plain56", "resnet56"))
    assert len(plain["gradient_norms"]) == 56
    assert min(plain["gradient_norms"]) > 0.05
    assert plain["first_over_last"] > 1000 > 1 > residual["first_over_last"] > 0.1


def test_the_full_budget_is_the_papers_protocol():
    for one, arm in TRAINED:
        full = Job(one, arm, "full", 3, precision=arm.recipe.precision).recipe
        assert full == replace(arm.recipe, seed=arm.recipe.seed + 3)
    assert get_experiment("r1.tab6").arms[0].recipe == recipes.paper_cifar10()


def test_a_run_that_an_older_version_began_is_the_same_run():
    """Its recipe.json, as 0.1.0 wrote it for Table 6: a run of days must outlive new fields."""
    text = (Path(__file__).parent / "recipe-0.1.0.json").read_text()
    (job,) = jobs(get_experiment("r1.tab6"), "full", arms=["resnet20"], precision="float32")
    with pytest.warns(FutureWarning, match="watch is now monitor"):
        assert parse(json.loads(text)) == job.recipe


def test_the_run_of_1001_layers_at_batch_64_is_its_sources():
    """fb.resnet.torch by KaimingHe/resnet-1k-layers: 200 epochs, 0.1, Nesterov, 81 and 122."""
    (arm,) = [arm for arm in get_experiment("r2.tab3").arms if arm.name == "preresnet1001+64"]
    recipe = arm.recipe
    epoch = 50_000 / recipe.batch
    assert (recipe.model, recipe.batch, recipe.steps) == ("preresnet1001", 64, 200 * epoch)
    assert (recipe.nesterov, recipe.decay_all, recipe.weight_decay) == (True, True, 1e-4)
    assert (recipe.warmup, recipe.normalize) == (0, "data")
    for number, rate in ((1, 0.1), (80, 0.1), (81, 0.01), (121, 0.01), (122, 1e-3), (200, 1e-3)):
        for step in ((number - 1) * epoch + 1, number * epoch - 2):
            assert recipe.rate(int(step), recipe.steps) == pytest.approx(rate), (number, step)


def test_rows_of_the_papers_that_are_easily_missed():
    table7 = {
        name: arm.paper for name in ("r1.tab7", "r1.tab7-2012") for arm in get_experiment(name).arms
    }
    assert [list(arm.values()) for arm in table7.values()] == [[76.4], ["73.8"]]
    errors = {arm.name: arm.paper["test_error"] for arm in get_experiment("r2.tab5").arms}
    assert sorted(errors.values()) == [20.1, 20.7, 21.1, 21.3, 21.8, 23.0]
    assert errors["preresnet200_v1+area"] == 20.1
    ours = {one.id for one in EXPERIMENTS.values() if "each pixel" in one.deviation}
    trained = {one.id for one, arm in ARMS if arm.recipe and arm.recipe.data == "imagenet"}
    assert ours == {name for name in trained if not name.startswith("later")}


def test_a_budget_changes_length_resolution_and_data_and_three_experiments_networks():
    kept = ("model", "lr", "schedule", "optimizer", "momentum", "nesterov", "weight_decay", "loss",
            "decay_all", "label_smoothing", "ema", "gamma", "clip")  # fmt: skip
    for one, arm in TRAINED:
        for budget in ("smoke", "cpu", "gpu"):
            short = Job(one, arm, budget, 0).recipe
            for name in kept:
                if (name, arm.recipe.schedule) != ("schedule", "plateau"):
                    assert getattr(short, name) == getattr(arm.recipe, name), (arm.name, name)
            if not (one.cpu_units and budget == "cpu"):
                assert short.arch == arm.recipe.arch
            assert short.batch == (128 if budget == "smoke" else arm.recipe.batch)
            assert short.precise_bn == (2 if budget == "smoke" else arm.recipe.precise_bn)
            archs.with_fields(families.get_arch(short.model), short.arch)
    cut = {one.id for one in EXPERIMENTS.values() if one.cpu_units}
    assert cut == {"r2.tab1", "r2.tab2", "r2.tab2-164"}
    page = (Path(__file__).parents[2] / "docs" / "results.md").read_text()
    sections = [text.partition("\n") for text in page.split("\n## ")[1:]]
    shortened = [heading for heading, _, text in sections if "networks are cut to" in text]
    assert {heading.rpartition("(")[2].rstrip(")") for heading in shortened} == cut


def test_detectors_and_localisers_change_their_data_length_and_regions_alone():
    assert {one.id for one, _ in DENSE} == {f"r1.tab{n}" for n in (7, 8, 9, 12, 13)}
    for one, arm in DENSE:
        full = Job(one, arm, "full", 3, "data", "weights").recipe
        seed = arm.recipe.seed + 3
        assert full == replace(arm.recipe, seed=seed, data="data", weights="weights")
        for budget in ("smoke", "cpu", "gpu"):
            short = Job(one, arm, budget, 0, "data").recipe
            for name in ("model", "lr", "lr_batch", "schedule", "milestones", "optimizer", "loss"):
                assert getattr(short, name) == getattr(arm.recipe, name), (arm.name, name)
            assert (short.norm, short.weights, short.data) == ("batch", "", "data")
            there = archs.with_fields(ARCHS[short.model], short.arch)
            assert getattr(there, "context", False) == arm.recipe.arch.get("context", False)


def test_longer_arms_stay_longer():
    steps = {j.arm.name: j.iterations for j in jobs(get_experiment("r1.3x"), "cpu")}
    assert steps == {"plain20": 500, "plain56": 500, "plain20+3x": 1500, "plain56+3x": 1500}


def test_seeds_are_for_what_is_trained():
    assert len(list(jobs(get_experiment("r1.fig1"), "cpu", seeds=3))) == 6
    assert len(list(jobs(get_experiment("r1.tab1"), "cpu", seeds=3))) == len(
        get_experiment("r1.tab1").arms
    )


def test_an_unknown_id_gets_the_nearest():
    with pytest.raises(UsageError, match=r"r1\.tab6"):
        get_experiment("r1.tab66")


def test_the_list_needs_no_torch():
    code = (
        "import sys; from resnets.papers.planning import overview; rows = overview();"
        "assert len(rows) > 30; assert not {'torch', 'matplotlib', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

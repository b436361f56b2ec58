"""What the evaluation claims on the real CIFAR-10 test images, with other people's networks."""

from dataclasses import replace

import pytest
import torch

from resnets.data import dataset
from resnets.evaluation.calibration import calibration_error, fit_temperature
from resnets.evaluation.classification import classification_metrics, compare_scores
from resnets.evaluation.load import load
from resnets.evaluation.scores import ensemble

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(900)]
ERRORS = {"resnet20-12fca82f.th": 0.0827, "resnet32-d509ac18.th": 0.0737}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(scope="module")
def networks(cifar10):
    from os import environ
    from pathlib import Path

    folder = Path(environ.get("RESNETS_SHARED", Path(__file__).parents[3] / "shared"))
    if not (folder / "checkpoints").exists():
        pytest.skip("no shared data: set RESNETS_SHARED to the folder that has checkpoints/")
    source = dataset.load("cifar10")
    models = [
        load(folder / "checkpoints" / file, classes=source.classes).normalized(*IMAGENET)
        for file in ERRORS
    ]
    return models, source.test


@pytest.fixture(scope="module")
def centre(networks):
    models, split = networks
    return [each.scores(split) for each in models]


def test_the_centre_has_exactly_the_published_errors(centre):
    for scores, error in zip(centre, ERRORS.values(), strict=True):
        figures = classification_metrics(scores)
        assert (figures.images, round(figures.error, 10)) == (10_000, error)
        assert figures.interval[0] < 1 - error < figures.interval[1]


def test_two_networks_are_better_than_each(centre):
    both = classification_metrics(ensemble(centre))
    print(f"ensemble {both.error:.4f}")
    assert both.error < 0.07
    changed = compare_scores(centre[0], ensemble(centre))
    print(changed.difference, changed.interval, changed.p, len(changed.fixed), len(changed.broken))
    assert changed.p < 1e-6


def test_the_mean_of_image_and_mirror_is_better_than_the_image(networks):
    models, split = networks
    for each, error in zip(models, ERRORS.values(), strict=True):
        found = classification_metrics(each.scores(split, view="flip")).error
        print(f"flip {found:.4f}")
        assert found < error


@pytest.mark.parametrize("fitted", [0, 1])
def test_a_temperature_calibrates_the_half_that_it_did_not_see(centre, fitted):
    for scores in centre:
        halves = [scores.take(scores.indices % 2 == part) for part in (0, 1)]
        other, temperature = halves[1 - fitted], fit_temperature(halves[fitted])
        cooled = replace(other, logits=other.logits / temperature)
        before, after = (calibration_error(x) for x in (other, cooled))
        print(f"T {temperature:.3f}: ECE {before:.4f} -> {after:.4f}")
        assert temperature > 1
        assert after < before / 2


@pytest.mark.parametrize("view", ["ten-crop", "multi-scale"])
def test_other_views_are_of_the_same_images(networks, view):
    models, split = networks
    part = replace(split, images=split.images[:1000], labels=split.labels[:1000])
    found = classification_metrics(models[0].scores(part, view=view))
    centre = classification_metrics(models[0].scores(part))
    print(f"{view} {found.error:.4f}, centre {centre.error:.4f}")
    assert found.images == 1000
    assert torch.isfinite(torch.tensor(found.loss))
    assert found.error < 0.5

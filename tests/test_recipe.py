from dataclasses import replace
from typing import get_type_hints

import pytest

from resnets import recipe as room
from resnets import recipes
from resnets.arch import FAMILY
from resnets.errors import UsageError
from resnets.recipe import Recipe
from resnets.recipes import RECIPES, paper_cifar10


def test_the_papers_schedule_by_hand():
    recipe = replace(paper_cifar10(), warmup=400)
    steps = recipe.total_steps(50_000)
    assert steps == 64_000
    rates = {s: recipe.rate(s, steps) for s in (0, 399, 400, 31_999, 32_000, 47_999, 48_000)}
    assert rates == pytest.approx(
        {0: 0.01, 399: 0.01, 400: 0.1, 31_999: 0.1, 32_000: 0.01, 47_999: 0.01, 48_000: 0.001}
    )


@pytest.mark.parametrize(
    ("schedule", "expected"), [("linear", [0.2, 0.4, 0.4, 0.3, 0.2, 0.1]), ("cosine", [0.2, 0.4])]
)
def test_warmup_then_annealing(schedule, expected):
    recipe = Recipe(model="resnet20", lr=0.4, schedule=schedule, warmup=2)
    assert [recipe.rate(s, 6) for s in range(len(expected))] == pytest.approx(expected)


def test_cosine_ends_near_zero_and_is_half_way_at_half():
    recipe = Recipe(model="resnet20", lr=1.0, schedule="cosine")
    assert recipe.rate(500, 1000) == pytest.approx(0.5)
    assert recipe.rate(999, 1000) < 1e-5


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_json_and_names_a_network(name):
    recipe = RECIPES[name]()
    assert room.parse(room.to_dict(recipe)) == recipe
    assert recipe.model in FAMILY


def test_all_mistakes_are_told_at_once_with_the_nearest_names():
    with pytest.raises(UsageError) as caught:
        room.parse({"model": "resnet20", "bach": 1, "augment": {"flp": True}})
    assert "batch" in str(caught.value)
    assert "flip" in str(caught.value)
    with pytest.raises(UsageError) as caught:
        room.parse({"model": "resnet20", "lr": "fast", "schedule": "cos"})
    assert "lr" in str(caught.value)
    assert "'cosine'" in str(caught.value)


def test_text_values_of_the_command_line_become_numbers():
    recipe = room.parse({"model": "resnet20", "lr": "0.2", "nesterov": "true", "drops": ["0.5"]})
    assert (recipe.lr, recipe.nesterov, recipe.drops) == (0.2, True, (0.5,))


def test_every_field_of_a_recipe_is_typed():
    assert set(get_type_hints(Recipe)) == set(Recipe.__dataclass_fields__)


def test_a_file_says_single_fields_on_top_of_a_published_recipe(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('recipe = "paper-cifar10"\nepochs = 5\n[augment]\nflip = false\n')
    mine = recipes.read(str(path))
    paper = paper_cifar10()
    assert mine == replace(paper, epochs=5, steps=0, augment=replace(paper.augment, flip=False))
    path.write_text('model = "resnet20"\nlrr = 1\n')
    with pytest.raises(UsageError, match=r"mine\.toml: unknown key 'lrr': did you mean lr"):
        recipes.read(str(path))

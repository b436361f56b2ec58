import json
import re
from dataclasses import replace
from typing import get_type_hints

import pytest

from resnets.config import arch as archs
from resnets.config import recipe as room
from resnets.config import recipes
from resnets.config.families import ARCHS
from resnets.config.recipe import Augment, Recipe
from resnets.config.recipes import RECIPES, paper_cifar10, replace_fields
from resnets.errors import UsageError


def test_the_papers_schedule_by_hand():
    recipe = replace(paper_cifar10(), warmup=400)
    steps = recipe.total_steps(50_000)
    assert steps == 64_000
    rates = {s: recipe.rate(s, steps) for s in (0, 399, 400, 31_999, 32_000, 47_999, 48_000)}
    assert rates == pytest.approx(
        {0: 0.01, 399: 0.01, 400: 0.1, 31_999: 0.1, 32_000: 0.01, 47_999: 0.01, 48_000: 0.001}
    )


CIFAR, IMAGENET = 50_000, 1_281_167


@pytest.mark.parametrize(
    ("name", "images", "steps", "rates"),
    [
        ("paper-cifar10", CIFAR, 64_000, {0: 0.1, 31_999: 0.1, 32_000: 0.01, 63_999: 0.001}),
        ("paper-cifar10-110", CIFAR, 64_000, {0: 0.01, 399: 0.01, 400: 0.1, 48_000: 0.001}),
        ("preact-cifar10", CIFAR, 64_000, {0: 0.01, 399: 0.01, 400: 0.1, 48_000: 0.001}),
        # 164 epochs of 390.625 steps; 80 and 121 parts of 64,062 are 31,249.8 and 47,265.3
        (
            "fb-cifar10",
            CIFAR,
            64_062,
            {0: 0.1, 31_249: 0.1, 31_250: 0.01, 47_264: 0.01, 47_265: 1e-3},
        ),
        (
            "wide-cifar10",
            CIFAR,
            78_125,
            {0: 0.1, 23_437: 0.1, 23_438: 0.02, 46_875: 0.004, 62_500: 8e-4},
        ),
        ("dense-cifar10", CIFAR, 234_375, {0: 0.1, 117_187: 0.1, 117_188: 0.01, 175_781: 1e-3}),
        (
            "stochastic-depth-cifar10",
            45_000,
            175_781,
            {0: 0.1, 87_889: 0.1, 87_890: 0.01, 131_836: 1e-3},
        ),
        ("paper-imagenet", IMAGENET, 600_000, {0: 0.1, 599_999: 0.1}),  # no plateau yet
        (
            "preact-imagenet",
            IMAGENET,
            450_410,
            {0: 0.1, 150_136: 0.1, 150_137: 0.01, 300_273: 1e-3},
        ),
        ("fb-resnet", IMAGENET, 450_410, {0: 0.1, 150_136: 0.1, 150_137: 0.01, 300_273: 1e-3}),
        ("torchvision-v1", IMAGENET, 450_410, {0: 0.1, 150_137: 0.01, 450_409: 1e-3}),
        # 90 epochs of 156.39 steps: 782 of warm-up from 0.1 to 3.2
        (
            "goyal-8k",
            IMAGENET,
            14_075,
            {
                0: 0.1 + 3.1 / 781.944,
                781: 0.1 + 3.1 * 782 / 781.944,
                782: 3.2,
                4692: 0.32,
                12_511: 3.2e-3,
            },
        ),
        # 600 epochs of 1,251.14 steps, of which 6,255.7 warm up from 0.005 to 0.5
        (
            "torchvision-v2",
            IMAGENET,
            750_684,
            {0: 0.005 + 0.495 / 6255.7, 378_470: 0.25, 750_683: 0.0},
        ),
        # half of the peak is half way between the 5th epoch and the last
        ("rsb-a1", IMAGENET, 375_342, {0: 5e-3 / 3127.85, 189_235: 2.5e-3, 375_341: 0.0}),
        ("rsb-a2", IMAGENET, 187_671, {0: 5e-3 / 3127.85, 95_399: 2.5e-3, 187_670: 0.0}),
        ("rsb-a3", IMAGENET, 62_557, {0: 8e-3 / 3127.85, 32_842: 4e-3, 62_556: 0.0}),
        # 20 epochs of 195.3 steps: up for 976.5, down for 2,929.5
        (
            "fast-cifar10",
            CIFAR,
            3906,
            {0: 0.2 / 976.5, 975: 0.2 * 976 / 976.5, 2441: 0.1, 3905: 0.0},
        ),
        ("fine-tune", 3200, 1500, {0: 2e-3 / 150, 149: 2e-3, 150: 2e-3, 825: 1e-3, 1499: 0.0}),
    ],
)
def test_length_and_rates_by_hand(name, images, steps, rates):
    recipe = RECIPES[name]()
    assert recipe.total_steps(images) == steps
    found = {step: recipe.rate(step, steps) for step in rates}
    assert found == pytest.approx(rates, rel=5e-4, abs=1e-6)


def test_the_rate_follows_the_batch_that_a_person_says():
    for name in RECIPES:
        recipe = RECIPES[name]()
        if recipe.lr_batch and name != "goyal-8k":
            assert recipe.lr_batch == recipe.batch
            twice = replace_fields(recipe, {"batch": 2 * recipe.batch, "warmup": 0})
            assert twice.rate(0, 100) == pytest.approx(2 * recipe.lr, rel=1e-3)
    assert {n for n, r in RECIPES.items() if not r().lr_batch} == {
        "detect",
        "digits",
        "localize",
        "quick-cifar10",
        "rsb-a1",
        "rsb-a2",
        "rsb-a3",
        "segment",
    }


def test_the_plateau_divides_by_ten():
    recipe = RECIPES["paper-imagenet"]()
    assert [recipe.rate(9, 10, drops) for drops in range(3)] == pytest.approx([0.1, 0.01, 1e-3])


def test_what_the_papers_say_of_the_rest():
    rows = {name: recipe() for name, recipe in RECIPES.items()}
    assert rows["goyal-8k"].batch // rows["goyal-8k"].micro_batch == 256  # workers
    assert rows["paper-imagenet"].batch // rows["paper-imagenet"].micro_batch == 8
    assert rows["torchvision-v2"].batch // rows["torchvision-v2"].micro_batch == 8
    # alpha = 1 - 0.99998 times 8 x 128 x 32 / 600 (torchvision's references)
    assert 1 - rows["torchvision-v2"].ema == pytest.approx(2e-5 * 54.6133, rel=1e-4)
    assert round(224 / rows["torchvision-v2"].crop_pct) == 232
    a1, a2, a3 = (rows[f"rsb-a{i}"] for i in (1, 2, 3))
    assert [r.augment.mixup for r in (a1, a2, a3)] == [0.2, 0.1, 0.1]
    assert [r.augment.repeated_aug for r in (a1, a2, a3)] == [3, 3, 1]
    assert [r.augment.randaugment for r in (a1, a2, a3)] == [(7, 0.5), (7, 0.5), (6, 0.5)]
    assert [r.weight_decay for r in (a1, a2, a3)] == [0.01, 0.02, 0.02]
    assert [r.label_smoothing for r in (a1, a2, a3)] == [0.1, 0, 0]
    assert [r.arch.get("drop_path", 0) for r in (a1, a2, a3)] == [0.05, 0.05, 0]
    assert (a3.train_size, a3.size, a1.train_size) == (160, 224, 0)


@pytest.mark.parametrize(
    ("changes", "lengths"),
    [
        ({}, (30.0, 7, 9.0)),
        ({"epochs": 5}, (5.0, 0, 0.0)),
        ({"steps": 5}, (30.0, 5, 0.0)),
        ({"budget": 5}, (30.0, 0, 5.0)),
        ({"steps": 0, "budget": 6.0}, (30.0, 0, 6.0)),
    ],
)
def test_one_length_replaces_another(changes, lengths):
    base = Recipe(model="resnet20", epochs=30, steps=7, budget=9)
    found = replace_fields(base, changes)
    assert (found.epochs, found.steps, found.budget) == lengths


def test_two_lengths_are_refused():
    with pytest.raises(UsageError, match="steps and budget all set the length"):
        replace_fields(Recipe(model="resnet20"), {"budget": 6.0, "steps": "5"})


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
    assert room.parse(json.loads(json.dumps(room.to_dict(recipe)))) == recipe
    assert recipe.model in ARCHS
    archs.with_fields(ARCHS[recipe.model], recipe.arch)
    assert len(RECIPES[name].__doc__.splitlines()[0]) > 20


def test_all_mistakes_are_told_at_once_with_the_nearest_names():
    with pytest.raises(UsageError) as caught:
        room.parse({"model": "resnet20", "bach": 1, "augment": {"flp": True}})
    assert "batch" in str(caught.value)
    assert "flip" in str(caught.value)
    with pytest.raises(UsageError) as caught:
        room.parse({"model": "resnet20", "lr": "fast", "schedule": "cos"})
    assert "lr" in str(caught.value)
    assert "'cosine'" in str(caught.value)


def test_a_wrong_field_of_a_network_is_named():
    for values, message in (
        ({"blocks": "ab"}, r"^arch\.blocks: .* \(got 'ab'\)$"),
        ({"join": {"kind": "sum"}}, r"^arch\.join\.kind: .* \(got 'sum'\)$"),
        ({"depth": 20}, r"^arch: unknown fields of a resnet: depth$"),
    ):
        with pytest.raises(UsageError, match=message):
            archs.with_fields(ARCHS["resnet20"], values)


def test_text_values_of_the_command_line_become_numbers():
    recipe = room.parse(
        {"model": "resnet20", "lr": "0.2", "nesterov": "true", "milestones": ["0.5"]}
    )
    assert (recipe.lr, recipe.nesterov, recipe.milestones) == (0.2, True, (0.5,))


def test_every_field_of_a_recipe_is_typed():
    assert set(get_type_hints(Recipe)) == set(Recipe.__dataclass_fields__)


def test_a_file_says_single_fields_on_top_of_a_published_recipe(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('recipe = "paper-cifar10"\nepochs = 5\n[augment]\nflip = false\n')
    mine = recipes.read_recipe(str(path))
    paper = paper_cifar10()
    assert mine == replace(paper, epochs=5, steps=0, augment=replace(paper.augment, flip=False))
    path.write_text('model = "resnet20"\nlrr = 1\n')
    with pytest.raises(UsageError, match=r"mine\.toml: unknown field 'lrr': did you mean lr"):
        recipes.read_recipe(str(path))


def test_the_record_names_processor_and_commit() -> None:
    from resnets import device
    from resnets.papers.status import machine_name

    around = device.environment()
    assert around["processor"] == device.processor_name()
    assert machine_name("cpu").startswith(f"{device.processor_name()}, ")
    assert re.fullmatch(r"none|[0-9a-f]{40}", around["commit"])


OLD = {
    "model": "resnet8", "watch": "test", "keep": "best", "stop_after": 3, "drops": [0.5],
    "drop_factor": 0.2, "holdout": 0.1, "frozen": 1.5, "crop_ratio": 0.9, "shard": True,
    "micro": 16, "checkpoint_blocks": 2, "distill": 0.25, "grow_from": 8, "temperature": 2,
    "augment": {"policy": "rand", "rand": [6, 0.5], "erase": 0.25, "repeats": 3},
}  # fmt: skip


def test_fields_are_read_by_their_names_of_0_1_0_with_one_note_that_gives_the_new_ones():
    with pytest.warns(FutureWarning, match=r"watch is now monitor, keep is now select") as notes:
        old = room.parse(OLD)
    assert len(notes) == 1
    text = str(notes[0].message)
    assert "augment.policy=rand is now augment.policy=randaugment" in text
    assert all(f"{old} is now {new}" in text for old, new in room.OLD_FIELDS.items())
    assert "\n" not in text
    augment = Augment(
        policy="randaugment", randaugment=(6, 0.5), random_erasing=0.25, repeated_aug=3
    )
    assert old == Recipe(
        model="resnet8", monitor="test", select="best", early_stop_patience=3, milestones=(0.5,),
        gamma=0.2, val_fraction=0.1, freeze_backbone_epochs=1.5, crop_pct=0.9, fsdp=True,
        micro_batch=16, activation_checkpointing=2, distill_weight=0.25, distill_temperature=2,
        progressive_from=8, augment=augment,
    )  # fmt: skip
    assert room.parse(room.to_dict(old)) == old  # without a note, which would be an error here


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"holdout": 5000}, "val_fraction", 5000),
        ({"drops": ["0.5", "0.75"], "schedule": "step"}, "milestones", (0.5, 0.75)),
        ({"augment.erase": "0.5"}, "augment", Augment(random_erasing=0.5)),
        ({"augment": {"policy": "trivial"}}, "augment", Augment(policy="trivialaugment")),
        ({"augment.policy": "trivial"}, "augment", Augment(policy="trivialaugment")),
    ],
)
def test_single_fields_of_a_recipe_are_changed_by_old_names_too(changes, field, value):
    with pytest.warns(FutureWarning, match="old names of recipe fields"):
        assert getattr(replace_fields(Recipe(model="resnet8"), changes), field) == value


@pytest.mark.parametrize("names", [("watch", "monitor"), ("monitor", "watch")])
def test_a_field_by_both_names_is_refused(names):
    with pytest.raises(UsageError, match="watch is the old name of monitor: give one of them"):
        room.parse({"model": "resnet8", **dict.fromkeys(names, "val")})


@pytest.mark.parametrize("field", ["lr", "warmup", "val_fraction", "augment.mixup"])
@pytest.mark.parametrize("value", ["inf", "nan", "-1"])
def test_numbers_are_finite_and_not_negative(field, value):
    with pytest.raises(UsageError, match=field):
        replace_fields(Recipe(model="resnet8"), {field: value})


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ({"hold_out": 0.1}, "did you mean val_fraction"),
        ({"mixup": 0.2}, "did you mean augment.mixup"),
        ({"augment": "mixup"}, "augment=mixup: write --set augment.FIELD=VALUE"),
        ({"arch": "width"}, "arch=width: write --set arch.FIELD=VALUE"),
    ],
)
def test_a_field_by_another_name_is_suggested(field, words):
    with pytest.raises(UsageError, match=words):
        recipes.replace_fields(recipes.digits(), field)

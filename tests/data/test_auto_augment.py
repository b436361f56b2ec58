import math
from statistics import NormalDist

import pytest
import torch
from torchvision.transforms import InterpolationMode, v2

from resnets.data import auto_augment
from resnets.data.auto_augment import (
    AUTO,
    IMAGENET_POLICY,
    MIX,
    MIX_DRAWS,
    OPERATIONS,
    RAND,
    TRIVIAL,
    augmix,
    rand_augment,
    trivial_augment,
)

OTHERS = {
    "identity": "Identity",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateX",
    "translate_y": "TranslateY",
    "rotate": "Rotate",
    "brightness": "Brightness",
    "saturation": "Color",
    "contrast": "Contrast",
    "sharpness": "Sharpness",
    "posterize": "Posterize",
    "solarize": "Solarize",
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
}
SIGNED = {*auto_augment.BLENDS, "rotate", "shear_x", "shear_y", "translate_x", "translate_y"}


def noise(*shape, seed=0):
    return torch.randint(
        0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def middle(k, of):
    """A draw in the middle of the k-th of so many intervals."""
    return (k + 0.5) / of


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", TRIVIAL)
def test_trivial_is_torchvisions_table(name, channels):
    reference = v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR)
    values, signed = reference._AUGMENTATION_SPACE[OTHERS[name]]
    assert set(OTHERS.values()) == set(reference._AUGMENTATION_SPACE)
    assert signed == (name in SIGNED)
    image, pick = noise(1, channels, 40, 40), middle(list(TRIVIAL).index(name), len(TRIVIAL))
    table = values(31, 40, 40)
    for k in (0, 1, 13, 30):
        for sign in (1, -1):
            value = 0.0 if table is None else float(table[k]) * (sign if signed else 1)
            expected = reference._apply_image_or_video_transform(
                image, OTHERS[name], value, reference.interpolation, reference._fill
            )
            found = trivial_augment(image, [pick, middle(k, 31), 0.5 + 0.2 * sign])
            assert found.dtype == torch.uint8
            # torchvision rounds magnitudes to float32
            assert (found.int() - expected.int()).abs().max() <= 1
            assert (found != expected).float().mean() < 0.01


def test_without_strength_images_stay():
    image = noise(1, 3, 24, 24).clamp(max=254)  # 255 is inverted at torchvision's threshold 255
    for name in set(TRIVIAL) - {"autocontrast", "equalize"}:
        assert torch.equal(OPERATIONS[name](image, TRIVIAL[name](0.0, 24), None), image)
    changing = {"autocontrast", "equalize", "invert", "posterize"}  # this one keeps 4 bits at 0
    for name in set(RAND) - changing:
        assert torch.equal(OPERATIONS[name](image, RAND[name](0.0, 24), [128.0]), image)


@pytest.mark.parametrize(
    ("name", "at_7", "at_10"),
    [
        ("rotate", 21, 30),
        ("posterize", 2, 0),
        ("solarize", 256 - 179, 0),
        ("solarize_add", 77, 110),
        ("brightness", 1.63, 1.9),
        ("shear_y", 0.21, 0.3),
        ("translate_x", 0.315 * 200, 90),
    ],
)
def test_rands_values_by_hand(name, at_7, at_10):
    assert RAND[name](0.7, 200) == pytest.approx(at_7)
    assert RAND[name](1.0, 200) == pytest.approx(at_10)
    against = {"rotate": -30, "brightness": 0.1, "shear_y": -0.3, "translate_x": -90}
    assert RAND[name](-1.0, 200) == pytest.approx(against.get(name, at_10))


def test_rands_operations_and_values_are_timms():
    auto = pytest.importorskip("timm.data.auto_augment")
    kinds = {
        "autocontrast": "AutoContrast",
        "equalize": "Equalize",
        "invert": "Invert",
        "rotate": "Rotate",
        "posterize": "PosterizeIncreasing",
        "solarize": "SolarizeIncreasing",
        "solarize_add": "SolarizeAdd",
        "saturation": "ColorIncreasing",
        "contrast": "ContrastIncreasing",
        "brightness": "BrightnessIncreasing",
        "sharpness": "SharpnessIncreasing",
        "shear_x": "ShearX",
        "shear_y": "ShearY",
        "translate_x": "TranslateXRel",
        "translate_y": "TranslateYRel",
    }
    assert set(kinds) == set(RAND)
    assert set(kinds.values()) == set(auto._RAND_INCREASING_TRANSFORMS)
    for name, kind in kinds.items():
        value = auto.LEVEL_TO_ARG[kind]
        for level in (0.0, 1.3, 6.0, 7.0, 9.9, 10.0) if value else ():
            theirs = {value(level, {})[0] for _ in range(40)}  # timm draws the sign here
            ours = {RAND[name](sign * level / 10, 1) for sign in (1, -1)}
            assert sorted(ours) == pytest.approx(sorted(theirs))


def test_pixels_of_operations_by_hand():
    image = torch.tensor([[[[10, 100, 127, 128, 255]]]], dtype=torch.uint8)
    found = {
        name: OPERATIONS[name](image, value, [128.0]).flatten().tolist()
        for name, value in (
            ("solarize", 128),
            ("solarize_add", 110),
            ("posterize", 2),
            ("invert", 0),
            ("translate_x", 2),
        )
    }
    assert found == {
        "solarize": [10, 100, 127, 127, 0],
        "solarize_add": [120, 210, 237, 128, 255],
        "posterize": [0, 64, 64, 128, 192],
        "invert": [245, 155, 128, 127, 0],
        "translate_x": [128, 128, 10, 100, 127],
    }


@pytest.mark.parametrize("channels", [1, 3])
def test_rand_does_each_of_two_operations_half_of_the_time(channels, monkeypatch):
    done = []
    spies = {n: lambda x, v, fill, n=n: done.append((n, v)) or x for n in OPERATIONS}
    monkeypatch.setattr(auto_augment, "OPERATIONS", spies)
    image, draws = noise(1, channels, 8, 8), torch.rand(6000, 8, generator=torch.manual_seed(0))
    counts = []
    for row in draws.tolist():
        before = len(done)
        rand_augment(image, 7, 0.5, row)
        counts.append(len(done) - before)
    shares = [counts.count(k) / 6000 for k in (0, 1, 2)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.03)
    names = [name for name, _ in done]
    assert {name: names.count(name) / len(names) for name in RAND} == pytest.approx(
        dict.fromkeys(RAND, 1 / 15), abs=0.015
    )
    angles = torch.tensor([value for name, value in done if name == "rotate"]) / 3
    assert angles.sign().mean().abs() < 0.15
    assert angles.abs().mean() == pytest.approx(7, abs=0.1)
    assert angles.abs().std() == pytest.approx(0.5, abs=0.06)
    done.clear()
    rotate, least = middle(list(RAND).index("rotate"), len(RAND)), 0.0
    rand_augment(image, 10, 5.0, [rotate, 0.0, 1 - 2.0**-24, 0.9, rotate, 0.0, least, 0.9])
    assert done == [("rotate", 30.0), ("rotate", 0.0)]  # kept in 0..10


def test_trivial_reaches_every_operation_and_every_strength(monkeypatch):
    done = set()
    spies = {n: lambda x, v, fill, n=n: done.add((n, v)) or x for n in OPERATIONS}
    monkeypatch.setattr(auto_augment, "OPERATIONS", spies)
    for row in torch.rand(20_000, 3, generator=torch.manual_seed(0)).tolist():
        trivial_augment(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), row)
    assert {name for name, _ in done} == set(TRIVIAL)
    assert len({value for name, value in done if name == "rotate"}) == 61
    assert {value for name, value in done if name == "posterize"} == {2, 3, 4, 5, 6, 7, 8}


def test_every_operation_takes_grey_and_colour():
    for channels in (1, 3):
        image = noise(1, channels, 16, 16)
        for table in (TRIVIAL, RAND, AUTO, MIX):
            for name, values in table.items():
                found = OPERATIONS[name](image, values(-0.9, 16), None)
                assert (found.shape, found.dtype) == (image.shape, torch.uint8)


def test_the_middle_of_a_draw_is_never_at_an_end():
    assert math.isfinite(NormalDist().inv_cdf(2.0**-25))
    assert math.isfinite(NormalDist().inv_cdf(1 - 2.0**-24 + 2.0**-25))


AUTO_OTHERS = OTHERS | {"invert": "Invert"}


def test_auto_is_torchvisions_policy_for_imagenet():
    theirs = v2.AutoAugment()._policies
    ours = [
        tuple((AUTO_OTHERS[name], chance, level) for name, chance, level in pair)
        for pair in IMAGENET_POLICY
    ]
    assert ours == [tuple((n, p, k or 0) for n, p, k in pair) for pair in theirs]


@pytest.mark.parametrize(
    ("table", "reference", "levels"),
    [
        (AUTO, v2.AutoAugment()._AUGMENTATION_SPACE, range(10)),
        (MIX, v2.AugMix()._PARTIAL_AUGMENTATION_SPACE, range(3)),
    ],
)
def test_values_are_torchvisions(table, reference, levels):
    translated = {"translate_x", "translate_y"} if table is AUTO else set()  # in no pair
    assert {AUTO_OTHERS[name] for name in {*table, *translated}} == set(reference)
    for name, value in table.items():
        magnitudes, signed = reference[AUTO_OTHERS[name]]
        theirs = magnitudes(10, 30, 30)
        assert signed == (name in SIGNED)
        for level in levels if theirs is not None else ():
            change = {"solarize": 255.0}.get(name, 1.0) * float(theirs[level])
            if name in auto_augment.BLENDS:
                change += 1
            if name.startswith("translate"):
                change = int(change)
            assert value(level / 9, 30) == pytest.approx(change, abs=1e-4)


def test_auto_does_the_pairs_that_are_drawn(monkeypatch):
    done = []
    spies = {n: lambda x, v, fill, n=n: done.append((n, v)) or x for n in OPERATIONS}
    monkeypatch.setattr(auto_augment, "OPERATIONS", spies)
    image = noise(1, 3, 8, 8)
    auto_augment.auto_augment(image, [middle(0, 25), 0.39, 0.59, 0.9, 0.1])
    assert done == [("posterize", 4), ("rotate", -30.0)]
    done.clear()
    auto_augment.auto_augment(image, [middle(0, 25), 0.4, 0.6, 0.9, 0.1])
    assert done == []


def test_augmix_is_the_mean_of_the_image_and_three_chains():
    image, side = noise(1, 3, 9, 9), 9
    names = list(MIX)

    def operation(name, strength, direction):
        return [middle(names.index(name), len(names)), middle(strength, 3), direction]

    unused = [0.0] * 3
    weights = [math.exp(-k) - 2.0**-25 for k in (1, 2, 3)]  # shares 1/6, 2/6, 3/6
    chains = [
        [0.1, *operation("shear_x", 2, 0.9), *unused, *unused],
        [0.5, *operation("rotate", 1, 0.1), *operation("equalize", 0, 0.9), *unused],
        [
            0.9,
            *operation("solarize", 2, 0.9),
            *operation("posterize", 0, 0.9),
            *operation("translate_y", 2, 0.1),
        ],
    ]
    draws = [0.25, *weights, *chains[0], *chains[1], *chains[2]]
    assert len(draws) == MIX_DRAWS

    def applied(x, name, signed):
        return OPERATIONS[name](x, MIX[name](signed, side), None)

    first = applied(image, "shear_x", 2 / 9)
    second = applied(applied(image, "rotate", -1 / 9), "equalize", 0.0)
    third = applied(applied(image, "solarize", 2 / 9), "posterize", 0.0)
    third = applied(third, "translate_y", -2 / 9)
    chains = first.double() / 6 + second.double() / 3 + third.double() / 2
    expected = 0.25 * image.double() + 0.75 * chains
    found = augmix(image, draws)
    assert found.dtype == torch.uint8
    assert (found.double() - expected).abs().max() <= 0.501
    assert torch.equal(augmix(image, [1 - 2.0**-24, *draws[1:]]), image)

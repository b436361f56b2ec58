"""What files of others say of their inputs."""

import pytest

from resnets.config.preprocessing import IMAGENET, parse_config, resized_side
from resnets.config.recipe import Preprocess
from resnets.errors import CheckpointError

A1 = {  # timm/resnet50.a1_in1k
    "architecture": "resnet50",
    "num_classes": 1000,
    "pretrained_cfg": {
        "tag": "a1_in1k", "input_size": [3, 224, 224], "test_input_size": [3, 288, 288],
        "interpolation": "bicubic", "crop_pct": 0.95, "test_crop_pct": 1.0, "crop_mode": "center",
        "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "pool_size": [7, 7],
    },
}  # fmt: skip


def test_a_config_of_timm_is_a_preprocessing():
    config = parse_config(A1)
    assert (config.architecture, config.num_classes, config.unsaid) == ("resnet50", 1000, ())
    assert config.preprocess() == Preprocess(size=288, resize=288, interpolation="bicubic")
    at_224 = Preprocess(size=224, resize=235, interpolation="bicubic")  # 235.8 of it, rounded down
    assert config.preprocess(test_size=False) == at_224
    assert parse_config(A1["pretrained_cfg"]).preprocess() == config.preprocess()


def test_a_preset_of_torchvision_is_a_preprocessing():
    config = parse_config({"resize_size": 232, "crop_size": 224, "interpolation": "bilinear"})
    assert config.preprocess() == Preprocess(size=224, resize=232)
    assert config.unsaid == ("mean", "std")


def test_what_is_not_said_is_the_guess():
    assert parse_config({}).preprocess() == IMAGENET
    assert parse_config({}).unsaid == ("mean", "std", "interpolation", "crop", "size")
    small = Preprocess(size=32, mean=(0.5,) * 3, std=(0.2,) * 3, white=255)
    assert parse_config({"pretrained_cfg": {}}).preprocess(small) == small
    grey = Preprocess(size=64, channels=1, mean=(0.5,), std=(0.2,))
    assert parse_config({"input_size": [1, 48, 48]}).preprocess(grey).size == 48
    # One value is that of each channel; 0.875 stays the fraction of another size.
    found = parse_config({"mean": [0.5], "std": [0.25], "input_size": [3, 448, 448]}).preprocess()
    assert found == Preprocess(size=448, resize=512, mean=(0.5,) * 3, std=(0.25,) * 3)


def test_classes_have_the_names_that_fit():
    assert parse_config({"label_names": ["cat", "dog"]}).class_names(2) == ("cat", "dog")
    assert parse_config({"label_names": ["cat", "dog"]}).class_names(3) == ()
    assert parse_config({"label_names": {"0": "cat", "2": "dog"}}).class_names(3) == (
        "cat", "1", "dog",
    )  # fmt: skip
    assert parse_config(A1).class_names(1000) == ()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mean": ["a", 0, 0]}, "mean.0"),
        ({"mean": [0.5, 0.5]}, "mean and std have 2 and 3 values, the input 3 channels"),
        ({"std": [0.0, 1, 1]}, "std.0"),
        ({"std": [float("nan")] * 3}, "std.0"),
        ({"interpolation": "nearest"}, "interpolation"),
        ({"crop_pct": 0}, "crop_pct"),
        ({"crop_pct": 1.5}, "crop_pct"),
        ({"input_size": [3, 224]}, "input_size"),
        ({"input_size": [4, 224, 224]}, "input_size.0"),
        ({"input_size": [3, 224.5, 224]}, "input_size.1"),
        ({"input_size": [3, 9999, 9999]}, "input_size.1"),
        ({"input_size": [3, 224, 192]}, "224 x 192: inputs are square"),
        ({"input_size": [1, 224, 224]}, "has 1 channels, not 3"),
        ({"num_classes": True}, "num_classes"),
        ({"pretrained_cfg": [1]}, "no JSON object"),
    ],
)
def test_wrong_values_are_refused_by_name(values, message):
    with pytest.raises(CheckpointError, match=message):
        parse_config(values).preprocess()
    with pytest.raises(CheckpointError, match="not a JSON object"):
        parse_config([values])


def test_the_side_of_a_fraction_is_rounded_down_but_exact():
    assert resized_side(224, 0.875) == 256
    assert resized_side(288, 0.95) == 303  # 303.16
    assert [resized_side(side, side / 1037) for side in range(8, 1037)] == [1037] * 1029


@pytest.mark.parametrize("crop_pct", [1e-300, 0.001])
def test_a_crop_that_would_need_images_larger_than_memory_is_refused(crop_pct):
    with pytest.raises(CheckpointError, match="pixels a side"):
        parse_config({"crop_pct": crop_pct, "input_size": [3, 224, 224]}).preprocess()

from dataclasses import replace

import pytest
import torch
from torch import nn

from resnets.config.recipes import digits
from resnets.data import dataset
from resnets.training import memory
from resnets.training import resolve as plans

CPU = torch.device("cpu")


def a_plan(**changes):
    recipe = replace(digits(), model="resnet8", size=8, steps=4, batch=32, precision="float32")
    return plans.resolve(replace(recipe, **changes), dataset.load("digits"), CPU, 0)


def test_what_a_network_keeps_is_counted_once_by_hand():
    network = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    # The input (2, 5), and the ReLU's result (2, 7) for itself and for the second layer.
    kept = memory.saved_for_backward(network, (torch.ones(2, 5),), bfloat16=False)
    assert sorted(x.untyped_storage().nbytes() for x in kept) == [2 * 5 * 4, 2 * 7 * 4]


def test_a_convolution_keeps_half_as_much_in_bfloat16():
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.ReLU())
    images = torch.ones(2, 3, 8, 8)
    full, half = (memory.saved_for_backward(network, (images,), bfloat16=b) for b in (False, True))
    sizes = [sorted(x.untyped_storage().nbytes() for x in kept) for kept in (full, half)]
    image, result, weights = 2 * 3 * 64, 2 * 4 * 64, 4 * 3 * 9
    assert sizes[0] == [image * 4, result * 4]
    assert sizes[1] == [weights * 2, image * 2, result * 2]  # and the weights, rounded


def test_the_need_of_an_image_is_that_of_two_halved_and_grows_with_the_side():
    fixed, image = memory.step_bytes(a_plan())
    _, larger = memory.step_bytes(a_plan(train_size=16))
    assert 3.9 < larger / image < 4.0  # but for what follows the pooling
    # sgd: weights, average and momentum three times, two gradients; and the statistics.
    weights = sum(p.numel() for p in memory.models.build(a_plan().arch).parameters())
    assert 0 <= fixed - 11 * 4 * weights < 10_000


@pytest.mark.parametrize(
    ("images", "available", "expected"),
    [(128, 10_000, 128), (128, 1850, 128), (128, 1849, 64), (100, 1_000, 50), (9, 1, 1)],
)
def test_the_batch_is_halved_until_eight_tenths_hold_it(images, available, expected):
    # 200 fixed and 10 an image: 128 of them need 1,480, which is 0.8 of 1,850.
    assert memory.largest_fitting(images, 200, 10, available) == expected


def test_only_a_batch_that_does_not_fit_is_made_smaller(monkeypatch):
    plan = a_plan()
    fixed, image = memory.step_bytes(plan)
    monkeypatch.setattr(memory, "available_bytes", lambda: 10 * (fixed + 32 * image))
    assert memory.fit_to_memory(plan).recipe.micro_batch == 0
    monkeypatch.setattr(memory, "available_bytes", lambda: round((fixed + 16 * image) / 0.8) + 1)
    small = memory.fit_to_memory(plan)
    assert small.recipe.micro_batch == small.micro_batch == 16
    assert "2 forward passes of 16 images make one step" in small.summary()["length"]
    said = a_plan(micro_batch=32)
    assert memory.fit_to_memory(said) is said
    monkeypatch.setattr(memory, "available_bytes", lambda: None)
    assert memory.fit_to_memory(plan) is plan


def test_the_smaller_of_machine_and_cgroup_is_available(tmp_path):
    assert memory.available_bytes(tmp_path) is None
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    5000 kB\n")
    (tmp_path / "proc/self/cgroup").write_text("0::/a/b\n")
    assert memory.available_bytes(tmp_path) == 5000 * 1024
    group = tmp_path / "sys/fs/cgroup/a/b"
    group.mkdir(parents=True)
    (group / "memory.current").write_text("900000\n")
    (group / "memory.stat").write_text("anon 5\ninactive_file 100000\n")
    (group / "memory.max").write_text("max\n")
    assert memory.available_bytes(tmp_path) == 5000 * 1024
    (group / "memory.max").write_text("1000000\n")
    assert memory.available_bytes(tmp_path) == 200_000

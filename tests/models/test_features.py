"""Maps of a network for other heads, as docs/extending.md writes it; levels: test_family.py."""

import re
from pathlib import Path

import torch
from torchvision.ops import FeaturePyramidNetwork

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


def test_the_page_gives_maps_to_a_feature_pyramid():
    section = PAGE.read_text("utf-8").partition("## Features for a custom head")[2]
    found = {}
    for code in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
        exec(code, found)
    assert {k: tuple(m.shape) for k, m in found["maps"].items()} == {
        "stem": (2, 64, 32, 48),
        "layer1": (2, 64, 16, 24),
        "layer2": (2, 128, 8, 12),
        "layer3": (2, 256, 4, 6),
        "layer4": (2, 512, 2, 3),
    }
    assert (found["channels"], found["stride"]) == (512, 32)
    maps = found["backbone"](torch.rand(1, 3, 64, 64))
    pyramid = FeaturePyramidNetwork([found["network"].levels[name][0] for name in maps], 16)
    assert [m.shape[2] for m in pyramid(maps).values()] == [8, 4, 2]

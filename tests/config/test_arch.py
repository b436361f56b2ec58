"""Networks as data: what earlier versions wrote is read."""

import pytest

from resnets.config.arch import from_dict, to_dict, with_fields
from resnets.config.families import ARCHS


@pytest.mark.parametrize("name", ["resnext50_32x4d", "retinanet_tiny_fpn", "fasterrcnn_tiny_c4"])
def test_old_names_of_fields_are_read(name):
    arch = ARCHS[name]
    data = to_dict(arch)
    residual = data.get("backbone", data)
    residual["squeeze"] = residual.pop("bottleneck_ratio")
    if "backbone" in data:
        data["form"] = data.pop("architecture")
    assert from_dict(data) == arch


def test_old_names_of_fields_are_replaced():
    wide = with_fields(ARCHS["resnet50"], {"squeeze": "2"})
    assert wide.bottleneck_ratio == ARCHS["wide_resnet50_2"].bottleneck_ratio == 2
    detector = with_fields(ARCHS["fasterrcnn_resnet50_fpn"], {"squeeze": 2})
    assert detector.backbone.bottleneck_ratio == 2

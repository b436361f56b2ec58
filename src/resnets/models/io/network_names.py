"""What the name of a network says that its tensors do not, and what neither says."""

from __future__ import annotations

import re
from typing import Any

from resnets.config.arch import Arch, DenseTaskArch, ResNetArch, VitArch
from resnets.config.families import ARCHS, label

BLURRED = re.compile(r"(?i)(resne(?:t|xt)|densenet)(aa|blur)")  # timm's
TIMM = re.compile(
    r"(timm/|tv_|gluon_|ssl_|swsl_|ig_|legacy_|wide_|se|eca|sk)*(res(net|next)|densenet|vit_|vgg|alexnet|googlenet)"
)


def known_name(text: str) -> str:
    """The name of the family in a network's name or a file's path, the last one; "" without.

    "timm/resnet50.a1_in1k", "models--timm--resnet50.a1_in1k/model.safetensors" and
    "resnet50_a1-14fe96d1.pth" are of resnet50.
    """
    for component in reversed(re.split(r"[/\\]|--", text)):
        for name in (component, component.partition(".")[0], component.partition("-")[0]):
            if name in ARCHS:
                return name
    return ""


def implied_fields(name: str) -> dict[str, Any]:
    """The fields of a residual network that its name gives and its tensors do not show."""
    row = ARCHS.get(known_name(name))
    if isinstance(row, ResNetArch):
        return {"blur": row.blur, "stem_pool": row.stem_pool}
    if match := re.search(r"_(v1|caffe)$", name):
        return {"stride_on": "1x1", "stem_pool": "ceil" if match[1] == "caffe" else "pad"}
    if match := BLURRED.search(name):
        return {"blur": "mean" if match[2].lower() == "aa" else "branch"}
    return {}


def name_settles(name: str, arch: Arch) -> bool:
    """Whether a network's name, as torchvision, timm or we write it, says what shapes do not."""
    if known_name(name) and label(arch) == known_name(name):
        return True
    odd = "_v1" in name or (getattr(arch, "norm", "batch") != "batch" and "gn" not in name)
    depth = re.findall(r"(?<!v)\d+", name)[:1]  # resnetv2_50 is 50 deep
    return bool(TIMM.match(name)) and not odd and [str(arch.depth)] == depth


def assumed_fields(arch: Arch) -> tuple[dict[str, str], list[str]]:
    """What tensors do not show of a network and was assumed.

    First the fields, with their value and what else there is; then what is no field.
    """
    trunk = arch.backbone if isinstance(arch, DenseTaskArch) else arch
    if isinstance(trunk, VitArch):
        return {"heads": f"{trunk.heads} (64 wide)"}, ["GELU", "an epsilon of 1e-6"]
    fields, fixed = dict[str, str](), ["ReLU", "an epsilon of 1e-5"]
    if not isinstance(trunk, ResNetArch):
        return fields, fixed
    if trunk.unit == "bottleneck":
        other = "1x1 in the paper and Caffe" if trunk.stride_on == "3x3" else "3x3 in torchvision"
        fields["stride_on"] = f"{trunk.stride_on} ({other})"
    if trunk.shortcut in ("A", "none"):
        fields["shortcut"] = f'{trunk.shortcut} (plain: "none")'
    if trunk.norm != "batch":
        fixed.append("norms of 32 groups (or batch norms whose statistics are missing)")
        fields["weight_standardised"] = f"{trunk.weight_standardised} (True in BiT)"
    fields |= {"order": trunk.order, "output_stride": str(trunk.output_stride)}
    # `blur=True` has tensors of other names, so it is not among what can be set.
    if trunk.blur is True or trunk.stem == "cifar":
        fixed += [] if trunk.blur else ["no blur"]
    else:
        fields["blur"] = f"{trunk.blur} (branch or mean: timm's blur and aa)"
        fields["stem_pool"] = f"{trunk.stem_pool} (ceil in Caffe, zeros in BiT)"
    return fields, fixed

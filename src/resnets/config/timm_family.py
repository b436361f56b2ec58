"""timm's residual networks that the papers' families do not have, under timm's names.

Two names differ: `timm_seresnet18` and `timm_seresnet34` have excitations in multiples of eight,
without `timm_` they have the paper's, as in timm's `legacy_` ones.
"""

from __future__ import annotations

from dataclasses import replace

from resnets.config.arch import SelectiveKernel
from resnets.config.variants import (
    BAG_OF_TRICKS,
    IMAGENET,
    R18,
    R50,
    R101,
    antialiased,
    bit,
    caffe,
    deep,
    eca,
    legacy_se,
    resnext,
    se,
    sk,
    tiered,
    v2,
)

R26 = replace(R50, blocks=(2, 2, 2, 2))
R269 = replace(R50, blocks=(3, 30, 48, 8))
# Of timm's skresnet18 and 34, skresnet50, skresnext50.
SELECTIVE_KERNELS = (
    SelectiveKernel(reduction=8, multiple=16),
    SelectiveKernel(reduction=16, multiple=8),
    SelectiveKernel(reduction=16, multiple=32, split=False),
)
SK_SMALL, SK_50, SK_NEXT = SELECTIVE_KERNELS
TIMM = {
    "resnet10t": tiered(replace(R18, blocks=(1, 1, 1, 1))),
    "resnet14t": tiered(replace(R50, blocks=(1, 1, 1, 1))),
    "resnet26": R26,
    "resnet26d": deep(R26),
    "resnet26t": tiered(R26),
    "resnet50t": tiered(R50),
    **{
        f"{n}s": replace(IMAGENET[n], stem="deep", stem_width=128, source=BAG_OF_TRICKS)
        for n in ("resnet50", "resnet101", "resnet152")
    },
    "resnet50_gn": replace(R50, norm="group", source="Wu and He 2018, arXiv 1803.08494"),
    "resnext50d_32x4d": replace(resnext(deep(R50), 32, 4), source=BAG_OF_TRICKS),
    **{f"resnext101_32x{width}d": resnext(R101, 32, width) for width in (4, 16, 32)},
    "timm_seresnet18": replace(se(R18), se_multiple=8),
    "timm_seresnet34": replace(se(IMAGENET["resnet34"]), se_multiple=8),
    "seresnet50t": se(tiered(R50)),
    "seresnet152d": se(deep(IMAGENET["resnet152"])),
    "seresnet269d": se(deep(R269)),
    "seresnext26d_32x4d": se(resnext(deep(R26), 32, 4)),
    "seresnext26t_32x4d": se(resnext(tiered(R26), 32, 4)),
    "seresnext50_32x4d": se(resnext(R50, 32, 4)),
    "seresnext101_32x4d": se(resnext(R101, 32, 4)),
    "seresnext101_32x8d": se(resnext(R101, 32, 8)),
    "seresnext101_64x4d": se(resnext(R101, 64, 4)),
    "seresnext101d_32x8d": se(resnext(deep(R101), 32, 8)),
    "ecaresnet26t": eca(tiered(R26)),
    "ecaresnet50d": eca(deep(R50)),
    "ecaresnet50t": eca(tiered(R50)),
    "ecaresnet101d": eca(deep(R101)),
    "ecaresnet269d": eca(deep(R269)),
    "ecaresnetlight": eca(replace(R50, blocks=(1, 1, 11, 3), downsample="avgpool")),
    "ecaresnext26t_32x4d": eca(resnext(tiered(R26), 32, 4)),
    "ecaresnext50t_32x4d": eca(resnext(tiered(R50), 32, 4)),
    "skresnet18": sk(R18, SK_SMALL),
    "skresnet34": sk(IMAGENET["resnet34"], SK_SMALL),
    "skresnet50": sk(R50, SK_50),
    "skresnet50d": sk(deep(R50), SK_50),
    "skresnext50_32x4d": sk(resnext(R50, 32, 4), SK_NEXT),
    "resnetblur18": antialiased(R18, "branch"),
    "resnetblur50": antialiased(R50, "branch"),
    "resnetblur50d": antialiased(deep(R50), "branch"),
    "resnetblur101d": antialiased(deep(R101), "branch"),
    "resnetaa34d": antialiased(deep(IMAGENET["resnet34"]), "mean"),
    "resnetaa50": antialiased(R50, "mean"),
    "resnetaa50d": antialiased(deep(R50), "mean"),
    "resnetaa101d": antialiased(deep(R101), "mean"),
    "seresnetaa50d": antialiased(se(deep(R50)), "mean"),
    "seresnextaa101d_32x8d": antialiased(se(resnext(deep(R101), 32, 8)), "mean"),
    **{f"legacy_se{n}": legacy_se(a) for n, a in IMAGENET.items() if a.depth < 200},
    **{
        f"legacy_seresnext{n}_32x4d": se(resnext(replace(a, stem_pool="ceil"), 32, 4))
        for n, a in ((26, R26), (50, R50), (101, R101))
    },
    # The authors' Caffe networks.
    **{f"{n}_caffe": caffe(IMAGENET[n]) for n in ("resnet50", "resnet101", "resnet152")},
    **{f"resnetv2_{n}": v2(IMAGENET[f"resnet{n}"]) for n in (18, 34, 50, 101, 152)},
    **{f"resnetv2_{n}d": v2(deep(IMAGENET[f"resnet{n}"])) for n in (18, 34, 50, 101, 152)},
    "resnetv2_50t": v2(tiered(R50)),
    "resnetv2_50d_gn": replace(v2(deep(R50)), norm="group32"),
    **{
        f"resnetv2_{n}x{factor}_bit": bit(IMAGENET[f"resnet{n}"], factor)
        for n, factor in ((50, 1), (50, 3), (101, 1), (101, 3), (152, 2), (152, 4))
    },
}

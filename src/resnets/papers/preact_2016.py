"""Every table and figure of 1603.05027 (r2)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from resnets.config import recipes
from resnets.config.families import PLACEMENTS, SHORTCUTS
from resnets.papers import measures
from resnets.papers.experiment import Arm, Experiment, make_arms
from resnets.papers.resnet_2015 import CHANNEL_MEAN, CIFAR_110, R110

EPOCHS_90 = recipes.preact_imagenet()
# Table 1, in the order of `SHORTCUTS`.
CASES = ("fail", "fail", 12.35, "fail", "fail", 8.70, 9.81, 12.86, 6.91, 12.22, "fail")
AT_224 = partial(measures.classifier_errors, "center", 1.0)
AT_320 = partial(measures.classifier_errors, "center", 320 / 224)
AREA = replace(EPOCHS_90.augment, crop="area")  # "scale and aspect ratio augmentation"


def placements(depth: int, errors: tuple[float, ...]) -> tuple[Arm, ...]:
    """Original, BN after addition, ReLU before it, ReLU-only and full pre-activation."""
    between = (f"resnet{depth}_{order}" for order in PLACEMENTS)
    names = (f"resnet{depth}", *between, f"preresnet{depth}")
    return make_arms(CIFAR_110, dict(zip(names, errors, strict=True)))


EXPERIMENTS_2016 = (
    Experiment(
        id="r2.eq",
        title="Equations 4 to 8 as numbers",
        reference="exact",
        arms=tuple(
            Arm(
                name=f"{name}+{equation}",
                compute=partial(measures.equation_residual, equation, name),
                paper=paper,
            )
            for name, equation, paper in (
                ("preresnet56", "equation4", {"residual": 0.0}),
                ("preresnet56", "equation5", {"residual": 0.0}),
                ("preresnet164", "equation4", {"residual": 0.0}),
                ("preresnet164", "equation5", {"residual": 0.0}),
                ("resnet110_constant_0.5_1", "product", {"log2_product": -54.0}),
            )
        ),
        short_run_claim="exact: identities in double precision",
    ),
    Experiment(
        id="r2.tab1",
        title="Table 1, Figure 3: kinds of shortcuts, CIFAR-10",
        arms=make_arms(CIFAR_110, R110)
        + make_arms(
            CIFAR_110,
            dict(zip((f"resnet110_{case}" for case in SHORTCUTS), CASES, strict=True)),
        ),
        short_run_claim="order of training errors: the identity is ahead of all but the "
        "shortcut-only gate that starts open (-6)",
        expected_order=tuple(
            (f"resnet110_{case}", "resnet110") for case in SHORTCUTS if case != "shortcut_gate_-6"
        ),
        has_curves=True,
        steps={"cpu": 300},
        cpu_units=5,
    ),
    Experiment(
        id="r2.tab2",
        title="Table 2, Figure 6: where BN and ReLU stand, 110 layers, CIFAR-10",
        arms=placements(110, (6.61, 8.17, 7.84, 6.71, 6.37)),
        short_run_claim="order of training errors: BN after the addition is behind",
        expected_order=(("resnet110_bn_after_add", "preresnet110"), ("resnet110", "preresnet110")),
        has_curves=True,
        steps={"cpu": 300},
        cpu_units=5,
    ),
    Experiment(
        id="r2.tab2-164",
        title="Table 2, Figure 6: where BN and ReLU stand, 164 layers, CIFAR-10",
        arms=placements(164, (5.93, 6.50, 6.14, 5.91, 5.46)),
        short_run_claim="order of training errors: BN after the addition is behind",
        expected_order=(("resnet164_bn_after_add", "preresnet164"),),
        has_curves=True,
        steps={"cpu": 300},
        cpu_units=4,
    ),
    Experiment(
        id="r2.tab3",
        title="Tables 3 and 4: pre-activation, CIFAR-10",
        arms=make_arms(CIFAR_110, {"resnet110_1layer": 9.90, "preresnet110_1layer": 8.91})
        + make_arms(CIFAR_110, R110 | {"preresnet110": 6.37})
        + make_arms(CIFAR_110, {"resnet164": 5.93, "preresnet164": 5.46})
        + make_arms(recipes.resnet_1k_layers(), {"preresnet1001+64": 4.62}),
        has_curves=True,
        steps={"cpu": 100, "gpu": 2000},
    ),
    Experiment(
        id="r2.tab3-100",
        title="Tables 3 and 4: pre-activation, CIFAR-100",
        arms=make_arms(
            CIFAR_110,
            {"resnet164+cifar100": 25.16, "preresnet164+cifar100": 24.33}
            | {"resnet1001+cifar100": 27.82, "preresnet1001+cifar100": 22.71},
            data="cifar100",
        ),
        steps={"cpu": 60, "gpu": 500},
        cpu_side=8,
    ),
    Experiment(
        id="r2.fig1",
        title="Figure 1, Table 3: 1,001 layers, original and pre-activation, CIFAR-10",
        arms=make_arms(CIFAR_110, {"resnet1001": 7.61, "preresnet1001": 4.92}),
        short_run_claim="order of training errors in the first iterations",
        expected_order=(("resnet1001", "preresnet1001"),),
        has_curves=True,
        steps={"cpu": 100, "gpu": 500},
        cpu_side=8,
    ),
    Experiment(
        id="r2.tab5",
        title="Table 5: ImageNet, tested at 320 pixels",
        arms=make_arms(EPOCHS_90, {"resnet152_v1+90+224": 23.0}, AT_224)
        + make_arms(
            EPOCHS_90,
            {"resnet152_v1+90": 21.3, "preresnet152_v1+90": 21.1}
            | {"resnet200_v1+90": 21.8, "preresnet200_v1+90": 20.7},
            AT_320,
        )
        + make_arms(EPOCHS_90, {"preresnet200_v1+area": 20.1}, AT_320, augment=AREA),
        deviation=CHANNEL_MEAN,
        steps={"cpu": 50, "gpu": 1000},
    ),
    Experiment(
        id="r2.bnadd",
        title="Section 4.1: BN after the addition, ImageNet, 1-crop",
        arms=make_arms(EPOCHS_90, {"resnet101_v1+90": 23.6})
        + make_arms(EPOCHS_90, {"resnet101_v1+bn_after_add": 24.6}, arch={"order": "bn_after_add"}),
        short_run_claim="order of training errors",
        expected_order=(("resnet101_v1+bn_after_add", "resnet101_v1+90"),),
        deviation=CHANNEL_MEAN,
        steps={"cpu": 50, "gpu": 1000},
    ),
)

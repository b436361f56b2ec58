"""The families that followed the two papers."""

from __future__ import annotations

from resnets.config import recipes
from resnets.papers.experiment import Experiment, count_rows, make_arms

DROPPED = recipes.stochastic_depth_cifar10()
DESCENDANTS = (
    Experiment(
        id="later.counts",
        title="Later families: parameters",
        arms=count_rows("parameters", {"resnet50": 25.6e6, "seresnet50": 28.1e6})
        + count_rows("parameters", {"resnext50_32x4d": 25.0e6, "wrn_28_10": 36.5e6})
        + count_rows("parameters", {"densenet_bc100_12": 0.8e6}),
        short_run_claim="exact: nothing is trained",
    ),
    Experiment(
        id="later.drop",
        title="Stochastic depth, 1603.09382, Table 1: CIFAR-10",
        arms=make_arms(DROPPED, {"resnet110+constant-depth": 6.41}, arch={})
        + make_arms(DROPPED, {"resnet110+stochastic-depth": 5.25}),
    ),
    Experiment(
        id="later.cifar",
        title="Wide, 1605.07146, and dense, 1608.06993, networks: CIFAR-10",
        arms=make_arms(recipes.wide_cifar10(), {"wrn_28_10": 4.00})
        + make_arms(recipes.dense_cifar10(), {"densenet_bc100_12": 4.51}),
        steps={"cpu": 50},
    ),
    Experiment(
        id="later.imagenet",
        title="ResNeXt, 1611.05431, Table 3, and SE, 1709.01507, Table 2: ImageNet, 1-crop",
        arms=make_arms(recipes.fb_resnet(), {"resnext50_32x4d": 22.2, "seresnet50": 23.29}),
        steps={"cpu": 50},
    ),
    Experiment(
        id="later.goyal",
        title="1706.02677, Table 1: 256 and 8,192 images a step, ImageNet",
        arms=make_arms(recipes.goyal_8k(), {"resnet50+256": 23.60}, batch=256, warmup=0.0)
        + make_arms(recipes.goyal_8k(), {"resnet50+8192": 23.74}),
        steps={"cpu": 10, "gpu": 500},
    ),
    Experiment(
        id="later.rsb",
        title="ResNet strikes back, 2110.00476: ImageNet, 1-crop",
        arms=make_arms(recipes.rsb_a1(), {"resnet50+a1": 19.6})
        + make_arms(recipes.rsb_a2(), {"resnet50+a2": 20.2})
        + make_arms(recipes.rsb_a3(), {"resnet50+a3": 21.9}),
        steps={"cpu": 10, "gpu": 500},
    ),
)

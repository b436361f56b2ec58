"""Every table and figure of 1512.03385 (r1)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from resnets.config import recipes
from resnets.config.recipe import Recipe
from resnets.papers import measures
from resnets.papers.experiment import (
    Arm,
    Experiment,
    PaperFigures,
    count_rows,
    make_arms,
    pending,
)

CIFAR, CIFAR_110 = recipes.paper_cifar10(), recipes.paper_cifar10_110()
IMAGENET = recipes.paper_imagenet()
DEPTHS = {"resnet20": 8.75, "resnet32": 7.51, "resnet44": 7.17, "resnet56": 6.97}
PLAIN = {"plain20": "", "plain32": "", "plain44": "", "plain56": ""}
R110 = {"resnet110": 6.61}
VOC = replace(recipes.paper_voc(), data="voc")
COCO = replace(recipes.paper_coco(), data="coco")
LOCATED = replace(recipes.paper_localize(), data="imagenet-boxes")
CONTEXT = replace(COCO, arch={"context": True})
DETECTION = replace(CONTEXT, data="imagenet-detection")
REGIONS = replace(LOCATED, arch={"regions": [8, 200]})  # the boxes are found again by R-CNN
C4 = COCO.model
FIVE_SIDES = (1 / 3, 2 / 3, 1.0, 4 / 3, 5 / 3)  # 200 to 1,000 pixels, where 600 is the usual one
DENSE = (1.0, 8 / 7, 12 / 7, 15 / 7, 20 / 7)  # 224 to 640 pixels: those of classification
RANDOM = "none: smaller budgets start from random weights"
TWO_SETS = (
    "takes two data sets, one after the other: `resnets detect train COCO --recipe paper-coco`, "
    "then VOC with `--recipe paper-voc --set weights=RUN`"
)
CHANNEL_MEAN = "each channel has one mean, where the paper subtracts one for each pixel"
TEN_CROP = partial(measures.classifier_errors, "ten-crop", 1.0)
MULTI_SCALE = partial(measures.classifier_errors, "multi-scale", 1.0)


def detector(
    name: str, figures: PaperFigures, recipe: Recipe = CONTEXT, *, refine: bool = True,
    scales: tuple[float, ...] = FIVE_SIDES, members: tuple[Arm, ...] = (),
) -> Arm:  # fmt: skip
    """A row of the tables of detection, with the improvements of appendix B."""
    evaluate = partial(measures.detector_metrics, refine, scales)
    return Arm(name=name, recipe=recipe, evaluate=evaluate, paper=figures, members=members)


def localizer(
    name: str, figures: PaperFigures, recipe: Recipe = LOCATED, sides: tuple[float, ...] = DENSE
) -> Arm:
    """A row of the table of localisation, tested at these sides."""
    evaluate = partial(measures.localizer_metrics, sides)
    return Arm(name=name, recipe=recipe, evaluate=evaluate, paper=figures)


BASELINE = detector(C4, {"map50": 48.4, "map": 27.2}, COCO, refine=False, scales=())

EXPERIMENTS_2015 = (
    Experiment(
        id="r1.tab1",
        title="Table 1, section 4.2: multiply-adds and parameters",
        arms=count_rows("macs", {"resnet18_option_a": 1.8e9, "resnet34_option_a": 3.6e9})
        + count_rows("macs", {"resnet50_v1": 3.8e9, "resnet101_v1": 7.6e9, "resnet152_v1": 11.3e9})
        + count_rows("macs", {"plain18": 1.8e9, "plain34": 3.6e9})
        + count_rows("parameters", {"resnet20": 0.27e6, "resnet32": 0.46e6, "resnet44": 0.66e6})
        + count_rows("parameters", {"resnet56": 0.85e6, "resnet110": 1.7e6, "resnet1202": 19.4e6}),
        short_run_claim="exact: nothing is trained",
    ),
    Experiment(
        id="r1.fig1",
        title="Figure 1: the deeper plain network has the higher training error",
        arms=make_arms(CIFAR, {"plain20": "", "plain56": ""}),
        short_run_claim="order of training errors",
        expected_order=(("plain56", "plain20"),),
        has_curves=True,
        steps={"cpu": 500},
    ),
    Experiment(
        id="r1.tab2",
        title="Table 2, Figure 4: plain and residual networks, ImageNet, 10-crop",
        arms=make_arms(IMAGENET, {"plain18": 27.94, "plain34": 28.54}, TEN_CROP)
        + make_arms(IMAGENET, {"resnet18_option_a": 27.88, "resnet34_option_a": 25.03}, TEN_CROP),
        short_run_claim="order of training errors of the 34 layers",
        expected_order=(("plain34", "resnet34_option_a"),),
        has_curves=True,
        deviation=CHANNEL_MEAN,
    ),
    Experiment(
        id="r1.tab3",
        title="Table 3: shortcut options, deeper networks, ImageNet, 10-crop",
        arms=make_arms(IMAGENET, {"resnet34_option_a": 25.03, "resnet34": 24.52}, TEN_CROP)
        + make_arms(IMAGENET, {"resnet34_option_c": 24.19, "resnet50_v1": 22.85}, TEN_CROP)
        + make_arms(IMAGENET, {"resnet101_v1": 21.75, "resnet152_v1": 21.43}, TEN_CROP),
        deviation=CHANNEL_MEAN,
    ),
    Experiment(
        id="r1.tab4",
        title="Table 4: single networks, ImageNet, multi-scale",
        arms=make_arms(IMAGENET, {"resnet34": 21.84, "resnet34_option_c": 21.53}, MULTI_SCALE)
        + make_arms(IMAGENET, {"resnet50_v1": 20.74, "resnet101_v1": 19.87}, MULTI_SCALE)
        + make_arms(IMAGENET, {"resnet152_v1": 19.38}, MULTI_SCALE),
        deviation=CHANNEL_MEAN,
    ),
    Experiment(
        id="r1.tab5",
        title="Table 5: an ensemble of six networks, ImageNet",
        arms=(
            Arm(
                name="resnet152_v1",
                recipe=replace(IMAGENET, model="resnet152_v1"),
                evaluate=partial(measures.classifier_errors, "center", 1.0),
                paper={"top5_error": "3.57 (hidden test set)"},
                members=make_arms(IMAGENET, {"resnet152_v1+second": ""}, seed=1)
                + make_arms(IMAGENET, {"resnet34": "", "resnet34_option_c": ""})
                + make_arms(IMAGENET, {"resnet50_v1": "", "resnet101_v1": ""}),
            ),
        ),
        short_run_claim="none: the paper's test set is hidden, and two of its six networks are "
        "named",
        deviation=CHANNEL_MEAN,
    ),
    Experiment(
        id="r1.fig6a",
        title="Figure 6, left: plain networks, CIFAR-10",
        arms=make_arms(CIFAR, PLAIN) + make_arms(CIFAR_110, {"plain110": "> 60"}),
        short_run_claim="training error rises with depth",
        expected_order=(("plain56", "plain20"), ("plain110", "plain20")),
        has_curves=True,
        steps={"cpu": 500},
    ),
    Experiment(
        id="r1.tab6",
        title="Table 6, Figure 6, middle: residual networks, CIFAR-10",
        arms=make_arms(CIFAR, DEPTHS) + make_arms(CIFAR_110, R110),
        short_run_claim="none: gains from depth need the full length",
        has_curves=True,
        steps={"cpu": 500},
    ),
    Experiment(
        id="r1.cure",
        title="Figure 6, left and middle: what shortcuts cure",
        arms=make_arms(CIFAR, {"plain20": "", "plain56": "", "resnet20": 8.75, "resnet56": 6.97}),
        short_run_claim="with shortcuts 56 layers have the lower training error; that they are "
        "better than 20 needs the full length",
        expected_order=(("plain56", "plain20"), ("plain56", "resnet56")),
        has_curves=True,
        steps={"cpu": 500},
    ),
    Experiment(
        id="r1.fig6c",
        title="Figure 6, right: 1,202 layers, CIFAR-10",
        arms=make_arms(CIFAR_110, R110 | {"resnet1202": 7.93}),
        short_run_claim="the error of 1,202 layers falls; that they overfit needs the full length",
        has_curves=True,
        steps={"cpu": 60, "gpu": 300},
        cpu_side=8,
    ),
    Experiment(
        id="r1.warm110",
        title="Section 4.2: ResNet-110 with and without a start at rate 0.01",
        arms=make_arms(CIFAR_110, R110) + make_arms(CIFAR, {"resnet110+cold": ""}),
        short_run_claim="order of training errors at first",
        expected_order=(("resnet110+cold", "resnet110"),),
        has_curves=True,
    ),
    Experiment(
        id="r1.fig7",
        title="Figure 7: standard deviation of layer responses, CIFAR-10",
        arms=make_arms(
            CIFAR, {"plain20": "", "plain56": "", "resnet20": ""}, measures.response_stds
        )
        + make_arms(CIFAR, {"resnet56": ""}, measures.response_stds)
        + make_arms(CIFAR_110, {"resnet110": ""}, measures.response_stds),
        short_run_claim="order of the median deviations",
        expected_order=(
            ("plain56", "resnet56"),
            ("plain20", "resnet20"),
            ("resnet56", "resnet110"),
        ),
        metric="median_std",
        steps={"cpu": 500},
    ),
    Experiment(
        id="r1.grads",
        title="Section 4.1: gradients of plain networks at the start",
        arms=tuple(
            Arm(name=name, compute=partial(measures.gradient_norms, name))
            for name in ("plain20", "plain56", "plain110", "resnet56")
        ),
        short_run_claim="exact: norm of the first layer's gradient over the last's, for one batch",
    ),
    Experiment(
        id="r1.3x",
        title="Section 4.1: three times the iterations for a plain network",
        arms=make_arms(CIFAR, {"plain20": "", "plain56": ""})
        + make_arms(CIFAR, {"plain20+3x": "", "plain56+3x": ""}, steps=3 * CIFAR.steps),
        short_run_claim="after three times the iterations of both, 56 layers are still behind 20",
        expected_order=(("plain56", "plain20"), ("plain56+3x", "plain20+3x")),
        has_curves=True,
        steps={"cpu": 500},
    ),
    Experiment(
        id="r1.tab7",
        title="Table 7: Faster R-CNN, VOC 2007 test, mAP",
        arms=(detector(f"{C4}+voc", {"voc07": 76.4}, VOC, refine=False, scales=()),),
        short_run_claim=RANDOM,
        metric="voc07",
    ),
    pending(
        "r1.tab7-2012",
        "Table 7: Faster R-CNN, VOC 2012 test, mAP",
        {C4: "73.8"},
        "is of a hidden test set; what it is trained on is VOC 2007, test images too, and 2012",
    ),
    Experiment(
        id="r1.tab8",
        title="Table 8: Faster R-CNN, COCO val, mAP",
        arms=(BASELINE,),
        short_run_claim=RANDOM,
        metric="map50",
    ),
    Experiment(
        id="r1.tab9",
        title="Table 9: Faster R-CNN, COCO val, improvements one after another, mAP",
        arms=(
            BASELINE,
            detector("box refinement", {"map50": 49.9, "map": 29.9}, COCO, scales=()),
            detector("context", {"map50": 51.1, "map": 30.0}, scales=()),
            detector("multi-scale", {"map50": 53.8, "map": 32.5}),
            detector(
                "ensemble",
                {"map50": "59.0, 37.4 (test-dev)"},
                members=tuple(
                    Arm(name=f"context-{seed + 1}", recipe=replace(CONTEXT, seed=seed))
                    for seed in (1, 2)
                ),
            ),
        ),
        short_run_claim=RANDOM,
        metric="map50",
    ),
    pending("r1.tab10", "Table 10: VOC 2007 after COCO, mAP", {"improved": "85.6"}, TWO_SETS),
    pending("r1.tab11", "Table 11: VOC 2012 after COCO, mAP", {"improved": "83.8"}, TWO_SETS),
    Experiment(
        id="r1.tab12",
        title="Table 12: Faster R-CNN, ImageNet detection val2, mAP",
        arms=(detector(f"{C4}+imagenet", {"map50": 60.5}, DETECTION),),
        short_run_claim=RANDOM,
        deviation="rate and length are those of COCO",
        metric="map50",
    ),
    Experiment(
        id="r1.tab13",
        title="Table 13: localisation on ImageNet val, error given the class and of five classes",
        arms=(
            localizer(LOCATED.model, {"given_error": 13.3}, sides=(1.0,)),
            localizer(
                "dense", {"given_error": 11.7, "five_error": "14.4 (of a classifier's classes)"}
            ),
            localizer("with R-CNN", {"five_error": "10.6 (of a classifier's classes)"}, REGIONS),
        ),
        short_run_claim=RANDOM,
        deviation="rate, length and sides are ours, and the five classes the network's own",
        metric="given_error",
    ),
    pending(
        "r1.tab14",
        "Table 14: localisation, test set",
        {"ensemble": "9.0"},
        "is of a hidden test set, by an ensemble that the paper does not name",
    ),
)

"""Every table and figure of the two papers, and of later families, as an experiment. No torch here.

An `Experiment` is a table of arms; an `Arm` is a network, how the paper trained it, and what the
paper says came out, in %. The papers are 1512.03385 (r1) and 1603.05027 (r2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from resnets import recipes
from resnets.errors import UsageError, nearest
from resnets.families import PLACEMENTS, SHORTCUTS
from resnets.paper import measures
from resnets.paper.measures import Measure
from resnets.recipe import Recipe

Budget = Literal["smoke", "cpu", "gpu", "full"]
Figures = Mapping[str, float | str]
# Millions of multiply-adds of an image, by depth, for estimates (`nets.cost` counts exactly).
MACS = {18: 1795, 20: 41, 28: 5243, 32: 69, 34: 3664, 44: 97, 50: 4089, 56: 125, 100: 288}
MACS |= {101: 7570, 110: 253, 152: 11282, 164: 245, 200: 14776, 1001: 1488, 1202: 2829}
PLACES = {  # data that has to be named, and in what form
    "imagenet": "ImageNet: --data FOLDER with train/ and val/ (or test/) of class folders",
    "imagenet-boxes": "ImageNet's boxes: --data FOLDER in a form that `resnets data check` reads",
    "imagenet-detection": "ImageNet's detection set: --data FOLDER that `resnets data check` reads",
    "voc": "PASCAL VOC: --data FOLDER with Annotations/ and ImageSets/",
    "coco": "COCO: --data FOLDER with annotations/ and its images",
}
STEPS = {"smoke": 2, "cpu": 400, "gpu": 8000}
SMALL = "none: the difference is smaller than what a short run can show"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A row of a table, or a line of a figure. Arms of one name are trained alike."""

    name: str
    recipe: Recipe | None = None  # None: nothing is trained
    measure: Measure | None = None  # what is measured beside the errors
    paper: Figures = field(default_factory=dict)  # "fail" is a test error above 20 %
    members: tuple[Arm, ...] = ()  # what else is trained for it


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A table or figure, and what less than its full length may claim."""

    id: str
    title: str
    arms: tuple[Arm, ...]
    claim: str = SMALL
    greater: tuple[tuple[str, str], ...] = ()  # the first arm has the greater `figure`
    figure: str = "train_error"
    curves: bool = False  # whether the paper draws errors over iterations
    steps: Mapping[str, int] = field(default_factory=dict)  # of budgets, where not as in STEPS
    units: int = 0  # in each stage, at the budget "cpu"; 0: as in the paper
    side: int = 0  # of the images, likewise
    needs: str = ""  # why it cannot be run from here
    ours: str = ""  # what the paper does not give, so that no run is by its protocol

    @property
    def place(self) -> str:
        """The data that has to be named, "" for none: of an experiment one."""
        return next((a.recipe.data for a in self.arms if a.recipe and a.recipe.data in PLACES), "")


def arms(
    base: Recipe, errors: Figures, measure: Measure | None = None, **changes: Any
) -> tuple[Arm, ...]:
    """An arm for each model, and the test error that the paper has for it; "" where it has none.

    A model may be written "model+tag", where `changes` of the recipe make another arm of it.
    """
    return tuple(
        Arm(
            name=name,
            recipe=replace(base, model=name.partition("+")[0], **changes),
            measure=measure,
            paper={"test_error": error} if error != "" else {},
        )
        for name, error in errors.items()
    )


def counted(what: str, printed: Figures) -> tuple[Arm, ...]:
    """Arms whose layers, parameters and multiply-adds are counted."""
    return tuple(
        Arm(name=name, measure=partial(measures.counts, name), paper={what: figure})
        for name, figure in printed.items()
    )


def waiting(id: str, title: str, figures: Mapping[str, str], needs: str) -> Experiment:
    """An experiment that one command cannot run."""
    rows = (Arm(name=name, paper={"": text}) for name, text in figures.items())
    return Experiment(id=id, title=title, arms=tuple(rows), needs=needs)


CIFAR, CIFAR_110 = recipes.paper_cifar10(), recipes.paper_cifar10_110()
IMAGENET, EPOCHS_90 = recipes.paper_imagenet(), recipes.preact_imagenet()
DEPTHS = {"resnet20": 8.75, "resnet32": 7.51, "resnet44": 7.17, "resnet56": 6.97}
PLAIN = {"plain20": "", "plain32": "", "plain44": "", "plain56": ""}
R110 = {"resnet110": 6.61}
# 1603.05027, Table 1, in the order of `SHORTCUTS`.
CASES = ("fail", "fail", 12.35, "fail", "fail", 8.70, 9.81, 12.86, 6.91, 12.22, "fail")
VOC = replace(recipes.paper_voc(), data="voc")
COCO = replace(recipes.paper_coco(), data="coco")
LOCATED = replace(recipes.paper_localize(), data="imagenet-boxes")
CONTEXT = replace(COCO, arch={"context": True})
C4, LOCALIZER = COCO.model, LOCATED.model
FIVE_SIDES = (1 / 3, 2 / 3, 1.0, 4 / 3, 5 / 3)  # 200 to 1,000 pixels, where 600 is the usual one
DENSE = (1.0, 8 / 7, 12 / 7, 15 / 7, 20 / 7)  # 224 to 640 pixels: those of classification
RANDOM = "none: smaller budgets start from random weights"
TWO_SETS = (
    "takes two data sets, one after the other: `resnets detect train COCO --recipe paper-coco`, "
    "then VOC with `--recipe paper-voc --set weights=RUN`"
)
TEN_CROP = partial(measures.viewed, "ten-crop", 1.0)
MULTI_SCALE = partial(measures.viewed, "multi-scale", 1.0)
AT_320 = partial(measures.viewed, "center", 320 / 224)


DETECTED = partial(measures.detected, False, ())
BASELINE = Arm(name=C4, recipe=COCO, measure=DETECTED, paper={"map50": 48.4, "map": 27.2})


def placements(depth: int, errors: tuple[float, ...]) -> tuple[Arm, ...]:
    """Original, BN after addition, ReLU before it, ReLU-only and full pre-activation."""
    between = (f"resnet{depth}_{order}" for order in PLACEMENTS)
    names = (f"resnet{depth}", *between, f"preresnet{depth}")
    return arms(CIFAR_110, dict(zip(names, errors, strict=True)))


R1 = (
    Experiment(
        id="r1.tab1",
        title="Table 1, section 4.2: multiply-adds and parameters",
        arms=counted("macs", {"resnet18_option_a": 1.8e9, "resnet34_option_a": 3.6e9})
        + counted("macs", {"resnet50_v1": 3.8e9, "resnet101_v1": 7.6e9, "resnet152_v1": 11.3e9})
        + counted("macs", {"plain18": 1.8e9, "plain34": 3.6e9})
        + counted("parameters", {"resnet20": 0.27e6, "resnet32": 0.46e6, "resnet44": 0.66e6})
        + counted("parameters", {"resnet56": 0.85e6, "resnet110": 1.7e6, "resnet1202": 19.4e6}),
        claim="exact: nothing is trained",
    ),
    Experiment(
        id="r1.fig1",
        title="Figure 1: the deeper plain network has the higher training error",
        arms=arms(CIFAR, {"plain20": "", "plain56": ""}),
        claim="order of training errors",
        greater=(("plain56", "plain20"),),
        curves=True,
        steps={"cpu": 500},
    ),
    Experiment(
        id="r1.tab2",
        title="Table 2, Figure 4: plain and residual networks, ImageNet, 10-crop",
        arms=arms(IMAGENET, {"plain18": 27.94, "plain34": 28.54}, TEN_CROP)
        + arms(IMAGENET, {"resnet18_option_a": 27.88, "resnet34_option_a": 25.03}, TEN_CROP),
        claim="order of training errors of the 34 layers",
        greater=(("plain34", "resnet34_option_a"),),
        curves=True,
    ),
    Experiment(
        id="r1.tab3",
        title="Table 3: shortcut options, deeper networks, ImageNet, 10-crop",
        arms=arms(IMAGENET, {"resnet34_option_a": 25.03, "resnet34": 24.52}, TEN_CROP)
        + arms(IMAGENET, {"resnet34_option_c": 24.19, "resnet50_v1": 22.85}, TEN_CROP)
        + arms(IMAGENET, {"resnet101_v1": 21.75, "resnet152_v1": 21.43}, TEN_CROP),
    ),
    Experiment(
        id="r1.tab4",
        title="Table 4: single networks, ImageNet, multi-scale",
        arms=arms(IMAGENET, {"resnet34": 21.84, "resnet34_option_c": 21.53}, MULTI_SCALE)
        + arms(IMAGENET, {"resnet50_v1": 20.74, "resnet101_v1": 19.87}, MULTI_SCALE)
        + arms(IMAGENET, {"resnet152_v1": 19.38}, MULTI_SCALE),
    ),
    Experiment(
        id="r1.tab5",
        title="Table 5: an ensemble of six networks, ImageNet",
        arms=(
            Arm(
                name="resnet152_v1",
                recipe=replace(IMAGENET, model="resnet152_v1"),
                measure=measures.ensemble,
                paper={"top5_error": "3.57 (hidden test set)"},
                members=arms(IMAGENET, {"resnet152_v1+second": ""}, seed=1)
                + arms(IMAGENET, {"resnet34": "", "resnet34_option_c": ""})
                + arms(IMAGENET, {"resnet50_v1": "", "resnet101_v1": ""}),
            ),
        ),
        claim="none: the paper's test set is hidden, and it names only two of its six networks",
    ),
    Experiment(
        id="r1.fig6a",
        title="Figure 6, left: plain networks, CIFAR-10",
        arms=arms(CIFAR, PLAIN) + arms(CIFAR_110, {"plain110": "> 60"}),
        claim="training error rises with depth",
        greater=(("plain56", "plain20"), ("plain110", "plain20")),
        curves=True,
        steps={"cpu": 500},
    ),
    Experiment(
        id="r1.tab6",
        title="Table 6, Figure 6, middle: residual networks, CIFAR-10",
        arms=arms(CIFAR, DEPTHS) + arms(CIFAR_110, R110),
        claim="none: gains from depth need the full length",
        curves=True,
        steps={"cpu": 500},
    ),
    Experiment(
        id="r1.cure",
        title="Figure 6, left and middle: what shortcuts cure",
        arms=arms(CIFAR, {"plain20": "", "plain56": "", "resnet20": 8.75, "resnet56": 6.97}),
        claim="ResNet-56 is cured, not better than ResNet-20",
        greater=(("plain56", "plain20"), ("plain56", "resnet56")),
        curves=True,
        steps={"cpu": 500},
    ),
    Experiment(
        id="r1.fig6c",
        title="Figure 6, right: 1,202 layers, CIFAR-10",
        arms=arms(CIFAR_110, R110 | {"resnet1202": 7.93}),
        claim="the error of 1,202 layers falls; that they overfit needs the full length",
        curves=True,
        steps={"cpu": 60, "gpu": 300},
        side=8,
    ),
    Experiment(
        id="r1.warm110",
        title="Section 4.2: ResNet-110 with and without a start at rate 0.01",
        arms=arms(CIFAR_110, R110) + arms(CIFAR, {"resnet110+cold": ""}),
        claim="order of training errors at first",
        greater=(("resnet110+cold", "resnet110"),),
        curves=True,
    ),
    Experiment(
        id="r1.fig7",
        title="Figure 7: standard deviation of layer responses, CIFAR-10",
        arms=arms(CIFAR, {"plain20": "", "plain56": "", "resnet20": ""}, measures.stds)
        + arms(CIFAR, {"resnet56": ""}, measures.stds)
        + arms(CIFAR_110, {"resnet110": ""}, measures.stds),
        claim="order of the median deviations",
        greater=(("plain56", "resnet56"), ("plain20", "resnet20"), ("resnet56", "resnet110")),
        figure="median_std",
        steps={"cpu": 500},
    ),
    Experiment(
        id="r1.grads",
        title="Section 4.1: gradients of plain networks at the start",
        arms=tuple(
            Arm(name=name, measure=partial(measures.gradients, name))
            for name in ("plain20", "plain56", "plain110", "resnet56")
        ),
        claim="exact: norm of the first layer's gradient over the last's, for one batch",
    ),
    Experiment(
        id="r1.3x",
        title="Section 4.1: three times the iterations for a plain network",
        arms=arms(CIFAR, {"plain20": "", "plain56": ""})
        + arms(CIFAR, {"plain56+3x": ""}, steps=3 * CIFAR.steps),
        claim="the gap to plain-20 stays",
        greater=(("plain56+3x", "plain20"),),
        curves=True,
        steps={"cpu": 500},
    ),
    Experiment(
        id="r1.tab7",
        title="Table 7: Faster R-CNN, VOC 2007 test, mAP",
        arms=(Arm(name=f"{C4}+voc", recipe=VOC, measure=DETECTED, paper={"voc07": 76.4}),),
        claim=RANDOM,
        figure="voc07",
    ),
    Experiment(
        id="r1.tab8",
        title="Table 8: Faster R-CNN, COCO val, mAP",
        arms=(BASELINE,),
        claim=RANDOM,
        figure="map50",
    ),
    Experiment(
        id="r1.tab9",
        title="Table 9: Faster R-CNN, COCO val, improvements one after another, mAP",
        arms=(
            BASELINE,
            Arm(
                name="box refinement",
                recipe=COCO,
                measure=partial(measures.detected, True, ()),
                paper={"map50": 49.9, "map": 29.9},
            ),
            Arm(
                name="context",
                recipe=CONTEXT,
                measure=partial(measures.detected, True, ()),
                paper={"map50": 51.1, "map": 30.0},
            ),
            Arm(
                name="multi-scale",
                recipe=CONTEXT,
                measure=partial(measures.detected, True, FIVE_SIDES),
                paper={"map50": 53.8, "map": 32.5},
            ),
            Arm(
                name="ensemble",
                recipe=CONTEXT,
                measure=partial(measures.detected, True, FIVE_SIDES),
                paper={"map50": "59.0, 37.4 (test-dev)"},
                members=(
                    Arm(name="context-2", recipe=replace(CONTEXT, seed=1)),
                    Arm(name="context-3", recipe=replace(CONTEXT, seed=2)),
                ),
            ),
        ),
        claim=RANDOM,
        figure="map50",
    ),
    waiting("r1.tab10", "Table 10: VOC 2007 after COCO, mAP", {"improved": "85.6"}, TWO_SETS),
    waiting("r1.tab11", "Table 11: VOC 2012 after COCO, mAP", {"improved": "83.8"}, TWO_SETS),
    Experiment(
        id="r1.tab12",
        title="Table 12: Faster R-CNN, ImageNet detection val2, mAP",
        arms=(
            Arm(
                name=f"{C4}+imagenet",
                recipe=replace(CONTEXT, data="imagenet-detection"),
                measure=partial(measures.detected, True, FIVE_SIDES),
                paper={"map50": 60.5},
            ),
        ),
        claim=RANDOM,
        ours="rate and length are those of COCO",
        figure="map50",
    ),
    Experiment(
        id="r1.tab13",
        title="Table 13: localisation on ImageNet val, error given the class and of five classes",
        arms=(
            Arm(
                name=LOCALIZER,
                recipe=LOCATED,
                measure=partial(measures.located, (1.0,)),
                paper={"given_error": 13.3},
            ),
            Arm(
                name="dense",
                recipe=LOCATED,
                measure=partial(measures.located, DENSE),
                paper={"given_error": 11.7, "five_error": "14.4 (of a classifier's classes)"},
            ),
            Arm(
                name="with R-CNN",
                recipe=replace(LOCATED, arch={"regions": [8, 200]}),
                measure=partial(measures.located, DENSE),
                paper={"five_error": "10.6 (of a classifier's classes)"},
            ),
        ),
        claim=RANDOM,
        ours="rate, length and sides are ours, and the five classes the network's own",
        figure="given_error",
    ),
    waiting(
        "r1.tab14",
        "Table 14: localisation, test set",
        {"ensemble": "9.0"},
        "is of a hidden test set, by an ensemble that the paper does not name",
    ),
)

R2 = (
    Experiment(
        id="r2.eq",
        title="Equations 4 to 8 as numbers",
        arms=tuple(
            Arm(name=f"{name}+{what}", measure=partial(measures.equation, what, name), paper=paper)
            for name, what, paper in (
                ("preresnet56", "equation4", {"residual": 0.0}),
                ("preresnet56", "equation5", {"residual": 0.0}),
                ("preresnet164", "equation4", {"residual": 0.0}),
                ("preresnet164", "equation5", {"residual": 0.0}),
                ("resnet110_constant_0.5_1", "product", {"log2_product": -54.0}),
            )
        ),
        claim="exact: identities in double precision",
    ),
    Experiment(
        id="r2.tab1",
        title="Table 1, Figure 3: kinds of shortcuts, CIFAR-10",
        arms=arms(CIFAR_110, R110)
        + arms(
            CIFAR_110,
            dict(zip((f"resnet110_{case}" for case in SHORTCUTS), CASES, strict=True)),
        ),
        claim="order of training errors: the identity is best",
        greater=tuple(
            (f"resnet110_{case}", "resnet110")
            for case in SHORTCUTS
            if case not in ("exclusive_gate_-6", "exclusive_gate_-7", "shortcut_gate_-6")
        ),
        curves=True,
        steps={"cpu": 300},
        units=5,
    ),
    Experiment(
        id="r2.tab2",
        title="Table 2, Figure 6: where BN and ReLU stand, 110 layers, CIFAR-10",
        arms=placements(110, (6.61, 8.17, 7.84, 6.71, 6.37)),
        claim="order of training errors: BN after the addition is behind",
        greater=(("resnet110_bn_after_add", "preresnet110"), ("resnet110", "preresnet110")),
        curves=True,
        steps={"cpu": 300},
        units=5,
    ),
    Experiment(
        id="r2.tab2-164",
        title="Table 2, Figure 6: where BN and ReLU stand, 164 layers, CIFAR-10",
        arms=placements(164, (5.93, 6.50, 6.14, 5.91, 5.46)),
        claim="order of training errors: BN after the addition is behind",
        greater=(("resnet164_bn_after_add", "preresnet164"),),
        curves=True,
        steps={"cpu": 300},
        units=4,
    ),
    Experiment(
        id="r2.tab3",
        title="Tables 3 and 4: pre-activation, CIFAR-10",
        arms=arms(CIFAR_110, {"resnet110_1layer": 9.90, "preresnet110_1layer": 8.91})
        + arms(CIFAR_110, R110 | {"preresnet110": 6.37})
        + arms(CIFAR_110, {"resnet164": 5.93, "preresnet164": 5.46})
        + arms(CIFAR_110, {"preresnet1001+64": 4.62}, batch=64, steps=2 * CIFAR.steps),
        curves=True,
        steps={"cpu": 100, "gpu": 2000},
    ),
    Experiment(
        id="r2.tab3-100",
        title="Tables 3 and 4: pre-activation, CIFAR-100",
        arms=arms(
            CIFAR_110,
            {"resnet164+cifar100": 25.16, "preresnet164+cifar100": 24.33}
            | {"resnet1001+cifar100": 27.82, "preresnet1001+cifar100": 22.71},
            data="cifar100",
        ),
        steps={"cpu": 60, "gpu": 500},
        side=8,
    ),
    Experiment(
        id="r2.fig1",
        title="Figure 1, Table 3: 1,001 layers, original and pre-activation, CIFAR-10",
        arms=arms(CIFAR_110, {"resnet1001": 7.61, "preresnet1001": 4.92}),
        claim="order of training errors in the first iterations",
        greater=(("resnet1001", "preresnet1001"),),
        curves=True,
        steps={"cpu": 100, "gpu": 500},
        side=8,
    ),
    Experiment(
        id="r2.tab5",
        title="Table 5: ImageNet, tested at 320 pixels",
        arms=arms(
            EPOCHS_90,
            {"resnet152_v1+90": 21.3, "preresnet152_v1+90": 21.1}
            | {"resnet200_v1+90": 21.8, "preresnet200_v1+90": 20.7},
            AT_320,
        ),
        steps={"cpu": 50, "gpu": 1000},
    ),
    Experiment(
        id="r2.bnadd",
        title="Section 4.1: BN after the addition, ImageNet, 1-crop",
        arms=arms(EPOCHS_90, {"resnet101_v1+90": 23.6})
        + arms(EPOCHS_90, {"resnet101_v1+bn_after_add": 24.6}, arch={"order": "bn_after_add"}),
        claim="order of training errors",
        greater=(("resnet101_v1+bn_after_add", "resnet101_v1+90"),),
        steps={"cpu": 50, "gpu": 1000},
    ),
)

DROPPED = recipes.stochastic_depth_cifar10()
LATER = (
    Experiment(
        id="later.counts",
        title="Later families: parameters",
        arms=counted("parameters", {"resnet50": 25.6e6, "seresnet50": 28.1e6})
        + counted("parameters", {"resnext50_32x4d": 25.0e6, "wrn_28_10": 36.5e6})
        + counted("parameters", {"densenet_bc100_12": 0.8e6}),
        claim="exact: nothing is trained",
    ),
    Experiment(
        id="later.drop",
        title="Stochastic depth, 1603.09382, Table 1: CIFAR-10",
        arms=arms(DROPPED, {"resnet110+constant-depth": 6.41}, arch={})
        + arms(DROPPED, {"resnet110+stochastic-depth": 5.25}),
    ),
    Experiment(
        id="later.cifar",
        title="Wide, 1605.07146, and dense, 1608.06993, networks: CIFAR-10",
        arms=arms(recipes.wide_cifar10(), {"wrn_28_10": 4.00})
        + arms(recipes.dense_cifar10(), {"densenet_bc100_12": 4.51}),
        steps={"cpu": 50},
    ),
    Experiment(
        id="later.imagenet",
        title="ResNeXt, 1611.05431, Table 3, and SE, 1709.01507, Table 2: ImageNet, 1-crop",
        arms=arms(recipes.fb_resnet(), {"resnext50_32x4d": 22.2, "seresnet50": 23.29}),
        steps={"cpu": 50},
    ),
    Experiment(
        id="later.goyal",
        title="1706.02677, Table 1: 256 and 8,192 images a step, ImageNet",
        arms=arms(recipes.goyal_8k(), {"resnet50+256": 23.60}, batch=256, warmup=0.0)
        + arms(recipes.goyal_8k(), {"resnet50+8192": 23.74}),
        steps={"cpu": 10, "gpu": 500},
    ),
    Experiment(
        id="later.rsb",
        title="ResNet strikes back, 2110.00476: ImageNet, 1-crop",
        arms=arms(recipes.rsb_a1(), {"resnet50+a1": 19.6})
        + arms(recipes.rsb_a2(), {"resnet50+a2": 20.2})
        + arms(recipes.rsb_a3(), {"resnet50+a3": 21.9}),
        steps={"cpu": 10, "gpu": 500},
    ),
)

EXPERIMENTS = {e.id: e for e in R1 + R2 + LATER}


def experiment(name: str) -> Experiment:
    """The experiment of that id. Raises UsageError with the nearest known ones."""
    if name not in EXPERIMENTS:
        raise UsageError(f"no experiment {name!r}: {nearest(name, EXPERIMENTS)}")
    return EXPERIMENTS[name]

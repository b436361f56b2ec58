"""Published runs, one function each: the docstring cites the source and the expected number.

Below them, how a recipe is read from a file, and how single fields of it are changed.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from resnets.config.recipe import Augment, Recipe, parse, rename_old_fields, to_dict
from resnets.errors import UsageError, nearest

PAD = Augment(crop="pad", pad=4, flip=True)
AREA = Augment(crop="area", flip=True)


def paper_cifar10() -> Recipe:
    """Deep Residual Learning, section 4.2: 64,000 iterations of 128 images, rate / 10 at 32k, 48k.

    Test error in % over depth 20, 32, 44, 56: 8.75, 7.51, 7.17, 6.97 (Table 6). Biases and
    normalisation are not decayed, as in the authors' code; --set micro_batch=64 is their two GPUs.
    """
    return Recipe(
        model="resnet20", data="cifar10", normalize="pixel", augment=PAD, monitor="test",
        steps=64_000, batch=128, schedule="step", milestones=(0.5, 0.75), lr=0.1, lr_batch=128,
        warmup_lr=0.01, warmup_shape="constant", decay_all=False,
    )  # fmt: skip


def paper_cifar10_110() -> Recipe:
    """With the footnote's warm-up, 0.01 for 400 steps. ResNet-110: 6.43 %, on average 6.61 %."""
    return replace(paper_cifar10(), model="resnet110", warmup=400)


def preact_cifar10() -> Recipe:
    """Identity Mappings, Table 3, warm-up in all. preresnet110, 164, 1001: 6.37, 5.46, 4.92 %."""
    return replace(paper_cifar10_110(), model="preresnet164")


def fb_cifar10() -> Recipe:
    """fb.resnet.torch on CIFAR-10: Nesterov, all decayed. Errors about as in the paper."""
    return replace(
        paper_cifar10(), steps=0, epochs=164, milestones=(80 / 164, 121 / 164), normalize="data",
        nesterov=True, decay_all=True,
    )  # fmt: skip


def resnet_1k_layers() -> Recipe:
    """KaimingHe/resnet-1k-layers by fb.resnet.torch: 200 epochs of batch 64, of 50,000 images.

    The rate 0.1 is for 64 images; it falls at the beginning of epochs 81 and 122. preresnet1001:
    4.62 %, on average 4.69 % (Identity Mappings, Table 4).
    """
    return replace(
        fb_cifar10(), model="preresnet1001", steps=156_250, milestones=(80 / 200, 121 / 200),
        batch=64, lr_batch=64,
    )  # fmt: skip


def wide_cifar10() -> Recipe:
    """Wide Residual Networks (1605.07146), section 3: WRN-28-10, 200 epochs. Test error 4.00 %."""
    return replace(
        fb_cifar10(), model="wrn_28_10", augment=replace(PAD, reflect=True), epochs=200,
        milestones=(0.3, 0.6, 0.8), gamma=0.2, weight_decay=5e-4,
    )  # fmt: skip


def dense_cifar10() -> Recipe:
    """DenseNet (1608.06993), section 4.2: 300 epochs of batch 64. DenseNet-BC-100-12: 4.51 %."""
    return replace(
        fb_cifar10(), model="densenet_bc100_12", epochs=300, milestones=(0.5, 0.75), batch=64,
        lr_batch=64,
    )  # fmt: skip


def stochastic_depth_cifar10() -> Recipe:
    """Stochastic Depth (1603.09382), section 4: 5.25 %, at the best epoch on 5,000 held out."""
    return replace(
        fb_cifar10(), model="resnet110", arch={"drop_path": 0.5}, epochs=500,
        milestones=(0.5, 0.75), val_fraction=5000, monitor="val", select="best",
    )  # fmt: skip


def quick_cifar10() -> Recipe:
    """A short schedule for CIFAR-10 on two CPU cores, ours; its measured error is in the README."""
    return Recipe(
        model="resnet20", data="cifar10", augment=PAD, monitor="test", eval_every=2, epochs=30,
        batch=128, lr=0.2, schedule="linear", warmup=0.15, nesterov=True, weight_decay=5e-4,
        decay_all=False, ema=0.998,
    )  # fmt: skip


def fast_cifar10() -> Recipe:
    """A low error in few epochs, ours: one cycle of the learning rate, smoothed labels.

    Not measured yet. `--model resnet20` for a CPU.
    """
    return replace(
        quick_cifar10(), model="wrn_16_8", augment=replace(PAD, reflect=True, cutout=8), epochs=20,
        batch=256, lr_batch=256, schedule="one-cycle", warmup=0.25, label_smoothing=0.1, ema=0.995,
    )  # fmt: skip


def paper_imagenet() -> Recipe:
    """Deep Residual Learning, section 3.4: 600,000 iterations of 256 images on 8 GPUs.

    10-crop top-1 error in % over depth 18, 34, 50, 101, 152: 27.88, 24.52, 22.85, 21.75, 21.43
    (Tables 2 and 3). The rate falls when the error has been at a plateau for five epochs; how
    that was decided, the paper does not say. It subtracts a mean for each pixel; here each channel
    has one, as in all later work, so such a run is not quite the paper's protocol.
    """
    augment = Augment(crop="scale", scale=(256, 480), flip=True, colour="pca")
    return Recipe(
        model="resnet50_v1", data="imagenet", size=224, augment=augment, steps=600_000, batch=256,
        micro_batch=32, lr=0.1, lr_batch=256, schedule="plateau", decay_all=False,
    )  # fmt: skip


def preact_imagenet() -> Recipe:
    """Identity Mappings, section 4: rate / 10 after 30 and 60 epochs; the end at 90 epochs is ours.

    So is the mean of a channel, as in `paper_imagenet`.
    Top-1 error in % of one 320 x 320 crop (Table 5): ResNet-152 21.1, ResNet-200 20.7.
    """
    return replace(
        paper_imagenet(), model="preresnet200_v1", steps=0, epochs=90, schedule="step",
        milestones=(1 / 3, 2 / 3),
    )  # fmt: skip


def fb_resnet() -> Recipe:
    """fb.resnet.torch on ImageNet, 4 GPUs: random areas and aspect ratios, Nesterov, all decayed.

    1-crop top-1 error in % over depth 18, 34, 50, 101, 152 (the last on 8 GPUs,
    micro_batch=32): 30.43, 26.73, 24.01, 22.44, 22.16.
    """
    return replace(
        preact_imagenet(), model="resnet50", normalize="imagenet", micro_batch=64,
        augment=replace(AREA, colour="jitter+pca"), nesterov=True, decay_all=True,
    )  # fmt: skip


def goyal_8k() -> Recipe:
    """ImageNet in One Hour (1706.02677), Table 1: 8,192 images a step, 32 of them a worker.

    0.1 for 256 images is 3.2 here, reached over 5 epochs. ResNet-50: 23.74 +- 0.09 % top-1 error.
    """
    return replace(
        fb_resnet(), arch={"zero_gamma": True}, augment=AREA, batch=8192, micro_batch=32,
        milestones=(30 / 90, 60 / 90, 80 / 90), warmup=5 / 90, warmup_lr=0.1, decay_all=False,
    )  # fmt: skip


def torchvision_v1() -> Recipe:
    """torchvision's first weights: 90 epochs on 8 GPUs.

    Top-1 accuracy in % over depth 18, 34, 50, 101, 152: 69.76, 73.31, 76.13, 77.37, 78.31.
    """
    return replace(fb_resnet(), augment=AREA, micro_batch=32, nesterov=False)


def torchvision_v2() -> Recipe:
    """torchvision's IMAGENET1K_V2: 600 epochs, batch 1,024 on 8 GPUs.

    Top-1 accuracy in % of ResNet-50, 101, 152: 80.86, 81.89, 82.28.
    """
    augment = replace(
        AREA, policy="trivialaugment", random_erasing=0.1, repeated_aug=4, mixup=0.2, cutmix=1.0
    )
    return replace(
        torchvision_v1(), train_size=176, crop_pct=224 / 232, augment=augment, epochs=600,
        batch=1024, micro_batch=128, lr=0.5, lr_batch=1024, schedule="cosine", milestones=(),
        warmup=5 / 600, warmup_lr=0.005, weight_decay=2e-5, decay_all=False, label_smoothing=0.1,
        # One average in 32 steps: torchvision's decay times images between two averages / epochs.
        ema=1 - (1 - 0.99998) * 1024 * 32 / 600, ema_every=32,
    )  # fmt: skip


def rsb_a2() -> Recipe:
    """ResNet Strikes Back (2110.00476), A2: 300 epochs on 4 GPUs. ResNet-50: 79.8 % top-1."""
    augment = replace(AREA, policy="randaugment", repeated_aug=3, mixup=0.1, cutmix=1.0)
    return Recipe(
        model="resnet50", arch={"drop_path": 0.05, "zero_gamma": True}, data="imagenet", size=224,
        crop_pct=0.95, normalize="imagenet", augment=augment, epochs=300, batch=2048,
        micro_batch=512, lr=5e-3, warmup=5 / 300, optimizer="lamb", weight_decay=0.02,
        decay_all=False, clip=1.0, loss="bce",
    )  # fmt: skip


def rsb_a1() -> Recipe:
    """ResNet Strikes Back, A1: 600 epochs. ResNet-50: 80.4 % top-1."""
    a2 = rsb_a2()
    return replace(
        a2, augment=replace(a2.augment, mixup=0.2), epochs=600, warmup=5 / 600, weight_decay=0.01,
        label_smoothing=0.1,
    )  # fmt: skip


def rsb_a3() -> Recipe:
    """ResNet Strikes Back, A3: 100 epochs at 160 pixels. ResNet-50: 78.1 % top-1 at 224."""
    a2 = rsb_a2()
    return replace(
        a2, arch={"zero_gamma": True}, train_size=160, epochs=100, lr=8e-3, warmup=5 / 100,
        augment=replace(a2.augment, randaugment=(6, 0.5), repeated_aug=1),
    )  # fmt: skip


def fine_tune() -> Recipe:
    """From trained weights (`weights`) to some hundred images of your own (`data`), ours.

    The classifier starts as a linear probe, then the network learns, at a rate that keeps what it
    knows (2202.10054): earlier stages more slowly than later ones, the first not at all, and
    normalisation as in the weights. Measured in docs/few-photographs.md.
    """
    augment = replace(AREA, area=(0.35, 1.0), policy="trivialaugment", mixup=0.2)
    return Recipe(
        model="resnet50", size=224, normalize="imagenet", augment=augment, epochs=15, batch=32,
        lr=0.002, lr_batch=32, warmup=0.1, nesterov=True, decay_all=False, label_smoothing=0.1,
        ema=0.98, head="probe", norm="frozen", freeze_stages=2, layer_decay=0.7,
    )  # fmt: skip


def paper_voc() -> Recipe:
    """Deep Residual Learning, appendix A, with Faster R-CNN's numbers (Ren et al., section 3.3).

    From ImageNet weights (`weights`), normalisation fixed. VOC 2007 test, mAP in %: 76.4 (Table 7).
    """
    return Recipe(
        model="fasterrcnn_resnet101_c4", size=600, normalize="imagenet",
        augment=Augment(flip=True), steps=80_000, batch=1, schedule="step", milestones=(0.75,),
        norm="frozen", lr=1e-3, lr_batch=1, weight_decay=5e-4, trainval=True,
    )  # fmt: skip


def paper_coco() -> Recipe:
    """Deep Residual Learning, appendix A: 240,000 steps on 8 GPUs, 80,000 at a tenth of the rate.

    COCO val, mAP in % at 0.5 and at 0.5 to 0.95: 48.4, 27.2 (Table 8).
    """
    return replace(
        paper_voc(), size=800, steps=320_000, batch=8, lr_batch=8, weight_decay=1e-4,
        trainval=False,
    )  # fmt: skip


def paper_localize() -> Recipe:
    """Deep Residual Learning, appendix C: crops as for classification, 256 images a step.

    From ImageNet weights (`weights`). ImageNet val, error in % given the class: 13.3 (Table 13).
    The paper does not give the rate and the length, which are ours.
    """
    return Recipe(
        model="localizer_resnet101", size=224, normalize="imagenet",
        augment=Augment(crop="scale", scale=(256, 480), flip=True), steps=150_000, batch=256,
        lr=1e-2, lr_batch=256, schedule="step", milestones=(2 / 3,), norm="frozen",
    )  # fmt: skip


def torchvision_coco() -> Recipe:
    """torchvision's detectors: 26 epochs of 16 images from ImageNet weights.

    COCO val, box AP in % of fasterrcnn, maskrcnn and retinanet_resnet50_fpn (its lr is 0.01): 37.0,
    37.9 (masks 34.6), 36.4.
    """
    return replace(
        paper_coco(), model="fasterrcnn_resnet50_fpn", steps=0, epochs=26, batch=16, lr=0.02,
        lr_batch=16, milestones=(16 / 26, 22 / 26), warmup=1000, warmup_lr=2e-5,
    )  # fmt: skip


def torchvision_segment() -> Recipe:
    """torchvision's segmentation on COCO images with VOC's classes: 30 epochs of 32 images.

    Mean IoU in % of fcn_resnet50 and deeplabv3_resnet50: 60.5, 66.4. Its rate falls by a power of
    0.9, ours linearly.
    """
    return Recipe(
        model="deeplabv3_resnet50", size=520, train_size=480, normalize="imagenet",
        augment=Augment(crop="scale", scale=(260, 1040), flip=True), epochs=30, batch=32, lr=0.02,
        lr_batch=32, schedule="linear",
    )  # fmt: skip


def detect() -> Recipe:
    """Detection from random weights on two CPU cores, ours; its measured mAP is in the README.

    Whole images, without crops: objects cut by a border are often not annotated, and a crop cuts
    objects that are.
    """
    return Recipe(
        model="fasterrcnn_tiny_fpn", size=320, batch=8, epochs=40,
        augment=Augment(crop="resize", scale=(256, 384), flip=True), optimizer="adamw", lr=1e-3,
        warmup=0.05, weight_decay=0.05, clip=1.0, decay_all=False, ema=0.99, eval_every=4,
    )  # fmt: skip


def segment() -> Recipe:
    """Semantic segmentation from random weights on two CPU cores, ours."""
    augment = Augment(crop="scale", scale=(256, 400), flip=True)
    return replace(detect(), model="semanticfpn_tiny", augment=augment)


def localize() -> Recipe:
    """Localisation from random weights on two CPU cores, ours."""
    augment = Augment(crop="resize", scale=(80, 112), flip=True)
    return replace(detect(), model="localizer_tiny", size=96, augment=augment, batch=32)


def digits() -> Recipe:
    """The digits of the package at 16 pixels, in seconds on two cores; ours."""
    return replace(
        quick_cifar10(), data="digits", size=16, augment=Augment(crop="pad", pad=2), epochs=60,
        batch=64, lr=0.1, ema=0.99, monitor="val", eval_every=5,
    )  # fmt: skip


PAPERS = (paper_cifar10, paper_cifar10_110, paper_imagenet, preact_cifar10, preact_imagenet)
DESCENDANTS = (
    stochastic_depth_cifar10,
    wide_cifar10,
    dense_cifar10,
    goyal_8k,
    rsb_a1,
    rsb_a2,
    rsb_a3,
)
PUBLIC_CODE = (fb_cifar10, resnet_1k_layers, fb_resnet, torchvision_v1, torchvision_v2)
DENSE_TASK_RECIPES = (paper_voc, paper_coco, paper_localize, torchvision_coco, torchvision_segment)
OURS = (digits, quick_cifar10, fast_cifar10, fine_tune, detect, segment, localize)
RECIPES: dict[str, Callable[[], Recipe]] = {
    function.__name__.replace("_", "-"): function
    for function in PAPERS + DESCENDANTS + PUBLIC_CODE + OURS + DENSE_TASK_RECIPES
}


def get_recipe(name: str) -> Recipe:
    """The recipe of that name. Raises UsageError with the nearest known names."""
    if name not in RECIPES:
        raise UsageError(f"unknown recipe {name!r}: {nearest(name, RECIPES)}")
    return RECIPES[name]()


def replace_fields(base: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with some fields replaced, `augment.flip` too, all validated at once.

    Raises UsageError: unknown names, wrong values, two lengths of the run.
    """
    values, changes = to_dict(base), rename_old_fields(changes)
    lengths = [name for name in ("epochs", "steps", "budget") if changes.get(name)]
    if len(lengths) > 1:
        raise UsageError(f"{' and '.join(lengths)} all set the length of the run: give one")
    if lengths:
        values |= {"steps": 0, "budget": 0.0}  # one length replaces another
    if changes.get("schedule", "step") != "step":
        values["milestones"] = ()  # they belong to the schedule that is replaced
    for name, value in changes.items():
        key, _, inner = name.partition(".")
        change = {inner: value} if inner else value
        current = values.get(key)
        if isinstance(change, dict) and isinstance(current, dict):
            change = current | change
        values[key] = change
    return parse(values)


def read_recipe(name: str | Path | Recipe) -> Recipe:
    """A recipe by name, or from a TOML or JSON file (a run's recipe.json runs again)."""
    if isinstance(name, Recipe):
        return name
    if (path := Path(str(name))).suffix not in {".toml", ".json"}:
        return get_recipe(str(name))
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        if not isinstance(values, dict):
            raise ValueError("not a table of fields")
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"cannot read the recipe {path}: {error}") from None
    base = get_recipe(values.pop("recipe")) if "recipe" in values else None
    try:
        return replace_fields(base, values) if base else parse(values)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None

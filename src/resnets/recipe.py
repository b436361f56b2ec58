"""A run, as data: frozen, typed, complete. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BeforeValidator, Field

from resnets.arch import wrong
from resnets.errors import UsageError, nearest

Count = Annotated[int, Field(ge=0)]
Tenths = Annotated[int, Field(ge=0, le=10)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Part = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Side = Annotated[int, Field(ge=0, le=2**14)]  # pixels: what a card may ask an image to become


# A single value, as `--set drops=0.5` gives it, is a list of one.
Parts = Annotated[
    tuple[Part, ...], BeforeValidator(lambda x: x if isinstance(x, list | tuple) else [x])
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocess:
    """From an image to a network's input at test time. It travels in the model file.

    The shorter side is resized to `resize` pixels (0: to `size`), the centre `size` x `size` is
    taken, values 0..255 are divided by 255, `mean` is subtracted and `std` divided by. `mean` has
    one value for each channel, or channels * size * size values in (C, H, W) order (the per-pixel
    mean of 1512.03385, section 4.2).
    """

    size: Annotated[Side, Field(gt=0)]
    resize: Side = 0
    channels: int = 3
    mean: tuple[pydantic.FiniteFloat, ...] = (0.485, 0.456, 0.406)
    std: tuple[Positive, ...] = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True, kw_only=True)
class Augment:
    """What training does to an image; each choice is a pure function of (seed, epoch, index).

    crop "none" is the test-time view; "pad" pads by `pad` pixels and takes a random crop (CIFAR,
    1512.03385 section 4.2); "scale" resizes the shorter side to a random length in `scale` and
    takes a random crop (section 3.4); "area" takes a random area and aspect ratio (Inception,
    fb.resnet.torch); "resize" is the whole of a scene, its shorter side at a random length in
    `scale` that all images of a step share. "jitter" is fb.resnet.torch's brightness, contrast and
    saturation of 0.4.
    """

    crop: Literal["none", "pad", "scale", "area", "resize"] = "none"
    pad: Count = 4
    reflect: bool = False  # pad by reflection (Wide ResNets), not with zeros
    scale: tuple[int, int] = (256, 480)
    area: tuple[Share, Share] = (0.08, 1.0)
    flip: bool = False
    colour: Literal["none", "pca", "jitter", "jitter+pca"] = "none"
    cutout: Count = 0  # side of a square that is set to the mean
    policy: Literal["none", "trivial", "rand"] = "none"  # TrivialAugmentWide; RandAugment
    rand: tuple[Tenths, NotNegative] = (7, 0.5)  # RandAugment's magnitude, and its deviation
    erase: Part = 0.0  # chance that a rectangle is erased (1708.04896)
    repeats: Annotated[int, Field(ge=1)] = 1  # views of an image in a batch (1902.05509)
    mixup: NotNegative = 0.0  # alpha of Beta(alpha, alpha), 0 is none (1710.09412)
    cutmix: NotNegative = 0.0  # likewise (1905.04899); with both, either at half the chance


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides a training run, apart from the machine."""

    model: str
    arch: dict[str, Any] = field(default_factory=dict)  # fields of the model that are changed
    data: str = "digits"
    # data
    size: Count = 0  # input side at test time; 0: the data's own, or 224 for folders
    train_size: Count = 0  # input side in training; 0: `size`
    grow_from: Count = 0  # side of the first steps; grows to `train_size` over 3/4 of the run
    crop_ratio: Share = 0.875  # test crop / resized shorter side
    holdout: NotNegative = 0.0  # training images kept for validation: a part; from 1 on a number
    trainval: bool = False  # the data's own validation images are trained on too
    normalize: Literal["data", "imagenet", "pixel", "none"] = "data"
    augment: Augment = Augment()
    max_unreadable: Part = 0.01  # part of the images that may be unreadable and skipped
    # length
    epochs: Positive = 30.0
    steps: Count = 0  # above 0 it replaces `epochs`
    budget: NotNegative = 0.0  # seconds; above 0 they replace both
    batch: Annotated[int, Field(gt=0)] = 128  # images of an optimiser step, over all ranks
    micro: Count = 0  # images of a forward pass and its batch statistics; 0: a rank's whole share
    # rate
    lr: Positive = 0.1
    lr_batch: Count = 0  # the batch that `lr` is for; the rate scales linearly; 0: `batch`
    schedule: Literal["step", "plateau", "cosine", "linear", "one-cycle"] = "cosine"
    drops: Parts = ()  # parts of the run after which "step" multiplies by `drop_factor`
    drop_factor: Positive = 0.1
    patience: Annotated[int, Field(ge=1)] = 5  # evaluations without a better one before "plateau"
    warmup: NotNegative = 0.0  # steps from `warmup_lr` on; below 1 a part of the run
    warmup_lr: NotNegative = 0.0
    warmup_shape: Literal["linear", "constant"] = "linear"
    # optimiser
    optimizer: Literal["sgd", "adamw", "lamb", "lars", "muon"] = "sgd"
    momentum: Decay = 0.9
    nesterov: bool = False
    betas: tuple[Decay, Decay] = (0.9, 0.999)  # adamw, lamb
    weight_decay: NotNegative = 1e-4
    decay_all: bool = True  # False: no decay on normalisation parameters and biases
    clip: NotNegative = 0.0  # largest norm of the whole gradient, 0 is none
    # loss and averaging
    loss: Literal["cross-entropy", "bce"] = "cross-entropy"
    class_weights: Literal["none", "balanced"] = "none"
    label_smoothing: Part = 0.0
    teacher: str = ""  # a model file whose answers are learned too (1503.02531)
    distill: Part = 0.5  # the teacher's share of the loss
    temperature: Positive = 1.0
    ema: Decay = 0.0  # decay of the weights' exponential average, 0 is none
    ema_every: Annotated[int, Field(ge=1)] = 1  # steps
    precise_bn: Count = 0  # batches that the final normalisation statistics are averages of
    # start and end
    weights: str = ""  # a model file or foreign weights to start from; empty: from scratch
    frozen: NotNegative = 0.0  # epochs in which the classifier alone learns
    layer_decay: Share = 1.0  # rate of a stage / rate of the next
    norm: Literal["batch", "frozen", "sync"] = "batch"  # BN: own statistics, loaded ones, all ranks
    keep: Literal["last", "best"] = "last"  # the result: the last state, or the best on validation
    stop_after: Count = 0  # evaluations without a better one after which the run ends; 0: never
    # execution
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    shard: bool = False  # weights, averages and moments split over the ranks (FSDP2)
    checkpoint_blocks: Count = 0  # activation checkpointing: units a segment, 0 is none
    seed: int = 0
    eval_every: Positive = 1.0  # epochs between evaluations
    watch: Literal["val", "test"] = "val"  # "test" draws the papers' curves; it never selects

    @property
    def peak(self) -> float:
        """The rate for this batch: linear in its size (1706.02677, section 2.1)."""
        return self.lr * (self.batch / self.lr_batch if self.lr_batch else 1)

    def rate(self, step: int, steps: int, drops: int = 0) -> float:
        """Learning rate of step `step` (from 0) of `steps`, after `drops` plateaus."""
        peak = self.peak
        warmup = self.warmup if self.warmup >= 1 else self.warmup * steps
        if step < warmup:
            low = min(self.warmup_lr, peak)
            if self.warmup_shape == "constant":
                return low
            return low + (peak - low) * (step + 1) / warmup
        if self.schedule == "step":
            drops = sum(step >= round(d * steps) for d in self.drops)
        if self.schedule in ("step", "plateau"):
            return peak * self.drop_factor**drops
        part = (step - warmup) / max(1, steps - warmup)
        if self.schedule == "linear":
            return peak * (1 - part)
        return peak * 0.5 * (1 + math.cos(math.pi * part))

    def cycled_momentum(self, step: int, steps: int) -> float:
        """Momentum of "one-cycle": `momentum` - 0.1 at the peak of the rate (1803.09820)."""
        return max(0.0, self.momentum - 0.1 * self.rate(step, steps) / self.peak)

    def total_steps(self, images: int) -> int:
        """Optimiser steps of the run over `images` training images."""
        return self.steps or max(1, round(self.epochs * images / self.batch))


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """JSON-ready; `parse` is the inverse."""
    return asdict(recipe)


def parse(values: Mapping[str, Any]) -> Recipe:
    """A Recipe from JSON, TOML or `--set` values (text is converted), all errors at once.

    Raises UsageError that names each unknown key, with the nearest known, and each wrong value.
    """
    nested = values.get("augment", {})
    problems = []
    for kind, part in ((Recipe, values), (Augment, nested if isinstance(nested, Mapping) else {})):
        known = [f.name for f in fields(kind)]
        unknown = [key for key in part if key not in known]
        problems += [f"unknown key {key!r}: {nearest(key, known)}" for key in unknown]
    try:
        recipe: Recipe = pydantic.TypeAdapter(Recipe).validate_python(dict(values))
    except pydantic.ValidationError as error:
        problems += wrong(error)
    if problems:
        raise UsageError("; ".join(problems))
    return recipe

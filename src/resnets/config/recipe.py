"""A run, as data: frozen, typed, complete. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import BeforeValidator, Field

from resnets.config.arch import field_problem
from resnets.errors import UsageError, nearest

T = TypeVar("T")
NonNegativeInt = Annotated[int, Field(ge=0)]
TenthsInt = Annotated[int, Field(ge=0, le=10)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
UnitInterval = Annotated[float, Field(ge=0, le=1)]
FractionBelowOne = Annotated[float, Field(gt=0, le=1)]
EmaDecay = Annotated[float, Field(ge=0, lt=1)]
ImageSide = Annotated[int, Field(ge=0, le=2**12)]  # pixels: what a card may ask an image to become


def setting(default: T, meaning: str) -> T:
    """A field with its default, and what it means, as `resnets train --help-fields` prints it."""
    return field(default=default, metadata={"meaning": meaning})


# A single value, as `--set drops=0.5` gives it, is a list of one.
SpatialScales = Annotated[
    tuple[UnitInterval, ...], BeforeValidator(lambda x: x if isinstance(x, list | tuple) else [x])
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocess:
    """From an image to a network's input at test time. It travels in the model file.

    The shorter side is resized to `resize` pixels (0: to `size`), the centre `size` x `size` is
    taken, values 0..255 are divided by 255, `mean` is subtracted and `std` divided by. Grey of 16
    bits is white, 255, from the value `white` on (0: see `decode`). `mean` has
    one value for each channel, or channels * size * size values in (C, H, W) order (the per-pixel
    mean of 1512.03385, section 4.2).
    """

    size: Annotated[ImageSide, Field(gt=0)]
    resize: Annotated[int, Field(ge=0, le=2**13)] = 0
    channels: int = 3
    mean: tuple[pydantic.FiniteFloat, ...] = (0.485, 0.456, 0.406)
    std: tuple[PositiveFloat, ...] = (0.229, 0.224, 0.225)
    white: Annotated[int, Field(ge=0, le=65535)] = 65535


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

    # fmt: off
    crop: Literal["none", "pad", "scale", "area", "resize"] = setting("none", "the part of an image that training sees")
    pad: NonNegativeInt = setting(4, "pixels around an image before `crop=pad`")
    reflect: bool = setting(False, "pad by reflection (Wide ResNets), not with zeros")
    scale: tuple[int, int] = setting((256, 480), "lengths of the shorter side for `crop=scale` and `crop=resize`")
    area: tuple[FractionBelowOne, FractionBelowOne] = setting((0.08, 1.0), "parts of the image for `crop=area`")
    flip: bool = setting(False, "mirror half of the images")
    colour: Literal["none", "pca", "jitter", "jitter+pca"] = setting("none", "pca as AlexNet; jitter of brightness, contrast, saturation")
    cutout: NonNegativeInt = setting(0, "side of a square that is set to the mean")
    policy: Literal["none", "trivial", "rand"] = setting("none", "TrivialAugmentWide or RandAugment")
    rand: tuple[TenthsInt, NonNegativeFloat] = setting((7, 0.5), "RandAugment's magnitude, and its deviation")
    erase: UnitInterval = setting(0.0, "chance that a rectangle is erased (1708.04896)")
    repeats: Annotated[int, Field(ge=1)] = setting(1, "views of an image in a batch (1902.05509)")
    mixup: NonNegativeFloat = setting(0.0, "alpha of Beta(alpha, alpha), 0 is none (1710.09412)")
    cutmix: NonNegativeFloat = setting(0.0, "likewise of CutMix (1905.04899); with both, either at half the chance")
    # fmt: on


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides a training run, apart from the machine."""

    # fmt: off
    model: str
    arch: dict[str, Any] = field(default_factory=dict, metadata={"meaning": "fields of the model that are changed"})
    data: str = "digits"
    # data
    size: ImageSide = setting(0, "input side at test time; 0: the data's own, or 224 for folders")
    train_size: ImageSide = setting(0, "input side in training; 0: `size`")
    grow_from: ImageSide = setting(0, "side of the first steps; grows to `train_size` over 3/4 of the run")
    crop_ratio: FractionBelowOne = setting(0.875, "test crop / resized shorter side")
    holdout: NonNegativeFloat = setting(0.0, "training images kept for validation: a part; from 1 on a number")
    trainval: bool = setting(False, "the data's own validation images are trained on too")
    normalize: Literal["data", "imagenet", "pixel", "none"] = setting("data", "whose mean and deviation; pixel: a mean for each pixel")
    augment: Augment = Augment()
    max_unreadable: UnitInterval = setting(0.01, "part of the images that may be unreadable and skipped")
    # length
    epochs: PositiveFloat = setting(30.0, "passes over the training images")
    steps: NonNegativeInt = setting(0, "optimiser steps; above 0 they replace `epochs`")
    budget: NonNegativeFloat = setting(0.0, "seconds; above 0 they replace both")
    batch: Annotated[int, Field(gt=0)] = setting(128, "images of an optimiser step, over all ranks")
    micro: NonNegativeInt = setting(0, "images of a forward pass and its batch statistics; 0: a rank's whole share")
    # rate
    lr: PositiveFloat = setting(0.1, "learning rate at its peak")
    lr_batch: NonNegativeInt = setting(0, "the batch that `lr` is for; the rate scales linearly; 0: `batch`")
    schedule: Literal["step", "plateau", "cosine", "linear", "one-cycle"] = setting("cosine", "how the rate falls")
    drops: SpatialScales = setting((), "parts of the run after which schedule=step multiplies by `drop_factor`")
    drop_factor: PositiveFloat = setting(0.1, "what a drop multiplies the rate by")
    patience: Annotated[int, Field(ge=1)] = setting(5, "evaluations without a better one before schedule=plateau drops")
    warmup: NonNegativeFloat = setting(0.0, "steps from `warmup_lr` on; below 1 a part of the run")
    warmup_lr: NonNegativeFloat = setting(0.0, "rate of the first step of `warmup`")
    warmup_shape: Literal["linear", "constant"] = setting("linear", "whether the rate rises during `warmup`")
    # optimiser
    optimizer: Literal["sgd", "adamw", "lamb", "lars", "muon"] = setting("sgd", "lamb and lars: for batches of thousands")
    momentum: EmaDecay = setting(0.9, "of sgd, lars and muon")
    nesterov: bool = setting(False, "look ahead with the momentum (sgd)")
    betas: tuple[EmaDecay, EmaDecay] = setting((0.9, 0.999), "of adamw and lamb")
    weight_decay: NonNegativeFloat = setting(1e-4, "decay of the weights")
    decay_all: bool = setting(True, "False: no decay on normalisation parameters and biases")
    clip: NonNegativeFloat = setting(0.0, "largest norm of the whole gradient, 0 is none")
    # loss and averaging
    loss: Literal["cross-entropy", "bce"] = setting("cross-entropy", "bce takes each class by itself")
    class_weights: Literal["none", "balanced"] = setting("none", "balanced weighs rare classes more")
    label_smoothing: UnitInterval = setting(0.0, "part of a label that is spread over all classes")
    teacher: str = setting("", "a model file whose answers are learned too (1503.02531)")
    distill: UnitInterval = setting(0.5, "the teacher's share of the loss")
    temperature: PositiveFloat = setting(1.0, "what the teacher's logits are divided by")
    ema: EmaDecay = setting(0.0, "decay of the weights' exponential average, 0 is none")
    ema_every: Annotated[int, Field(ge=1)] = setting(1, "steps between two updates of that average")
    precise_bn: NonNegativeInt = setting(0, "batches that the final normalisation statistics are averages of")
    # start and end
    weights: str = setting("", "a model file or foreign weights to start from; empty: from scratch")
    frozen: NonNegativeFloat = setting(0.0, "epochs in which the classifier alone learns")
    layer_decay: FractionBelowOne = setting(1.0, "rate of a stage / rate of the next")
    norm: Literal["batch", "frozen", "sync"] = setting("batch", "statistics of BN: of the batch, as loaded, of all ranks")
    keep: Literal["last", "best"] = setting("last", "the result: the last state, or the best on validation")
    stop_after: NonNegativeInt = setting(0, "evaluations without a better one after which the run ends; 0: never")
    # execution
    precision: Literal["auto", "float32", "bfloat16"] = setting("auto", "auto takes bfloat16 where it is fast")
    shard: bool = setting(False, "weights, averages and moments split over the ranks (FSDP2)")
    checkpoint_blocks: NonNegativeInt = setting(0, "activation checkpointing: units a segment, 0 is none")
    seed: int = setting(0, "of initial weights, order and augmentation")
    eval_every: PositiveFloat = setting(1.0, "epochs between evaluations")
    evaluations: NonNegativeInt = setting(0, "at least so many, where they cost little, however long `eval_every` is")
    watch: Literal["val", "test"] = setting("val", "test draws the papers' curves; it never selects")
    # fmt: on

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
        problems += [f"unknown field {key!r}: {nearest(key, known)}" for key in unknown]
    listed = "\n`resnets train --help-fields` lists the fields." if problems else ""
    try:
        recipe: Recipe = pydantic.TypeAdapter(Recipe).validate_python(dict(values))
    except pydantic.ValidationError as error:
        problems += field_problem(error)
    if problems:
        raise UsageError("; ".join(problems) + listed)
    return recipe

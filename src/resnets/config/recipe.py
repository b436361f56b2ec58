"""A run, as data: frozen, typed, complete. No torch here."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from resnets.config.arch import field_problem
from resnets.config.types import Interpolation
from resnets.errors import UsageError, nearest

T = TypeVar("T")
UnitInterval = Annotated[float, Field(ge=0, le=1)]
PositiveFraction = Annotated[float, Field(gt=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Magnitude = Annotated[int, Field(ge=0, le=10)]
ImageSide = Annotated[int, Field(ge=0, le=2**12)]  # pixels: what a model file may ask for
FINITE = ConfigDict(allow_inf_nan=False)
CROP_PCT = 0.875

# Names of 0.1.0, which are read for one release more; "augment." ones are fields of `Augment`.
OLD_FIELDS = {
    "grow_from": "progressive_from",
    "crop_ratio": "crop_pct",
    "holdout": "val_fraction",
    "micro": "micro_batch",
    "drops": "milestones",
    "drop_factor": "gamma",
    "distill": "distill_weight",
    "frozen": "freeze_backbone_epochs",
    "keep": "select",
    "stop_after": "early_stop_patience",
    "shard": "fsdp",
    "checkpoint_blocks": "activation_checkpointing",
    "watch": "monitor",
    "temperature": "distill_temperature",
    "augment.rand": "augment.randaugment",
    "augment.erase": "augment.random_erasing",
    "augment.repeats": "augment.repeated_aug",
}
OLD_POLICIES = {"trivial": "trivialaugment", "rand": "randaugment"}


def setting(default: T, meaning: str) -> T:
    """A field with its default, and what it means, as `resnets train --help-fields` prints it."""
    return field(default=default, metadata={"meaning": meaning})


# One value, as `--set milestones=0.5` gives it, is a list of one.
AsList = BeforeValidator(lambda x: x if isinstance(x, list | tuple) else [x])
Milestones = Annotated[tuple[UnitInterval, ...], AsList]
ChannelValues = Annotated[tuple[pydantic.FiniteFloat, ...], AsList]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocess:
    """From an image to a network's input at test time; part of the model file.

    The shorter side is resized to `resize` pixels (0: to `size`) by `interpolation`, which is
    antialiased as Pillow's, the central `size` x `size` pixels are cropped, values 0..255 are divided by 255, `mean` is subtracted and the result divided by
    `std`. In 16-bit grey images the value `white` becomes 255 (0: see `decode`). `mean` has one
    value per channel, or channels * size * size values in (C, H, W) order (the per-pixel mean of
    1512.03385, section 4.2).
    """

    __pydantic_config__ = FINITE

    size: Annotated[ImageSide, Field(gt=0)]
    resize: Annotated[int, Field(ge=0, le=2**13)] = 0
    channels: int = 3
    mean: tuple[pydantic.FiniteFloat, ...] = (0.485, 0.456, 0.406)
    std: tuple[PositiveFloat, ...] = (0.229, 0.224, 0.225)
    white: Annotated[int, Field(ge=0, le=65535)] = 65535
    interpolation: Interpolation = "bilinear"


@dataclass(frozen=True, slots=True, kw_only=True)
class Augment:
    """The augmentation of training images; each draw is a pure function of (seed, epoch, index).

    crop "none" is the test-time view; "pad" pads by `pad` pixels and takes a random crop (CIFAR,
    1512.03385 section 4.2); "scale" resizes the shorter side to a random length in `scale` and
    takes a random crop (section 3.4); "area" takes a random area and aspect ratio (Inception,
    fb.resnet.torch); "resize" keeps the whole image, its shorter side at a random length in `scale`
    that all images of a step share (detection). "jitter" is fb.resnet.torch's brightness, contrast
    and saturation of 0.4.
    """

    __pydantic_config__ = FINITE

    # fmt: off
    crop: Literal["none", "pad", "scale", "area", "resize"] = setting("none", "the part of an image that is trained on")
    pad: NonNegativeInt = setting(4, "pixels around an image before `crop=pad`")
    reflect: bool = setting(False, "pad by reflection (Wide ResNets), not with zeros")
    scale: tuple[int, int] = setting((256, 480), "range of the shorter side for `crop=scale` and `crop=resize`")
    area: tuple[PositiveFraction, PositiveFraction] = setting((0.08, 1.0), "smallest and largest fraction of the image's area for `crop=area`")
    flip: bool = setting(False, "mirror with probability 1/2")
    colour: Literal["none", "pca", "jitter", "jitter+pca"] = setting("none", "pca: as AlexNet; jitter: brightness, contrast, saturation")
    cutout: NonNegativeInt = setting(0, "side of a random square that is set to the mean; 0: none")
    policy: Literal["none", "trivialaugment", "randaugment", "autoaugment", "augmix"] = setting("none", "TrivialAugmentWide, RandAugment, AutoAugment's policy for ImageNet, or AugMix without its consistency loss")
    randaugment: tuple[Magnitude, NonNegativeFloat] = setting((7, 0.5), "magnitude of RandAugment, and its standard deviation")
    random_erasing: UnitInterval = setting(0.0, "probability that a rectangle is erased (1708.04896)")
    repeated_aug: PositiveInt = setting(1, "views of an image in a batch (1902.05509)")
    mixup: NonNegativeFloat = setting(0.0, "alpha of Beta(alpha, alpha), 0 is none (1710.09412)")
    cutmix: NonNegativeFloat = setting(0.0, "likewise for CutMix (1905.04899); with both, either with probability 1/2")
    # fmt: on


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides a training run, apart from the machine."""

    __pydantic_config__ = FINITE

    # fmt: off
    model: str
    arch: dict[str, Any] = field(default_factory=dict, metadata={"meaning": "fields of the model to change"})
    data: str = "digits"
    # data
    size: ImageSide = setting(0, "input side at test time; 0: the data's own, for folders that of the weights, or 224")
    train_size: ImageSide = setting(0, "input side in training; 0: `size`")
    progressive_from: ImageSide = setting(0, "input side of the first steps, which grows to `train_size` over 3/4 of the run; 0: it is constant")
    crop_pct: PositiveFraction = setting(CROP_PCT, "test crop / resized shorter side, as in timm; where the size is that of weights, 0.875 is their fraction")
    val_fraction: NonNegativeFloat = setting(0.0, "fraction of the training images held out for validation; from 1 on, their number")
    folds: NonNegativeInt = setting(0, "stratified parts of the training images, of which one is held out for validation instead of `val_fraction`; 0: none")
    fold: NonNegativeInt = setting(0, "the number of that part, from 0")
    trainval: bool = setting(False, "train on the data's own validation images too")
    normalize: Literal["data", "imagenet", "pixel", "none"] = setting("data", "whose mean and standard deviation, where weights do not say theirs; pixel: a mean for each pixel")
    mean: ChannelValues = setting((), "mean of each channel or of all, of pixels in 0..1; empty: that of the weights, or by `normalize`")
    std: ChannelValues = setting((), "standard deviation, likewise")
    interpolation: Literal["auto", "bilinear", "bicubic"] = setting("auto", "how images are resized; auto: as for the weights, else bilinear")
    augment: Augment = Augment()
    sampler: Literal["uniform", "balanced"] = setting("uniform", "how training images are drawn; balanced: each class equally often, so images of rare classes come again sooner")
    max_unreadable: UnitInterval = setting(0.01, "fraction of the images that may be unreadable and skipped")
    # length
    epochs: PositiveFloat = setting(30.0, "passes over the training images")
    steps: NonNegativeInt = setting(0, "optimiser steps; above 0 they replace `epochs`")
    budget: NonNegativeFloat = setting(0.0, "seconds; above 0 they replace both")
    batch: PositiveInt = setting(128, "images of an optimiser step, over all ranks")
    micro_batch: NonNegativeInt = setting(0, "images of a forward pass and its batch statistics; 0: all of a rank's")
    # rate
    lr: PositiveFloat = setting(0.1, "peak learning rate")
    lr_batch: NonNegativeInt = setting(0, "the batch that `lr` is for; the rate scales linearly; 0: `batch`")
    schedule: Literal["step", "plateau", "cosine", "linear", "one-cycle"] = setting("cosine", "how the rate falls")
    milestones: Milestones = setting((), "fractions of the run after which schedule=step multiplies the rate by `gamma`")
    gamma: PositiveFloat = setting(0.1, "factor of the rate at a milestone, and at a plateau")
    patience: PositiveInt = setting(5, "evaluations without improvement after which schedule=plateau multiplies by `gamma`")
    warmup: NonNegativeFloat = setting(0.0, "steps of the warm-up from `warmup_lr`; below 1 a fraction of the run")
    warmup_lr: NonNegativeFloat = setting(0.0, "rate of the first step of `warmup`")
    warmup_shape: Literal["linear", "constant"] = setting("linear", "whether the rate rises during `warmup`")
    # optimiser
    optimizer: Literal["sgd", "adamw", "lamb", "lars", "muon"] = setting("sgd", "lamb and lars are for batches of thousands")
    momentum: Decay = setting(0.9, "of sgd, lars and muon")
    nesterov: bool = setting(False, "Nesterov momentum (sgd)")
    betas: tuple[Decay, Decay] = setting((0.9, 0.999), "of adamw and lamb")
    weight_decay: NonNegativeFloat = setting(1e-4, "weight decay")
    decay_all: bool = setting(True, "false: no decay of normalisation parameters and biases")
    clip: NonNegativeFloat = setting(0.0, "maximum norm of the gradient; 0: no clipping")
    sam: NonNegativeFloat = setting(0.0, "rho of sharpness-aware minimisation, which takes two passes a step (2010.01412); 0: none")
    # loss and averaging
    loss: Literal["cross-entropy", "bce"] = setting("cross-entropy", "bce: binary cross-entropy of each class")
    class_weights: Literal["none", "balanced"] = setting("none", "balanced: rare classes weigh more")
    label_smoothing: UnitInterval = setting(0.0, "part of a label's weight that is spread over all classes")
    teacher: str = setting("", "model file or run to distil from (1503.02531)")
    distill_weight: UnitInterval = setting(0.5, "weight of the teacher's part in the loss")
    distill_temperature: PositiveFloat = setting(1.0, "divisor of the teacher's logits")
    ema: Decay = setting(0.0, "decay of the exponential moving average of the weights; 0: none")
    ema_every: PositiveInt = setting(1, "steps between two updates of that average")
    swa: UnitInterval = setting(0.0, "last fraction of the run whose weights are averaged equally, after every `ema_every` steps (1803.05407); 0: none")
    precise_bn: NonNegativeInt = setting(0, "batches over which the final normalisation statistics are averaged; 0: running averages")
    # start and end
    weights: str = setting("", "a model file or foreign weights to start from; empty: from scratch")
    head: Literal["random", "probe"] = setting("random", "how a classifier for new classes starts; probe: as a linear probe on the features of `weights` (2202.10054)")
    freeze_backbone_epochs: NonNegativeFloat = setting(0.0, "first epochs, in which only the head is trained")
    freeze_stages: NonNegativeInt = setting(0, "first stages that never learn, with their normalisation; 1 is what precedes the first residual stage")
    layer_decay: PositiveFraction = setting(1.0, "learning rate of a stage / that of the next")
    norm: Literal["batch", "frozen", "sync"] = setting("batch", "statistics of batch normalisation: of the batch, as loaded, of all ranks")
    select: Literal["last", "best", "lowest-loss"] = setting("last", "the result: the last state, or the one of the lowest error, or loss, on the validation images")
    early_stop_patience: NonNegativeInt = setting(0, "evaluations without improvement after which the run ends; 0: never")
    # execution
    precision: Literal["auto", "float32", "bfloat16"] = setting("auto", "auto: bfloat16 where the hardware has it")
    fsdp: bool = setting(False, "shard weights, averages and moments over the ranks (FSDP2)")
    activation_checkpointing: NonNegativeInt = setting(0, "residual units of a recomputed segment; 0: none is recomputed")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = setting(0, "of initial weights, order and augmentation")
    eval_every: PositiveFloat = setting(1.0, "epochs between evaluations")
    evaluations: NonNegativeInt = setting(0, "minimum number of evaluations, if they cost little, whatever `eval_every` is")
    monitor: Literal["val", "test"] = setting("val", "split evaluated during training; test draws the papers' curves and never selects")
    # fmt: on

    @property
    def peak(self) -> float:
        """The rate for this batch: linear in its size (1706.02677, section 2.1)."""
        return self.lr * (self.batch / self.lr_batch if self.lr_batch else 1)

    def rate(self, step: int, steps: int, plateaus: int = 0) -> float:
        """Learning rate of step `step` (from 0) of `steps`, after so many plateaus."""
        peak = self.peak
        warmup = self.warmup if self.warmup >= 1 else self.warmup * steps
        if step < warmup:
            low = min(self.warmup_lr, peak)
            if self.warmup_shape == "constant":
                return low
            return low + (peak - low) * (step + 1) / warmup
        if self.schedule == "step":
            passed = sum(step >= round(fraction * steps) for fraction in self.milestones)
            return peak * self.gamma**passed
        if self.schedule == "plateau":
            return peak * self.gamma**plateaus
        progress = (step - warmup) / max(1, steps - warmup)
        if self.schedule == "linear":
            return peak * (1 - progress)
        return peak * 0.5 * (1 + math.cos(math.pi * progress))

    def cycled_momentum(self, step: int, steps: int) -> float:
        """Momentum of "one-cycle": `momentum` - 0.1 at the peak of the rate (1803.09820)."""
        return max(0.0, self.momentum - 0.1 * self.rate(step, steps) / self.peak)

    def total_steps(self, images: int) -> int:
        """Optimiser steps of the run over `images` training images."""
        return self.steps or max(1, round(self.epochs * images / self.batch))


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """JSON-ready; `parse` is the inverse."""
    return asdict(recipe)


def rename_old_fields(values: Mapping[str, Any], *, note: bool = True) -> dict[str, Any]:
    """The values under today's names of the fields, with a FutureWarning for names of 0.1.0.

    Raises UsageError where a field is given by both names.
    """
    used = dict[str, str]()
    renamed = _renamed(values, "", used)
    if note and used:
        pairs = ", ".join(f"{old} is now {new}" for old, new in used.items())
        warnings.warn(
            f"old names of recipe fields, read for one release more: {pairs}",
            FutureWarning,
            stacklevel=3,
        )
    return renamed


def _renamed(values: Mapping[str, Any], prefix: str, used: dict[str, str]) -> dict[str, Any]:
    """The renamed values of one level; `used` gets the old names among them with the new ones."""
    renamed = dict[str, Any]()
    for key, value in values.items():
        name = f"{prefix}{key}"
        new = OLD_FIELDS.get(name, name)
        if new != name:
            used[name] = new
        if new == "augment" and isinstance(value, Mapping):
            value = _renamed(value, "augment.", used)
        elif new == "augment.policy" and isinstance(value, str):
            policies = ",".join(OLD_POLICIES.get(choice, choice) for choice in value.split(","))
            if policies != value:
                used[f"{name}={value}"] = f"{name}={policies}"
            value = policies
        new = new.removeprefix(prefix)
        if new in renamed or (new != key and new in values):
            raise UsageError(f"{name} is the old name of {prefix}{new}: give one of them")
        renamed[new] = value
    return renamed


def parse(values: Mapping[str, Any]) -> Recipe:
    """A Recipe from JSON, TOML or `--set` values (text is converted), all errors at once.

    Raises UsageError that names each unknown key, with the nearest known, and each wrong value.
    """
    values = rename_old_fields(values)
    augment = values.get("augment")
    for name in ("arch", "augment"):
        if isinstance(values.get(name), str | list):
            raise UsageError(f"{name}={values[name]}: write --set {name}.FIELD=VALUE")
    problems = unknown_fields(Recipe, values)
    problems += unknown_fields(Augment, augment) if isinstance(augment, Mapping) else []
    help_line = "\n`resnets train --help-fields` lists the fields." if problems else ""
    try:
        recipe: Recipe = pydantic.TypeAdapter(Recipe).validate_python(values)
    except pydantic.ValidationError as error:
        problems += field_problem(error)
    if problems:
        raise UsageError("; ".join(problems) + help_line)
    return recipe


def unknown_fields(kind: type[Recipe | Augment], values: Mapping[str, Any]) -> list[str]:
    """A message for each key that is not a field of `kind`, with the nearest that is."""
    known = [f.name for f in fields(kind)]
    hints = [*known, *(f"augment.{f.name}" for f in fields(Augment))]
    unknown = [key for key in values if key not in known]
    return [f"unknown field {key!r}: {nearest(key, hints)}" for key in unknown]

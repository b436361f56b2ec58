"""A run, as data: frozen, typed, complete. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BeforeValidator, Field

from resnets.errors import UsageError, nearest

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Part = Annotated[float, Field(ge=0, le=1)]


def listed(value: object) -> object:
    """A single value as a list of one, as `--set drops=0.5` gives it."""
    return value if isinstance(value, list | tuple) else [value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocess:
    """From an image to a network's input at test time. It travels in the model file.

    The shorter side is resized to `resize` pixels (0: to `size`), the centre `size` x `size` is
    taken, values 0..255 are divided by 255, `mean` is subtracted and `std` divided by. `mean` has
    one value for each channel, or channels * size * size values in (C, H, W) order (the per-pixel
    mean of 1512.03385, section 4.2).
    """

    size: int
    resize: int = 0
    channels: int = 3
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True, kw_only=True)
class Augment:
    """What training does to an image; each choice is a pure function of (seed, epoch, index).

    crop "none" is the test-time view; "pad" pads by `pad` pixels and takes a random crop (CIFAR,
    1512.03385 section 4.2); "scale" resizes the shorter side to a random length in `scale` and
    takes a random crop (section 3.4); "area" takes a random area and aspect ratio (Inception,
    fb.resnet.torch). "jitter" is fb.resnet.torch's brightness, contrast and saturation of 0.4.
    """

    crop: Literal["none", "pad", "scale", "area"] = "none"
    pad: Count = 4
    reflect: bool = False  # pad by reflection (Wide ResNets), not with zeros
    scale: tuple[int, int] = (256, 480)
    area: tuple[float, float] = (0.08, 1.0)
    flip: bool = False
    colour: Literal["none", "pca", "jitter"] = "none"
    cutout: Count = 0  # side of a square that is set to the mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides a training run, apart from the machine."""

    model: str
    data: str = "digits"
    # data
    size: Count = 0  # input side; 0: the data's own, or 224 for folders
    holdout: NotNegative = (
        0.0  # part of the training images kept for validation; from 1 on a number
    )
    normalize: Literal["data", "imagenet", "pixel", "none"] = "data"
    augment: Augment = Augment()
    max_unreadable: Part = 0.01  # part of the images that may be unreadable and skipped
    # length
    epochs: Positive = 30.0
    steps: Count = 0  # above 0 it replaces `epochs`
    batch: Annotated[int, Field(gt=0)] = 128
    # rate
    lr: Positive = 0.1
    schedule: Literal["step", "cosine", "linear"] = "cosine"
    drops: Annotated[
        tuple[Part, ...], BeforeValidator(listed)
    ] = ()  # parts of the run after which "step" divides by 10
    drop_factor: Positive = 0.1
    warmup: NotNegative = 0.0  # steps from `warmup_lr` on; below 1 a part of the run
    warmup_lr: NotNegative = 0.0
    warmup_shape: Literal["linear", "constant"] = "linear"
    # optimiser
    momentum: Part = 0.9
    nesterov: bool = False
    weight_decay: NotNegative = 1e-4
    decay_all: bool = True  # False: no decay on normalisation parameters and biases
    # loss and averaging
    label_smoothing: Part = 0.0
    ema: Part = 0.0  # decay of the weights' exponential average, 0 is none
    # execution
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    checkpoint_blocks: Count = 0  # activation checkpointing: units a segment, 0 is none
    seed: int = 0
    eval_every: Positive = 1.0  # epochs between evaluations
    watch: Literal["val", "test"] = "val"  # "test" draws the papers' curves; it never selects

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of step `step` (from 0) of `steps`."""
        warmup = self.warmup if self.warmup >= 1 else self.warmup * steps
        if step < warmup:
            if self.warmup_shape == "constant":
                return self.warmup_lr
            return self.warmup_lr + (self.lr - self.warmup_lr) * (step + 1) / warmup
        if self.schedule == "step":
            return self.lr * self.drop_factor ** sum(step >= round(d * steps) for d in self.drops)
        part = (step - warmup) / max(1, steps - warmup)
        if self.schedule == "linear":
            return self.lr * (1 - part)
        return self.lr * 0.5 * (1 + math.cos(math.pi * part))

    def total_steps(self, images: int) -> int:
        """Optimiser steps of the run over `images` training images."""
        return self.steps or max(1, round(self.epochs * images / self.batch))


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """JSON-ready; `parse` is the inverse."""
    return asdict(recipe)


def parse(values: Mapping[str, Any]) -> Recipe:
    """A Recipe from JSON, TOML or `--set` values (text is converted), all errors at once.

    Raises:
        UsageError: names each unknown key, with the nearest known ones, and each wrong value.
    """
    problems = [
        f"unknown key {key!r}: {nearest(key, known)}"
        for part, known in (
            (values, [f.name for f in fields(Recipe)]),
            (values.get("augment", {}), [f.name for f in fields(Augment)]),
        )
        for key in part
        if key not in known
    ]
    if problems:
        raise UsageError("; ".join(problems))
    try:
        return pydantic.TypeAdapter(Recipe).validate_python(dict(values))
    except pydantic.ValidationError as error:
        raise UsageError(
            "; ".join(
                f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']} (got {e['input']!r})"
                for e in error.errors()
            )
        ) from None

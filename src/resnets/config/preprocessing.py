"""What the files of others say of their inputs: timm's `pretrained_cfg` and torchvision's presets.

timm writes them as config.json beside the weights: {"architecture": NAME, "num_classes": N,
"label_names": [...], "pretrained_cfg": {"input_size": [3, 224, 224], "crop_pct": 0.875, ...}}.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import pydantic
from pydantic import ConfigDict, Field, StrictInt

from resnets.config.arch import field_problem
from resnets.config.recipe import Preprocess
from resnets.config.types import InputOptions, Interpolation
from resnets.errors import CheckpointError, UsageError
from resnets.escape import shorten

IMAGENET = Preprocess(size=224, resize=256)  # what is assumed where nothing is said

Side = Annotated[StrictInt, Field(gt=0, le=2**12)]  # pixels
InputSize = tuple[Literal[1, 3], Side, Side]  # channels, height, width
# Of pixels in 0..1: what is far from them makes NaN of every answer.
Mean = Annotated[float, Field(ge=-1000, le=1000)]
Deviation = Annotated[float, Field(ge=1e-6, le=1000)]
Fraction = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainedConfig:
    """What a publisher says of weights; None where nothing is said.

    `test_input_size` and `test_crop_pct` are those of the published figure, where that was measured
    at another size than that of the training. torchvision says `crop_size` and `resize_size`, in
    pixels. `arch` has fields of the network, as `--set arch.FIELD` gives them: what no shape shows.
    """

    __pydantic_config__ = ConfigDict(allow_inf_nan=False, extra="ignore")

    architecture: Annotated[str, Field(max_length=100)] | None = None
    arch: dict[str, str | int | float | bool] | None = None
    num_classes: Annotated[StrictInt, Field(ge=0, le=10**6)] | None = None
    label_names: tuple[str, ...] | dict[str, str] | None = None
    input_size: InputSize | None = None
    test_input_size: InputSize | None = None
    crop_pct: Fraction | None = None
    test_crop_pct: Fraction | None = None
    crop_mode: Literal["center", "squash", "border"] | None = None
    interpolation: Interpolation | None = None
    mean: Annotated[tuple[Mean, ...], Field(min_length=1, max_length=3)] | None = None
    std: Annotated[tuple[Deviation, ...], Field(min_length=1, max_length=3)] | None = None
    crop_size: Side | None = None
    resize_size: Annotated[StrictInt, Field(gt=0, le=2**13)] | None = None

    def preprocess(self, guess: Preprocess = IMAGENET, *, test_size: bool = True) -> Preprocess:
        """The preprocessing that is said, and the guess for what is not.

        Without `test_size` the input has the side of the training. Raises CheckpointError where it
        is not square, or has other channels than the guess or its own mean.
        """
        tested = test_size and self.test_input_size is not None
        shape = self.test_input_size if tested else self.input_size
        channels, height, width = shape or (guess.channels, guess.size, guess.size)
        if channels != guess.channels:
            raise CheckpointError(f"input_size has {channels} channels, not {guess.channels}")
        if height != width:
            raise CheckpointError(f"input_size is {height} x {width}: inputs are square here")
        size = self.crop_size or height
        crop_pct = (self.test_crop_pct if test_size else None) or self.crop_pct
        resize = self.resize_size or size * guess.resize // guess.size
        if crop_pct and not self.resize_size:
            resize = resized_side(size, crop_pct)
        if resize > 2**13:  # as resize_size
            raise CheckpointError(f"crop_pct {crop_pct} makes images of {resize:.4g} pixels a side")
        said = replace(
            guess,
            size=size,
            resize=resize,
            interpolation=self.interpolation or guess.interpolation,
        )
        return normalized(said, self.mean or guess.mean, self.std or guess.std)

    def class_names(self, classes: int) -> tuple[str, ...]:
        """The names of so many classes; () where there are none, or other ones."""
        names = self.label_names
        if isinstance(names, dict):
            names = tuple(names.get(str(k), str(k)) for k in range(max(classes, len(names))))
        return names if names and len(names) == classes else ()

    @property
    def unsaid(self) -> tuple[str, ...]:
        """What the preprocessing is made of and is not said here, as a person knows it."""
        said = {
            "mean": self.mean,
            "std": self.std,
            "interpolation": self.interpolation,
            "crop": self.crop_pct or self.resize_size,
            "size": self.input_size or self.crop_size,
        }
        return tuple(name for name, value in said.items() if value is None)


def parse_config(data: object) -> PretrainedConfig:
    """The content of a config.json as timm writes it, or of a bare `pretrained_cfg`.

    Raises CheckpointError that names each value of a wrong type or out of its bounds.
    """
    if not isinstance(data, Mapping):
        raise CheckpointError('not a JSON object: write {"pretrained_cfg": {...}}')
    inner = data.get("pretrained_cfg") or {}
    if not isinstance(inner, Mapping):
        raise CheckpointError("pretrained_cfg is no JSON object")
    outer = {key: value for key, value in data.items() if value is not None}
    try:
        return pydantic.TypeAdapter(PretrainedConfig).validate_python({**inner, **outer})
    except pydantic.ValidationError as error:
        problems = shorten("; ".join(field_problem(error)))
        raise CheckpointError(f"{problems}.\nCorrect that, or remove the file.") from None


def resized_side(size: int, crop_pct: float) -> int:
    """The shorter side of which `size` is the fraction `crop_pct`, rounded down as timm does.

    Of size / side as the fraction it is that side exactly.
    """
    return math.floor(size / crop_pct + 1e-9)


def normalized(
    preprocess: Preprocess, mean: tuple[float, ...], std: tuple[float, ...]
) -> Preprocess:
    """The same with another mean and deviation, where one value is that of all channels.

    Raises CheckpointError for another number of them.
    """
    channels, numbers = preprocess.channels, (len(mean), len(std))
    if any(number not in (1, channels) for number in numbers):
        raise CheckpointError(
            f"mean and std have {numbers[0]} and {numbers[1]} values, the input {channels} channels"
        )
    mean, std = (x * channels if len(x) == 1 else x for x in (mean, std))
    return replace(preprocess, mean=mean, std=std)


def with_options(preprocess: Preprocess, options: InputOptions) -> Preprocess:
    """The preprocessing with what a person says of it; names of `normalize` are not read here.

    Raises UsageError for values out of their bounds, or as many as the input has no channels.
    """
    mean, std, crop = options.mean or preprocess.mean, options.std or preprocess.std, options.crop
    if options.mean or options.std:
        if not all(abs(value) <= 1000 for value in mean) or not all(1e-6 <= x <= 1000 for x in std):
            raise UsageError("mean and std are of pixels in 0..1, at most 1000; std from 1e-6 on")
        try:
            preprocess = normalized(preprocess, mean, std)
        except CheckpointError as error:
            raise UsageError(str(error)) from None
    if crop is not None:
        if not preprocess.size / 2**13 <= crop <= 1:
            raise UsageError(f"crop={crop:g}: a fraction of the shorter side, as 0.875, is needed")
        preprocess = replace(preprocess, resize=resized_side(preprocess.size, crop))
    interpolation = options.interpolation or preprocess.interpolation
    return replace(preprocess, interpolation=interpolation)


def describe_guess(preprocess: Preprocess, config: PretrainedConfig, options: InputOptions) -> str:
    """What of the preprocessing is a guess, and how to settle it; "" where all of it is said."""
    named = options.normalize is not None
    settled = {
        "mean": named or options.mean,
        "std": named or options.std,
        "interpolation": options.interpolation,
        "crop": options.crop or not preprocess.resize,
        "size": False,
    }
    values = {
        "mean": " ".join(f"{x:g}" for x in preprocess.mean),
        "std": " ".join(f"{x:g}" for x in preprocess.std),
        "interpolation": preprocess.interpolation,
        "crop": f"{preprocess.size / (preprocess.resize or preprocess.size):.3g}",
        "size": str(preprocess.size),
    }
    guessed = [f"{name} {values[name]}" for name in config.unsaid if not settled[name]]
    if not guessed:
        return ""
    return (
        f"nothing says how its images are prepared; a guess: {', '.join(guessed)}.\n"
        'To settle that: --mean, --std and so on, or a JSON file beside it, {"pretrained_cfg": '
        '{"mean": [...]}}'
    )

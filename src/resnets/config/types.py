"""The plain types that several packages share: what a network is for, a view, a split; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

from resnets.errors import UsageError

TaskName = Literal["classify", "detect", "localize", "segment"]  # what a network is for
ViewName = Literal["center", "flip", "ten-crop", "multi-scale"]  # of an image
SplitName = Literal["test", "val", "train", "all"]  # of a split
Normalize = Literal["data", "imagenet", "none"]
Precision = Literal["float32", "bfloat16"]
Interpolation = Literal["bilinear", "bicubic"]  # both antialiased as Pillow's
Instrument = Literal[  # of `analyze`
    "responses", "signal", "gradients", "equations", "lesions", "swaps", "paths", "landscape",
    "precise",
]  # fmt: skip
DownloadName = Literal["cifar10", "cifar100"]
NAMED_DATA = ("digits", *get_args(DownloadName))
# The least of whole numbers.
MINIMUM = dict.fromkeys(("batch", "size", "top", "trials", "devices", "seeds", "shots"), 1)
MINIMUM |= {"workers": 0, "episodes": 0, "way": 2}
UNIT_INTERVAL = ("score", "max_unreadable", "at_precision", "crop")  # between 0 and 1
ERRORS_MEASURED = ("lesions", "swaps", "precise")  # these measure errors on a whole split


def check_number(name: str, value: object) -> None:
    """Raise UsageError for an argument of that name that is out of its range."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if name in MINIMUM and not (whole and cast("int", value) >= MINIMUM[name]):
        raise UsageError(f"{name}={value!r}: needs a whole number of at least {MINIMUM[name]}")
    if name in UNIT_INTERVAL and not (isinstance(value, int | float) and 0 <= value <= 1):
        raise UsageError(f"{name}={value!r}: needs a number from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """What a person says of a model's inputs; None: as its file says."""

    mean: tuple[float, ...] | None = None  # of each channel, or one for all
    std: tuple[float, ...] | None = None
    normalize: Normalize | None = None  # whose mean and deviation, by name
    interpolation: Interpolation | None = None
    crop: float | None = None  # the fraction of the resized shorter side that is cut out


AS_SAVED = InputOptions()


@dataclass(frozen=True, kw_only=True)
class InferenceOptions(InputOptions):
    """Which images of a data set a model is given, and how it computes."""

    split: SplitName | None = None  # None: the test split, where that is fair
    max_unreadable: float = 0.01
    size: int = 0  # 0: the model's own
    precision: Precision = "float32"
    refine: bool = False
    scales: tuple[float, ...] = (1.0,)
    fields: Mapping[str, Any] = field(default_factory=dict)  # of the network in a foreign file
    network: Any = None  # custom: my_module:function, or a module
    batch: int | None = None
    device: str = "auto"
    workers: int = 2

    def images_per_batch(self, usual: int = 128) -> int:
        """The batch that was asked for, or the usual one."""
        return self.batch or usual


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(InferenceOptions):
    """And what is asked for beside the figures; which task has which is in config/tasks.py."""

    views: tuple[ViewName, ...]  # one for each model
    compare: bool = False
    at_precision: float | None = None
    ood: Any = None  # as `data` of `api.evaluate`
    corruptions: bool = False
    classifier: Any = None  # as a model of `api.evaluate`

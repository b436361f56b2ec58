"""How the options that several verbs share are written, and what they become."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypedDict, cast, get_args

from cyclopts import Parameter, Token, validators

from resnets.errors import ResnetsError, UsageError, nearest

Task = Literal["classify", "detect", "localize", "segment"]  # what a network is for
View = Literal["center", "flip", "ten-crop", "multi-scale"]  # of an image
FIGURES: dict[Task, tuple[str, ...]] = {  # of a test: those that are better the larger they are
    "classify": ("top1", "top5", "balanced_accuracy", "macro_f1", "mean_average_precision"),
    "detect": ("map", "map50", "map75", "voc", "voc07", "recall_100"),
    "localize": ("accuracy", "top5_accuracy"),
    "segment": ("mean_iou", "pixel_accuracy"),
}
Count = Annotated[int, Parameter(validator=validators.Number(gte=1))]
Part = Annotated[float, Parameter(validator=validators.Number(gte=0, lte=1))]
Device = Annotated[str, Parameter(help="auto, cpu, cuda or cuda:N.")]
Workers = Annotated[
    int, Parameter(help="Processes that decode image files.", validator=validators.Number(gte=0))
]


def duration(_: object, tokens: Sequence[Token]) -> float:
    """Seconds of 90, 90s, 30m or 1.5h."""
    text = tokens[0].value
    said = re.fullmatch(r"(\d+\.?\d*|\.\d+)([smh]?)", text)
    seconds = float(said[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[said[2]] if said else 0.0
    if not seconds:
        raise UsageError(f"{text!r} is no time to train in: write 90s, 30m or 1.5h")
    return seconds


def numbers(_: object, tokens: Sequence[Token]) -> tuple[float, ...]:
    """The numbers of 0.5,1,1.5; all are above 0."""
    text = ",".join(token.value for token in tokens)
    try:
        found = tuple(float(word) for word in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 < x < math.inf for x in found):
        raise UsageError(f"{text!r} are no sizes: write 0.5,1,1.5")
    return found


def group(task: Task) -> str:
    """What a command of a task begins with after `resnets`: "" or its group and a blank."""
    return "" if task == "classify" else f"{task} "


def floors(task: Task, fields: Mapping[str, Any] | Sequence[str]) -> dict[str, float]:
    """What figures have to reach, of FIGURE=VALUE. Raises UsageError."""
    wanted = dict[str, float]()
    for name, text in assignments(fields, f"--fail-under {FIGURES[task][0]}=0.9").items():
        if name not in FIGURES[task]:
            raise UsageError(f"--fail-under {name}: {nearest(name, FIGURES[task])}")
        try:
            wanted[name] = float(text)
        except (TypeError, ValueError):
            wanted[name] = math.nan
        if not math.isfinite(wanted[name]):
            raise UsageError(f"--fail-under {name}={text}: write a number, as {name}=0.93")
    return wanted


def check_floors(wanted: Mapping[str, float], result: object) -> None:
    """Raise ResnetsError where a figure of `result` is less, UsageError where it has none."""
    found = {name: getattr(result, name) for name in wanted}
    if none := [name for name, value in found.items() if value is None]:
        raise UsageError(f"--fail-under {none[0]}: these images have no such figure")
    if short := [f"{k} {found[k]:.4f} < {v:g}" for k, v in wanted.items() if found[k] < v]:
        raise ResnetsError(f"--fail-under: {', '.join(short)}")


def views(_: object, tokens: Sequence[Token]) -> View | tuple[View, ...]:
    """The view of center, the views of center,flip."""
    known, words = get_args(View), tokens[0].value.split(",")
    if not set(words) <= set(known):
        raise UsageError(f"--view {tokens[0].value}: one of {', '.join(known)}, or one a model")
    found = cast("tuple[View, ...]", tuple(words))
    return found if len(found) > 1 else found[0]


def assignments(
    fields: Mapping[str, Any] | Sequence[str], like: str = "--set lr=0.1"
) -> dict[str, Any]:
    """Fields by name, or FIELD=VALUE texts, as a dictionary; a comma makes a list."""
    if isinstance(fields, Mapping):
        return dict(fields)
    values: dict[str, Any] = {}
    for item in fields:
        key, sign, text = item.partition("=")
        if not sign:
            raise UsageError(f"{item}: write FIELD=VALUE, for instance {like}")
        values[key.strip()] = text.split(",") if "," in text else text
    return values


Seconds = Annotated[float | None, Parameter(converter=duration)]


class Computed(TypedDict, total=False):
    """How and where a model computes."""

    normalize: Annotated[
        Literal["data", "imagenet", "none"] | None,
        Parameter(help="Mean and deviation for a foreign file that does not say its own."),
    ]
    batch: Annotated[Count, Parameter(help="Images of a forward pass.")]
    device: Device
    workers: Workers


class Read(Computed, total=False):
    """Which images of a data set are read, and how."""

    split: Annotated[
        Literal["test", "val", "train", "all"] | None,
        Parameter(
            help="The test split when left out; `all` for a folder whose images are all new to the "
            "model."
        ),
    ]
    max_unreadable: Annotated[
        Part, Parameter(help="Part of the images that may be unreadable and left out.")
    ]


class Tested(Read, total=False):
    """How models are tested."""

    size: Annotated[
        Count, Parameter(help="Side of the input in pixels; the model's own when left out.")
    ]
    precision: Literal["float32", "bfloat16"]


class Judged(Tested, total=False):
    """How models are tested, and what is asked beside the figures.

    Args:
        view: center, flip (and its mirror image), ten-crop or multi-scale; or one for each model,
            as ten-crop,flip.
        compare: The second of two models against the first: which images changed, and whether that
            is more than chance.
        at_precision: From which probability on this part of the answers is right, and how many
            answers that leaves.
        ood: Other data, on which the model ought to be unsure.
        corruptions: Also the errors on noisy, blurred and otherwise worsened images.
    """

    view: Annotated[View | Sequence[View], Parameter(converter=views, n_tokens=1)]
    compare: bool
    at_precision: Part | None
    ood: str | None
    corruptions: bool


class Improved(Computed, total=False):
    """How scenes are looked at."""

    refine: Annotated[
        bool,
        Parameter(
            help="Judge the found boxes once more and vote (1512.03385, appendix B); of detectors "
            "in two stages."
        ),
    ]
    scales: Annotated[
        tuple[float, ...],
        Parameter(
            converter=numbers,
            n_tokens=1,
            help="Sizes of the image as parts of the model's, as 0.5,1,1.5. Each region takes the "
            "two that suit it (appendix B); a localiser the best box of all (appendix C).",
        ),
    ]
    precision: Literal["float32", "bfloat16"]


class Seen(Improved, Read, total=False):
    """How scenes of a data set are looked at, and which."""

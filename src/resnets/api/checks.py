"""Checks of arguments, names, paths and numbers before anything is read; no torch."""

from __future__ import annotations

import inspect
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, cast, get_args, get_origin, get_type_hints

from resnets.config.tasks import TASK_TEXTS, missing_options, tasks_with
from resnets.config.types import NAMED_DATA, InferenceOptions, TaskName, ViewName, check_number
from resnets.errors import DataError, ResnetsError, UsageError, nearest

PATHS = ("run", "runs", "root", "out")  # arguments that are paths
OLD_ARGUMENTS = {"watch": "on_progress"}  # read for one release more
P = ParamSpec("P")
R = TypeVar("R")
Options = TypeVar("Options", bound=InferenceOptions)


def public(function: Callable[P, R]) -> Callable[P, R]:
    """Refuse arguments that `function` does not have, unknown choices, numbers out of range.

    The raised UsageError names the nearest argument or choice.
    """
    signature, choices = inspect.signature(function), dict[str, list[Any]]()
    for name, hint in get_type_hints(function).items():
        choices[name] = [x for kind in (hint, *get_args(hint)) for x in literal_values(kind)]
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    known = [name for name, parameter in signature.parameters.items() if parameter.kind in kinds]

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for old, new in OLD_ARGUMENTS.items():
            if old in kwargs and new in known:
                warnings.warn(f"{old}= is now {new}=", FutureWarning, stacklevel=2)
                kwargs[new] = kwargs.pop(old)
        for name in kwargs:
            if name not in known:
                raise UsageError(f"unknown argument {name!r}: {nearest(name, known)}")
        try:
            values = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise UsageError(f"resnets.{function.__name__}: {error}") from None
        for name, value in values.items():
            check_value(name, value, choices[name])
        return function(*args, **kwargs)

    return checked


def literal_values(hint: object) -> tuple[Any, ...]:
    """The values of a Literal."""
    return get_args(hint) if get_origin(hint) is Literal else ()


def check_value(name: str, value: object, choices: Sequence[Any]) -> None:
    """Raise UsageError for a value that is none of the choices, or a number out of its range."""
    if value is None:
        return
    if choices and value not in choices:
        raise UsageError(f"{name}={value!r}: {nearest(str(value), choices)}")
    check_number(name, value)
    for path in value if isinstance(value, tuple) else (value,):
        if name in PATHS and not isinstance(path, str | os.PathLike):
            raise UsageError(f"{name} is a {type(path).__name__}: give the path of a folder")
    if name == "device":
        check_device(str(value))


def check_device(name: str) -> None:
    """Raise UsageError for an unknown device, or a GPU without a driver; torch is not imported."""
    if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", name):
        raise UsageError(f"device {name!r}: {nearest(name, ('auto', 'cpu', 'cuda', 'cuda:0'))}")
    drivers = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
    possible = sys.platform != "linux" or any(map(os.path.exists, drivers))
    if name.startswith("cuda") and not possible:
        raise UsageError(
            f"--device {name} cannot be used: this machine has no GPU driver; use auto or cpu"
        )


def check_data(data: object) -> None:
    """Raise DataError where there is no data of that name or path."""
    if isinstance(data, str | Path) and str(data) not in NAMED_DATA and not os.path.exists(data):
        raise DataError(
            f"no data '{data}', neither a folder nor a known name: {nearest(str(data), NAMED_DATA)}"
        )


def check_models(*models: object) -> None:
    """Raise UsageError for one that is neither loaded, a file, a run folder nor published."""
    for model in models:
        if isinstance(model, str | Path):
            from resnets.config.weights import check_weights

            check_weights(model)
            continue
        from resnets.evaluation.predictor import Model

        if not isinstance(model, Model):
            raise UsageError(
                f"a {type(model).__name__} is not a model: give a run folder, a model file or a "
                "Model;\na module has no class names and preprocessing before it is "
                "trained: resnets.train(data, model=module)"
            )


def check_empty(path: Path) -> None:
    """Raise UsageError for a path that is a file, or a folder that is not empty."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"{path} has files, which nothing here overwrites: choose a new --out")


def parse_seconds(text: float | str) -> float:
    """Seconds of 90, "90s", "30m" or "1.5h"."""
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)([smh]?)", str(text))
    value = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if not value:
        raise UsageError(f"invalid budget {text!r}: write 90s, 30m or 1.5h")
    return value


def parse_scales(values: str | float | Sequence[float]) -> tuple[float, ...]:
    """Scales above 0, from "0.5,1,1.5" or numbers."""
    items = values.split(",") if isinstance(values, str) else values
    try:
        scales = tuple(float(x) for x in ([items] if isinstance(items, int | float) else items))
    except (TypeError, ValueError):
        scales = ()
    if not scales or not all(0 < x < math.inf for x in scales):
        raise UsageError(f"invalid scales {values!r}: write 0.5,1,1.5")
    return scales


def parse_channel_values(name: str, values: str | float | Sequence[float]) -> tuple[float, ...]:
    """One number or three, from "0.5" or "0.485,0.456,0.406"."""
    items = values.split(",") if isinstance(values, str) else values
    try:
        numbers = tuple(float(x) for x in ([items] if isinstance(items, int | float) else items))
    except (TypeError, ValueError):
        numbers = ()
    if not all(map(math.isfinite, numbers)) or len(numbers) not in (1, 3):
        raise UsageError(f"invalid {name} {values!r}: write one number, or three as 0.5,0.5,0.5")
    return numbers


def parse_views(value: str | Sequence[str], models: int) -> tuple[ViewName, ...]:
    """One view for each of so many models, from "flip" or "center,flip"."""
    known, names = get_args(ViewName), value.split(",") if isinstance(value, str) else list(value)
    for name in names:
        if name not in known:
            raise UsageError(f"--view {name}: one of {', '.join(known)}, or one per model")
    names = names * models if len(names) == 1 else names
    if len(names) != models:
        raise UsageError(f"{len(names)} views for {models} models: one for all, or one each")
    return cast("tuple[ViewName, ...]", tuple(names))


def arch_overrides(overrides: Mapping[str, Any] | Sequence[str] | None) -> dict[str, Any]:
    """Fields of the network in a foreign file, from arch.FIELD=VALUE. Raises UsageError."""
    values = parse_fields(overrides or {}, "--set arch.stride_on=1x1")
    for key in values:
        if not key.startswith("arch."):
            raise UsageError(f"--set {key}: only arch.FIELD=VALUE can be set of a trained model")
    return {key.removeprefix("arch."): value for key, value in values.items()}


def parse_floors(task: TaskName, texts: Sequence[str]) -> dict[str, float]:
    """The least value of each metric, from METRIC=VALUE. Raises UsageError."""
    known, floors = TASK_TEXTS[task].thresholds, dict[str, float]()
    for name, text in parse_fields(texts, f"--fail-under {known[0]}=0.9").items():
        if name not in known:
            raise UsageError(f"--fail-under {name}: {nearest(name, known)}")
        try:
            floors[name] = float(text)
        except (TypeError, ValueError):
            floors[name] = math.nan
        if not math.isfinite(floors[name]):
            raise UsageError(f"--fail-under {name}={text}: write a number, e.g. {name}=0.93")
    return floors


def check_floors(floors: Mapping[str, float], result: object) -> None:
    """Raise ResnetsError if a metric of `result` is lower, UsageError if it has none."""
    reached = {name: getattr(result, name) for name in floors}
    if none := [name for name, value in reached.items() if value is None]:
        raise UsageError(f"--fail-under {none[0]}: these images have no such metric")
    if short := [f"{k} {reached[k]:.4f} < {v:g}" for k, v in floors.items() if reached[k] < v]:
        raise ResnetsError(f"--fail-under: {', '.join(short)}")


def parse_fields(
    texts: Mapping[str, Any] | Sequence[str], like: str = "--set lr=0.1"
) -> dict[str, Any]:
    """A dictionary of fields, from one or from FIELD=VALUE texts; a comma makes a list."""
    if isinstance(texts, Mapping):
        return dict(texts)
    values: dict[str, Any] = {}
    for item in [texts] if isinstance(texts, str) else texts:
        key, sign, text = str(item).partition("=")
        if not sign:
            raise UsageError(f"{item}: write FIELD=VALUE, for example {like}")
        if key.strip() in values:
            raise UsageError(f"{key.strip()} is given twice, by two {like.split()[0]}")
        values[key.strip()] = text.split(",") if "," in text else text
    return values


def make_options(kind: type[Options], values: Mapping[str, Any], **more: Any) -> Options:
    """The options of that kind among the arguments of a function. Raises UsageError."""
    known = {f.name: values[f.name] for f in fields(kind) if values.get(f.name) is not None}
    if "scales" in known:
        known["scales"] = parse_scales(known["scales"])
    for name in known.keys() & {"mean", "std"}:
        known[name] = parse_channel_values(name, known[name])
        if "normalize" in known:
            raise UsageError(f"normalize={known['normalize']} is a {name} too: give one of them")
    return kind(**known, **more, fields=arch_overrides(values.get("overrides")))


def refuse_others(function: Callable[..., Any], task: TaskName, values: Mapping[str, Any]) -> None:
    """Raise UsageError for an argument of `evaluate` or `predict` that the task does not have."""
    name = function.__name__
    usual = inspect.signature(function).parameters
    for option in missing_options(name, TASK_TEXTS[task]):
        if option in values and values[option] != usual[option].default:
            known = " and ".join(tasks_with(name, option))
            raise UsageError(f"--{option.replace('_', '-')} is for models that {known}, not {task}")

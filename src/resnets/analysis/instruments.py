"""The instruments of `resnets analyze`: functions of a network and images, each with its plot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from resnets.analysis import depth, signal
from resnets.analysis.setup import AnalysisSetup
from resnets.errors import UsageError
from resnets.models.blocks import units
from resnets.training import precise_bn

Rows = list[dict[str, Any]]  # of the same keys
Measurement = tuple[Rows, str]  # and a verdict
CALIBRATION_IMAGES = 10_000  # that precise statistics are taken from


@dataclass(frozen=True)
class Analysis:
    """What an instrument shows: rows of the same keys, a sentence, and the folder of both."""

    rows: Rows  # a dictionary for each layer, unit, pair, length or step
    verdict: str  # what they show, in a sentence
    folder: Path  # of the table, KIND.csv, and the picture, KIND.svg


class Plot(NamedTuple):
    """What is drawn of an instrument's rows: columns for both axes, and their labels."""

    x: str
    ys: tuple[str, ...]
    ylabel: str
    xlabel: str = ""  # where it is not the column's name
    scale: str = "linear"
    style: str = "o-"  # of the first column; bars where it is empty


def responses(setup: AnalysisSetup) -> Measurement:
    """The standard deviation of each layer's response."""
    measured = signal.responses(setup.model.network, setup.images)
    order = sorted((std for *_, std in measured), reverse=True)
    rows = [
        {"layer": k, "name": name, "taken_at": at, "std": std, "sorted_std": ranked}
        for (k, name, at, std), ranked in zip(measured, order, strict=True)
    ]
    verdict = (
        f"The responses of {len(order)} layers have standard deviations of {order[-1]:.3g} "
        f"to {order[0]:.3g}, {median(order):.3g} at the median."
    )
    unnormalized = sum(name == at for _, name, at, _ in measured)
    if 0 < unnormalized < len(measured):
        verdict += (
            f" {unnormalized} of them are taken before any normalisation, the others after it "
            "(taken_at): they do not compare."
        )
    return rows, verdict


def layer_signal(setup: AnalysisSetup) -> Measurement:
    """Response, gradient and the weights' gradient of each layer in a training step."""
    network = setup.model.network
    layers = signal.signal(network, setup.images, setup.labels, seed=setup.seed)
    rows = [{"layer": layer.pop("index"), **layer} for layer in map(asdict, layers)]
    verdict = signal.verdict(layers)
    if lacking := signal.without_row(network, layers):
        first = ", ".join(lacking[:3]) + ", ..." * (len(lacking) > 3)
        verdict += f" This is of the rows alone: {len(lacking)} weights have none ({first})."
    return rows, verdict


def equations(setup: AnalysisSetup) -> Measurement:
    """How exactly equations 4 and 5 of 1603.05027 hold, and the products of shortcuts' scales."""
    network, images = setup.model.network, setup.images
    fourth = depth.equation4(network, images)
    fifth = depth.equation5(network, images, setup.labels, seed=setup.seed)
    products = depth.shortcut_products(network, images)
    exact = "" if max(fourth, fifth) < 1e-9 else "not "
    return [{"unit": k, "product": product} for k, product in enumerate(products, 1)], (
        f"The sum of equation 4 is off by {fourth:.1e} of x_L, that of equation 5 by "
        f"{fifth:.1e} of the gradient: {exact}exact. "
        f"Shortcuts alone scale a signal by {products[0]:.3g} from end to end."
    )


def paths(setup: AnalysisSetup) -> Measurement:
    """The fraction of the gradient that comes over paths through so many branches."""
    lengths = depth.path_gradients(setup.model.network, setup.images, setup.labels, seed=setup.seed)
    all_paths = 2 ** (len(lengths) - 1)
    total = sum(count * norm for _, count, norm in lengths)
    half = f"{depth.effective_depth(lengths)} of {len(lengths) - 1} branches"
    rows = [
        {"length": k, "paths": n / all_paths, "norm": norm, "gradient": n * norm / total}
        for k, n, norm in lengths
    ]
    return rows, f"Half of the gradient takes paths through at most {half}."


def landscape(setup: AnalysisSetup) -> Measurement:
    """The loss along a random direction."""
    network = setup.model.network

    def loss() -> float:
        return signal.loss(network(setup.images), setup.labels, setup.seed).item()

    points = depth.landscape(network, loss, seed=setup.seed)
    (low, left), (_, here), (high, right) = points[0], points[len(points) // 2], points[-1]
    return [{"alpha": alpha, "loss": loss} for alpha, loss in points], (
        f"The loss is {here:.4g} at 0 and {left:.4g}, {right:.4g} at {low:g}, {high:g}."
    )


def lesions(setup: AnalysisSetup) -> Measurement:
    """The error without one unit's branch, each unit in turn."""
    numbers, whole = unit_numbers(setup), setup.logged_error()
    rows = [
        {"unit": numbers[unit], "name": unit, "error": error, "whole_error": whole}
        for unit, error in depth.delete_units(setup.model.network, setup.error)
    ]
    return rows, compare_errors(setup, rows, whole, "without one unit")


def swaps(setup: AnalysisSetup) -> Measurement:
    """The error with two units of a stage exchanged."""
    numbers, whole = unit_numbers(setup), setup.logged_error()
    rows = [
        {"first": a, "second": b, "distance": numbers[b] - numbers[a]}
        | {"error": error, "whole_error": whole}
        for a, b, error in depth.swap_units(setup.model.network, setup.error, seed=setup.seed)
    ]
    return rows, compare_errors(setup, rows, whole, "with two units exchanged")


def unit_numbers(setup: AnalysisSetup) -> dict[str, int]:
    """The residual units by name, counted from the input. Raises UsageError where there is none."""
    return {name: k for k, name in enumerate(units(setup.model.network), 1)}


def compare_errors(setup: AnalysisSetup, rows: Rows, whole: float, change: str) -> str:
    """The errors of a changed network beside that of the whole one."""
    errors = [row["error"] for row in rows]
    return (
        f"The error on the {setup.split_name} images is {whole:.2%}; {change} it is "
        f"{median(errors):.2%} at the median, {max(errors):.2%} at worst."
    )


def precise(setup: AnalysisSetup) -> Measurement:
    """The error with running statistics of normalisation, and with those of training images."""
    network = setup.model.network
    if not any(isinstance(module, _BatchNorm) for module in network.modules()):
        raise UsageError(f"{setup.path} has no batch normalisation")
    running, train = setup.logged_error(), setup.training_split()
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(setup.seed))
    sample = train.take(order[:CALIBRATION_IMAGES])
    precise_bn.precise_bn(network, (batch.images for batch in setup.batches(sample)))
    errors = {"running": running, "precise": setup.error()}
    return [{"statistics": name, "error": error} for name, error in errors.items()], (
        f"The error on the {setup.split_name} images is {running:.2%} with running statistics, "
        f"{errors['precise']:.2%} with the statistics of {len(sample):,} training images."
    )


_SIGNAL = Plot("layer", ("forward", "backward"), "response, gradient", scale="log")
_ERROR = Plot("unit", ("error", "whole_error"), "error (%)", "unit left out")
# Measurements, and how their rows are drawn.
INSTRUMENTS: dict[str, tuple[Callable[[AnalysisSetup], Measurement], Plot]] = {
    "responses": (
        responses,
        Plot("layer", ("std", "sorted_std"), "standard deviation of responses"),
    ),
    "signal": (layer_signal, _SIGNAL),
    "gradients": (
        layer_signal,
        _SIGNAL._replace(ys=("weight",), ylabel="norm of the weights' gradient"),
    ),
    "equations": (
        equations,
        Plot("unit", ("product",), "product of shortcuts' scales", "first unit", "log"),
    ),
    "lesions": (lesions, _ERROR),
    "swaps": (swaps, _ERROR._replace(x="distance", xlabel="distance of the units", style="o")),
    "paths": (
        paths,
        Plot("length", ("gradient", "paths"), "part of the sum (%)", "branches on a path"),
    ),
    "landscape": (
        landscape,
        Plot("alpha", ("loss",), "loss (nats)", "step along a random direction"),
    ),
    "precise": (
        precise,
        Plot("statistics", ("error",), "error (%)", "statistics of normalisation", style=""),
    ),
}

"""`resnets analyze`: the instruments of `analysis.signal` and `analysis.depth` on a model.

As in `verbs`, torch is imported inside only.
"""

from __future__ import annotations

import csv
import importlib
import io
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Unpack

from resnets.errors import DataError, UsageError
from resnets.options import Read

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from resnets.data.batches import Batch
    from resnets.data.sources import Source, Split
    from resnets.recipe import Preprocess

Kind = Literal[
    "responses", "signal", "gradients", "equations", "lesions", "swaps", "paths", "landscape",
    "precise",
]  # fmt: skip
Rows = list[dict[str, Any]]
ERRORS = ("lesions", "swaps", "precise")  # these measure errors on a whole split
IMAGES, CALIBRATING = 32, 10_000  # that the others look at; that precise statistics are taken from


class Drawing(NamedTuple):
    """What is drawn of a kind's rows: columns for both axes, and what these say."""

    x: str
    ys: tuple[str, ...]
    xlabel: str
    ylabel: str
    scale: str = "linear"


DRAWINGS = {
    "responses": Drawing(
        "layer", ("std", "sorted_std"), "layer", "standard deviation of responses"
    ),
    "signal": Drawing("layer", ("forward", "backward"), "layer", "response, gradient", "log"),
    "gradients": Drawing("layer", ("weight",), "layer", "norm of the weights' gradient", "log"),
    "equations": Drawing("unit", ("product",), "first unit", "product of shortcuts' scales", "log"),
    "lesions": Drawing("unit", ("error", "whole_error"), "unit left out", "error (%)"),
    "swaps": Drawing("distance", ("error", "whole_error"), "distance of the units", "error (%)"),
    "paths": Drawing("length", ("gradient", "paths"), "branches on a path", "part of the sum (%)"),
    "landscape": Drawing("alpha", ("loss",), "step along a random direction", "loss (nats)"),
    "precise": Drawing("statistics", ("error",), "statistics of normalisation", "error (%)"),
}
PARTS = ("error", "whole_error", "gradient", "paths")  # columns that are drawn in %


@dataclass(frozen=True)
class Analysis:
    """What an instrument shows: rows of the same keys, a sentence, and the folder of both."""

    rows: Rows
    verdict: str
    folder: Path


@dataclass(frozen=True)
class Subject:
    """A network in evaluation mode, and, where there is data, which images it sees, and how."""

    network: nn.Module
    device: torch.device
    split: Split | None = None
    name: str = ""  # of the split
    see: Preprocess | None = None
    classes: tuple[str, ...] = ()


def analyze(
    kind: Kind,
    model: str,
    data: str | None = None,
    /,
    *,
    out: Path | None = None,
    input: str = "",
    seed: int = 0,
    **how: Unpack[Read],
) -> Analysis:
    """Look inside MODEL: a table, a CSV file, a picture, and what they say in a sentence.

    Without DATA the network sees normal noise with random labels. With it, training images; where
    errors are measured (lesions, swaps, precise) the validation images, else the test images.

    Args:
        kind: responses, signal or gradients by layer; equations of identity shortcuts; lesions or
            swaps of units; paths by length; the loss landscape; precise statistics.
        model: A run folder, a model file, foreign weights, a name from `resnets models` (fresh
            weights), or my_module:build, a function found here that returns a torch module.
        out: A new folder; analysis/KIND-MODEL when left out.
        input: Shape of one input, as 3x32x32, where neither network nor DATA says it.
        seed: Of fresh weights, of noise, and of all that is drawn.
    """
    import torch

    from resnets.data import sources
    from resnets.lifecycle import check_outside

    folder = out or Path("analysis", f"{kind}-{Path(model.replace(':', '-')).name}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} has files, which nothing here overwrites: choose a new --out")
    if not re.fullmatch(r"([1-9]\d*(x[1-9]\d*)*)?", input):
        raise UsageError(f"--input {input}: write the shape of one input, as 3x32x32")
    if data is None and kind in ERRORS:
        raise UsageError(f"{kind} measures errors on images: resnets analyze {kind} MODEL DATA")
    shape = tuple(map(int, input.split("x"))) if input else ()
    source = None
    if data is not None:
        check_outside(folder, data)
        source = sources.load(data, max_unreadable=how.get("max_unreadable", 0.01))
    torch.manual_seed(seed)
    one = subject(kind, model, source, shape, how)
    images, labels = shown(one, model, shape, seed, how)
    if kind in ERRORS:
        rows, verdict = errors(kind, one, model, source, seed, how)
    else:
        rows, verdict = looked(kind, one.network, images, labels, seed)
    if source is None:
        verdict += " The inputs were noise, the labels random."
    write(folder, kind, rows)
    return Analysis(rows, verdict, folder)


def subject(
    kind: Kind, model: str, source: Source | None, shape: tuple[int, ...], how: Read
) -> Subject:
    """The network of that name or place, with a split of the data; errors as `verbs.evaluate`."""
    from torch import Tensor

    from resnets import assessment
    from resnets.evaluation.model import load
    from resnets.nets import create
    from resnets.recipe import Preprocess
    from resnets.training.plan import pick_device

    device, said = pick_device(how.get("device", "auto")), how.get("split")
    suits: Literal["train", "val", "test"] = "val" if kind in ERRORS else "train"
    if not Path(model).exists() and Path(model).name == model:  # fresh weights
        classes, channels = (len(source.classes), source.channels) if source else (None, None)
        build = imported if ":" in model else partial(create, classes=classes, channels=channels)
        network = build(model).to(device).eval()
        if source is None:
            return Subject(network, device)
        name = said or (suits if suits in source.splits else "test")
        split = assessment.pick_split(source, name)
        side = source.size if isinstance(split.images, Tensor) else 224
        see = Preprocess(size=side, channels=source.channels, mean=source.mean, std=source.std)
        see = replace(see, size=shape[-1]) if shape else see
        return Subject(network, device, split, name, see, source.classes)
    if source is None:
        return Subject(load(model, device=device).network, device)
    if said is None and source.automatic and kind in ERRORS:
        assessment.subject(model, source, **how)  # refuses images that it may have learned
    try:
        chosen: Read = {**how, "split": said or suits}
        one = assessment.subject(model, source, **chosen)
    except DataError:
        if said is not None:
            raise
        suits, one = "test", assessment.subject(model, source, **how)
    network, card = one.model.network, one.model.card
    return Subject(network, device, one.split, said or suits, card.preprocess, card.classes)


def imported(model: str) -> nn.Module:
    """What the function of my_module:function returns. Raises UsageError that says why not."""
    from torch import nn

    module, _, name = model.partition(":")
    sys.path.insert(0, "")
    try:
        build = getattr(importlib.import_module(module), name)
        network = build()
    except Exception as error:  # whatever a person's code does
        why = f"{type(error).__name__}: {error}"
        raise UsageError(f"{model}: no network comes of it here, {why}") from error
    finally:
        sys.path.remove("")
    if not isinstance(network, nn.Module):
        raise UsageError(f"{model} returns {type(network).__name__}, not a torch.nn.Module")
    return network


def shown(
    one: Subject, model: str, shape: tuple[int, ...], seed: int, how: Read
) -> tuple[Tensor, Tensor | None]:
    """One batch that the network takes: of the split, by chance, with labels; else noise.

    Raises UsageError where it does not take such inputs, or answers with other classes.
    """
    import torch

    from resnets.arch import MlpArch

    drawn, count = torch.Generator().manual_seed(seed), how.get("batch", IMAGES)
    images, labels = torch.empty(0), None
    if one.split is not None:
        some = torch.randperm(len(one.split), generator=drawn)[:count].sort().values
        batch = next(batches(one, one.split.take(some), how))
        images, labels = batch.images, batch.labels
    else:
        if not shape and (arch := getattr(one.network, "arch", None)):
            sides = 0 if isinstance(arch, MlpArch) else getattr(arch, "dims", 2)
            shape = (arch.channels, *(arch.size,) * sides)
        if not shape:
            raise UsageError(f"{model} does not say its input: --input 3x32x32, or give DATA")
        images = torch.randn(count, *shape, generator=drawn).to(one.device)
    try:
        with torch.no_grad():
            answer = one.network(images[:2])
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        what = "x".join(map(str, images.shape[1:]))
        raise UsageError(f"{model} takes no input of {what}: {str(error)[:200]}") from error
    if one.classes and answer.shape[1:] != (len(one.classes),):
        has = f"{tuple(answer.shape[1:])}, the data has {len(one.classes)} classes"
        raise UsageError(f"{model} answers each image with {has}")
    return images, labels


def batches(one: Subject, split: Split, how: Read) -> Iterator[Batch]:
    """The images of a split as the network sees them."""
    from resnets.data.batches import test_batches

    assert one.see
    return test_batches(
        split,
        preprocess=one.see,
        batch=how.get("batch", 128),
        device=one.device,
        workers=how.get("workers", 2),
    )


def looked(
    kind: Kind, network: nn.Module, images: Tensor, labels: Tensor | None, seed: int
) -> tuple[Rows, str]:
    """Rows and verdict of what is seen in one batch."""
    from resnets.analysis import depth, signal

    match kind:
        case "responses":
            found = signal.responses(network, images)
            order = sorted((std for *_, std in found), reverse=True)
            keys = ("layer", "name", "std", "sorted_std")
            return [
                dict(zip(keys, (*x, y), strict=True)) for x, y in zip(found, order, strict=True)
            ], (
                f"The responses of {len(order)} layers have standard deviations of {order[-1]:.3g} "
                f"to {order[0]:.3g}, {median(order):.3g} at the median."
            )
        case "equations":
            fourth = depth.equation4(network, images)
            fifth = depth.equation5(network, images, labels, seed=seed)
            products = depth.shortcut_products(network, images)
            return [{"unit": k, "product": x} for k, x in enumerate(products, 1)], (
                f"The sum of equation 4 is off by {fourth:.1e} of x_L, that of equation 5 by "
                f"{fifth:.1e} of the gradient: {'' if max(fourth, fifth) < 1e-9 else 'not '}exact. "
                f"Shortcuts alone scale a signal by {products[0]:.3g} from end to end."
            )
        case "paths":
            lengths = depth.paths(network, images, labels, seed=seed)
            every = 2 ** (len(lengths) - 1)
            total = sum(count * norm for _, count, norm in lengths)
            half = f"{depth.effective_depth(lengths)} of {len(lengths) - 1} branches"
            rows = [
                {"length": k, "paths": n / every, "norm": norm, "gradient": n * norm / total}
                for k, n, norm in lengths
            ]
            return rows, f"Half of the gradient takes paths through at most {half}."
        case "landscape":
            points = depth.landscape(
                network, lambda: signal.loss(network(images), labels, seed).item(), seed=seed
            )
            (low, a), (_, here), (high, b) = points[0], points[len(points) // 2], points[-1]
            return [{"alpha": alpha, "loss": loss} for alpha, loss in points], (
                f"The loss is {here:.4g} at 0 and {a:.4g}, {b:.4g} at {low:g}, {high:g}."
            )
    layers = signal.signal(network, images, labels, seed=seed)
    rows = [{"layer": x.pop("index"), **x} for x in map(asdict, layers)]
    return rows, signal.verdict(layers)


def errors(
    kind: Kind, one: Subject, model: str, source: Source | None, seed: int, how: Read
) -> tuple[Rows, str]:
    """Rows and verdict of what changes the error on a split. Raises UsageError and DataError."""
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    from resnets.analysis import depth
    from resnets.evaluation import classify, metrics
    from resnets.lifecycle import opened
    from resnets.nets.blocks import units
    from resnets.training.precise import precise

    assert source
    assert one.split is not None
    split, network = one.split, one.network

    def error() -> float:
        said = classify.scores(network, batches(one, split, how), one.classes)
        return 1 - float(metrics.right(said).double().mean())

    numbers = {name: k for k, name in enumerate(units(network), 1)} if kind != "precise" else {}
    if not numbers and not any(isinstance(module, _BatchNorm) for module in network.modules()):
        raise UsageError(f"{model} has no batch normalisation")
    whole = error()
    if Path(model).exists():
        opened(model, source, one.name, whole)
    at = f"on the {one.name} images"
    rows: Rows
    match kind:
        case "lesions":
            rows = [
                {"unit": numbers[name], "name": name, "error": value}
                for name, value in depth.lesions(network, error)
            ]
            what = "without one unit"
        case "swaps":
            rows = [
                {"first": a, "second": b, "distance": numbers[b] - numbers[a], "error": value}
                for a, b, value in depth.swaps(network, error, seed=seed)
            ]
            what = "with two units exchanged"
        case _:
            # Without those that the run kept for validation.
            train = subject(kind, model, source, (), {**how, "split": "train"}).split
            assert train is not None
            drawn = torch.Generator().manual_seed(seed)
            some = train.take(torch.randperm(len(train), generator=drawn)[:CALIBRATING])
            precise(network, (batch.images for batch in batches(one, some, how)))
            after = error()
            both = {"running": whole, "precise": after}
            rows = [{"statistics": name, "error": value} for name, value in both.items()]
            said = f"{after:.2%} with the statistics of {len(some):,} training images"
            return rows, f"The error {at} is {whole:.2%} with running statistics, {said}."
    values = [row["error"] for row in rows]
    return [row | {"whole_error": whole} for row in rows], (
        f"The error {at} is {whole:.2%}; {what} it is {median(values):.2%} at the median, "
        f"{max(values):.2%} at worst."
    )


def write(folder: Path, kind: Kind, rows: Rows) -> None:
    """KIND.csv and KIND.svg in a folder. Raises DiskError."""
    from resnets.files import write_whole
    from resnets.reporting import plots

    folder.mkdir(parents=True, exist_ok=True)
    text, file, drawing = io.StringIO(), io.BytesIO(), DRAWINGS[kind]
    table = csv.DictWriter(text, rows[0])
    table.writeheader()
    table.writerows(rows)
    write_whole(folder / f"{kind}.csv", text.getvalue().encode())
    figure, axes = plots.blank()
    xs = [row[drawing.x] for row in rows]
    for column, style in zip(drawing.ys, ("o" if kind == "swaps" else "o-", "--"), strict=False):
        ys = [100 * row[column] if column in PARTS else row[column] for row in rows]
        if column == "whole_error":
            axes.axhline(ys[0], ls=style, color=plots.INK, label="whole network")
        elif kind == "precise":
            axes.bar(xs, ys, 0.4, color="white", edgecolor=plots.INK, hatch="//")
        else:
            axes.plot(xs, ys, style, color=plots.INK, ms=3, label=column.replace("_", " "))
            axes.locator_params("x", integer=isinstance(xs[0], int))
    scale = drawing.scale if any(row[drawing.ys[0]] for row in rows) else "linear"
    axes.set(xlabel=drawing.xlabel, ylabel=drawing.ylabel, yscale=scale)
    if drawing.ys[0] in PARTS:
        axes.set_ylim(0, None)
    if len(drawing.ys) > 1:
        axes.legend(frameon=False)
    figure.savefig(file, format="svg", metadata={"Date": None})
    write_whole(folder / f"{kind}.svg", file.getvalue())

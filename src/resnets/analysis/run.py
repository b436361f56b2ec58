"""`resnets analyze`: the instruments of `analysis.signal` and `analysis.depth` on a model.

torch is imported inside the functions only.
"""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from resnets.config.types import ERRORS_MEASURED, InferenceOptions, Instrument
from resnets.errors import DataError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from resnets.analysis.cam import RandomizationCheck
    from resnets.analysis.explain import Explained
    from resnets.data.dataset import Source, Split
    from resnets.data.loader import Batch
    from resnets.evaluation.predictor import Model

Rows = list[dict[str, Any]]
IMAGES, CALIBRATING = 32, 10_000  # that the others look at; that precise statistics are taken from


class Plot(NamedTuple):
    """What is drawn of a kind's rows: columns for both axes, and what these say."""

    x: str
    ys: tuple[str, ...]
    xlabel: str
    ylabel: str
    scale: str = "linear"
    style: str = "o-"  # of the first column; bars where it is empty


PLOTS = {
    "responses": Plot("layer", ("std", "sorted_std"), "layer", "standard deviation of responses"),
    "signal": Plot("layer", ("forward", "backward"), "layer", "response, gradient", "log"),
    "gradients": Plot("layer", ("weight",), "layer", "norm of the weights' gradient", "log"),
    "equations": Plot("unit", ("product",), "first unit", "product of shortcuts' scales", "log"),
    "lesions": Plot("unit", ("error", "whole_error"), "unit left out", "error (%)"),
    "swaps": Plot(
        "distance", ("error", "whole_error"), "distance of the units", "error (%)", style="o"
    ),
    "paths": Plot("length", ("gradient", "paths"), "branches on a path", "part of the sum (%)"),
    "landscape": Plot("alpha", ("loss",), "step along a random direction", "loss (nats)"),
    "precise": Plot("statistics", ("error",), "statistics of normalisation", "error (%)", style=""),
}


@dataclass(frozen=True)
class Analysis:
    """What an instrument shows: rows of the same keys, a sentence, and the folder of both."""

    rows: Rows
    verdict: str
    folder: Path = Path()


@dataclass(frozen=True)
class AnalysisTarget:
    """A model, and, where there is data, a split that suits and how its images are read."""

    place: str
    model: Model
    how: InferenceOptions
    source: Source | None = None
    split: Split | None = None
    name: str = ""  # of the split

    def batches(self, split: Split) -> Iterator[Batch]:
        """The images of a split as the network sees them."""
        from resnets.data.loader import test_batches

        batch, workers = self.how.images_per_batch(), self.how.workers
        see, device = self.model.card.preprocess, self.model.device
        return test_batches(split, preprocess=see, batch=batch, device=device, workers=workers)

    def error(self) -> float:
        """Part of the split's images that are answered wrong."""
        from resnets.evaluation import classification, metrics

        assert self.split is not None
        network, classes = self.model.network, self.model.card.classes
        said = classification.scores(network, self.batches(self.split), classes)
        return 1 - float(metrics.is_correct(said).double().mean())

    def whole(self) -> float:
        """The error of the whole network, which leaves a trace in the folder of a run."""
        from resnets.training.run import log_test_access

        error = self.error()
        if self.source and Path(self.place).exists():
            log_test_access(self.place, self.source.digest, self.name, error)
        return error


def analyze(
    kind: Instrument,
    model: str,
    source: Source | None,
    shape: tuple[int, ...],
    seed: int,
    how: InferenceOptions,
) -> Analysis:
    """What an instrument shows of a model on the images of `source`, or on noise."""
    import torch

    torch.manual_seed(seed)
    one = load_target(kind, model, source, shape, how)
    rows, verdict = run_instrument(kind, one, *input_images(one, shape, seed), seed)
    if source is None:
        verdict += " The inputs were noise, the labels random."
    return Analysis(rows, verdict)


def load_target(
    kind: Instrument,
    model: str,
    source: Source | None,
    shape: tuple[int, ...],
    how: InferenceOptions,
) -> AnalysisTarget:
    """The network of that name or place, with a split of the data.

    Errors as `api.evaluate`.
    """
    from torch import Tensor

    from resnets.config.recipe import Preprocess
    from resnets.device import pick_device
    from resnets.evaluation import targets
    from resnets.evaluation.predictor import Model, load
    from resnets.models import create
    from resnets.models.io.model_file import ModelMetadata

    device, said = pick_device(how.device), how.split
    suits: Literal["train", "val", "test"] = "val" if kind in ERRORS_MEASURED else "train"
    if Path(model).exists() or Path(model).name != model:
        if source is None:
            return AnalysisTarget(model, load(model, device=device, fields=how.fields), how)
        if said is None and source.automatic and kind in ERRORS_MEASURED:
            targets.load_target(model, source, how)  # refuses images that it may have learned
        try:
            one = targets.load_target(model, source, replace(how, split=said or suits))
        except DataError:
            if said is not None:
                raise
            suits, one = "test", targets.load_target(model, source, how)
        return AnalysisTarget(model, one.model, how, source, one.split, said or suits)
    classes, channels = (len(source.classes), source.channels) if source else (None, None)
    mine = ":" in model
    network = import_builder(model) if mine else create(model, classes=classes, channels=channels)
    split, name, see = None, "", Preprocess(size=1)  # noise is not preprocessed
    if source:
        name = said or (suits if suits in source.splits else "test")
        split = targets.pick_split(source, name)
        own = source.size if isinstance(split.images, Tensor) else 224
        side = shape[-1] if shape else own
        see = Preprocess(size=side, channels=source.channels, mean=source.mean, std=source.std)
    arch: Any = getattr(network, "arch", None)  # a module of one's own does not say
    card = ModelMetadata(arch=arch, classes=source.classes if source else (), preprocess=see)
    return AnalysisTarget(
        model, Model(network.to(device).eval(), card, device), how, source, split, name
    )


def import_builder(model: str) -> Any:
    """What the function of my_module:function returns. Raises UsageError that says why not."""
    from torch import nn

    sys.path.insert(0, "")
    try:
        network = pkgutil.resolve_name(model)()
    except Exception as error:  # whatever a person's code does
        why = f"{type(error).__name__}: {error}"
        raise UsageError(f"{model}: no network comes of it here, {why}") from error
    finally:
        sys.path.remove("")
    if not isinstance(network, nn.Module):
        raise UsageError(f"{model} returns {type(network).__name__}, not a torch.nn.Module")
    return network


def input_images(
    one: AnalysisTarget, shape: tuple[int, ...], seed: int
) -> tuple[Tensor, Tensor | None]:
    """One batch that the network takes: of the split, by chance, with labels; else noise.

    Raises UsageError where it does not take such inputs, or answers with other classes.
    """
    import torch

    from resnets.config.arch import MlpArch

    drawn, count = torch.Generator().manual_seed(seed), one.how.images_per_batch(IMAGES)
    labels, card = None, one.model.card
    if one.split is not None:
        some = torch.randperm(len(one.split), generator=drawn)[:count].sort().values
        batch = next(one.batches(one.split.take(some)))
        images, labels = batch.images, batch.labels
    else:
        if not shape and (arch := card.arch):
            sides = 0 if isinstance(arch, MlpArch) else getattr(arch, "dims", 2)
            shape = (arch.channels, *(arch.size,) * sides)
        if not shape:
            raise UsageError(f"{one.place} does not say its input: --input 3x32x32, or give DATA")
        images = torch.randn(count, *shape, generator=drawn).to(one.model.device)
    try:
        with torch.no_grad():
            answer = one.model.network(images[:2])
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        what = "x".join(map(str, images.shape[1:]))
        raise UsageError(f"{one.place} takes no input of {what}: {str(error)[:200]}") from error
    if one.split is not None and answer.shape[1:] != (len(card.classes),):
        has = f"{tuple(answer.shape[1:])}, the data has {len(card.classes)} classes"
        raise UsageError(f"{one.place} answers each image with {has}")
    return images, labels


def run_instrument(
    kind: Instrument, one: AnalysisTarget, images: Tensor, labels: Tensor | None, seed: int
) -> tuple[Rows, str]:
    """Rows and verdict, of one batch or of errors on the split. Raises UsageError, DataError."""
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    from resnets.analysis import depth, signal
    from resnets.models.blocks import units
    from resnets.training.precise_bn import precise_bn

    network, rows = one.model.network, Rows()
    match kind:
        case "responses":
            found = signal.responses(network, images)
            order = sorted((std for *_, std in found), reverse=True)
            return [
                {"layer": k, "name": name, "taken_at": at, "std": std, "sorted_std": other}
                for (k, name, at, std), other in zip(found, order, strict=True)
            ], (
                f"The responses of {len(order)} layers have standard deviations of {order[-1]:.3g} "
                f"to {order[0]:.3g}, {median(order):.3g} at the median."
                + (
                    f" {bare} of them are taken before any normalisation, the others after it "
                    "(taken_at): they do not compare."
                    if 0 < (bare := sum(name == at for _, name, at, _ in found)) < len(found)
                    else ""
                )
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
            lengths = depth.path_gradients(network, images, labels, seed=seed)
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
            (low, left), (_, here), (high, right) = points[0], points[len(points) // 2], points[-1]
            return [{"alpha": alpha, "loss": loss} for alpha, loss in points], (
                f"The loss is {here:.4g} at 0 and {left:.4g}, {right:.4g} at {low:g}, {high:g}."
            )
        case "lesions" | "swaps":
            numbers, whole = {name: k for k, name in enumerate(units(network), 1)}, one.whole()
            if kind == "lesions":
                what = "without one unit"
                for unit, value in depth.delete_units(network, one.error):
                    rows.append({"unit": numbers[unit], "name": unit, "error": value})
            else:
                what = "with two units exchanged"
                for a, b, value in depth.swap_units(network, one.error, seed=seed):
                    row = {"first": a, "second": b, "distance": numbers[b] - numbers[a]}
                    rows.append(row | {"error": value})
            values = [row["error"] for row in rows]
            return [row | {"whole_error": whole} for row in rows], (
                f"The error on the {one.name} images is {whole:.2%}; {what} it is "
                f"{median(values):.2%} at the median, {max(values):.2%} at worst."
            )
        case "precise":
            if not any(isinstance(module, _BatchNorm) for module in network.modules()):
                raise UsageError(f"{one.place} has no batch normalisation")
            whole = one.whole()
            # Without those that the run kept for validation.
            train = load_target(
                kind, one.place, one.source, (), replace(one.how, split="train")
            ).split
            assert train is not None
            drawn = torch.Generator().manual_seed(seed)
            some = train.take(torch.randperm(len(train), generator=drawn)[:CALIBRATING])
            precise_bn(network, (batch.images for batch in one.batches(some)))
            after = one.error()
            both = {"running": whole, "precise": after}
            return [{"statistics": name, "error": value} for name, value in both.items()], (
                f"The error on the {one.name} images is {whole:.2%} with running statistics, "
                f"{after:.2%} with the statistics of {len(some):,} training images."
            )
    layers = signal.signal(network, images, labels, seed=seed)
    rows = [{"layer": x.pop("index"), **x} for x in map(asdict, layers)]
    said = signal.verdict(layers)
    if lacking := signal.without_row(network, layers):
        first = ", ".join(lacking[:3]) + ", ..." * (len(lacking) > 3)
        said += f" This is of the rows alone: {len(lacking)} weights have none ({first})."
    return rows, said


def explained(
    model: str | Path,
    inputs: Sequence[str | Path | bytes],
    out: Path,
    data: str | None,
    level: str | None,
    method: Literal["grad-cam", "occlusion"],
    top: int,
    how: InferenceOptions,
) -> Iterator[Explained | RandomizationCheck | dict[str, int]]:
    """`api.explain`."""
    from resnets.analysis import explain as drawing
    from resnets.data import dataset
    from resnets.evaluation import metrics, targets
    from resnets.training.run import log_test_access

    source = dataset.load(data, max_unreadable=how.max_unreadable, training=False) if data else None
    reading, known = {"batch": how.images_per_batch(), "workers": how.workers}, None
    if inputs:
        if source:
            one = targets.load_target(model, source, replace(how, split=how.split or "train"))
            loaded, known = one.model, one.split
        else:
            loaded = targets.load_model(model, None, how, "classify")
        files = list(dataset.expand_inputs(inputs))
        yield from drawing.explain(
            loaded, files, out, level=level, method=method, top=top, known=known, **reading
        )
    elif source:
        one, name = targets.load_target(model, source, how), how.split or "test"
        scores = one.scores()
        log_test_access(
            model, source.digest, name, 1 - float(metrics.is_correct(scores).double().mean())
        )
        train = None if name in ("train", "all") else source.train
        yield drawing.explore(one.model, one.split, scores, out, train=train, **reading)

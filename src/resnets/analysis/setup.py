"""What an instrument is applied to: a network, a split of data, and a batch that it takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from resnets.config.arch import MlpArch
from resnets.config.recipe import Preprocess
from resnets.config.types import InferenceOptions, SplitName
from resnets.config.weights import names_weights
from resnets.data.dataset import Source, Split
from resnets.data.loader import Batch, test_batches
from resnets.device import pick_device
from resnets.errors import DataError, UsageError
from resnets.escape import shorten
from resnets.evaluation.evaluate import load_setup, pick_split
from resnets.evaluation.load import load
from resnets.evaluation.predictor import Model
from resnets.evaluation.scores import error_rate, predict_scores
from resnets.models import create
from resnets.models.external import describe as describe_module
from resnets.models.io.model_file import ModelMetadata
from resnets.training.run import log_test_access

BATCH = 32  # images of a measurement, where no other number is asked for


@dataclass(frozen=True)
class AnalysisSetup:
    """A model, where there is data a split that suits, and one batch that the network takes."""

    path: str  # or the name of a network
    model: Model
    options: InferenceOptions
    source: Source | None = None
    split: Split | None = None
    split_name: str = ""
    images: Tensor = field(default_factory=lambda: torch.empty(0))  # (B, *), of the split or noise
    labels: Tensor | None = None  # theirs; None: random ones
    seed: int = 0

    def batches(self, split: Split) -> Iterator[Batch]:
        """The images of a split as the network gets them."""
        return test_batches(
            split,
            preprocess=self.model.metadata.preprocess,
            batch=self.options.images_per_batch(),
            device=self.model.device,
            workers=self.options.workers,
        )

    def error(self) -> float:
        """Fraction of the split's images that are predicted wrong."""
        assert self.split is not None
        network, classes = self.model.network, self.model.metadata.classes
        return error_rate(predict_scores(network, self.batches(self.split), classes))

    def logged_error(self) -> float:
        """The error of the whole network, which leaves a trace in the folder of a run."""
        error = self.error()
        if self.source and Path(self.path).exists():
            log_test_access(self.path, self.source.digest, self.split_name, error)
        return error

    def training_split(self) -> Split:
        """The training images of the data, without those that a run held out."""
        assert self.source is not None
        if is_trained(self.path):
            return load_setup(self.path, self.source, replace(self.options, split="train")).split
        return pick_split(self.source, "train")


def is_trained(model: str) -> bool:
    """Whether a trained model is meant, rather than the name of a network."""
    return Path(model).exists() or Path(model).name != model or names_weights(model)


def analysis_setup(
    model: str | Path | nn.Module,
    source: Source | None,
    options: InferenceOptions,
    *,
    side: int,
    suitable: SplitName,
) -> AnalysisSetup:
    """The module, or the network of that name or path, with a split of the data.

    It is the split that was asked for, else the `suitable` one.

    New networks are given images of that `side`; 0 is the data's own. Errors as `api.evaluate`.
    """
    if isinstance(model, nn.Module) or not is_trained(str(model)):
        return new_network(model, source, options, side, suitable)
    path = str(model)
    if source is None:
        device = pick_device(options.device)
        loaded = load(path, device=device, fields=options.fields, network=options.network)
        return AnalysisSetup(path, loaded, options)
    if options.split is None and source.automatic and suitable == "val":
        load_setup(path, source, options)  # refuses images that it may have learned
    try:
        setup = load_setup(path, source, replace(options, split=options.split or suitable))
    except DataError:
        if options.split is not None:
            raise
        setup = load_setup(path, source, replace(options, split="test"))
    return AnalysisSetup(path, setup.model, options, source, setup.split, setup.split_name)


def new_network(
    model: str | Path | nn.Module,
    source: Source | None,
    options: InferenceOptions,
    side: int,
    suitable: SplitName,
) -> AnalysisSetup:
    """A network with fresh weights by its name, or a custom module or function."""
    classes, channels = (len(source.classes), source.channels) if source else (None, None)
    name = type(model).__name__ if isinstance(model, nn.Module) else str(model)
    if isinstance(model, nn.Module) or ":" in name:
        network: Any = cast("Any", describe_module(model)).make()
    else:
        network = create(name, classes=classes, channels=channels)
    split, split_name, preprocess = None, "", Preprocess(size=1)  # noise is not preprocessed
    if source:
        split_name = options.split or (suitable if suitable in source.splits else "test")
        split = pick_split(source, split_name)
        size = side or (source.size if isinstance(split.images, Tensor) else 224)
        preprocess = Preprocess(
            size=size, channels=source.channels, mean=source.mean, std=source.std
        )
    arch: Any = getattr(network, "arch", None)  # a custom module does not say
    metadata = ModelMetadata(
        arch=arch, classes=source.classes if source else (), preprocess=preprocess
    )
    device = pick_device(options.device)
    loaded = Model(network.to(device).eval(), metadata, device)
    return AnalysisSetup(name, loaded, options, source, split, split_name)


def with_inputs(setup: AnalysisSetup, shape: tuple[int, ...], seed: int) -> AnalysisSetup:
    """With one batch of the split, drawn at random, and its labels; without a split of noise.

    Raises UsageError where it does not take such inputs, or has other classes.
    """
    generator, count = torch.Generator().manual_seed(seed), setup.options.images_per_batch(BATCH)
    labels, metadata = None, setup.model.metadata
    if setup.split is not None:
        order = torch.randperm(len(setup.split), generator=generator)
        batch = next(setup.batches(setup.split.take(order[:count].sort().values)))
        images, labels = batch.images, batch.labels
    else:
        if not shape and (arch := metadata.arch):
            sides = 0 if isinstance(arch, MlpArch) else getattr(arch, "dims", 2)
            shape = (arch.channels, *(arch.size,) * sides)
        if not shape:
            raise UsageError(f"{setup.path} does not say its input: --input 3x32x32, or give DATA")
        images = torch.randn(count, *shape, generator=generator).to(setup.model.device)
    try:
        with torch.no_grad():
            output = setup.model.network(images[:2])
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        size = "x".join(map(str, images.shape[1:]))
        raise UsageError(f"{setup.path} takes no input of {size}: {shorten(str(error))}") from error
    if setup.split is not None and output.shape[1:] != (len(metadata.classes),):
        raise UsageError(
            f"{setup.path} gives {tuple(output.shape[1:])} for each image, the data has "
            f"{len(metadata.classes)} classes"
        )
    return replace(setup, images=images, labels=labels, seed=seed)

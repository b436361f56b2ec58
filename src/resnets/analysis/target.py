"""What an instrument is applied to: a network, a split of data, and a batch that it takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from resnets.config.arch import MlpArch
from resnets.config.recipe import Preprocess
from resnets.config.types import InferenceOptions, SplitName
from resnets.data.dataset import Source, Split
from resnets.data.loader import Batch, test_batches
from resnets.device import pick_device
from resnets.errors import DataError, UsageError, shorten
from resnets.evaluation import classification, targets
from resnets.evaluation.predictor import Model, load
from resnets.evaluation.scores import error_rate
from resnets.models import create
from resnets.models.external import describe as describe_module
from resnets.models.io.model_file import ModelMetadata
from resnets.training.run import log_test_access

BATCH = 32  # images that are looked at, where no other number is asked for


@dataclass(frozen=True)
class AnalysisTarget:
    """A model, and, where there is data, a split that suits and how its images are read."""

    path: str  # or the name of a network
    model: Model
    how: InferenceOptions
    source: Source | None = None
    split: Split | None = None
    split_name: str = ""

    def batches(self, split: Split) -> Iterator[Batch]:
        """The images of a split as the network sees them."""
        batch, workers = self.how.images_per_batch(), self.how.workers
        preprocess, device = self.model.metadata.preprocess, self.model.device
        return test_batches(
            split, preprocess=preprocess, batch=batch, device=device, workers=workers
        )

    def error(self) -> float:
        """Part of the split's images that are answered wrong."""
        assert self.split is not None
        network, classes = self.model.network, self.model.metadata.classes
        scores = classification.predict_scores(network, self.batches(self.split), classes)
        return error_rate(scores)

    def logged_error(self) -> float:
        """The error of the whole network, which leaves a trace in the folder of a run."""
        error = self.error()
        if self.source and Path(self.path).exists():
            log_test_access(self.path, self.source.digest, self.split_name, error)
        return error


def is_path(model: str) -> bool:
    """Whether a file or a run folder is meant, rather than the name of a network."""
    return Path(model).exists() or Path(model).name != model


def load_target(
    model: str,
    source: Source | None,
    how: InferenceOptions,
    *,
    side: int,
    suitable: SplitName,
) -> AnalysisTarget:
    """The network of that name or path, with the `suitable` split of the data or that asked for.

    New networks are given images of that `side`; 0 is the data's own. Errors as `api.evaluate`.
    """
    if not is_path(model):
        return new_target(model, source, how, side, suitable)
    if source is None:
        device = pick_device(how.device)
        network = load(model, device=device, fields=how.fields, network=how.network)
        return AnalysisTarget(model, network, how)
    if how.split is None and source.automatic and suitable == "val":
        targets.load_target(model, source, how)  # refuses images that it may have learned
    name: SplitName = how.split or suitable
    try:
        target = targets.load_target(model, source, replace(how, split=name))
    except DataError:
        if how.split is not None:
            raise
        name, target = "test", targets.load_target(model, source, how)
    return AnalysisTarget(model, target.model, how, source, target.split, name)


def new_target(
    model: str, source: Source | None, how: InferenceOptions, side: int, suitable: SplitName
) -> AnalysisTarget:
    """A network with fresh weights, by its name or of a person's function."""
    classes, channels = (len(source.classes), source.channels) if source else (None, None)
    if ":" in model:
        network: Any = cast("Any", describe_module(model)).make()
    else:
        network = create(model, classes=classes, channels=channels)
    split, name, preprocess = None, "", Preprocess(size=1)  # noise is not preprocessed
    if source:
        name = how.split or (suitable if suitable in source.splits else "test")
        split = targets.pick_split(source, name)
        size = side or (source.size if isinstance(split.images, Tensor) else 224)
        preprocess = Preprocess(
            size=size, channels=source.channels, mean=source.mean, std=source.std
        )
    arch: Any = getattr(network, "arch", None)  # a person's own module does not say
    names = source.classes if source else ()
    metadata = ModelMetadata(arch=arch, classes=names, preprocess=preprocess)
    device = pick_device(how.device)
    return AnalysisTarget(
        model, Model(network.to(device).eval(), metadata, device), how, source, split, name
    )


def training_split(target: AnalysisTarget) -> Split:
    """The training images of the data, without those that a run held out."""
    assert target.source is not None
    if is_path(target.path):
        how = replace(target.how, split="train")
        return targets.load_target(target.path, target.source, how).split
    return targets.pick_split(target.source, "train")


def input_images(
    target: AnalysisTarget, shape: tuple[int, ...], seed: int
) -> tuple[Tensor, Tensor | None]:
    """One batch that the network takes: of the split, by chance, with labels; else noise.

    Raises UsageError where it does not take such inputs, or answers with other classes.
    """
    generator, count = torch.Generator().manual_seed(seed), target.how.images_per_batch(BATCH)
    labels, metadata = None, target.model.metadata
    if target.split is not None:
        order = torch.randperm(len(target.split), generator=generator)
        batch = next(target.batches(target.split.take(order[:count].sort().values)))
        images, labels = batch.images, batch.labels
    else:
        if not shape and (arch := metadata.arch):
            sides = 0 if isinstance(arch, MlpArch) else getattr(arch, "dims", 2)
            shape = (arch.channels, *(arch.size,) * sides)
        if not shape:
            raise UsageError(f"{target.path} does not say its input: --input 3x32x32, or give DATA")
        images = torch.randn(count, *shape, generator=generator).to(target.model.device)
    try:
        with torch.no_grad():
            answer = target.model.network(images[:2])
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        size = "x".join(map(str, images.shape[1:]))
        raise UsageError(
            f"{target.path} takes no input of {size}: {shorten(str(error))}"
        ) from error
    if target.split is not None and answer.shape[1:] != (len(metadata.classes),):
        raise UsageError(
            f"{target.path} answers each image with {tuple(answer.shape[1:])}, the data has "
            f"{len(metadata.classes)} classes"
        )
    return images, labels

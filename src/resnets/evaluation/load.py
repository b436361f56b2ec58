"""Models from files and runs, and the labels of a split as a model has them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from resnets.config.arch import Arch, ClassifierArch, ExternalArch, MlpArch, VitArch
from resnets.config.families import ARCHS
from resnets.config.preprocessing import (
    IMAGENET,
    PretrainedConfig,
    describe_guess,
    parse_config,
)
from resnets.config.recipe import Preprocess
from resnets.config.types import AS_SAVED, InferenceOptions, InputOptions, TaskName
from resnets.config.weights import WeightsRow, class_names
from resnets.data.dataset import Source, Split, normalization
from resnets.device import pick_device
from resnets.errors import Assumption, CheckpointError, naming_file, quantify
from resnets.escape import shorten
from resnets.evaluation.predictor import MAX_IMAGE_BYTES, Model, bytes_per_image, check_task
from resnets.models.external import describe as describe_module
from resnets.models.io.fetch import locate_weights
from resnets.models.io.model_file import ModelMetadata, open_model
from resnets.models.io.pretrained import config_beside

AnyModel = str | Path | Model


def load_model(
    model: AnyModel, source: Source | None, options: InferenceOptions, task: TaskName | None = None
) -> Model:
    """A model, with the inputs that are asked for; errors as `load`.

    One that is loaded already stays on its device.
    """
    if isinstance(model, Model):
        check_task(model.metadata.arch, model.path, task)
        model = model.with_inputs(options)
    else:
        model = load(
            model,
            device=pick_device(options.device),
            bfloat16=options.precision == "bfloat16",
            classes=source.classes if source else None,
            task=task,
            fields=options.fields,
            network=options.network,
            inputs=options,
        )
    if options.normalize is None:
        return model
    return model.normalized(*normalization(options.normalize, source, model.metadata.arch.channels))


def is_2d(arch: Arch) -> bool:
    """Whether its networks take 2-D images."""
    return not isinstance(arch, MlpArch) and getattr(arch, "dims", 2) == 2


def load(
    path: str | Path,
    *,
    device: torch.device | None = None,
    bfloat16: bool = False,
    classes: Sequence[str] | None = None,
    task: TaskName | None = None,
    fields: Mapping[str, Any] = MappingProxyType({}),
    hints: Mapping[str, Any] = MappingProxyType({}),
    network: str | nn.Module | ExternalArch | None = None,
    inputs: InputOptions = AS_SAVED,
) -> Model:
    """A model from a run folder, one of our model files, a foreign file, or published weights.

    Published weights have a name (`config.weights`) and are downloaded where they are not here.
    Their row says network, classes and preprocessing, of another foreign file a JSON file beside
    it. Else `classes` names the classes, or they are numbered, and the preprocessing is ImageNet's,
    of which an `Assumption` warns. What `inputs` say comes first. What its tensors leave open of
    the network, `fields` settle, and `hints` where they concern it. A custom network needs its code
    again, as `network`: a module, or my_module:function.

    Raises, besides what `locate_weights` does, UsageError where the network is not for the `task`,
    or one of the `fields` is not open; CheckpointError where the file is refused or not recognised,
    or its network takes no 2-D images.
    """
    path, row = locate_weights(path)
    external = None if network is None else describe_module(network)
    said = published_config(row) or config_beside(path)
    hints = {**(said.arch or {}), **hints}
    opened, metadata = open_model(path, fields, external, hints, published_arch(row))
    if not is_2d(opened.arch):
        raise CheckpointError(
            f"{path} takes no 2-D images: resnets.models.io.model_file.open_model gives its network"
        )
    check_task(opened.arch, path, task)
    if metadata is None:
        with naming_file(path):
            metadata = foreign_metadata(opened.arch, classes, said, row)
        guess = "" if row else describe_guess(metadata.preprocess, said, inputs)
        if guess:
            warnings.warn(f"{path}: {guess}", Assumption, stacklevel=2)
    outputs, names = metadata.arch.classes, metadata.classes
    if len(names) != outputs:
        raise CheckpointError(f"{path} has {outputs} outputs, the data has {len(names)} classes")
    device = device or torch.device("cpu")
    size = metadata.preprocess.size
    if (memory := bytes_per_image(opened, size)) > MAX_IMAGE_BYTES:
        raise CheckpointError(
            f"{path}: at preprocess.size {size} an image would take {memory / 2**30:.0f} GiB, the "
            f"limit is {MAX_IMAGE_BYTES >> 30}. Get another file."
        )
    model = Model(opened.to(device).eval(), metadata, device, bfloat16, path)
    return model.with_inputs(inputs)


def published_arch(row: WeightsRow | None) -> Arch | None:
    """The network of a row; None where its tensors have to say it."""
    if row is None or row.model not in ARCHS:
        return None
    arch = replace(ARCHS[row.model], classes=row.classes)
    return replace(arch, size=test_size(row)) if isinstance(arch, VitArch) else arch


def test_size(row: WeightsRow) -> int:
    """The side length of a test image of published weights; 0 where the row does not say it."""
    return (row.test_input_size or row.input_size or (0,))[-1]


def published_config(row: WeightsRow | None) -> PretrainedConfig | None:
    """What a row says of the inputs of its weights, if it does."""
    return parse_config(row.pretrained_cfg) if row and row.pretrained_cfg else None


def foreign_metadata(
    arch: Arch,
    classes: Sequence[str] | None,
    config: PretrainedConfig,
    row: WeightsRow | None = None,
) -> ModelMetadata:
    """What its row or its publisher says of a foreign file, else what is assumed.

    As many `classes` as it has outputs come before the published names. Raises CheckpointError
    where it takes no images, or the publisher speaks of other ones.
    """
    names = tuple(classes or config.class_names(arch.classes) or map(str, range(arch.classes)))
    if row and (not classes or len(names) != arch.classes):
        names = class_names(row) or names
    known = isinstance(arch, ClassifierArch) and arch.size >= 64
    guess = IMAGENET if known else Preprocess(size=arch.size)
    if arch.channels not in (1, 3):
        raise CheckpointError(f"it takes {arch.channels} channels; images have 1 or 3")
    if arch.channels == 1:
        guess = replace(guess, channels=1, mean=(0.449,), std=(0.226,))  # of the three
    preprocess = config.preprocess(guess)
    if isinstance(arch, VitArch):  # which takes one size alone
        resize = preprocess.resize * arch.size // preprocess.size
        preprocess = replace(preprocess, size=arch.size, resize=resize)
    if not isinstance(arch, ClassifierArch):  # whole images
        size = arch.size if row else preprocess.size
        preprocess = replace(preprocess, size=size, resize=0)
    return ModelMetadata(arch=arch, classes=names, preprocess=preprocess)


def match_classes(split: Split, classes: tuple[str, ...], model: Model) -> Split:
    """The split with its labels renumbered by class name to the model's.

    Raises CheckpointError that names the data's classes that the model does not know.
    """
    known = {name: k for k, name in enumerate(model.metadata.classes)}
    if unknown := [name for name in classes if name not in known]:
        plain = {" ".join(name.casefold().split()): name for name in known}
        near = ((name, plain.get(" ".join(name.casefold().split()))) for name in unknown)
        alike = ", ".join(f"{name!r} is {other!r} to it" for name, other in near if other)
        raise CheckpointError(
            f"the model does not know {quantify(len(unknown), 'classes')} of the data: "
            f"{', '.join(unknown[:5])}\nIt knows: {', '.join(model.metadata.classes[:8])}"
            + (f"\nRename what differs in case or space only: {shorten(alike)}" if alike else "")
        )
    table = torch.tensor([known[name] for name in classes], device=split.labels.device)
    if split.labels.ndim == 1:
        return replace(split, labels=table[split.labels])
    if split.objects is None and split.masks and not torch.equal(table, torch.arange(len(table))):
        raise CheckpointError(
            f"the classes of the masks, {', '.join(classes[:8])}, are in another order than the "
            f"model's, {', '.join(model.metadata.classes[:8])}: renumber the masks"
        )
    labels = split.labels.new_zeros(len(split), len(known))
    labels[:, table] = split.labels
    objects = split.objects
    if objects is not None:
        objects = replace(objects, classes=table[objects.classes])
    return replace(split, labels=labels, objects=objects)

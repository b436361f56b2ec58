"""A trained network with what it needs to be used: class names and preprocessing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn

from resnets.config.arch import Arch, ClassifierArch, ExternalArch, MlpArch, SegmenterArch
from resnets.config.arch import task as task_of
from resnets.config.families import label
from resnets.config.recipe import Preprocess
from resnets.config.tasks import TASK_TEXTS
from resnets.config.types import TaskName, View, check_number
from resnets.data.dataset import Split
from resnets.data.decode import warn_clipped
from resnets.data.inputs import Input, expand_inputs, is_single, read_image
from resnets.data.loader import ImageOp, test_batches
from resnets.errors import CheckpointError, DataError, NotFinite, UsageError, shorten
from resnets.escape import visible
from resnets.evaluation import classification, inference
from resnets.evaluation.inference import AnyPrediction
from resnets.evaluation.scores import Scores, ensemble
from resnets.evaluation.tta import passes, view_forward
from resnets.files import check_inputs, find_model_file
from resnets.models import CLASSIFIERS, Classifier, Network
from resnets.models.external import describe as describe_module
from resnets.models.io.model_file import ModelMetadata, open_model

LARGEST = 4 * 2**30  # bytes that an image, or a batch, may take
IMAGENET = Preprocess(size=224, resize=256)


@dataclass(frozen=True)
class Model:
    """A network in evaluation mode, its metadata, and where it computes."""

    network: Network
    metadata: ModelMetadata
    device: torch.device
    bfloat16: bool = False
    path: Path = Path("the network")  # of messages

    def together(self, batch: int, size: int = 0) -> int:
        """How many of `batch` images fit into LARGEST bytes at once."""
        image = bytes_per_image(self.network, size or self.metadata.preprocess.size)
        return max(1, min(batch, LARGEST // image))

    @property
    def classifier(self) -> Classifier:
        """The network. Raises UsageError where it is not for classification."""
        check_task(self.network.arch, self.path, "classify")
        return cast("Classifier", self.network)

    @property
    def several(self) -> bool:
        """Whether it was trained on images with several labels, or none."""
        return self.metadata.provenance.get("labels") == "several"

    def scores(
        self,
        split: Split,
        *,
        view: View = "center",
        size: int = 0,
        batch: int = 250,
        workers: int = 0,
        change: ImageOp | None = None,
    ) -> Scores:
        """The logits of each image of a labelled split whose classes are this model's.

        `view` and `size` are those of `tta.passes`, `change` that of `test_batches`. Raises
        UsageError for a view that the network cannot have.
        """
        preprocess, parts = self.metadata.preprocess, list[Scores]()
        network = view_forward(self.classifier, view, preprocess, size)
        batch = self.together(batch, size)
        for each in passes(view, preprocess, size):
            batches = test_batches(
                split,
                preprocess=each.preprocess,
                batch=max(1, batch // each.load),
                device=self.device,
                workers=workers,
                crops=each.crops,
                change=change,
            )
            scores = classification.predict_scores(
                network,
                batches,
                self.metadata.classes,
                mirrored=each.mirrored,
                temperature=self.metadata.temperature or 1.0,
                bfloat16=self.bfloat16,
            )
            if not torch.isfinite(scores.logits).all():
                raise NotFinite(self.path)
            parts.append(scores)
        return ensemble(parts)

    def normalized(self, mean: tuple[float, ...], std: tuple[float, ...]) -> Model:
        """The same network behind another mean and deviation."""
        preprocess = replace(self.metadata.preprocess, mean=mean, std=std)
        return replace(self, metadata=replace(self.metadata, preprocess=preprocess))

    def predict(
        self, inputs: Input | Iterable[Input], *, top: int = 5, score: float = 0.5, batch: int = 32
    ) -> Any:
        """The answer for one image, or a list of answers for several, in order.

        An image is a path, an open file, its bytes, a PIL image, an array or a tensor: see
        `data.inputs.read_image` for their shapes and ranges. A folder, a pattern, a list of images,
        or a batch of 4 dimensions is several; of an iterator the answers are an iterator.

        A classifier gives a `Prediction` of its `top` classes, a detector a `DetectionPrediction`
        of what has a `score` so high, a localiser a `LocalizationPrediction` and a segmenter a
        `SegmentationPrediction`: see `evaluation.inference`.

        Raises DataError for one image that cannot be read; among several an unreadable file has a
        `problem` in its answer. Raises DataError also for an array of another shape, type or range,
        by its number, UsageError for no input or a number out of range, and NotFinite. At the end
        an `Assumption` warns of images that were clipped at the model's white.
        """
        for name, value in {"top": top, "score": score, "batch": batch}.items():
            check_number(name, value)
        check_inputs(inputs)
        if is_single(inputs):
            (answer,) = self.answers(expand_inputs(inputs), top=top, score=score)
            if answer.problem is not None:
                raise DataError(answer.problem)
            return answer
        answers = self.answers(expand_inputs(inputs), top=top, score=score, batch=batch)
        return answers if isinstance(inputs, Iterator) else list(answers)

    def __call__(self, inputs: Input | Iterable[Input], *, top: int = 5, score: float = 0.5) -> Any:
        """The same as `predict`; `model.network(batch)` gives the logits of a normalised batch."""
        return self.predict(inputs, top=top, score=score)

    def answers(
        self,
        named: Iterable[tuple[str, Input]],
        *,
        top: int = 5,
        score: float = 0.5,
        batch: int = 32,
    ) -> Iterator[Any]:
        """As `predict`, of the images and their names that `expand_inputs` gives."""
        preprocess, rest = self.metadata.preprocess, iter(named)
        # Whole images are large, so those that are not cut to one size are decoded one by one.
        batch = self.together(batch) if isinstance(self.network, CLASSIFIERS) else 1
        greatest = dict[str, int | None]()
        while chunk := list(islice(rest, batch)):
            answers: list[AnyPrediction] = []
            views: dict[int, Tensor] = {}
            for k, (name, item) in enumerate(chunk):
                problem = None
                try:
                    pixels, greatest[name] = read_image(
                        item, preprocess.channels, preprocess.white, name
                    )
                    views[k] = inference.input_view(self, pixels)
                except DataError as error:
                    if not isinstance(item, str | Path | bytes):
                        raise
                    problem = str(error)
                answers.append(inference.unanswered(self, name, problem))
            if views:
                names = [chunk[k][0] for k in views]
                good = inference.predict_views(self, names, list(views.values()), top, score)
                for k, answer in zip(views, good, strict=True):
                    answers[k] = answer
            yield from answers
        warn_clipped(greatest, preprocess.white)

    def __repr__(self) -> str:
        """In one line: the network, its classes and input, and where it came from."""
        rows = describe(self)
        return f"Model({rows['network']}, {rows['input']}, {rows['classes']}, from {rows['file']})"

    def _repr_html_(self) -> str:
        """The same as a table, for notebooks."""
        cells = (
            f"<tr><th>{escape(k)}</th><td>{escape(visible(v))}</td></tr>"
            for k, v in describe(self).items()
        )
        return f"<table>{''.join(cells)}</table>"


def describe(model: Model) -> dict[str, str]:
    """What a model is, a line each."""
    metadata, arch = model.metadata, model.metadata.arch
    names = ", ".join(metadata.classes[:10]) + (", ..." if len(metadata.classes) > 10 else "")
    parameters = sum(p.numel() for p in model.network.parameters())
    size = metadata.preprocess.size
    rows = {
        "network": label(arch),
        "task": task_of(arch),
        "parameters": f"{parameters:,}",
        "input": f"{metadata.preprocess.channels} x {size} x {size}",
        "classes": f"{len(metadata.classes)} classes: {names}",
        "data": metadata.provenance.get("data", ""),
        "device": str(model.device),
        "file": str(model.path),
    }
    return {name: value for name, value in rows.items() if value}


def bytes_per_image(network: Network, size: int) -> int:
    """About how many bytes a forward pass of one image takes: thrice the largest map of floats."""
    arch = network.arch
    levels = getattr(getattr(network, "backbone", network), "levels", {})
    sides = [*levels.values(), (arch.classes if isinstance(arch, SegmenterArch) else 3, 1)]
    return int(12 * max(channels * (size / stride) ** 2 for channels, stride in sides))


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
) -> Model:
    """A model from a run folder, one of our model files, or a foreign weights file.

    A foreign file does not say its classes and preprocessing: `classes` does, else they are
    numbered; the preprocessing is ImageNet's (`Model.normalized` changes mean and deviation). What
    its tensors leave open of the network, `fields` settle, and `hints` where they concern it. A
    file of a network from a person's own code needs that again, as `network`: a module, or
    my_module:function.

    Raises UsageError where there is no such file, the run is not finished, the network is not for
    the `task`, or one of the `fields` is not open; CheckpointError where the file is refused or not
    recognised, or its network takes no 2-D images.
    """
    path = find_model_file(path)
    external = None if network is None else describe_module(network)
    opened, metadata = open_model(path, fields, external, hints)
    if not is_2d(opened.arch):
        raise CheckpointError(
            f"{path} takes no 2-D images: resnets.models.io.model_file.open_model gives its network"
        )
    check_task(opened.arch, path, task)
    metadata = metadata or foreign_metadata(path, opened.arch, classes)
    if len(metadata.classes) != metadata.arch.classes:
        raise CheckpointError(
            f"{path} has {metadata.arch.classes} outputs, "
            f"the data has {len(metadata.classes)} classes"
        )
    device = device or torch.device("cpu")
    size = metadata.preprocess.size
    if (memory := bytes_per_image(opened, size)) > LARGEST:
        raise CheckpointError(
            f"{path}: at preprocess.size {size} an image would take {memory / 2**30:.0f} GiB, the "
            f"limit is {LARGEST >> 30}. Get another file."
        )
    return Model(opened.to(device).eval(), metadata, device, bfloat16, path)


def foreign_metadata(path: Path, arch: Arch, classes: Sequence[str] | None) -> ModelMetadata:
    """What is assumed of a foreign file. Raises CheckpointError where it takes no such images."""
    names = tuple(classes or map(str, range(arch.classes)))
    known = isinstance(arch, ClassifierArch) and arch.size >= 64
    preprocess = IMAGENET if known else Preprocess(size=arch.size)
    if arch.channels not in (1, 3):
        raise CheckpointError(f"{path} takes {arch.channels} channels; images have 1 or 3")
    if arch.channels == 1:
        preprocess = replace(preprocess, channels=1, mean=(0.449,), std=(0.226,))  # of the three
    return ModelMetadata(arch=arch, classes=names, preprocess=preprocess)


def check_task(arch: Arch, path: Path, task: TaskName | None) -> TaskName:
    """What a network is for. Raises UsageError where it is not the `task`."""
    if (own := task_of(arch)) != (task or own):
        command = f"`resnets {TASK_TEXTS[own].command}predict`, or evaluate"
        raise UsageError(f"{path} is not to {task}, but to {own}: {command}")
    return own


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
            f"the model does not know {len(unknown)} classes of the data: "
            f"{', '.join(unknown[:5])}\nIt knows: {', '.join(model.metadata.classes[:8])}"
            + (f"\nRename what differs in case or space only: {shorten(alike)}" if alike else "")
        )
    table = torch.tensor([known[name] for name in classes], device=split.labels.device)
    if split.labels.ndim == 1:
        return replace(split, labels=table[split.labels])
    if split.objects is None and split.masks and not torch.equal(table, torch.arange(len(table))):
        raise CheckpointError(
            f"the classes of the masks, {', '.join(classes[:8])}, stand in another order than the "
            f"model's, {', '.join(model.metadata.classes[:8])}: renumber the masks"
        )
    labels = split.labels.new_zeros(len(split), len(known))
    labels[:, table] = split.labels
    objects = split.objects
    if objects is not None:
        objects = replace(objects, classes=table[objects.classes])
    return replace(split, labels=labels, objects=objects)

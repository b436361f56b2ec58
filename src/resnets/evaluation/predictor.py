"""A trained network with what it needs to be used: class names and preprocessing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from resnets.config.arch import Arch, SegmenterArch, task_for_arch
from resnets.config.families import label
from resnets.config.preprocessing import with_options
from resnets.config.recipe import Preprocess
from resnets.config.tasks import TASK_TEXTS
from resnets.config.types import InputOptions, TaskName, ViewName, check_number
from resnets.data.dataset import Split
from resnets.data.decode import warn_clipped
from resnets.data.inputs import Input, expand_inputs, is_single, read_image
from resnets.data.loader import ImageOp, test_batches
from resnets.data.transforms import center_crop, crop_resize, normalize, statistics
from resnets.errors import DataError, NotFinite, UsageError
from resnets.escape import visible
from resnets.evaluation.loader import LoaderOptions
from resnets.evaluation.scores import Scores, ensemble, predict_scores
from resnets.evaluation.tasks import TASKS, AnyPrediction
from resnets.evaluation.tta import passes, view_forward
from resnets.files import check_inputs
from resnets.models import Classifier, Network
from resnets.models.fuse import fuse_conv_bn
from resnets.models.io.model_file import ModelMetadata
from resnets.models.layers import check_finite

MAX_IMAGE_BYTES = 4 * 2**30  # bytes that an image, or a batch, may take


@dataclass(frozen=True)
class Model:
    """A network in evaluation mode, what its file says of it, and where it computes."""

    network: Network  # a plain torch module
    metadata: ModelMetadata  # classes, preprocessing, provenance
    device: torch.device  # where it computes
    bfloat16: bool = False  # whether forward passes are in bfloat16
    path: Path = Path("the network")  # of messages

    def fitting_batch(self, batch: int, size: int = 0) -> int:
        """How many of `batch` images fit into MAX_IMAGE_BYTES at once."""
        image = bytes_per_image(self.network, size or self.metadata.preprocess.size)
        return max(1, min(batch, MAX_IMAGE_BYTES // image))

    def loader_options(self, batch: int, workers: int = 0) -> LoaderOptions:
        """How the images of a split are read for it; of `batch` as many at once as fit."""
        return LoaderOptions(
            preprocess=self.metadata.preprocess,
            device=self.device,
            batch=self.fitting_batch(batch),
            workers=workers,
        )

    @property
    def classifier(self) -> Classifier:
        """The network. Raises UsageError where it is not for classification."""
        check_task(self.network.arch, self.path, "classify")
        return cast("Classifier", self.network)

    @property
    def multi_label(self) -> bool:
        """Whether it was trained on images with several labels, or none."""
        return self.metadata.provenance.get("labels") == "several"

    def scores(
        self,
        split: Split,
        *,
        view: ViewName = "center",
        size: int = 0,
        batch: int = 250,
        workers: int = 0,
        change: ImageOp | None = None,
    ) -> Scores:
        """The logits of each image of a labelled split whose classes are this model's.

        `view` and `size` are those of `tta.passes`, `change` that of `test_batches`. Raises
        UsageError for a view that the network cannot have, and NotFinite.
        """
        preprocess, scores = self.metadata.preprocess, list[Scores]()
        network = view_forward(self.classifier, view, preprocess, size)
        batch = self.fitting_batch(batch, size)
        for view_pass in passes(view, preprocess, size):
            batches = test_batches(
                split,
                preprocess=view_pass.preprocess,
                batch=max(1, batch // view_pass.load),
                device=self.device,
                workers=workers,
                crops=view_pass.crops,
                change=change,
            )
            scores.append(
                predict_scores(
                    network,
                    batches,
                    self.metadata.classes,
                    mirrored=view_pass.mirrored,
                    temperature=self.metadata.temperature or 1.0,
                    bfloat16=self.bfloat16,
                )
            )
            with name_model_in_errors(self.path):
                check_finite(scores[-1].logits)
        return ensemble(scores)

    def normalized(self, mean: tuple[float, ...], std: tuple[float, ...]) -> Model:
        """The same network behind another mean and deviation."""
        preprocess = replace(self.metadata.preprocess, mean=mean, std=std)
        return replace(self, metadata=replace(self.metadata, preprocess=preprocess))

    def fold_norms(self) -> Model:
        """The same with the network's normalisation folded into its convolutions."""
        return replace(self, network=fuse_conv_bn(self.network))

    def with_inputs(self, options: InputOptions) -> Model:
        """The same network behind the preprocessing that a person asks for; names are not read."""
        preprocess = with_options(self.metadata.preprocess, options)
        return replace(self, metadata=replace(self.metadata, preprocess=preprocess))

    def predict(
        self, inputs: Input | Iterable[Input], *, top: int = 5, score: float = 0.5, batch: int = 32
    ) -> Any:
        """The prediction for one image, or a list of predictions for several, in order.

        An image is a path, an open file, its bytes, a PIL image, an array or a tensor: see
        `data.inputs.read_image` for their shapes and ranges. A folder, a pattern, a list of images,
        or a batch of 4 dimensions is several images; an iterator gives an iterator of predictions.

        A classifier gives a `Prediction` of its `top` classes, a detector a `DetectionPrediction`
        of what has a `score` so high, a localiser a `LocalizationPrediction` and a segmenter a
        `SegmentationPrediction`, each in the file of its task in `evaluation`.

        Raises DataError for one image that cannot be read; among several images the prediction of
        an unreadable file has a `problem`. Raises DataError also for an array of a wrong shape,
        type or range, with its number, UsageError for no input or a number out of range, and
        NotFinite. At the end an `Assumption` warns of images clipped at the model's white.
        """
        for name, value in {"top": top, "score": score, "batch": batch}.items():
            check_number(name, value)
        check_inputs(inputs)
        if is_single(inputs):
            (prediction,) = self.iter_predictions(expand_inputs(inputs), top=top, score=score)
            if prediction.problem is not None:
                raise DataError(prediction.problem)
            return prediction
        predictions = self.iter_predictions(
            expand_inputs(inputs), top=top, score=score, batch=batch
        )
        return predictions if isinstance(inputs, Iterator) else list(predictions)

    def features(
        self,
        images: Input | Iterable[Input],
        *,
        level: str | None = None,
        pooled: bool = True,
        batch: int = 32,
    ) -> Tensor:
        """Features of images, given as for `predict`: float32 (D,) of one, (N, D) of several.

        `level` is one of `network.levels`; without it they are what the classifier's last layer
        gets, D numbers. With `pooled=False` they are the level's maps, (C, H, W) or (N, C, H, W).

        Raises UsageError for a model of another task and for a level that its network does not
        have; DataError for an image that cannot be read; NotFinite.
        """
        from resnets.evaluation.features import feature_function, feature_rows

        check_number("batch", batch)
        check_inputs(images)
        forward = feature_function(self, level, pooled=pooled)
        preprocess, rest, rows = self.metadata.preprocess, expand_inputs(images), list[Tensor]()
        mean, std = statistics(preprocess, self.device)
        while chunk := list(islice(rest, self.fitting_batch(batch))):
            views = []
            for name, item in chunk:
                pixels, _ = read_image(item, preprocess.channels, preprocess.white, name)
                views.append(preprocess_image(torch.from_numpy(pixels), preprocess))
            x = normalize(torch.stack(views).to(self.device), mean, std)
            with name_model_in_errors(self.path):
                rows.append(check_finite(feature_rows(self, forward, x)))
        return rows[0][0] if is_single(images) else torch.cat(rows)

    def __call__(self, inputs: Input | Iterable[Input], *, top: int = 5, score: float = 0.5) -> Any:
        """The same as `predict`; `model.network(batch)` gives the logits of a normalised batch."""
        return self.predict(inputs, top=top, score=score)

    def iter_predictions(
        self,
        named: Iterable[tuple[str, Input]],
        *,
        top: int = 5,
        score: float = 0.5,
        batch: int = 32,
    ) -> Iterator[AnyPrediction]:
        """As `predict`, of the images and their names that `expand_inputs` gives."""
        preprocess, rest = self.metadata.preprocess, iter(named)
        functions, greatest = TASKS[task_for_arch(self.metadata.arch)], dict[str, int | None]()
        # Whole images are large, so those that are not cut to one size are decoded one by one.
        batch = 1 if functions.whole_images else self.fitting_batch(batch)
        while chunk := list(islice(rest, batch)):
            predictions, images = list[AnyPrediction](), dict[int, Tensor]()
            for k, (name, item) in enumerate(chunk):
                problem = None
                try:
                    pixels, greatest[name] = read_image(
                        item, preprocess.channels, preprocess.white, name
                    )
                    image = torch.from_numpy(pixels)
                    if functions.whole_images:
                        images[k] = image.permute(2, 0, 1)
                    else:
                        images[k] = preprocess_image(image, preprocess)
                except DataError as error:
                    if not isinstance(item, str | Path | bytes):
                        raise
                    problem = str(error)
                predictions.append(functions.prediction(name, problem=problem))
            if images:
                names = [chunk[k][0] for k in images]
                views = list(images.values())
                with torch.inference_mode(), name_model_in_errors(self.path):
                    predicted = functions.predict(self, names, views, top, score)
                for k, prediction in zip(images, predicted, strict=True):
                    predictions[k] = prediction
            yield from predictions
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


def preprocess_image(image: Tensor, preprocess: Preprocess) -> Tensor:
    """The test-time view of one decoded image: uint8 (H, W, C) -> uint8 (C, size, size)."""
    box = center_crop(image.shape[0], image.shape[1], preprocess)
    return crop_resize(image.permute(2, 0, 1)[None], box, preprocess)[0]


@contextmanager
def name_model_in_errors(*paths: str | Path) -> Iterator[None]:
    """Name the models whose predictions are not finite, unless that is done already."""
    try:
        yield
    except NotFinite as error:
        if error.path:
            raise
        raise NotFinite(" or ".join(map(str, paths))) from None


def describe(model: Model) -> dict[str, str]:
    """What a model is, a line each."""
    metadata, arch = model.metadata, model.metadata.arch
    names = ", ".join(metadata.classes[:10]) + (", ..." if len(metadata.classes) > 10 else "")
    parameters = sum(p.numel() for p in model.network.parameters())
    size = metadata.preprocess.size
    rows = {
        "network": label(arch),
        "task": task_for_arch(arch),
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


def check_task(arch: Arch, path: Path, task: TaskName | None) -> TaskName:
    """What a network is for. Raises UsageError where it is not the `task`."""
    if (actual := task_for_arch(arch)) != (task or actual):
        command = f"`resnets {TASK_TEXTS[actual].command}predict`, or evaluate"
        raise UsageError(f"{path} is a network to {actual}, not to {task}: {command}")
    return actual

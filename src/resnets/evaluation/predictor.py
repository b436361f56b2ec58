"""A trained network with what it needs to be used: class names and preprocessing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from resnets.config.arch import (
    Arch,
    DenseTaskArch,
    DetectorArch,
    LocalizerArch,
    SegmenterArch,
    task_for_arch,
)
from resnets.config.families import label
from resnets.config.recipe import Preprocess
from resnets.config.tasks import TASK_TEXTS
from resnets.config.types import TaskName, ViewName, check_number
from resnets.data.dataset import Split
from resnets.data.decode import warn_clipped
from resnets.data.detection.targets import DetectionTargets
from resnets.data.inputs import Input, expand_inputs, is_single, read_image
from resnets.data.loader import ImageOp, test_batches
from resnets.data.transforms import center_crop, crop_resize, normalize, statistics
from resnets.errors import DataError, NotFinite, UsageError
from resnets.escape import visible
from resnets.evaluation.classification import predict_batch, predict_scores
from resnets.evaluation.loader import LoaderOptions
from resnets.evaluation.predictions import (
    RECORDS,
    AnyPrediction,
    DetectionPrediction,
    LocalizationPrediction,
    Prediction,
    SegmentationPrediction,
)
from resnets.evaluation.scores import Scores, ensemble
from resnets.evaluation.segmentation import predict_class_maps
from resnets.evaluation.tta import passes, view_forward
from resnets.files import check_inputs
from resnets.models import CLASSIFIERS, Classifier, Network
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

    def predict(
        self, inputs: Input | Iterable[Input], *, top: int = 5, score: float = 0.5, batch: int = 32
    ) -> Any:
        """The prediction for one image, or a list of predictions for several, in order.

        An image is a path, an open file, its bytes, a PIL image, an array or a tensor: see
        `data.inputs.read_image` for their shapes and ranges. A folder, a pattern, a list of images,
        or a batch of 4 dimensions is several images; an iterator gives an iterator of predictions.

        A classifier gives a `Prediction` of its `top` classes, a detector a `DetectionPrediction`
        of what has a `score` so high, a localiser a `LocalizationPrediction` and a segmenter a
        `SegmentationPrediction`: see `evaluation.predictions`.

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
    ) -> Iterator[Any]:
        """As `predict`, of the images and their names that `expand_inputs` gives."""
        preprocess, rest = self.metadata.preprocess, iter(named)
        # Whole images are large, so those that are not cut to one size are decoded one by one.
        batch = self.fitting_batch(batch) if isinstance(self.network, CLASSIFIERS) else 1
        record, greatest = RECORDS[task_for_arch(self.metadata.arch)], dict[str, int | None]()
        # What is kept of a decoded image, uint8 (H, W, C), until the network gets it.
        reduce: Callable[[Tensor], Tensor] = partial(preprocess_image, preprocess=preprocess)
        if isinstance(self.metadata.arch, DenseTaskArch):
            reduce = partial(torch.permute, dims=(2, 0, 1))
        while chunk := list(islice(rest, batch)):
            predictions, images = list[AnyPrediction](), dict[int, Tensor]()
            for k, (name, item) in enumerate(chunk):
                problem = None
                try:
                    pixels, greatest[name] = read_image(
                        item, preprocess.channels, preprocess.white, name
                    )
                    images[k] = reduce(torch.from_numpy(pixels))
                except DataError as error:
                    if not isinstance(item, str | Path | bytes):
                        raise
                    problem = str(error)
                predictions.append(record(name, problem=problem))
            if images:
                names = [chunk[k][0] for k in images]
                predicted = predict_images(self, names, list(images.values()), top, score)
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


@torch.inference_mode()
def predict_images(
    model: Model, files: Sequence[str], images: Sequence[Tensor], top: int, score: float
) -> list[AnyPrediction]:
    """The predictions for images: uint8 (C, size, size) of a classifier, else whole (C, H, W).

    Raises NotFinite.
    """
    pairs = zip(files, images, strict=True)
    with name_model_in_errors(model.path):
        match model.metadata.arch:
            case DetectorArch():
                return [_detect(model, file, image, score) for file, image in pairs]
            case LocalizerArch():
                return [_localize(model, file, image) for file, image in pairs]
            case SegmenterArch():
                return [_segment(model, file, image) for file, image in pairs]
        return [*_classify(model, files, images, top)]


def _classify(
    model: Model, files: Sequence[str], views: Sequence[Tensor], top: int
) -> list[Prediction]:
    names = model.metadata.classes
    images = torch.stack([*views]).to(model.device)
    x = normalize(images, *statistics(model.metadata.preprocess, model.device))
    logits = predict_batch(model.classifier, x, bfloat16=model.bfloat16)
    logits = check_finite(logits / (model.metadata.temperature or 1.0))
    probabilities = logits.sigmoid() if model.multi_label else logits.softmax(1)
    best = probabilities.topk(min(top, probabilities.shape[1]), dim=1)
    rows = zip(files, best.values.tolist(), best.indices.tolist(), strict=True)
    return [Prediction(file, tuple(names[k] for k in ks), tuple(ps)) for file, ps, ks in rows]


def _as_split(image: Tensor) -> Split:
    """A split of one image, uint8 (C, H, W), that is seen whole."""
    sizes, none = torch.tensor([image.shape[1:]]), DetectionTargets.empty(1, 0)
    return Split(image[None], torch.zeros(1, 0), sizes=sizes, objects=none)


def _find_boxes(model: Model, image: Tensor) -> tuple[Any, Tensor]:
    """The output of the network for one image, and the boxes in its pixels: float32 (D, 4)."""
    from resnets.models.detection.boxes import clip  # torchvision takes 1.7 s to import

    ((batch, inside, size),) = model.loader_options(1).sized_batches(_as_split(image))
    network: Any = model.network
    with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=model.bfloat16):
        output = network(batch.images, sizes=inside)
    scale = (size / inside.cpu()).flip(1).repeat(1, 2)[:, None]
    return output, clip(output.boxes.float().cpu() * scale, size)[0]


def _detect(model: Model, file: str, image: Tensor, score: float) -> DetectionPrediction:
    output, boxes = _find_boxes(model, image)
    classes, scores = output.classes[0].cpu(), output.scores[0].float().cpu()
    kept = (classes >= 0) & (scores >= score)
    masks = None
    if output.masks is not None:
        from torchvision.models.detection.roi_heads import paste_masks_in_image

        in_boxes = output.masks[0].float().cpu()[kept][:, None]
        masks = paste_masks_in_image(in_boxes, boxes[kept], image.shape[1:])[:, 0] > 0.5
    labels = tuple(model.metadata.classes[k] for k in classes[kept].tolist())
    return DetectionPrediction(file, boxes[kept], labels, tuple(scores[kept].tolist()), masks)


def _localize(model: Model, file: str, image: Tensor) -> LocalizationPrediction:
    output, boxes = _find_boxes(model, image)
    label, score = model.metadata.classes[int(output.classes[0, 0])], float(output.scores[0, 0])
    return LocalizationPrediction(file, label, tuple(boxes[0].tolist()), score)


def _segment(model: Model, file: str, image: Tensor) -> SegmentationPrediction:
    loader, bfloat16 = model.loader_options(1), model.bfloat16
    maps = predict_class_maps(model.network, _as_split(image), loader, bfloat16=bfloat16)
    ((_, (classes,)),) = maps
    return SegmentationPrediction(file, classes.cpu(), model.metadata.classes)


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

"""Networks in use as functions: `load`, `create`, `predict` and `explain`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from resnets.api import checks
from resnets.api.checks import public
from resnets.config.types import (
    InferenceOptions,
    Interpolation,
    Normalize,
    Precision,
    SplitName,
    TaskName,
)
from resnets.errors import UsageError
from resnets.files import check_inputs, check_outside

if TYPE_CHECKING:
    from torch.nn import Module

    from resnets.analysis.cam import RandomizationCheck
    from resnets.analysis.explain import Explained
    from resnets.config.arch import Arch
    from resnets.data.inputs import Input
    from resnets.data.torch_dataset import Data
    from resnets.evaluation.predictor import Model
    from resnets.models import Network
else:  # so that the annotations can be read without torch
    RandomizationCheck = Explained = Arch = Model = Input = Network = Module = Any
    Data = str | Path | Any


@public
def load(
    path: str | Path, *, task: TaskName | None = None, classes: Sequence[str] | None = None,
    overrides: Mapping[str, Any] | Sequence[str] | None = None, precision: Precision = "float32",
    mean: str | float | Sequence[float] | None = None,
    std: str | float | Sequence[float] | None = None,
    interpolation: Interpolation | None = None, crop: float | None = None,
    network: str | Module | None = None, device: str = "cpu",
) -> Model:  # fmt: skip
    """A model from a run folder, a model file of resnets, or a foreign weights file.

    See `evaluation.load.load`, also for the errors; `overrides` are arch.FIELD=VALUE. A file
    of a custom network needs its code again, as `network`: a module, or my_module:build.

    Args:
        path: A run folder, a model file, or a foreign .pth or .safetensors file.
        classes: Names of the classes, where the file has none.
    """
    options = checks.make_options(InferenceOptions, locals())
    checks.check_models(path)
    from resnets.device import pick_device
    from resnets.evaluation import load as loading

    return loading.load(
        path, device=pick_device(device), bfloat16=precision == "bfloat16", classes=classes,
        task=task, fields=options.fields, network=network, inputs=options,
    )  # fmt: skip


@public
def create(
    model: str | Arch, *, weights: str | Path | None = None, classes: int | None = None,
    channels: int | None = None,
    activation_checkpointing: int = 0, norm_layer: Callable[[int], Module] | None = None,
    act_layer: Callable[[], Module] | None = None,
    shortcut: Callable[[int, int, int], Module] | None = None,
    block: Callable[[int, int, int], Module] | None = None,
) -> Network:  # fmt: skip
    """A network by name or description, with other numbers of classes or input channels.

    A residual network takes custom layers: see `models.create`; it is then trained as a module,
    `train(data, model=network)`.

    Raises UsageError with the nearest known names, and for parts of another kind of network;
    CheckpointError for weights of another network, and all that `load` raises for them.

    Args:
        model: A name from `resnets models`, or an Arch.
        weights: Weights to load: imagenet (the best free ones of the network), a name from
            `resnets weights ls`, a file or a run folder. A classifier for other classes stays new.
        classes: Number of classes; the family's own by default.
        channels: Channels of the images; the family's own by default.
        activation_checkpointing: Training keeps the input of each segment of that many residual
            units and recomputes the rest in the backward pass; 0 keeps everything.
        norm_layer: norm_layer(channels) makes a normalisation.
        act_layer: act_layer() makes an activation.
        shortcut: shortcut(c_in, c_out, stride) makes a shortcut.
        block: block(c_in, c_out, stride) makes a residual unit,
            (N, c_in, H, W) -> (N, c_out, H / stride, W / stride).
    """
    from resnets.config import families
    from resnets.config.weights import full_name

    if isinstance(model, str):
        families.get_arch(model)
    name = model if isinstance(model, str) else families.label(model)
    start = "" if weights is None else full_name(weights, name)
    from resnets import models

    network = models.create(
        model, classes=classes, channels=channels,
        activation_checkpointing=activation_checkpointing,
        norm_layer=norm_layer, act_layer=act_layer, shortcut=shortcut, block=block,
    )  # fmt: skip
    if start:
        from resnets.evaluation import load as loading
        from resnets.training.state import load_pretrained

        load_pretrained(network, loading.load(start).network.state_dict())
    return network


@public
def predict(
    model: str | Path | Model, inputs: Input | Iterable[Input], *, task: TaskName | None = None,
    top: int = 5, out: str | Path | None = None, score: float = 0.5, refine: bool = False,
    scales: str | Sequence[float] = "1", normalize: Normalize | None = None,
    mean: str | float | Sequence[float] | None = None,
    std: str | float | Sequence[float] | None = None,
    interpolation: Interpolation | None = None, crop: float | None = None,
    overrides: Mapping[str, Any] | Sequence[str] | None = None, precision: Precision = "float32",
    network: str | Module | None = None, batch: int | None = None, device: str = "auto",
    workers: int = 2,
) -> Any:  # fmt: skip
    """Predict images: a classifier names classes, other models draw what they find.

    A detector writes pictures and detections.json (COCO's results format, with file names) into the
    new folder `out`, a segmenter a PNG of class indices for each image. A row says what was found
    in an image, or why it cannot be read. Images and categories of COCO data keep their ids; others
    are numbered from 0, or after those.

    In Python an input may also be bytes, a PIL image, an array or a tensor, and the predictions
    are those of `Model.predict`: one for one image, a list for several. With `out` a model
    that draws writes pictures of the files and returns the rows.

    Raises UsageError without inputs or if `out` is not empty; DataError if no image is found.

    Args:
        inputs: Image files, folders or patterns.
        task: The task that the model must be for; any by default.
        top: Number of classes to list.
        out: A new folder for the pictures and the file; predictions by default.
        score: Objects with at least this score are drawn; all are written.
    """
    options = checks.make_options(InferenceOptions, locals())
    checks.check_models(model)
    check_inputs(inputs)
    if out is not None:
        checks.check_empty(Path(out))
    from resnets.analysis.drawing import draw_predictions
    from resnets.evaluation.evaluate import task_of_model
    from resnets.evaluation.load import load_model

    loaded = load_model(model, None, options, task)
    chosen = {"refine": refine, "scales": scales, "top": top, "out": out, "crop": crop}
    checks.refuse_others(predict, task_of_model(loaded, options), chosen)
    if out is not None:
        return draw_predictions(loaded, inputs, Path(out), score, options)
    if refine or options.scales != (1.0,):
        raise UsageError("refine and scales need a folder for pictures: out=...")
    return loaded.predict(inputs, top=top, score=score, batch=options.images_per_batch(32))


@public
def explain(
    model: str | Path | Model, /, *inputs: Input | list[Input], out: str | Path,
    data: Data | None = None, level: str | None = None,
    method: Literal["grad-cam", "occlusion"] = "grad-cam", top: int = 1,
    split: SplitName | None = None, max_unreadable: float = 0.01,
    overrides: Mapping[str, Any] | Sequence[str] | None = None, normalize: Normalize | None = None,
    mean: str | float | Sequence[float] | None = None,
    std: str | float | Sequence[float] | None = None,
    interpolation: Interpolation | None = None, crop: float | None = None,
    network: str | Module | None = None, batch: int | None = None, device: str = "auto",
    workers: int = 2,
) -> list[Explained | RandomizationCheck | dict[str, int]]:  # fmt: skip
    """Explain predictions (Grad-CAM, occlusion), or find the errors and duplicates of a data set.

    In Python returns the explanation of each image, or the number of images of each finding. Raises
    as `evaluate`.

    Args:
        inputs: Image files, folders or patterns to explain.
        out: A new folder for the pictures.
        data: With images: their nearest training images are shown. Alone: the most wrong, most
            uncertain and likely mislabelled images of a split, duplicates of training images, and a
            map.
        level: Feature level for Grad-CAM, e.g. layer3; the last by default.
        method: Occlusion needs no gradients and is slower.
        top: Number of classes to explain for each image.
    """
    options = checks.make_options(InferenceOptions, locals())
    checks.check_models(model)
    if data is None and not inputs:
        raise UsageError("give images, a data set or both: resnets explain MODEL IMAGE --data DATA")
    if not inputs and (level or method != "grad-cam" or top != 1):
        raise UsageError("--level, --method and --top need images to explain")
    images: Any = inputs[0] if len(inputs) == 1 and isinstance(inputs[0], list) else inputs
    if inputs:
        check_inputs(images)
    checks.check_empty(Path(out))
    checks.check_data(data)
    check_outside(Path(out), data)
    from resnets.analysis import explain
    from resnets.evaluation.evaluate import load_data, load_setup
    from resnets.evaluation.load import load_model

    if not inputs:
        return [explore_split(model, data, Path(out), options)]
    known = None
    if data is None:
        loaded = load_model(model, None, options, "classify")
    else:
        options = replace(options, split=split or "train")
        setup = load_setup(model, load_data(data, options), options)
        loaded, known = setup.model, setup.split
    return [
        *explain.explain(
            loaded, images, Path(out), level=level, method=method, top=top, known=known,
            batch=options.images_per_batch(), workers=workers,
        )
    ]  # fmt: skip


def explore_split(
    model: str | Path | Model, data: Any, out: Path, options: InferenceOptions
) -> dict[str, int]:
    """The number of images of a split by finding."""
    from resnets.analysis import explain
    from resnets.evaluation.evaluate import load_data, load_setup
    from resnets.evaluation.scores import error_rate
    from resnets.training.run import log_test_access

    source = load_data(data, options)
    setup = load_setup(model, source, options)
    name, scores = setup.split_name, setup.scores()
    log_test_access(setup.model.path, source.digest, name, error_rate(scores))
    return explain.explore(
        setup.model, setup.split, scores, out,
        train=None if name in ("train", "all") else source.train,
        batch=options.images_per_batch(), workers=options.workers,
    )  # fmt: skip

"""Figures of trained networks as functions: `evaluate`, `calibrate` and `analyze`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from resnets.api import checks
from resnets.api.checks import public
from resnets.api.info import write_report
from resnets.config.tasks import TASK_TEXTS
from resnets.config.types import (
    ERRORS_MEASURED,
    EvaluateOptions,
    InferenceOptions,
    Instrument,
    Interpolation,
    Normalize,
    Precision,
    SplitName,
    TaskName,
)
from resnets.errors import CheckpointError, UsageError
from resnets.files import check_outside, find_model_file, write_whole

if TYPE_CHECKING:
    from torch.nn import Module

    from resnets.analysis.instruments import Analysis, Plot
    from resnets.data.torch_dataset import Data
    from resnets.evaluation.classification import Calibration
    from resnets.evaluation.predictor import Model
    from resnets.evaluation.tasks import Metrics
else:  # so that the annotations can be read without torch
    Calibration = Analysis = Metrics = Model = Module = Any
    Data = str | Path | Any


@public
def evaluate(
    *places: str | Path | Model | Data, task: TaskName | None = None,
    split: SplitName | None = None, view: str | Sequence[str] = "center", compare: bool = False,
    at_precision: float | None = None, ood: Data | None = None, corruptions: bool = False,
    classifier: str | Path | Model | None = None, refine: bool = False,
    scales: str | Sequence[float] = "1", size: int | None = None,
    normalize: Normalize | None = None, mean: str | float | Sequence[float] | None = None,
    std: str | float | Sequence[float] | None = None,
    interpolation: Interpolation | None = None, crop: float | None = None,
    precision: Precision = "float32",
    overrides: Mapping[str, Any] | Sequence[str] | None = None, max_unreadable: float = 0.01,
    network: str | Module | None = None, batch: int | None = None, device: str = "auto",
    workers: int = 2,
) -> Metrics:  # fmt: skip
    """Test MODEL... on one split of DATA; several models form an ensemble.

    In Python whatever is requested beside the figures is in fields of the result. A model may be a
    loaded one, which stays on its device; the data may be a torch Dataset, all of which is used
    unless the model was trained on it; `network` may be a module.

    Raises UsageError without `split` if the data has no splits and is not the training data, for a
    wrong number of models, or for an option of another task; CheckpointError for a file that is
    refused, or models whose classes differ or lack some of the data's; DataError if too many images
    are unreadable, or the data has no such split.

    Args:
        places: Run folders, model files, or foreign .pth or .safetensors files, followed by the
            data.
        task: The task that the models must be for; any by default.
        split: test by default; `all` is for data of which the model has seen no image.
        view: center, flip (adds the mirror image), ten-crop or multi-scale; one for all models, or
            one each, e.g. ten-crop,flip.
        compare: Compare the second of two models with the first: which images changed, and whether
            the difference is significant.
        at_precision: Report the confidence threshold that reaches this precision, and the coverage
            there.
        ood: Out-of-distribution data: report how well confidence tells it apart (AUROC).
        corruptions: Also report the error on noisy, blurred and otherwise corrupted images.
        classifier: A classifier that gives a localiser its five candidate classes.
        refine: Box refinement and voting (1512.03385, appendix B); two-stage detectors only.
        scales: Image scales relative to the model's size, e.g. 0.5,1,1.5. Each region uses the two
            that suit it best (appendix B), a localiser the best box of all (appendix C).
        size: Side length of the input in pixels; the model's own by default.
        normalize: Mean and standard deviation for a foreign file that does not say its own.
        mean: Mean of each channel, or one for all, of pixels in 0..1, e.g. 0.485,0.456,0.406.
        std: Standard deviation, likewise.
        interpolation: How images are resized, where a foreign file does not say it.
        crop: The part of the resized shorter side that is cut out, e.g. 0.875.
        overrides: arch.FIELD=VALUE for what a foreign file leaves open, e.g. arch.stride_on=1x1;
            may be repeated.
        precision: Number format that the network computes in.
        max_unreadable: Fraction of the images that may be unreadable; they are left out.
        network: The code of a custom network, as my_module:build.
        batch: Images per forward pass; by default 128, or 4 for detection, localisation and
            segmentation.
        device: auto, cpu, cuda or cuda:N.
        workers: Number of processes that decode image files.
    """
    arguments = dict(locals())
    models_and_data: tuple[Any, ...] = places or ("",)
    *models, data = models_and_data
    if not models:
        command = TASK_TEXTS[task or "classify"].command
        raise UsageError(f"name a model and the data: resnets {command}evaluate MODEL... DATA")
    checks.check_models(*models, *[classifier] * (classifier is not None))
    checks.check_data(data)
    checks.check_data(ood)
    if (compare and len(models) != 2) or (corruptions and len(models) != 1):
        raise UsageError(f"--compare takes two models, --corruptions one; got {len(models)}")
    if crop is not None and size is not None:
        raise UsageError("with --size the shorter side is as long as the input: omit --crop")
    views = checks.parse_views(view, len(models))
    options = checks.make_options(EvaluateOptions, arguments, views=views)
    from resnets.evaluation.evaluate import load_custom_code, task_of_model
    from resnets.training.run import log_test_access
    from resnets.training.tasks import find_task

    task = task or task_of_model(models[0], options)
    checks.refuse_others(evaluate, task, arguments)
    if network is not None and len(models) > 1:
        models, options = load_custom_code(models, options)
    result: Metrics = find_task(task).evaluate(models, data, options, log_test_access)
    return result


@public
def calibrate(
    model: str | Path, data: Data, /, *, split: Literal["val", "all"] = "val",
    network: str | Module | None = None, device: str = "auto", workers: int = 2,
) -> Calibration:  # fmt: skip
    """Fit a temperature on images that MODEL was not trained on, and store it in the model file.

    The predicted classes stay the same; their probabilities become calibrated (1706.04599). The
    figures and the report of a run are updated.

    Args:
        split: val, the validation images (`--set val_fraction` holds some out), or all, for a data
            set of which the model has seen no image.
    """
    path = find_model_file(model)
    checks.check_data(data)
    from resnets.data import dataset
    from resnets.evaluation.calibration import fit_temperature
    from resnets.evaluation.classification import Calibration, classification_metrics
    from resnets.evaluation.evaluate import load_setup
    from resnets.models.io.model_file import save
    from resnets.training import runner
    from resnets.training.run import Run

    options = InferenceOptions(split=split, network=network, device=device, workers=workers)
    source = dataset.load(data, training=False)
    setup = load_setup(model, source, options)
    metadata = setup.model.metadata
    if not metadata.provenance:
        raise CheckpointError(
            f"{model} is a foreign file, which cannot store a temperature: calibrate a run or "
            "a model file of resnets"
        )
    if split == "all" and metadata.provenance.get("digest") == source.digest:
        raise UsageError(f"{model} was trained on images of {data}: --split val, or other images")
    scores = setup.scores()
    factor = fit_temperature(scores)
    temperature = (metadata.temperature or 1.0) * factor
    save(path, setup.model.network, replace(metadata, temperature=temperature))
    if (path.parent / "result.json").exists():
        runner.rescale_scores(Run(path.parent), factor)
        write_report(Run(path.parent), network=network)
    calibrated = replace(scores, logits=scores.logits / factor)
    before, after = (classification_metrics(x, split) for x in (scores, calibrated))
    return Calibration(temperature, before, after)


@public
def analyze(
    kind: Instrument, model: str | Path | Module, data: Data | None = None, /, *,
    out: str | Path | None = None, input: str = "", seed: int = 0, split: SplitName | None = None,
    max_unreadable: float = 0.01, normalize: Normalize | None = None,
    overrides: Mapping[str, Any] | Sequence[str] | None = None,
    network: str | Module | None = None, batch: int | None = None, device: str = "auto",
    workers: int = 2,
) -> Analysis:  # fmt: skip
    """Analyse MODEL layer by layer: a table, a CSV file, a plot, and a summary in one sentence.

    Without DATA the inputs are Gaussian noise with random labels, with DATA they are training
    images. Errors (lesions, swaps, precise) are measured on the validation images, or on the test
    images where there are none.

    In Python `model` may be a module, of which a copy is analysed.

    Args:
        kind: Responses, signal or gradients by layer; equations of identity shortcuts; lesions or
            swaps of units; paths by length; the loss landscape; precise statistics.
        model: A run folder, a model file, foreign weights, a name from `resnets models` (fresh
            weights), or my_module:build, a function of the working folder that returns a module.
        out: A new folder; analysis/KIND-MODEL by default.
        input: Shape of one input, e.g. 3x32x32, where neither the network nor DATA gives it.
        seed: Seed of fresh weights, noise and sampling.
        batch: Images per forward pass.
    """
    options = checks.make_options(InferenceOptions, locals())
    name = str(model) if isinstance(model, str | Path) else type(model).__name__
    folder = Path(out or Path("analysis", f"{kind}-{Path(name.replace(':', '-')).name}"))
    checks.check_empty(folder)
    shape = parse_shape(input)
    if data is None and kind in ERRORS_MEASURED:
        raise UsageError(f"{kind} measures errors on images: resnets analyze {kind} MODEL DATA")
    check_network(model, overrides)
    checks.check_data(data)
    check_outside(folder, data)
    import torch

    from resnets.analysis import instruments
    from resnets.analysis.setup import analysis_setup, with_inputs
    from resnets.evaluation.evaluate import load_data

    source = None if data is None else load_data(data, options)
    torch.manual_seed(seed)
    side = shape[-1] if shape else 0
    suitable: SplitName = "val" if kind in ERRORS_MEASURED else "train"
    setup = analysis_setup(model, source, options, side=side, suitable=suitable)
    measure, plot = instruments.INSTRUMENTS[kind]
    rows, verdict = measure(with_inputs(setup, shape, seed))
    if source is None:
        verdict += " The inputs were noise, the labels random."
    analysis = instruments.Analysis(rows, verdict, folder)
    write_analysis(analysis, kind, plot)
    return analysis


def write_analysis(analysis: Analysis, kind: str, plot: Plot) -> None:
    """Write the rows of an analysis as KIND.csv and KIND.svg."""
    from resnets.reporting import plots
    from resnets.training.run import Run

    analysis.folder.mkdir(parents=True, exist_ok=True)
    rows = (row.values() for row in analysis.rows)
    Run(analysis.folder).write_csv(f"{kind}.csv", analysis.rows[0], rows)
    write_whole(analysis.folder / f"{kind}.svg", plots.columns(analysis.rows, plot))


def parse_shape(text: str) -> tuple[int, ...]:
    """The shape of one input, from 3x32x32; () from an empty text."""
    if not re.fullmatch(r"([1-9]\d*(x[1-9]\d*)*)?", text):
        raise UsageError(f"--input {text}: write the shape of one input, e.g. 3x32x32")
    return tuple(map(int, text.split("x"))) if text else ()


def check_network(model: object, overrides: object) -> None:
    """Raise UsageError for what is no file, no name of a network and no custom code."""
    if not isinstance(model, str | Path):
        return
    from resnets.config.weights import check_weights, names_weights

    name = str(model)
    if Path(name).exists() or Path(name).name != name or names_weights(name):
        check_weights(name)
    elif overrides:
        raise UsageError(f"--set is for foreign files, and {name} is not one")
    elif ":" not in name:
        from resnets.config import families

        families.get_arch(name)

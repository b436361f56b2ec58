"""What an experiment measures beside the errors of training and test. torch comes inside only."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from resnets.config.types import InferenceOptions, ViewName

if TYPE_CHECKING:
    from resnets.data.dataset import Split
    from resnets.evaluation.predictor import Model
    from resnets.models import Network

Metrics = dict[str, Any]  # by name
# Of trained models, the first of which is the arm's own, on test images.
Evaluate = Callable[[Sequence["Model"], "Split"], Metrics]


def seeded_network(name: str) -> Network:
    """A network with the weights of seed 0."""
    import torch

    from resnets.config.families import get_arch
    from resnets.models import build

    torch.manual_seed(0)
    return build(get_arch(name))


def count_size(name: str) -> Metrics:
    """Layers, parameters and multiply-adds of an image."""
    from resnets.config.families import get_arch
    from resnets.models.cost import cost

    size = cost(get_arch(name))
    return {"layers": get_arch(name).depth, "parameters": size.parameters, "macs": size.macs}


def equation_residual(which: str, name: str) -> Metrics:
    """The relative residual of an equation of 1603.05027 for noise, in double precision.

    "product" is of the shortcuts' scales (eq. 8), as a power of two.
    """
    import torch

    from resnets.analysis import depth

    network = seeded_network(name).double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    if which == "product":
        return {"log2_product": math.log2(depth.shortcut_products(network, x)[0])}
    return {"residual": getattr(depth, which)(network, x)}


def gradient_norms(name: str) -> Metrics:
    """Norms of the layers' first gradients, the classifier's last, for 128 images of noise."""
    import torch

    from resnets.analysis.signal import signal

    network, images = seeded_network(name), torch.randn(128, 3, 32, 32)
    norms = [layer.weight for layer in signal(network, images)]
    return {"gradient_norms": norms, "first_over_last": norms[0] / norms[-1]}


def response_stds(models: Sequence[Model], split: Split) -> Metrics:
    """Standard deviations of the responses of the 3x3 layers on the first 500 test images."""
    import torch

    from resnets.analysis.signal import responses
    from resnets.data.loader import test_batches

    model = models[0]
    see = model.metadata.preprocess
    batch = next(test_batches(split, preprocess=see, batch=500, device=model.device))
    stds = [std for *_, std in responses(model.network, batch.images.contiguous())]
    return {"stds": stds, "median_std": float(torch.tensor(stds).median())}


def classifier_errors(
    view: ViewName, factor: float, models: Sequence[Model], split: Split
) -> Metrics:
    """Errors in % of the models' mean, at a view of images `factor` times as large."""
    from resnets.evaluation.classification import classification_metrics
    from resnets.evaluation.scores import ensemble

    own_size = models[0].metadata.preprocess.size
    size = round(factor * own_size) if factor != 1 else 0  # 0: the model's own
    members = [model.scores(split, view=view, size=size, batch=64) for model in models]
    metrics = classification_metrics(ensemble(members))
    errors = {"test_error": 100 * metrics.error, "top5_error": 100 * (1 - metrics.top5)}
    return errors | {"view": view}


def detector_metrics(
    refine: bool, scales: Sequence[float], models: Sequence[Model], split: Split
) -> Metrics:
    """Averages in % of the models as one, with the improvements of 1512.03385, appendix B."""
    from resnets.evaluation import detection
    from resnets.evaluation.detection import prepare_detector

    options = InferenceOptions(refine=refine, scales=tuple(scales) or (1.0,))
    detector = prepare_detector(models, options)
    loader = models[0].loader_options(batch=4, workers=options.workers)
    predictions = detection.detect(detector, split, loader)
    metrics = detection.evaluate_predictions(predictions, split, models[0].metadata.classes)
    averages = {"map50": metrics.map50, "map": metrics.map, "voc07": metrics.voc07}
    return {name: 100 * value for name, value in averages.items() if value is not None}


def localizer_metrics(scales: Sequence[float], models: Sequence[Model], split: Split) -> Metrics:
    """Errors in % given the class, and of the network's own five classes."""
    from resnets.evaluation.detection import prepare_detector
    from resnets.evaluation.localization import evaluate

    options = InferenceOptions(scales=tuple(scales) or (1.0,))
    network: Any = prepare_detector(models, options)
    loader = models[0].loader_options(batch=4, workers=options.workers)
    metrics = evaluate(network, split, loader)
    return {"given_error": 100 * metrics.error, "five_error": 100 * metrics.top5_error}

"""What `resnets detect`, `localize` and `segment` do, as functions; training is `verbs.train`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, cast

from resnets.errors import CheckpointError, UsageError
from resnets.options import Seen

if TYPE_CHECKING:
    from resnets.data.sources import Source, Split
    from resnets.evaluation.detect import Detect, Detected
    from resnets.evaluation.model import Model
    from resnets.evaluation.scenes import Reading
    from resnets.options import Task
    from resnets.training.tasks import Tested


def loaded(task: Task, path: str | Path, source: Source | None, how: Seen) -> Model:
    """A network of that task; errors as `evaluation.model.load`."""
    from resnets.evaluation.model import load
    from resnets.nets.fold import folded
    from resnets.training.plan import moments, pick_device

    model = load(
        path,
        device=pick_device(how.get("device", "auto")),
        bfloat16=how.get("precision") == "bfloat16",
        classes=source.classes if source else None,
        task=task,
    )
    if normalize := how.get("normalize"):
        model = model.normalized(*moments(normalize, source, model.card.arch.channels))
    return replace(model, network=folded(model.network))


def reading(model: Model, how: Seen) -> Reading:
    """How a model's images are read."""
    from resnets.evaluation.scenes import Reading

    return Reading(
        preprocess=model.card.preprocess,
        device=model.device,
        batch=how.get("batch", 4),
        workers=how.get("workers", 2),
    )


def evaluate(task: Task, *places: str | Path, compare: bool = False, **how: Unpack[Seen]) -> Tested:
    """Test a model, or several detectors as an ensemble, on one split of a data set.

    `places` are the models (run folders, model files, foreign files), then the data. `compare` is
    of the second of two detectors against the first. Errors as `verbs.evaluate`.
    """
    from resnets import assessment
    from resnets.data import sources
    from resnets.evaluation import localize, segment
    from resnets.lifecycle import opened

    *paths, data = places or ("",)
    if not paths:
        raise UsageError(f"name a model and the data: resnets {task} evaluate MODEL... DATA")
    if compare and len(paths) != 2:
        raise UsageError(f"--compare takes two models; here are {len(paths)}")
    source = sources.load(data, max_unreadable=how.get("max_unreadable", 0.01), task=task)
    models = [loaded(task, path, source, how) for path in paths]
    splits = [
        assessment.fair(path, model, source, how.get("split"))
        for path, model in zip(paths, models, strict=True)
    ]
    result: Tested
    split, first, name = splits[0], models[0], how.get("split") or "test"
    if task == "detect":
        result = detected(models, split, name, compare, how)
    elif len(models) > 1:
        raise UsageError(f"only detectors make an ensemble: one model for `resnets {task}`")
    elif task == "localize":
        network: Any = first.network
        result = localize.localization(
            network, split, name=name, bfloat16=first.bfloat16, **reading(first, how)
        )
    else:
        result = segment.segment(
            first.network,
            split,
            first.card.classes,
            name=name,
            bfloat16=first.bfloat16,
            **reading(first, how),
        )
    for path in paths:
        opened(path, source, name, result.error)
    return result


def procedure(models: Sequence[Model], how: Seen) -> Detect:
    """Detectors as one, with the improvements that are asked for. Raises UsageError."""
    from resnets.evaluation.improve import improved
    from resnets.nets.detector import Detector

    refine, scales = how.get("refine", False), tuple(how.get("scales", ())) or (1.0,)
    networks = [model.network for model in models]
    if len(networks) == 1 and not refine and scales == (1.0,):
        return cast("Detect", networks[0])
    two_stages = [network for network in networks if isinstance(network, Detector)]
    if len(two_stages) < len(networks):
        raise UsageError("ensembles, --refine and --scales are for detectors in two stages")
    return improved(two_stages, refine=refine, scales=scales)


def detected(
    models: Sequence[Model], split: Split, name: str, compare: bool, how: Seen
) -> Detected:
    """Figures of detectors as one, or with `compare` of the second against the first."""
    from resnets.evaluation import detect

    first = models[0]
    if any(model.card.classes != first.card.classes for model in models):
        raise CheckpointError("the models know different classes, or in another order")
    founds = [
        detect.find(procedure(some, how), split, bfloat16=first.bfloat16, **reading(first, how))
        for some in ([[model] for model in models] if compare else [models])
    ]
    if not compare:
        return detect.measure(founds[0], split, first.card.classes, name)
    figures = detect.measure(founds[1], split, first.card.classes, name)
    return replace(
        figures, comparison=detect.compare(founds[0], founds[1], split, len(first.card.classes))
    )


def predict(
    task: Task,
    path: str | Path,
    inputs: Sequence[str | Path | bytes],
    out: str | Path,
    *,
    score: float = 0.5,
    **how: Unpack[Seen],
) -> list[dict[str, Any]]:
    """What is on images: pictures in the new folder `out`, and the answer beside them.

    Objects stand in detections.json, in COCO's form of results with the file's name, drawn from
    `score` on; classes of pixels in a PNG of class indices for each image. A row says what was
    found on an image. Raises UsageError where `out` is not empty, DataError for no images.
    """
    from resnets.analysis import drawing
    from resnets.data import sources

    folder = Path(out)
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty: give another, --out")
    model = loaded(task, path, None, how)
    split, bad = sources.unlabelled(list(sources.expand(inputs)))
    rows: list[dict[str, Any]] = [{"file": str(f), "found": why} for f, why in bad]
    if task == "segment":
        return rows + drawing.pixels(model, split, folder, **reading(model, how))
    network = procedure([model], how)
    return rows + drawing.objects(network, model, split, folder, score, **reading(model, how))

"""What `resnets detect`, `localize` and `segment` do, as functions; training is `verbs.train`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, cast

from resnets.errors import CheckpointError, UsageError
from resnets.options import Improved, Seen

if TYPE_CHECKING:
    from torch import Tensor

    from resnets.data.sources import Source, Split
    from resnets.evaluation.detect import Detect, Detected
    from resnets.evaluation.model import Model
    from resnets.evaluation.scenes import Reading
    from resnets.options import Task
    from resnets.training.tasks import Tested


def loaded(task: Task, path: str | Path, source: Source | None, how: Improved) -> Model:
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


def reading(model: Model, how: Improved) -> Reading:
    """How a model's images are read."""
    from resnets.evaluation.scenes import Reading

    return Reading(
        preprocess=model.card.preprocess,
        device=model.device,
        batch=how.get("batch", 4),
        workers=how.get("workers", 2),
    )


def evaluate(
    task: Task,
    *places: str | Path,
    compare: bool = False,
    classifier: str | Path | None = None,
    **how: Unpack[Seen],
) -> Tested:
    """Test a model, or several detectors as an ensemble, on one split of a data set.

    `places` are the models (run folders, model files, foreign files), then the data. `compare` is
    of the second of two detectors against the first; `classifier` a model that says the five
    classes that a localiser looks for. Errors as `classifiers.evaluate`.
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
    if classifier is not None and task != "localize":
        raise UsageError("--classifier is for `resnets localize evaluate`")
    if task == "segment":
        plain(how)
    source = sources.load(data, max_unreadable=how.get("max_unreadable", 0.01), task=task)
    models = [loaded(task, path, source, how) for path in paths]
    splits = [
        assessment.fair(path, model, source, how.get("split"))
        for path, model in zip(paths, models, strict=True)
    ]
    assessment.check_same(splits)
    result: Tested
    split, first, name = splits[0], models[0], how.get("split") or "test"
    if task == "detect":
        result = detected(models, split, name, compare, how)
    elif len(models) > 1:
        raise UsageError(f"only detectors make an ensemble: one model for `resnets {task}`")
    elif task == "localize":
        network: Any = procedure(models, how)
        known = first.card.classes
        named = five(classifier, split, source, known, how) if classifier is not None else None
        result = localize.localization(
            network,
            split,
            predicted=named,
            name=name,
            bfloat16=first.bfloat16,
            **reading(first, how),
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
    allowed = how.get("max_unreadable", 0.01)
    assessment.check_read(result.unreadable, len(split), allowed, f"{name} split of {data}")
    for path in paths:  # of one among several there is no error by itself
        opened(path, source, name, result.error if len(paths) == 1 else None)
    return result


def five(
    path: str | Path, split: Split, source: Source, names: tuple[str, ...], how: Improved
) -> Tensor:
    """What a classifier takes the images of a split for: int64 (N, 5 or all), the best first.

    A foreign file, which names no classes, has to have the data's in their order. Raises
    CheckpointError where its classes are not `names`.
    """
    import torch

    model = loaded("classify", path, source, how)
    if set(model.card.classes) != set(names):
        raise CheckpointError(f"{path} knows other classes than the localiser")
    assert isinstance(split.images, tuple)
    count = min(5, len(names))
    said = model.predict(split.images, top=count, batch=how.get("batch", 4))
    # An image that cannot be read is left out of the figures later.
    rows = [[names.index(name) for name in one.classes] or [0] * count for one in said]
    return torch.tensor(rows).view(-1, count)


def plain(how: Improved) -> None:
    """Raise UsageError for improvements that segmentation does not have."""
    if how.get("refine") or how.get("scales"):
        raise UsageError("--refine and --scales are to detect and localize")


def procedure(models: Sequence[Model], how: Improved) -> Detect:
    """Detectors or a localiser as one, with the improvements that are asked for.

    Raises UsageError.
    """
    from resnets.evaluation.improve import improved
    from resnets.nets.detector import Detector
    from resnets.nets.localizer import Localizer

    refine, scales = how.get("refine", False), tuple(how.get("scales", ())) or (1.0,)
    networks = [model.network for model in models]
    first, *more = networks
    if not more and not refine and isinstance(first, Localizer):
        first.scales = scales
        return first
    if not more and not refine and scales == (1.0,):
        return cast("Detect", first)
    two_stages = [network for network in networks if isinstance(network, Detector)]
    if len(two_stages) < len(networks):
        raise UsageError(
            "ensembles, --refine and --scales are for detectors in two stages, and --scales "
            "for localisers"
        )
    return improved(two_stages, refine=refine, scales=scales)


def detected(
    models: Sequence[Model], split: Split, name: str, compare: bool, how: Seen
) -> Detected:
    """Figures of detectors as one, or with `compare` of the second against the first."""
    from resnets.evaluation import detect

    detect.coco()  # is missed now, not after all images
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
    **how: Unpack[Improved],
) -> list[dict[str, str]]:
    """What is on images: pictures in the new folder `out`, and the answer beside them.

    Objects stand in detections.json, in COCO's form of results with the file's name, drawn from
    `score` on; classes of pixels in a PNG of class indices for each image. Of COCO data, a folder
    or a file, images and categories keep their ids; other images and classes are numbered from 0,
    or after those. A row says what was found on an image, or its problem. Raises UsageError for no
    inputs, or where `out` is not empty; DataError where nothing is found under a name.
    """
    from resnets.analysis import drawing
    from resnets.data import sources
    from resnets.data.coco import Ids

    if not inputs:
        raise UsageError("no input: give image files, folders or globs")
    if task == "segment":
        plain(how)
    folder = Path(out)
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty: give another, --out")
    model = loaded(task, path, None, how)
    files, ids = list[str | Path | bytes](), Ids()
    for item in inputs:
        if isinstance(item, bytes) or not ids.add(Path(item)):
            files += sources.expand([item])
    split, bad = sources.unlabelled([*files, *ids.images])
    if task == "segment":
        rows = drawing.pixels(model, split, folder, **reading(model, how))
    else:
        network = procedure([model], how)
        rows = drawing.objects(network, model, split, folder, score, ids, **reading(model, how))
    return [drawing.row(file, problem=why) for file, why in bad] + rows

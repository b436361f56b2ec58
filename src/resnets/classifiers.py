"""What classifiers are used for, as functions: tested, calibrated, explained, predicted with.

As in `verbs`, torch is imported inside only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, cast

from resnets.errors import CheckpointError, UsageError
from resnets.options import Count, Device, Judged, Read, Tested, Workers

if TYPE_CHECKING:
    from resnets.analysis.cam import Sanity
    from resnets.analysis.explain import Explained
    from resnets.assessment import Calibration
    from resnets.evaluation.metrics import Result
    from resnets.evaluation.model import Prediction
else:  # what the command line reads for these
    Calibration, Explained, Sanity = Any, Any, Any


def evaluate(*places: str | Path, **how: Unpack[Judged]) -> Result:
    """Test a model, or several as an ensemble, on one split of a data set.

    `places` are the models (run folders, model files, foreign .pth or .safetensors files), then the
    data. What is asked for beside the figures (see `Judged`) stands in fields of the result.

    Raises UsageError for no `split`, where the data has none of its own and is not that of the
    training, or models whose number does not suit; CheckpointError for a file that is refused, or
    models that do not know the data's classes or have different ones; DataError where too many
    images are unreadable, or there is no such split.
    """
    from resnets import assessment
    from resnets.data import sources
    from resnets.evaluation import metrics
    from resnets.evaluation.scores import ensemble
    from resnets.lifecycle import opened

    *models, data = places or ("",)
    if not models:
        raise UsageError("name a model and the data: resnets evaluate MODEL... DATA")
    compare, corruptions = how.get("compare", False), how.get("corruptions", False)
    if (compare and len(models) != 2) or (corruptions and len(models) != 1):
        raise UsageError(f"--compare takes two models, --corruptions one; here are {len(models)}")
    view: Any = how.get("view", "center")
    views = (view,) * len(models) if isinstance(view, str) else view
    if len(views) != len(models):
        raise UsageError(f"{len(views)} views for {len(models)} models: one for all, or one each")
    allowed, name = how.get("max_unreadable", 0.01), how.get("split") or "test"
    source = sources.load(data, max_unreadable=allowed)
    tested = cast("Tested", {k: v for k, v in how.items() if k in Tested.__optional_keys__})
    subjects = [
        assessment.subject(path, source, view=each, **tested)
        for path, each in zip(models, views, strict=True)
    ]
    assessment.check_same([each.split for each in subjects])
    scored = [each.scores() for each in subjects]
    said = scored[-1] if compare else ensemble(scored)
    result, bad = metrics.result(said, name), said.unreadable
    assessment.check_read(bad, result.images + len(bad), allowed, f"{name} split of {data}")
    for path, own in dict(zip(map(str, models), scored, strict=True)).items():
        opened(path, source, name, 1 - float(metrics.right(own).double().mean()))
    result = replace(result, unreadable=(*source.unreadable, *bad))
    if compare:
        found, images = metrics.compare(*scored), subjects[0].split.images
        if isinstance(images, tuple):
            fixed, broken = (
                tuple(str(images[int(k)]) for k in part) for part in (found.fixed, found.broken)
            )
            found = replace(found, fixed=fixed, broken=broken)
        result = replace(result, comparison=found)
    if (part := how.get("at_precision")) is not None:
        result = replace(result, abstention=metrics.abstention(said, part))
    if (ood := how.get("ood")) is not None:
        strange = assessment.unlabelled(sources.load(ood, max_unreadable=allowed), said.labels)
        seen = ensemble([replace(each, split=strange).scores() for each in subjects])
        result = replace(result, familiarity=metrics.ood(said, seen))
    if corruptions:
        from resnets.evaluation.corruptions import robustness  # here: torchvision delays a start

        (one,) = subjects
        rows = robustness(one.scores, one.model.card.arch.channels)
        result = replace(result, corruptions=tuple(rows))
    return result


def calibrate(
    model: str | Path,
    data: str,
    /,
    *,
    split: Literal["val", "all"] = "val",
    device: Device = "auto",
    workers: Workers = 2,
) -> Calibration:
    """Fit the temperature of MODEL on images that it was not trained on, and keep it in its file.

    The answers stay the same; their probabilities become what they say (1706.04599). Figures and
    report of a run follow.

    Args:
        split: The validation images, which `--set holdout` keeps from the training, or `all` images
            of a data set that are all new to the model.
    """
    from resnets import assessment
    from resnets.data import sources
    from resnets.evaluation import metrics
    from resnets.lifecycle import rescale
    from resnets.nets.modelfile import save
    from resnets.training.run import Run

    path = Path(model) / "model.safetensors" if Path(model).is_dir() else Path(model)
    source = sources.load(data)
    one = assessment.subject(model, source, split=split, device=device, workers=workers)
    card = one.model.card
    if not card.provenance:
        raise CheckpointError(
            f"{model} is a foreign file, which has no place for a temperature: calibrate a run or "
            "a model file of resnets"
        )
    if split == "all" and card.provenance["digest"] == source.digest:
        raise UsageError(f"{model} was trained on images of {data}: --split val, or other images")
    scores = one.scores()
    factor = metrics.fit_temperature(scores)
    temperature = (card.temperature or 1.0) * factor
    save(path, one.model.network, replace(card, temperature=temperature))
    if (path.parent / "result.json").exists():
        rescale(Run(path.parent), factor)
    after = replace(scores, logits=scores.logits / factor)
    before, after_all = (metrics.result(x, split) for x in (scores, after))
    return assessment.Calibration(temperature, before, after_all)


def explain(
    model: Path,
    /,
    *inputs: str | Path | bytes,
    out: Path,
    data: str | None = None,
    level: str | None = None,
    method: Literal["grad-cam", "occlusion"] = "grad-cam",
    top: Count = 1,
    **how: Unpack[Read],
) -> Iterator[Explained | Sanity | dict[str, int]]:
    """Draw why MODEL answers what it answers: for images, or for a whole data set.

    Given is the answer to each image, or how many there are of each finding; errors as `evaluate`.

    Args:
        inputs: Image files, folders or globs: what speaks for the answer to each.
        out: A new folder for the pictures.
        data: Beside images: their nearest training images. Alone: the most wrong, most unsure and
            likely mislabelled images of a split, duplicates of training images, and a map.
        level: Which level's map Grad-CAM takes, as layer3; the last when left out.
        method: grad-cam, or occlusion, which needs no gradient and is slower.
        top: How many answers are explained.
    """
    from resnets import assessment
    from resnets.analysis import explain as drawing
    from resnets.data import sources
    from resnets.evaluation import metrics
    from resnets.evaluation.model import load
    from resnets.lifecycle import check_outside, opened
    from resnets.training.plan import moments, pick_device

    if data is None and not inputs:
        raise UsageError("give images, a data set or both: resnets explain MODEL IMAGE --data DATA")
    if not inputs and (level or method != "grad-cam" or top != 1):
        raise UsageError("--level, --method and --top are for images: name some")
    source = sources.load(data, max_unreadable=how.get("max_unreadable", 0.01)) if data else None
    if source and data:
        check_outside(out, data)
    reading, known = {"batch": how.get("batch", 128), "workers": how.get("workers", 2)}, None
    if inputs:
        if source:
            chosen: Read = {**how, "split": how.get("split") or "train"}
            one = assessment.subject(model, source, **chosen)
            loaded, known = one.model, one.split
        else:
            place = pick_device(how.get("device", "auto"))
            loaded = load(model, device=place, task="classify")
            if normalize := how.get("normalize"):
                loaded = loaded.normalized(*moments(normalize, None, loaded.card.arch.channels))
        files = list(sources.expand(inputs))
        yield from drawing.explain(
            loaded, files, out, level=level, method=method, top=top, known=known, **reading
        )
    elif source:
        one, name = assessment.subject(model, source, **how), how.get("split") or "test"
        scores = one.scores()
        opened(model, source, name, 1 - float(metrics.right(scores).double().mean()))
        train = None if name in ("train", "all") else source.train
        yield drawing.explore(one.model, one.split, scores, out, train=train, **reading)


def predict(
    model: str | Path,
    inputs: str | Path | bytes | Sequence[str | Path | bytes],
    *,
    top: int = 5,
    device: str = "auto",
) -> Iterator[Prediction]:
    """The most probable classes of image files, folders of images, globs, or bytes."""
    from resnets.data import sources
    from resnets.evaluation.model import load
    from resnets.training.plan import pick_device

    items = [inputs] if isinstance(inputs, str | Path | bytes) else inputs
    files = list(sources.expand(items))
    one = load(model, device=pick_device(device), task="classify")
    return one.predict(files, top=top)

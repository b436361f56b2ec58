"""The report of a run: one HTML file that needs nothing else."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import resize, to_pil_image
from torchvision.utils import make_grid

from resnets.analysis import findings
from resnets.analysis.cam import grad_cam, overlay
from resnets.config.recipe import Preprocess
from resnets.data import dataset
from resnets.data.dataset import Source, Split
from resnets.data.loader import test_batches
from resnets.data.transforms import statistics
from resnets.errors import CheckpointError, DataError, ResnetsError, UsageError
from resnets.escape import visible
from resnets.evaluation import metrics
from resnets.evaluation.predictor import Model, load
from resnets.evaluation.scores import Scores
from resnets.files import write_whole
from resnets.reporting import facts as room
from resnets.reporting import plots, scenes
from resnets.reporting.facts import RunFacts
from resnets.reporting.plots import uri
from resnets.reporting.scenes import Gallery, Picture

EACH, CLASSES = 6, 20  # pictures of a class; classes with pictures, and of a confusion matrix
WORST, BEST = 9, 3  # answers with heat maps
SIDE, THUMB = 224, 64  # pixels of a picture beside its heat map, and of one in a row
HEAT = "Heat map of what spoke for this answer"
RELIABILITY = (
    "How often an answer is right, by its confidence. On the dashed line a network is right as "
    "often as it says, below it is too sure of itself; the larger a dot, the more answers. On "
    "average they are"
)

PAGES = jinja2.Environment(
    loader=jinja2.PackageLoader("resnets.reporting", "."),
    autoescape=jinja2.select_autoescape(["html"]),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    finalize=lambda value: visible(value) if type(value) is str else value,
)
PAGES.filters |= {"percent": room.percent, "quote": shlex.quote}
PAGES.globals |= {"cost": room.cost, "headline": room.headline}


def write(facts: RunFacts, source: Source | None = None, network: Any = None) -> Path:
    """Write report.html into the folder of a run, finished or not; what is missing is said.

    `source` is the run's data where it is at hand; else it is read from where the recipe says.
    `network` is that of `predictor.load`.

    Raises CheckpointError, DiskError.
    """
    run, missing = facts.run, ""
    try:
        source = source or reread(facts)
    except ResnetsError as error:
        missing = f"There are no pictures: {error}"
    splits = source.splits if source else {}
    tested = splits.get(facts.ended.get("split", ""))
    known = facts.scores.indices.tolist() if facts.scores else []
    if tested and max(known, default=-1) >= len(tested):
        raise CheckpointError(f"{run.path} has scores of images that are not in its split")
    show: Callable[..., dict[str, Any]] = scenes.show
    if facts.task.name == "classify":
        model, reason = heat_map_model(facts, network)
        missing = missing or reason
        show = partial(answers, model)
    page = PAGES.get_template("report.html").render(
        facts=facts,
        missing=missing,
        problems=source.problems if source else (),
        notes=source.notes if source else (),
        **show(facts, splits, tested, partial(short, tested)),
    )
    path = run.path / "report.html"
    write_whole(path, page.encode("utf-8", "backslashreplace"))
    return path


def heat_map_model(facts: RunFacts, network: Any) -> tuple[Model | None, str]:
    """The trained model, where there is one that heat maps can be drawn of; else why not."""
    if not facts.run.model.exists():
        return None, ""
    try:
        model = load(facts.run.path, network=network)
    except UsageError as error:
        return None, f"There are no heat maps: {error}"
    if not model.classifier.levels:
        return None, "There are no heat maps: the network has no map (N, C, H, W)."
    return model, ""


def answers(
    model: Model | None,
    facts: RunFacts,
    splits: dict[str, Split],
    tested: Split | None,
    name: Callable[[int], str],
) -> dict[str, Any]:
    """The parts of a classifier's page."""
    scores, result, kinds = facts.scores, facts.result, len(facts.classes)
    counts = {part: split.counts(kinds).tolist() for part, split in splits.items()}
    pictures = list[Gallery]()
    if scores and tested and model:
        right = metrics.is_correct(scores)
        sure = scores.probabilities.amax(1).where(right, -1).argsort(descending=True)
        worst, best = findings.most_wrong(scores, WORST), sure[: min(BEST, int(right.sum()))]
        for title, rows in (("Most wrong", worst), ("Most surely right", best)):
            if len(rows):
                pictures.append((title, "grid", gallery(model, tested, scores, rows, name)))
    figures, chart = room.figures(facts), None
    if scores and result:
        (what, meaning, value), *others = figures
        bounds = " to ".join(map(room.percent, result.interval))
        loss = ("Loss", "mean cross-entropy in nats", f"{result.loss:.4f}")
        figures = [(what, f"{meaning}; {bounds} at 95 % by Wilson", value), *others, loss]
        drawn = plots.svg(plots.reliability(metrics.reliability(scores)), "reliability")
        temperature = model.card.temperature if model else None
        divided = (
            f"; logits are divided by a temperature of {temperature:.3f}" if temperature else ""
        )
        chart = ("reliability", drawn, f"{RELIABILITY} {room.percent(result.ece)} apart{divided}.")
    each = result.per_class() if result else []
    columns = {what: [row[what] for row in each] for what in ("precision", "recall", "f1") if each}
    labels = {f"{part}_error": part for part in ("train", "val", "test")}
    errors = plots.history(facts.rows, labels, "error (%)")
    last = facts.rows[-1] if facts.rows else {}
    ends = [f"{part} {room.percent(last[key])}" for key, part in labels.items() if key in last]
    caption = f"Error by epoch{', at the end ' * bool(ends)}{', '.join(ends)}."
    return {
        "sentences": room.sentences(facts, counts.get("train", []), name),
        "figures": figures,
        "chart": chart,
        "columns": counts | columns,
        "strips": strips(splits["train"], facts) if "train" in splits else [],
        "confusion": result.confusion if result and kinds <= CLASSES else (),
        "matrix": "Rows are the true classes, columns the answers",
        "pictures": pictures,
        "curves": [("curves", plots.svg(errors, "curves"), caption)],
    }


def reread(facts: RunFacts) -> Source:
    """The run's data, split as for the run. Raises DataError where it is gone or another."""
    recipe = facts.recipe
    source = dataset.load(recipe.data, max_unreadable=recipe.max_unreadable, task=facts.task.name)
    if source.digest != facts.source["digest"]:
        raise DataError(f"{facts.data} is no longer the data that the run was trained on.")
    source = dataset.merge_val_into_train(source) if recipe.trainval else source
    return (
        dataset.hold_out(source, recipe.val_fraction, recipe.seed)
        if recipe.val_fraction
        else source
    )


def short(split: Split | None, index: int) -> str:
    """What an image is called, without the place where the data lies."""
    return "/".join(Path(findings.image_name(split, index)).parts[-2:])


def inputs(split: Split, indices: Tensor, see: Preprocess) -> tuple[Tensor, Tensor, Tensor]:
    """What the network sees of images: normalised, as uint8, and which of `indices` were readable.

    Shapes: int64 (n,) -> (m, C, S, S) twice, int64 (m,).
    """
    batches = list(test_batches(split.take(indices), preprocess=see, batch=64, device="cpu"))
    images = torch.cat([batch.images for batch in batches])
    mean, std = statistics(see, "cpu")
    pixels = (255 * (images * std + mean)).round().clamp(0, 255).byte()
    return images, pixels, torch.cat([batch.indices for batch in batches])


def strips(split: Split, facts: RunFacts) -> list[str]:
    """The first images of each of the first classes, side by side."""
    see, drawn = Preprocess(**facts.source["preprocess"]), list[str]()
    first = min(CLASSES, len(facts.classes))
    for has in metrics.target_probabilities(split.labels, first).T[:first]:
        chosen = has.nonzero()[:EACH, 0]
        pixels = inputs(split, chosen, see)[1] if len(chosen) else torch.empty(0)
        if not len(pixels):
            drawn.append("")
            continue
        small = resize(pixels, [min(THUMB, see.size)] * 2, antialias=True).expand(-1, 3, -1, -1)
        opaque = torch.cat([small, torch.full_like(small[:, :1], 255)], 1)  # gaps are clear
        drawn.append(uri(to_pil_image(make_grid(opaque, EACH))))
    return drawn


def gallery(
    model: Model, split: Split, scores: Scores, rows: Tensor, name: Callable[[int], str]
) -> list[Picture]:
    """The images of `rows` of the scores; beside each the Grad-CAM of the most probable class."""
    images, pixels, which = inputs(split, scores.indices[rows], model.card.preprocess)
    scores, classes = scores.take(rows[which]), scores.classes
    given, chances = metrics.predicted_classes(scores), scores.probabilities
    best = scores.logits.argmax(1).to(model.device)
    heats = grad_cam(model.classifier, images.to(model.device), best).cpu()
    shown = []
    for k, has in enumerate(metrics.target_probabilities(scores.labels, len(classes))):
        sure = map(room.percent, chances[k].tolist())
        texts = [f"{name} with {share}" for name, share in zip(classes, sure, strict=True)]
        true, answer = findings.class_names(has, classes), findings.class_names(given[k], texts)
        called, verdict = name(int(scores.indices[k])), f"{true}, answered {answer}"
        plain = to_pil_image(pixels[k]).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        heat = overlay(pixels[k], heats[k]).resize((SIDE, SIDE))
        pair = [(uri(plain), f"{called}: {verdict}"), (uri(heat), HEAT)]
        shown.append({"name": called, "verdict": verdict, "images": pair, "legend": ()})
    return shown

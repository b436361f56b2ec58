"""The report of a classifier: confusions, confidence, heat maps of its predictions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import resize, to_pil_image
from torchvision.utils import make_grid

from resnets.analysis import findings as analysis
from resnets.analysis.cam import grad_cam, overlay
from resnets.config.recipe import Preprocess
from resnets.data.loader import test_batches
from resnets.data.splits import Split, class_presence
from resnets.data.transforms import statistics
from resnets.errors import UsageError
from resnets.evaluation import calibration
from resnets.evaluation.classification import ClassificationMetrics
from resnets.evaluation.load import load
from resnets.evaluation.predictor import Model
from resnets.evaluation.scores import (
    Scores,
    confidences,
    is_correct,
    predicted_classes,
)
from resnets.reporting import plots
from resnets.reporting.facts import RunFacts, figures, percent, times
from resnets.reporting.page import (
    Chart,
    Gallery,
    ImageName,
    Page,
    PageInputs,
    Picture,
    error_curve,
    picture,
)

EACH, CLASSES = 6, 20  # pictures of a class; classes with pictures, and of a confusion matrix
WORST, BEST = 9, 3  # predictions with heat maps
SIDE, THUMB = 224, 64  # pixels of a picture beside its heat map, and of one in a row
HEAT = "Heat map of the regions that support this prediction"
RELIABILITY = (
    "Accuracy by confidence. On the dashed line they are equal, below it the network is "
    "over-confident; the larger a dot, the more predictions. Their mean distance is"
)


def findings(facts: RunFacts, name: ImageName) -> Iterator[str]:
    """Where the network is wrong, and whether its confidence and the labels can be trusted."""
    scores, result = facts.scores, facts.result
    if scores is None or result is None:
        return
    many = 3 if len(scores.classes) <= 20 else 9
    for true, predicted, count in analysis.confusions(scores)[:many]:
        yield f"“{true}” and “{predicted}” are confused {times(count)}."
    rows = [(row["recall"], row["class"]) for row in result.per_class() if row["images"]]
    recall, worst = min(rows, default=(1.0, ""))
    if float(recall) < result.balanced_accuracy - 0.1:
        yield f"The weakest class is “{worst}”: {percent(float(recall))} of its images are found."
    confidence, accuracy = (float(x.double().mean()) for x in confidences(scores))
    means = f"mean confidence {percent(confidence)}, accuracy {percent(accuracy)}"
    if abs(confidence - accuracy) > 0.02:
        much, trust = ("over", "less") if confidence > accuracy else ("under", "more")
        yield f"The network is {much}-confident, trust it {trust} than it says: {means}."
    else:
        yield f"Its confidence is well calibrated: {means}."
    yield from doubtful_labels(scores, name)


def doubtful_labels(scores: Scores, name: ImageName) -> Iterator[str]:
    """Images that look like another class than their label, where they are few."""
    suspects = [] if scores.multi_label else analysis.label_errors(scores).tolist()
    if not 0 < len(suspects) <= analysis.DOUBTFUL * len(scores.labels):
        return
    others = scores.logits.scatter(1, scores.labels[:, None], -math.inf).argmax(1)
    examples = [
        f"{name(int(scores.indices[row]))} (“{scores.classes[scores.labels[row]]}”, "
        f"looks like “{scores.classes[others[row]]}”)"
        for row in suspects[:5]
    ]
    many = "1 label" if len(suspects) == 1 else f"{len(suspects):,} labels"
    yield f"{many} may be wrong, look first at {', '.join(examples)}."


def page(inputs: PageInputs) -> Page:
    """Figures, classes, the most confident predictions with heat maps, and the error curve."""
    facts, splits, kinds = inputs.facts, inputs.splits, len(inputs.facts.classes)
    scores, result = facts.scores, facts.result
    counts = {name: split.counts(kinds).tolist() for name, split in splits.items()}
    model, missing = heat_map_model(facts, inputs.network)
    pictures, chart, rows, columns = list[Gallery](), None, figures(facts), dict[str, list[Any]]()
    if scores and inputs.tested and model:
        pictures = galleries(model, inputs.tested, scores, inputs.name)
    if scores and result:
        (name, meaning, value), *others = rows  # with the interval of the first, and the loss
        bounds = " to ".join(map(percent, result.interval))
        rows = [(name, f"{meaning}; {bounds} at 95 % by Wilson", value), *others]
        rows.append(("Loss", "mean cross-entropy in nats", f"{result.loss:.4f}"))
        chart, per_class = reliability(scores, result, model), result.per_class()
        columns = {key: [row[key] for row in per_class] for key in ("precision", "recall", "f1")}
    return Page(
        figures=rows,
        missing=missing,
        chart=chart,
        columns=counts | columns,
        counts=counts.get("train", []),
        strips=strips(splits["train"], facts) if "train" in splits else [],
        confusion=result.confusion if result and kinds <= CLASSES else (),
        matrix="Rows are the true classes, columns the predicted ones",
        pictures=pictures,
        curves=[error_curve(facts)],
    )


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


def reliability(scores: Scores, result: ClassificationMetrics, model: Model | None) -> Chart:
    """Accuracy by confidence."""
    svg = plots.svg(plots.reliability(calibration.reliability(scores)), "reliability")
    temperature = model.metadata.temperature if model else None
    divided = f"; logits are divided by a temperature of {temperature:.3f}" if temperature else ""
    return "reliability", svg, f"{RELIABILITY} {percent(result.ece)}{divided}."


def galleries(model: Model, tested: Split, scores: Scores, name: ImageName) -> list[Gallery]:
    """The most wrong predictions and the most confident right ones."""
    right = is_correct(scores)
    confidence = scores.probabilities.amax(1).where(right, -1)
    best = confidence.argsort(descending=True)[: min(BEST, int(right.sum()))]
    chosen = {"Most wrong": analysis.most_wrong(scores, WORST), "Most surely right": best}
    return [
        (title, "grid", gallery(model, tested, scores, rows, name))
        for title, rows in chosen.items()
        if len(rows)
    ]


def inputs(split: Split, indices: Tensor, preprocess: Preprocess) -> tuple[Tensor, Tensor, Tensor]:
    """What the network sees of images: normalised, as uint8, and which of `indices` were readable.

    Shapes: int64 (n,) -> (m, C, S, S) twice, int64 (m,).
    """
    few = split.take(indices)
    batches = list(test_batches(few, preprocess=preprocess, batch=64, device="cpu"))
    images = torch.cat([batch.images for batch in batches])
    mean, std = statistics(preprocess, "cpu")
    pixels = (255 * (images * std + mean)).round().clamp(0, 255).byte()
    return images, pixels, torch.cat([batch.indices for batch in batches])


def strips(split: Split, facts: RunFacts) -> list[str]:
    """The first images of each of the first classes, side by side."""
    preprocess, addresses = Preprocess(**facts.source["preprocess"]), list[str]()
    first = min(CLASSES, len(facts.classes))
    for has in class_presence(split.labels, first).T[:first]:
        chosen = has.nonzero()[:EACH, 0]
        pixels = inputs(split, chosen, preprocess)[1] if len(chosen) else torch.empty(0)
        if not len(pixels):
            addresses.append("")
            continue
        sides = [min(THUMB, preprocess.size)] * 2
        small = resize(pixels, sides, antialias=True).expand(-1, 3, -1, -1)
        opaque = torch.cat([small, torch.full_like(small[:, :1], 255)], 1)  # gaps are clear
        addresses.append(plots.image_uri(to_pil_image(make_grid(opaque, EACH))))
    return addresses


def gallery(
    model: Model, split: Split, scores: Scores, rows: Tensor, name: ImageName
) -> list[Picture]:
    """The images of `rows` of the scores; beside each the Grad-CAM of the most probable class."""
    images, pixels, readable = inputs(split, scores.indices[rows], model.metadata.preprocess)
    scores, classes = scores.take(rows[readable]), scores.classes
    predicted, chances = predicted_classes(scores), scores.probabilities
    best = scores.logits.argmax(1).to(model.device)
    heats = grad_cam(model.classifier, images.to(model.device), best).cpu()
    pictures = []
    for k, has in enumerate(class_presence(scores.labels, len(classes))):
        shares = map(percent, chances[k].tolist())
        texts = [f"{kind} with {share}" for kind, share in zip(classes, shares, strict=True)]
        true = analysis.class_names(has, classes)
        label = analysis.class_names(predicted[k], texts)
        file, verdict = name(int(scores.indices[k])), f"{true}, predicted {label}"
        image = to_pil_image(pixels[k]).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        heat = overlay(pixels[k], heats[k]).resize((SIDE, SIDE))
        pair = [(plots.image_uri(image), f"{file}: {verdict}"), (plots.image_uri(heat), HEAT)]
        pictures.append(picture(file, verdict, pair))
    return pictures

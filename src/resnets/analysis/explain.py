"""Folders of pictures with tables beside them: predictions explained, a data set explored."""

from __future__ import annotations

import io
import json
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from resnets.analysis import cam, embedding, findings
from resnets.data.decode import decode
from resnets.data.inputs import Input, expand_inputs, read_image
from resnets.data.splits import Split, class_presence
from resnets.data.transforms import normalize, statistics
from resnets.errors import Assumption, UsageError, quantify
from resnets.escape import visible
from resnets.evaluation.classification import Prediction
from resnets.evaluation.predictor import Model, preprocess_image
from resnets.evaluation.scores import Scores, is_correct, predicted_classes
from resnets.files import write_whole
from resnets.training.run import Run

# Okabe and Ito's colours, with the markers: nobody has to tell 28 classes by colour alone.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
MARKERS = "o^sD"
SHOWN = 24  # images of a contact sheet
POINTS = 2000  # images of a map: t-SNE of more takes minutes and is a blot
NEIGHBOURS = 5
SMALLEST = 16  # side of images in memory, in pixels, of which hashes say something
CHECKED = 4  # images of the randomisation check
COLUMNS = ("image", "label", "answer", "highest probability")  # of tables of images
Tile = tuple[Image.Image, str]  # a picture, and the text above it


@dataclass(frozen=True)
class Explained(Prediction):
    """With the picture that explains it, a file of the folder, and the nearest known images."""

    picture: str | None = None  # a file in the folder
    neighbours: tuple[str, ...] = ()  # files of the nearest known images


def explain(
    model: Model,
    inputs: Input | Iterable[Input],
    out: Path,
    *,
    level: str | None = None,
    method: Literal["grad-cam", "occlusion"] = "grad-cam",
    top: int = 1,
    known: Split | None = None,
    batch: int = 250,
    workers: int = 0,
) -> Iterator[Explained | cam.RandomizationCheck]:
    """Draw the evidence for the `top` classes of each image; the randomisation check comes last.

    The folder gets a picture for each image, and explain.json with all that is yielded here. With
    `known` images, of the model's classes, those whose features are nearest are drawn beside it.

    Raises:
        UsageError: the folder has files already, the network has no such level, or one is named
            for occlusion.
        DiskError: a file cannot be written.
    """
    if level and method == "occlusion":
        raise UsageError(f"occlusion hides parts of the image, not of {level!r}: leave out --level")
    _make_empty_folder(out)
    heatmap: cam.Heatmap = partial(cam.grad_cam, level=level)
    if method == "occlusion":
        heatmap = partial(cam.occlusion, multi_label=model.multi_label)
    vectors = embedding.embeddings(model, known, batch=batch, workers=workers) if known else None
    explained, checked = list[Explained](), list[tuple[Tensor, Tensor]]()
    named = list(expand_inputs(inputs))
    predictions = zip(model.iter_predictions(named, top=top), named, strict=True)
    for number, (prediction, (name, item)) in enumerate(predictions, 1):
        assert isinstance(prediction, Prediction)  # of a classifier
        result = Explained(**asdict(prediction))
        if prediction.problem is None:
            x, targets, tiles = _heatmaps(model, item, prediction, heatmap)
            near = _nearest_images(model, x, known, *vectors) if known and vectors else []
            file = f"{number:04}-{Path(name).stem[:50]}.png"  # 255 bytes are the most
            _write_figure(out / file, contact_sheet([*tiles, *(tile for _, tile in near)]))
            result = replace(result, picture=file, neighbours=tuple(name for name, _ in near))
            if len(checked) < CHECKED:
                checked.append((x, targets[:1]))
        explained.append(result)
        yield result
    facts: dict[str, Any] = {"method": method, "level": level, "images": [*map(asdict, explained)]}
    checks = [_check_randomization(model, checked, heatmap)] if checked else []
    for check in checks:
        facts["sanity"] = {"verdict": check.verdict, **asdict(check)}
    write_whole(out / "explain.json", json.dumps(facts, indent=2).encode())
    yield from checks


def _check_randomization(
    model: Model, checked: Sequence[tuple[Tensor, Tensor]], heatmap: cam.Heatmap
) -> cam.RandomizationCheck:
    images, targets = (torch.cat(column) for column in zip(*checked, strict=True))
    return cam.check_randomization(model.classifier, images, targets, heat=heatmap)


def _heatmaps(
    model: Model, item: Input, prediction: Prediction, heatmap: cam.Heatmap
) -> tuple[Tensor, Tensor, list[Tile]]:
    """The network's input (1, C, H, W), the predicted classes (top,), and pictures.

    The first picture is the image, the others are a heat map for each class.
    """
    preprocess, device, classes = model.metadata.preprocess, model.device, model.metadata.classes
    pixels, _ = read_image(item, preprocess.channels, preprocess.white)
    view = preprocess_image(torch.from_numpy(pixels), preprocess)
    x = normalize(view[None].to(device), *statistics(preprocess, device))
    targets = torch.tensor([classes.index(name) for name in prediction.classes], device=device)
    heats = heatmap(model.classifier, x.expand(len(targets), *x.shape[1:]), targets)
    tiles = [(_to_pil(view), Path(prediction.file).name)]
    for heat, name, probability in zip(
        cam.normalize_heatmap(heats), prediction.classes, prediction.probabilities, strict=True
    ):
        tiles.append((cam.overlay(view, heat), f"{name}  {probability:.1%}"))
    return x, targets, tiles


def _nearest_images(
    model: Model, x: Tensor, known: Split, points: Tensor, indices: Tensor
) -> list[tuple[str, Tile]]:
    """The known images whose embeddings, (N, D), are nearest to that of an input (1, C, H, W)."""
    point = embedding.embedding(model, x)
    cosines, rows = embedding.nearest_neighbours(points, point, NEIGHBOURS)
    near, classes = list[tuple[str, Tile]](), model.metadata.classes
    for index, cosine in zip(indices[rows[0]].tolist(), cosines[0], strict=True):
        (present,) = class_presence(known.labels[index : index + 1], len(classes))
        text = f"{findings.class_names(present, classes)}\ncosine {cosine:.3f}"
        near.append((findings.image_name(known, index), (whole_image(known, index), text)))
    return near


def explore(
    model: Model,
    split: Split,
    scores: Scores,
    out: Path,
    *,
    train: Split | None,
    batch: int = 250,
    workers: int = 0,
) -> dict[str, int]:
    """Draw the images of a split that are worth inspecting, given the model's scores of them.

    The folder gets a CSV file and a picture of each of: the most wrong, the most uncertain, the
    likely mislabelled images, near-duplicates among the training images, and a map of images spread
    over the split. With multiple labels a prediction is the classes above 0.5, maybe none.
    Returns how many there are of each. Raises UsageError and DiskError as `explain`.
    """
    _make_empty_folder(out)
    findings_by_kind = {
        "most-wrong": findings.most_wrong(scores, SHOWN),
        "most-unsure": findings.most_uncertain(scores, SHOWN),
        "mislabelled": findings.label_errors(scores),
    }
    counts = {kind: len(rows) for kind, rows in findings_by_kind.items()}
    if counts["mislabelled"] > findings.DOUBTFUL * len(scores.labels):
        accuracy = format(is_correct(scores).double().mean(), ".0%")
        wrong = quantify(counts["mislabelled"], "labels are likely wrong")
        text = f"{wrong}, says a model that is right on {accuracy}: with so many, doubt the model"
        warnings.warn(text, Assumption, stacklevel=2)
    for kind, rows in findings_by_kind.items():
        images = [whole_image(split, index) for index in scores.indices[rows[:SHOWN]].tolist()]
        _write_table(out / kind, COLUMNS, describe(scores, split, rows), images)
    tiny = isinstance(split.images, Tensor) and min(split.images.shape[2:]) < SMALLEST
    if train and not tiny:
        pairs = embedding.duplicates(split, train, model=model, batch=batch, workers=workers)
        counts["duplicates"] = len(pairs)
        lines = [
            (findings.image_name(split, first), findings.image_name(train, second), *similarity)
            for first, second, *similarity in pairs
        ]
        images = [_side_by_side(split, train, pair) for pair in pairs[:SHOWN]]
        columns = ("image", "training", "bits", "correlation")
        _write_table(out / "duplicates", columns, lines, images)
    rows = torch.linspace(0, len(scores.labels) - 1, min(POINTS, len(scores.labels))).long()
    if len(rows) >= 3:
        sample = split.take(scores.indices[rows])
        points, _ = embedding.embeddings(model, sample, batch=batch, workers=workers)
        _write_map(out, embedding.project(points), describe(scores, split, rows))
        counts["map"] = len(rows)
    return counts


def describe(scores: Scores, split: Split, rows: Tensor) -> list[tuple[str, ...]]:
    """The `COLUMNS` of images, given as rows of their scores."""
    scores = scores.take(rows)
    labels = class_presence(scores.labels, len(scores.classes))
    predicted, confidence = predicted_classes(scores), scores.probabilities.amax(1)
    return [
        (
            findings.image_name(split, index),
            findings.class_names(labels[k], scores.classes),
            findings.class_names(predicted[k], scores.classes),
            f"{confidence[k]:.4f}",
        )
        for k, index in enumerate(scores.indices.tolist())
    ]


def _side_by_side(split: Split, train: Split, pair: embedding.DuplicatePair) -> Image.Image:
    left, right = whole_image(split, pair.first), whole_image(train, pair.second)
    return Image.fromarray(np.hstack([np.asarray(left), np.asarray(right.resize(left.size))]))


def _write_map(
    out: Path, projections: Mapping[str, Tensor], lines: Sequence[tuple[str, ...]]
) -> None:
    """map.csv with each image's place by each method, and map.png."""
    axes = [f"{method} {axis}" for method in projections for axis in "xy"]
    points = torch.cat([*projections.values()], 1).tolist()
    rows = [(*line, *point) for line, point in zip(lines, points, strict=True)]
    _write_table(out / "map", (*COLUMNS, *axes), rows)
    _write_figure(out / "map.png", scatter(projections, [label for _, label, *_ in lines]))


def contact_sheet(tiles: Sequence[Tile], columns: int = 6) -> Figure:
    """Pictures in rows, each under its lines of text."""
    columns = min(columns, len(tiles))
    rows = math.ceil(len(tiles) / columns)
    figure = Figure(figsize=(2.2 * columns, 3.0 * rows), layout="constrained")
    for axes, tile in zip_longest(figure.subplots(rows, columns, squeeze=False).flat, tiles):
        axes.set_axis_off()
        if tile:
            axes.imshow(tile[0], interpolation="bicubic")
            # Of a long path the end tells more.
            text = visible(tile[1], keep="\n").split("\n")
            lines = [line if len(line) < 34 else f"…{line[-32:]}" for line in text]
            axes.set_title("\n".join(lines), fontsize=8, loc="left", parse_math=False)
    return figure


def scatter(projections: Mapping[str, Tensor], labels: Sequence[str]) -> Figure:
    """Points (N, 2) of each method, in the colour and the marker of their label, with its name."""
    figure = Figure(figsize=(6.5 * len(projections), 6.3), layout="constrained")
    names = sorted(set(labels))
    panels = figure.subplots(1, len(projections), squeeze=False)[0]
    for axes, (method, points) in zip(panels, projections.items(), strict=True):
        axes.set(title=method, xticks=[], yticks=[])
        for k, name in enumerate(names):
            members = points[[label == name for label in labels]]
            marker, colour = MARKERS[k % len(MARKERS)], COLOURS[k % len(COLOURS)]
            axes.scatter(*members.T, 10, colour, marker=marker, alpha=0.6, linewidths=0)
            if len(names) <= len(COLOURS) * len(MARKERS):
                box = {"boxstyle": "round,pad=0.2", "fc": "white", "ec": colour, "alpha": 0.85}
                centre = members.median(0).values
                axes.annotate(visible(name), centre, ha="center", bbox=box, parse_math=False)
    return figure


def whole_image(split: Split, index: int) -> Image.Image:
    """One image of a split, whole. Raises DataError for a file that cannot be read any more."""
    if isinstance(split.images, Tensor):
        return _to_pil(split.images[index])
    return Image.fromarray(decode(split.images[index], 3, 0))


def _to_pil(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.expand(3, -1, -1).permute(1, 2, 0).cpu().numpy())


def _make_empty_folder(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise UsageError(f"{out} has files, which nothing here overwrites: choose a new folder")


def _write_figure(path: Path, figure: Figure) -> None:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    write_whole(path, file.getvalue())


def _write_table(
    path: Path,
    columns: Sequence[str],
    lines: Sequence[Sequence[Any]],
    images: Sequence[Image.Image] = (),
) -> None:
    """PATH.csv, and PATH.png with the first lines' images if there are any."""
    Run(path.parent).write_csv(f"{path.name}.csv", columns, lines)
    if images:
        named = (zip(columns, line, strict=True) for line in lines)
        texts = ("\n".join(f"{column} {value}" for column, value in line) for line in named)
        _write_figure(path.with_suffix(".png"), contact_sheet([*zip(images, texts, strict=False)]))

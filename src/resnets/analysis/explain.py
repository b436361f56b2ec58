"""Folders of pictures with their figures beside them: answers explained, a data set explored."""

from __future__ import annotations

import io
import json
import math
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
from resnets.data.splits import Split
from resnets.data.transforms import normalize, statistics
from resnets.errors import UsageError
from resnets.escape import visible
from resnets.evaluation.inference import Prediction, preprocess_image
from resnets.evaluation.predictor import Model
from resnets.evaluation.scores import Scores, class_presence, predicted_classes
from resnets.files import write_whole
from resnets.training.run import Run

# Okabe and Ito's colours, with the markers: nobody has to tell 28 classes by colour alone.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
MARKERS = "o^sD"
SHOWN = 24  # images of a contact sheet
POINTS = 2000  # images of a map: t-SNE of more takes minutes and is a blot
NEIGHBOURS = 5
SMALLEST = 16  # side of images in memory, in pixels, of which hashes say something
CHECKED = 4  # images that the randomisation check looks at
ABOUT = ("image", "label", "answer", "highest probability")  # what is said of each image
Tile = tuple[Image.Image, str]  # a picture, and what stands above it


@dataclass(frozen=True)
class Explained(Prediction):
    """With the picture that says why, a file of the folder, and the known images nearest to it."""

    picture: str | None = None
    neighbours: tuple[str, ...] = ()


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
    """Draw what speaks for the `top` classes of each image; the randomisation check comes last.

    The folder gets a picture for each image, and explain.json with all that is given here. With
    `known` images, of the model's classes, those whose features are nearest are drawn beside it.

    Raises:
        UsageError: the folder has files already, the network has no such level, or one is named
            for occlusion.
        DiskError: a file cannot be written.
    """
    if level and method == "occlusion":
        raise UsageError(f"occlusion hides parts of the image, not of {level!r}: leave out --level")
    _new(out)
    hidden, hot = partial(cam.occlusion, several=model.several), partial(cam.grad_cam, level=level)
    heat = hidden if method == "occlusion" else hot
    see, device, names = model.card.preprocess, model.device, model.card.classes
    explained, seen = list[Explained](), list[tuple[Tensor, Tensor]]()
    if known:
        points, rows = embedding.embeddings(model, known, batch=batch, workers=workers)
    named = list(expand_inputs(inputs))
    answers = zip(model.answers(named, top=top), named, strict=True)
    for number, (said, (name, item)) in enumerate(answers, 1):
        answer = Explained(**asdict(said))
        if said.problem is None:
            pixels, _ = read_image(item, see.channels, see.white)
            shown = preprocess_image(torch.from_numpy(pixels), see)
            x = normalize(shown[None].to(device), *statistics(see, device))
            targets = torch.tensor([names.index(name) for name in said.classes], device=device)
            heats = cam.normalize_heatmap(
                heat(model.classifier, x.expand(len(targets), *x.shape[1:]), targets)
            )
            texts = [f"{c}  {p:.1%}" for c, p in zip(said.classes, said.probabilities, strict=True)]
            tiles = [*zip((cam.overlay(shown, h) for h in heats), texts, strict=True)]
            near = list[str]()
            if known:
                cosines, found = embedding.nearest_neighbours(
                    points, embedding.embedding(model, x), NEIGHBOURS
                )
                which = rows[found[0]]
                near = [findings.image_name(known, index) for index in which.tolist()]
                whose = class_presence(known.labels[which], len(names))
                for index, has, cosine in zip(which.tolist(), whose, cosines[0], strict=True):
                    text = f"{findings.class_names(has, names)}\ncosine {cosine:.3f}"
                    tiles.append((picture(known, index), text))
            file = f"{number:04}-{Path(name).stem[:50]}.png"  # 255 bytes are the most
            _draw(out / file, contact_sheet([(_image(shown), Path(name).name), *tiles]))
            answer = replace(answer, picture=file, neighbours=(*near,))
            seen = [*seen, (x, targets[:1])][:CHECKED]
        explained.append(answer)
        yield answer
    facts: dict[str, Any] = {"method": method, "level": level, "images": [*map(asdict, explained)]}
    if seen:
        images, targets = (torch.cat(column) for column in zip(*seen, strict=True))
        check = cam.check_randomization(model.classifier, images, targets, heat=heat)
        facts["sanity"] = {"verdict": check.verdict, **asdict(check)}
    write_whole(out / "explain.json", json.dumps(facts, indent=2).encode())
    if seen:
        yield check


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
    """Draw what deserves a look in a split of which these are the model's scores.

    The folder gets a CSV file and a picture of each of: the most wrong, the most unsure, the likely
    mislabelled images, near-duplicates among the training images, and a map of images spread over
    the split. Where images have several labels an answer is the classes above 0.5, maybe none.
    Returns how many there are of each. Raises UsageError and DiskError as `explain`.
    """
    _new(out)
    labels, given = (
        class_presence(scores.labels, len(scores.classes)),
        predicted_classes(scores),
    )
    shares = scores.probabilities.amax(1)

    def about(row: int) -> tuple[str, ...]:
        name = findings.image_name(split, int(scores.indices[row]))
        words = (findings.class_names(has[row], scores.classes) for has in (labels, given))
        return name, *words, f"{shares[row]:.4f}"

    found = {
        "most-wrong": findings.most_wrong(scores, SHOWN),
        "most-unsure": findings.most_uncertain(scores, SHOWN),
        "mislabelled": findings.label_errors(scores),
    }
    counts = {kind: len(rows) for kind, rows in found.items()}
    for kind, rows in found.items():
        images = [picture(split, index) for index in scores.indices[rows[:SHOWN]].tolist()]
        _table(out / kind, ABOUT, [*map(about, rows.tolist())], images)
    tiny = isinstance(split.images, Tensor) and min(split.images.shape[2:]) < SMALLEST
    if train and not tiny:
        pairs = embedding.duplicates(split, train, model=model, batch=batch, workers=workers)
        counts["duplicates"] = len(pairs)
        alike = [
            (findings.image_name(split, i), findings.image_name(train, j), *rest)
            for i, j, *rest in pairs
        ]
        sides = ((picture(split, i), picture(train, j)) for i, j, *_ in pairs[:SHOWN])
        beside = (map(np.asarray, (a, b.resize(a.size))) for a, b in sides)
        images = [Image.fromarray(np.hstack([*both])) for both in beside]
        _table(out / "duplicates", ("image", "training", "bits", "correlation"), alike, images)
    rows = torch.linspace(0, len(labels) - 1, min(POINTS, len(labels))).long()
    if len(rows) >= 3:
        chosen = split.take(scores.indices[rows])
        points, _ = embedding.embeddings(model, chosen, batch=batch, workers=workers)
        places = embedding.project(points)
        axes = [f"{method} {axis}" for method in places for axis in "xy"]
        spots = torch.cat([*places.values()], 1).tolist()
        lines = [(*about(row), *spot) for row, spot in zip(rows.tolist(), spots, strict=True)]
        _table(out / "map", (*ABOUT, *axes), lines)
        _draw(out / "map.png", scatter(places, [label for _, label, *_ in lines]))
        counts["map"] = len(rows)
    return counts


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


def scatter(places: Mapping[str, Tensor], labels: Sequence[str]) -> Figure:
    """Points (N, 2) by the method that placed them, in the colour of their label, with its name."""
    figure = Figure(figsize=(6.5 * len(places), 6.3), layout="constrained")
    kinds = sorted(set(labels))
    drawn = figure.subplots(1, len(places), squeeze=False)[0]
    for axes, (method, points) in zip(drawn, places.items(), strict=True):
        axes.set(title=method, xticks=[], yticks=[])
        for k, kind in enumerate(kinds):
            some = points[[label == kind for label in labels]]
            marker, colour = MARKERS[k % len(MARKERS)], COLOURS[k % len(COLOURS)]
            axes.scatter(*some.T, 10, colour, marker=marker, alpha=0.6, linewidths=0)
            if len(kinds) <= len(COLOURS) * len(MARKERS):
                box = {"boxstyle": "round,pad=0.2", "fc": "white", "ec": colour, "alpha": 0.85}
                axes.annotate(
                    visible(kind), some.median(0).values, ha="center", bbox=box, parse_math=False
                )
    return figure


def picture(split: Split, index: int) -> Image.Image:
    """One image of a split, whole. Raises DataError for a file that cannot be read any more."""
    if isinstance(split.images, Tensor):
        return _image(split.images[index])
    return Image.fromarray(decode(split.images[index], 3, 0))


def _image(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.expand(3, -1, -1).permute(1, 2, 0).cpu().numpy())


def _new(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise UsageError(f"{out} has files, which nothing here overwrites: choose a new folder")


def _draw(path: Path, figure: Figure) -> None:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    write_whole(path, file.getvalue())


def _table(
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
        _draw(path.with_suffix(".png"), contact_sheet([*zip(images, texts, strict=False)]))

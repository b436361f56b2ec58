"""The parts of a scene's page: what its network misses, and pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import resize, to_pil_image

from resnets.analysis import drawing
from resnets.data.detection.targets import DetectionTargets
from resnets.data.joint_transforms import class_map
from resnets.data.splits import Shape, Split
from resnets.errors import CheckpointError
from resnets.evaluation import detection, segmentation
from resnets.evaluation.detection import DetectionPredictions
from resnets.evaluation.loading import LoaderOptions
from resnets.evaluation.predictor import Model, load
from resnets.models.detection.boxes import area, intersection_area, iou
from resnets.reporting import facts as room
from resnets.reporting import plots
from resnets.reporting.facts import RunFacts

Name = Callable[[int], str]  # of an image
Picture = dict[str, Any]
Gallery = tuple[str, str, list[Picture]]  # title, class of its element, pictures
Chart = tuple[str, Any, str]  # id, SVG, caption
Parts = tuple[list[str], Chart | None, list[Gallery]]

SHOWN, WORST, LOOKED = 6, 9, 12  # images, misses, images that a segmenter sees for the page
MATRIX = 20  # classes of a confusion matrix
WIDE, NEAR = 512, 320  # pixels of the longer side of an image, and of a part of one
ROOM = 800_000  # letters of a gallery's pictures
HEADS = {"ap": "AP", "ap50": "AP50", "mask_ap": "mask AP", "mask_ap50": "mask AP50", "iou": "IoU"}
MISSED, PLACED = "objects that are not found", "boxes poorly placed (IoU 0.1 to 0.5)"
WRONG, TWICE, NOWHERE = "boxes of the wrong class", "double boxes", "boxes on background"
PRECISION = "How many of the boxes are right, at IoU 0.5, where so many of the objects are found."


def show(
    facts: RunFacts, splits: Mapping[str, Split], tested: Split | None, name: Name
) -> dict[str, Any]:
    """The parts of the page, as those of `report.answers`."""
    ended, kinds, rows, watch = facts.ended, len(facts.classes), facts.rows, facts.recipe.monitor
    said, chart, pictures = list[str](), None, list[Gallery]()
    if tested and ended["images"]:
        make = {"detect": detected, "localize": located, "segment": segmented}[facts.task.name]
        said, chart, pictures = make(facts, tested, name)
    columns, counts = dict[str, list[Any]](), list[int]()
    if train := splits.get("train"):
        columns["train images"] = train.counts(kinds).tolist()
        if train.objects is not None:
            counts = train.objects.count_classes(kinds).tolist()
            columns["train objects"] = counts
            sizes = area(train.objects.boxes[train.objects.is_object])
            small, large = (int(x.sum()) for x in (sizes < 32**2, sizes > 96**2))
            said.append(
                f"Of {len(sizes):,} training objects {small:,} are small, under 32 x 32 pixels, "
                f"and {large:,} large, over 96 x 96."
            )
    each = ended.get("per_class") or [{}]
    for key in [key for key in each[0] if key != "class"]:
        columns[HEADS.get(key, f"{facts.split} {key}")] = [row[key] for row in each]
    confusion = ended.get("confusion", ()) if kinds <= MATRIX else ()
    loss = plots.history(rows, {"loss": "training"}, "loss", 1)
    curves = [("curves", plots.svg(loss, "curves"), "Training loss by epoch.")]
    text = facts.text
    lines = {f"{watch}_{key}": text.figures[key][0] for key in text.metrics.values()}
    if rows and lines.keys() & rows[-1].keys():
        drawn = plots.svg(plots.history(rows, lines, "%"), "watched")
        curves.append(("watched", drawn, f"Figures of {watch} images by epoch."))
    return {
        "sentences": room.sentences(facts, counts, name, said),
        "figures": room.figures(facts),
        "chart": chart,
        "columns": columns,
        "strips": [],
        "confusion": [[round(100 * n / max(1, sum(row))) for n in row] for row in confusion],
        "matrix": "Rows are the true classes, columns the answers, in % of a class's pixels",
        "pictures": pictures,
        "curves": curves,
    }


def detected(facts: RunFacts, split: Split, name: Name) -> Parts:
    """Precision over recall; what the surest detections, as many as objects, find and miss."""
    path, names = facts.run.path / "detections.safetensors", facts.classes
    if not path.exists():
        return [], None, []
    found, total = detection.load(path), facts.ended["objects"]
    for numbers, count in ((found.classes, len(names)), (found.images, len(split))):
        if len(numbers) and int(numbers.max()) >= count:
            raise CheckpointError(f"{path} is of other classes or images than those of the run")
    each = detection.figures(found, split, "bbox", len(names)).precision
    curves = plots.precision({k: v for k, v in zip(names, each, strict=True) if v})
    # As many as there are objects: there precision equals recall.
    *_, least = (2.0, *found.scores.sort(descending=True).values[:total].tolist())
    sure = take(found, found.scores >= least)
    right, wrong = misses(sure, split, names)
    parts = [
        f"{kind} {count:,} ({room.percent(count / len(wrong))})"
        for kind, count in Counter(miss.kind for miss in wrong).most_common()
    ]
    said = [
        f"The {len(sure.scores):,} surest boxes, of a score from {least:.2f} on, find {right:,} of "
        f"{total:,} objects; resnets detect predict --score {least:.2f} draws such ones.",
        f"What is wrong with them: {'; '.join(parts) or 'nothing'}.",
    ]
    close = within(closer(miss, sure, split, names, name) for miss in worst(wrong))
    pictures = [
        ("True and found objects", "columns wide", gallery(sure, split, names, name)),
        ("Worst misses", "columns", close),
    ]
    chart = ("precision", plots.svg(curves, "precision"), PRECISION) if total else None
    return said, chart, [shown for shown in pictures if shown[2]]


def located(facts: RunFacts, split: Split, name: Name) -> Parts:
    """Some images, and the surest box of each."""
    model, chosen = load(facts.run.path, task="localize"), some(torch.arange(len(split)), SHOWN)
    few = split.take(chosen)
    found = detection.detect(cast(Any, model.network), few, reading(model))
    many = torch.bincount(found.images)
    best = take(found, (many.cumsum(0) - many)[many > 0])  # the surest come first
    shown = gallery(best, few, facts.classes, lambda index: name(int(chosen[index])))
    return [], None, [("True objects and the surest box", "columns wide", shown)]


def segmented(facts: RunFacts, split: Split, name: Name) -> Parts:
    """Some images with the classes of their pixels, the worst first."""
    model, chosen = load(facts.run.path, task="segment"), some(torch.arange(len(split)), LOOKED)
    names, few, shown = facts.classes, split.take(chosen), list[tuple[float, Picture]]()
    for batch, maps in segmentation.class_maps(model.network, few, reading(model)):
        for index, own in zip(batch.indices.tolist(), maps, strict=True):
            given, file = own.cpu(), cast(Path, few.masks[index])
            true = torch.from_numpy(class_map(file, *given.shape)).long()
            counts = segmentation.confusion(true, given, len(names))
            share = segmentation.segmentation_metrics(
                F.pad(counts.flatten(), (1, 0)), names, []
            ).mean_iou
            both = counts.sum(0) + counts.sum(1)
            most = both.argsort(descending=True, stable=True)[:6]
            image, whole = (
                drawing.read_predictions(few, index),
                (0, 0, given.shape[1], given.shape[0]),
            )
            picture = {
                "name": name(int(chosen[index])),
                "verdict": f"Mean IoU {room.percent(share)}",
                "images": [
                    (part(drawing.draw_mask(image, x, len(names)), whole, WIDE), f"{what} classes")
                    for what, x in (("True", true), ("Given", given))
                ],
                "legend": [(drawing.colour(k), names[k]) for k in most.tolist() if both[k]],
            }
            shown.append((share, picture))
    ranked = [picture for _, picture in sorted(shown, key=lambda pair: pair[0])]
    title = f"True and given classes, from the worst to the best of {len(shown)} images"
    best = within(ranked[k] for k in some(torch.arange(len(ranked)), SHOWN).tolist())
    return [], None, [(title, "columns wide", best)]


def reading(model: Model) -> LoaderOptions:
    """How the few images of a page are read."""
    return LoaderOptions(preprocess=model.card.preprocess, device=model.device, batch=4)


@dataclass(frozen=True, slots=True)
class Miss:
    """An object that is not found, or a detection that is wrong."""

    kind: str
    image: int
    row: int  # of the image's objects; of the detections
    box: Tensor  # (4,)
    weight: float  # what makes it bad: the object's pixels, the detection's score
    said: str


def misses(
    found: DetectionPredictions, split: Split, names: Sequence[str]
) -> tuple[int, list[Miss]]:
    """How many detections are right, and what is wrong (after Bolya et al. 2020, 2008.08115).

    An object that a wrong detection explains is not missed. Detections of which half is on an
    ignored object do not count.
    """
    right, every = 0, list[Miss]()
    for image in found.indices.tolist():
        truth = objects(split, image)
        truth = truth.pad(len(truth) + 1)  # one at least, if only of padding
        mine, real = (found.images == image).nonzero()[:, 0], truth.is_object
        boxes, same = found.boxes[mine], found.classes[mine, None] == truth.classes
        share, both = iou(boxes, truth.boxes), intersection_area(boxes, truth.boxes)
        hits, claimed = (share * (same & real)).max(1)
        others, mixed = (share * (~same & real)).max(1)
        ignored = (both * truth.is_ignored).amax(1) > area(boxes) / 2
        free, explained = {*real.nonzero()[:, 0].tolist()}, set[int]()
        for k in found.scores[mine].argsort(descending=True, stable=True).tolist():
            row, own, other, end = int(mine[k]), int(claimed[k]), int(mixed[k]), ""
            if right_one := hits[k] >= 0.5 and own in free:
                free.remove(own)
                right += 1
            if right_one or ignored[k]:
                continue
            if hits[k] >= 0.5:
                kind = TWICE
            elif others[k] >= 0.5:
                kind, end = WRONG, f", marked as “{names[int(truth.classes[other])]}”"
                explained.add(other)
            elif hits[k] >= 0.1:
                kind = PLACED
                explained.add(own)
            else:
                kind, end = NOWHERE, ", where none is marked"
            score = float(found.scores[row])
            said = f"“{names[int(found.classes[row])]}” with {score:.2f}{end}"
            every.append(Miss(kind, image, row, boxes[k], score, said))
        for row in sorted(free - explained):
            box, which = truth.boxes[row], names[int(truth.classes[row])]
            width, height = (box[2:] - box[:2]).tolist()
            said = f"“{which}” of {width:.0f} x {height:.0f} pixels is not found"
            every.append(Miss(MISSED, image, row, box, width * height, said))
    return right, every


def worst(wrong: Sequence[Miss]) -> list[Miss]:
    """The largest objects that are not found, then the surest boxes of another class or nothing."""
    heavy = sorted(wrong, key=lambda miss: -miss.weight)
    large = [miss for miss in heavy if miss.kind == MISSED][: WORST // 2 + 1]
    return [*large, *(miss for miss in heavy if miss.kind in (WRONG, NOWHERE))][:WORST]


def objects(split: Split, index: int) -> DetectionTargets:
    """Those of an image, ignored ones too: (n,)."""
    assert split.objects is not None
    targets = split.objects[index]
    return targets[~targets.is_padding]


def take(found: DetectionPredictions, rows: Tensor) -> DetectionPredictions:
    """Some of the detections."""
    which = torch.arange(len(found.scores))[rows].tolist()
    return replace(
        found,
        images=found.images[rows],
        classes=found.classes[rows],
        scores=found.scores[rows],
        boxes=found.boxes[rows],
        masks=found.masks and tuple(found.masks[k] for k in which),
    )


def true(split: Split, index: int, names: Sequence[str], only: slice = slice(None)) -> Tensor:
    """An image with its objects, or `only` some: uint8 (3, H, W)."""
    assert split.sizes is not None
    rows, (height, width) = objects(split, index)[only], split.sizes[index].tolist()
    kinds = rows.classes.tolist()
    shapes = cast(tuple[Shape, ...], split.masks[index] if split.masks else ())[only]
    runs = [detection.rle(shape, height, width)["counts"] for shape in shapes]
    masks = torch.stack([detection.decoded((height, width, x)) for x in runs]) if runs else None
    words = [names[k] for k in kinds]
    return drawing.draw_box(drawing.read_predictions(split, index), rows.boxes, kinds, words, masks)


def part(picture: Tensor, window: Sequence[int], side: int) -> str:
    """What x1, y1, x2, y2 hold of it, its longer side made `side`, as an address."""
    x1, y1, x2, y2 = window
    sides = [max(1, side * n // max(x2 - x1, y2 - y1)) for n in (y2 - y1, x2 - x1)]
    return plots.uri(to_pil_image(resize(picture[:, y1:y2, x1:x2], sides, antialias=True)))


def gallery(
    found: DetectionPredictions, split: Split, names: Sequence[str], name: Name
) -> list[Picture]:
    """Whole images, with their objects and with what was found."""

    def told(classes: Tensor) -> str:
        counts = Counter(names[k] for k in classes.long().tolist()).most_common()
        return ", ".join(f"{count} {what}" for what, count in counts) or "nothing"

    def picture(index: int) -> Picture:
        pair = true(split, index, names), drawing.draw_prediction(split, index, found, names, 0)
        window = (0, 0, pair[0].shape[2], pair[0].shape[1])
        given = told(found.classes[found.images == index])
        said = (f"True: {told(objects(split, index).classes)}", f"Found: {given}")
        images = [(part(x, window, WIDE), text) for x, text in zip(pair, said, strict=True)]
        return {"name": name(index), "verdict": ". ".join(said), "images": images, "legend": ()}

    return within(map(picture, some(found.indices, SHOWN).tolist()))


def closer(
    miss: Miss, found: DetectionPredictions, split: Split, names: Sequence[str], name: Name
) -> Picture:
    """Around a miss: the object alone and all that was found, or all objects and the box."""
    is_object = miss.kind == MISSED
    only = slice(miss.row, miss.row + 1) if is_object else slice(None)
    shown = found if is_object else take(found, torch.tensor([miss.row]))
    pair = (
        true(split, miss.image, names, only),
        drawing.draw_prediction(split, miss.image, shown, names, 0),
    )
    limits = torch.tensor(pair[0].shape[:0:-1])  # width and height
    corner, end = miss.box.view(2, 2)
    sides = (2 * (end - corner).amax()).clamp(min=80).minimum(limits)
    start = ((corner + end - sides) / 2).clamp(min=0).minimum(limits - sides)
    window = torch.cat([start, start + sides]).int().tolist()
    alts = ("The object", "What was found") if is_object else ("The objects", "The box")
    images = [(part(x, window, NEAR), alt) for x, alt in zip(pair, alts, strict=True)]
    return {"name": name(miss.image), "verdict": miss.said, "images": images, "legend": ()}


def within(pictures: Iterable[Picture]) -> list[Picture]:
    """As many of them, from the first on, as there is room for."""
    shown = list(pictures)
    letters = accumulate(sum(len(x) for x, _ in picture["images"]) for picture in shown)
    return [picture for picture, end in zip(shown, letters, strict=True) if end <= ROOM]


def some(indices: Tensor, count: int) -> Tensor:
    """At most that many of them, evenly spread: int64 (n,)."""
    return indices[torch.linspace(0, len(indices) - 1, min(count, len(indices))).long()]

"""Objects and classes drawn on images."""

from __future__ import annotations

import colorsys
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib import font_manager
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from resnets.config.types import InferenceOptions
from resnets.data import dataset
from resnets.data.decode import decode, largest_value_of_file, warn_clipped
from resnets.data.detection.coco import UniqueIds, unused_id
from resnets.data.inputs import Input, expand_inputs
from resnets.data.splits import Split
from resnets.escape import visible
from resnets.evaluation import detection, segmentation
from resnets.evaluation.detection import Detect
from resnets.evaluation.evaluate import fold_norms, prepare_detector
from resnets.evaluation.load import load_model
from resnets.evaluation.loader import LoaderOptions
from resnets.evaluation.predictions import SplitDetections
from resnets.evaluation.predictor import Model, name_model_in_errors
from resnets.files import write_whole
from resnets.models.segmentation import Segmenter

FONT = font_manager.findfont("DejaVu Sans")  # matplotlib brings it
Colour = tuple[int, int, int]


def colour(index: int) -> Colour:
    """Of a class: the golden angle from one hue to the next keeps neighbours apart."""
    red, green, blue = colorsys.hsv_to_rgb(index * 0.381966 % 1, 0.85, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def text_colour(paper: Colour) -> Colour:
    """Black or white, whichever has the greater contrast with a colour: WCAG 2, section 1.4.3."""
    linear = [(c / 255 + 0.055) ** 2.4 / 1.055**2.4 if c > 10 else c / 255 / 12.92 for c in paper]
    luminance = sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


def draw_box(
    image: Tensor, boxes: Tensor, classes: Sequence[int], words: Sequence[str], masks: Tensor | None
) -> Tensor:
    """An image with boxes, their words, and masks: uint8 (3, H, W), (D, 4), bool (D, H, W)."""
    colours = [colour(k) for k in classes]
    if masks is not None and len(masks):
        image = draw_segmentation_masks(image, masks, alpha=0.4, colors=colours)
    if not len(boxes):
        return image
    side = max(image.shape[1:])
    drawn: Tensor = draw_bounding_boxes(
        image,
        boxes,
        list(words),
        colors=colours,
        width=max(1, side // 300),
        font=FONT,
        font_size=max(9, side // 45),
        label_colors=[text_colour(paper) for paper in colours],
        fill_labels=True,
    )
    return drawn


def csv_row(file: Path, found: str = "", problem: str = "") -> dict[str, str]:
    """What is on an image, or why it could not be read."""
    return {"file": str(file), "found": found, "problem": problem}


def read_picture(split: Split, index: int) -> Tensor:
    """An image of files in colour: uint8 (3, H, W)."""
    assert not isinstance(split.images, Tensor)
    return torch.from_numpy(decode(split.images[index], 3, 0)).permute(2, 0, 1).contiguous()


def draw_prediction(
    split: Split, index: int, found: SplitDetections, names: Sequence[str], score: float
) -> Tensor:
    """An image with what was found on it from `score` on: uint8 (3, H, W)."""
    rows = ((found.images == index) & (found.scores >= score)).nonzero()[:, 0]
    kinds = found.classes[rows].tolist()
    chances = found.scores[rows].tolist()
    words = [f"{visible(names[k])} {chance:.2f}" for k, chance in zip(kinds, chances, strict=True)]
    masks = None
    if found.masks is not None and len(rows):
        masks = torch.stack([detection.decode_mask(found.masks[row]) for row in rows.tolist()])
    return draw_box(read_picture(split, index), found.boxes[rows], kinds, words, masks)


def draw_detections(
    network: Detect,
    model: Model,
    split: Split,
    folder: Path,
    score: float,
    ids: UniqueIds,
    loader: LoaderOptions,
) -> list[dict[str, str]]:
    """Pictures and detections.json in a folder; of each image its name and what is on it.

    In detections.json images and categories have their `ids`, or where they have none free numbers.

    Raises DiskError, and MissingPackage for masks.
    """
    assert not isinstance(split.images, Tensor)
    found = detection.detect(network, split, loader, bfloat16=model.bfloat16)
    names = model.metadata.classes
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = []
    numbers = [
        ids.images.get(path, unused_id(ids.images) + k) for k, path in enumerate(split.images)
    ]
    known = ids.categories
    categories = [known.get(name, unused_id(known) + k) for k, name in enumerate(names)]
    columns = (found.images, found.classes, found.scores, found.boxes)
    for k, values in enumerate(zip(*(x.tolist() for x in columns), strict=True)):
        image, kind, chance, (x1, y1, x2, y2) = values
        line = {"image_id": numbers[image], "file_name": str(split.images[image])}
        line |= {
            "category_id": categories[kind],
            "category": names[kind],
            "score": round(chance, 6),
        }
        line |= {"bbox": [round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)]}
        if found.masks is not None:
            height, width, runs = found.masks[k]
            line["segmentation"] = {"size": [height, width], "counts": runs.decode()}
        lines.append(line)
    write_whole(folder / "detections.json", json.dumps(lines, indent=1).encode())
    rows = [csv_row(path, problem=why) for path, why in found.unreadable]
    for index in found.indices.tolist():
        path, picture = split.images[index], draw_prediction(split, index, found, names, score)
        to_pil_image(picture).save(folder / f"{index:05d}-{path.stem}.jpg", quality=90)
        shown = (found.images == index) & (found.scores >= score)
        counts = torch.bincount(found.classes[shown], minlength=len(names)).tolist()
        words = [f"{count} {name}" for name, count in zip(names, counts, strict=True) if count]
        rows.append(csv_row(path, ", ".join(words) or "nothing"))
    return rows


def draw_segmentation(
    model: Model, split: Split, folder: Path, loader: LoaderOptions
) -> list[dict[str, str]]:
    """For each image a PNG of class indices and an overlay in a folder; its name and its classes.

    Raises DiskError.
    """
    assert not isinstance(split.images, Tensor)
    names, rows = model.metadata.classes, list[dict[str, str]]()
    folder.mkdir(parents=True, exist_ok=True)
    for batch, maps in segmentation.predict_class_maps(
        model.network, split, loader, bfloat16=model.bfloat16
    ):
        rows += [csv_row(path, problem=why) for path, why in batch.unreadable]
        for index, classes in zip(batch.indices.tolist(), maps, strict=True):
            path, given = split.images[index], classes.cpu()
            stem = f"{index:05d}-{path.stem}"
            Image.fromarray(given.byte().numpy()).save(folder / f"{stem}.png")
            picture = draw_mask(read_picture(split, index), given, len(names))
            to_pil_image(picture).save(folder / f"{stem}.jpg", quality=90)
            shares = torch.bincount(given.flatten(), minlength=len(names)) / given.numel()
            best = shares.argsort(descending=True, stable=True)[:5].tolist()
            words = [f"{names[k]} {100 * shares[k]:.0f} %" for k in best if shares[k] > 0.005]
            rows.append(csv_row(path, ", ".join(words)))
    return rows


def draw_mask(image: Tensor, classes: Tensor, kinds: int) -> Tensor:
    """An image under the colours of its pixels' classes: uint8 (3, H, W), int64 (H, W)."""
    present = [k for k in torch.unique(classes).tolist() if k < kinds]
    planes = classes == torch.tensor(present)[:, None, None]
    drawn: Tensor = draw_segmentation_masks(image, planes, 0.5, [colour(k) for k in present])
    return drawn


def draw_predictions(
    path: str | Path | Model,
    inputs: Input | Iterable[Input],
    out: Path,
    score: float,
    options: InferenceOptions,
) -> list[dict[str, str]]:
    """Draw what a detector, localiser or segmenter finds on images; a row says what, or why not."""
    model = fold_norms(load_model(path, None, options))
    loader = model.loader_options(options.images_per_batch(4), options.workers)
    ids = UniqueIds()
    items: Sequence[Any] = inputs if isinstance(inputs, list | tuple) else [inputs]
    rest = [x for x in items if not isinstance(x, str | Path) or not ids.add(Path(x))]
    files = [item for _, item in expand_inputs(rest)]
    split, bad = dataset.unlabelled_split([*files, *ids.images])
    assert isinstance(split.images, tuple)
    values = {path: largest_value_of_file(path) for path in split.images}
    warn_clipped(values, model.metadata.preprocess.white)
    with name_model_in_errors(model.path):
        if isinstance(model.network, Segmenter):
            rows = draw_segmentation(model, split, out, loader)
        else:
            network = prepare_detector([model], options)
            rows = draw_detections(network, model, split, out, score, ids, loader)
    return [csv_row(file, problem=why) for file, why in bad] + rows

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
from resnets.evaluation.coco import coco_results
from resnets.evaluation.detection import prepare_detector
from resnets.evaluation.detections import SplitDetections, decode_mask
from resnets.evaluation.load import load_model
from resnets.evaluation.loader import LoaderOptions
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


def draw_boxes(
    image: Tensor, boxes: Tensor, classes: Sequence[int], words: Sequence[str], masks: Tensor | None
) -> Tensor:
    """An image with boxes, their words, and masks: uint8 (3, H, W), (D, 4), bool (D, H, W)."""
    colours = [colour(k) for k in classes]
    if masks is not None and len(masks):
        image = draw_segmentation_masks(image, masks, alpha=0.4, colors=colours)
    if not len(boxes):
        return image
    side = max(image.shape[1:])
    picture: Tensor = draw_bounding_boxes(
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
    return picture


def draw_mask(image: Tensor, classes: Tensor, kinds: int) -> Tensor:
    """An image under the colours of its pixels' classes: uint8 (3, H, W), int64 (H, W)."""
    present = [k for k in torch.unique(classes).tolist() if k < kinds]
    planes = classes == torch.tensor(present)[:, None, None]
    picture: Tensor = draw_segmentation_masks(image, planes, 0.5, [colour(k) for k in present])
    return picture


def read_picture(split: Split, index: int) -> Tensor:
    """An image of files in colour: uint8 (3, H, W)."""
    assert not isinstance(split.images, Tensor)
    return torch.from_numpy(decode(split.images[index], 3, 0)).permute(2, 0, 1).contiguous()


def draw_prediction(
    split: Split, index: int, detections: SplitDetections, names: Sequence[str], score: float
) -> Tensor:
    """An image with what was found on it from `score` on: uint8 (3, H, W)."""
    shown = detections.take((detections.images == index) & (detections.scores >= score))
    kinds = shown.classes.tolist()
    pairs = zip(kinds, shown.scores.tolist(), strict=True)
    words = [f"{visible(names[k])} {probability:.2f}" for k, probability in pairs]
    masks = torch.stack([*map(decode_mask, shown.masks)]) if shown.masks else None
    return draw_boxes(read_picture(split, index), shown.boxes, kinds, words, masks)


def draw_predictions(
    path: str | Path | Model,
    inputs: Input | Iterable[Input],
    out: Path,
    score: float,
    options: InferenceOptions,
) -> list[dict[str, str]]:
    """Draw what a detector, localiser or segmenter finds in images; a row for each image.

    Raises DiskError, and MissingPackage for masks of objects.
    """
    model = load_model(path, None, options).fold_norms()
    loader = model.loader_options(options.images_per_batch(4), options.workers)
    ids, names = UniqueIds(), model.metadata.classes
    items: Sequence[Any] = inputs if isinstance(inputs, list | tuple) else [inputs]
    rest = [x for x in items if not isinstance(x, str | Path) or not ids.add(Path(x))]
    files = [item for _, item in expand_inputs(rest)]
    split, bad = dataset.unlabelled_split([*files, *ids.images])
    assert isinstance(split.images, tuple)
    values = {path: largest_value_of_file(path) for path in split.images}
    warn_clipped(values, model.metadata.preprocess.white)
    out.mkdir(parents=True, exist_ok=True)
    rows = [prediction_row(file, problem=why) for file, why in bad]
    with name_model_in_errors(model.path):
        if isinstance(model.network, Segmenter):
            return rows + draw_segmentation(model, split, out, loader)
        network = prepare_detector([model], options)
        detections = detection.detect(network, split, loader, bfloat16=model.bfloat16)
    write_coco_results(out / "detections.json", detections, split, names, ids)
    return rows + draw_detections(detections, split, out, names, score)


def prediction_row(file: Path, content: str = "", problem: str = "") -> dict[str, str]:
    """What is on an image, or why it could not be read."""
    return {"file": str(file), "found": content, "problem": problem}


def write_coco_results(
    path: Path, detections: SplitDetections, split: Split, names: Sequence[str], ids: UniqueIds
) -> None:
    """Detections in COCO's form of results, with the file's and the category's name.

    Images and categories have their `ids`, or where they have none free numbers.
    """
    numbers = [ids.images.get(x, unused_id(ids.images) + k) for k, x in enumerate(split.images)]
    known, lines = ids.categories, list[dict[str, Any]]()
    categories = [known.get(name, unused_id(known) + k) for k, name in enumerate(names)]
    for k, row in enumerate(coco_results(detections, masks=False)):
        image, kind = row["image_id"], row["category_id"]
        line = {
            "image_id": numbers[image],
            "file_name": str(split.images[image]),
            "category_id": categories[kind],
            "category": names[kind],
            "score": round(row["score"], 6),
            "bbox": [round(x, 2) for x in row["bbox"]],
        }
        if detections.masks is not None:
            height, width, counts = detections.masks[k]
            line["segmentation"] = {"size": [height, width], "counts": counts.decode()}
        lines.append(line)
    write_whole(path, json.dumps(lines, indent=1).encode())


def draw_detections(
    detections: SplitDetections, split: Split, folder: Path, names: Sequence[str], score: float
) -> list[dict[str, str]]:
    """A picture of each image in a folder; its name, and how many objects of each class."""
    rows = [prediction_row(path, problem=why) for path, why in detections.unreadable]
    for index in detections.indices.tolist():
        picture = draw_prediction(split, index, detections, names, score)
        path = save_picture(picture, split, index, folder)
        shown = (detections.images == index) & (detections.scores >= score)
        counts = torch.bincount(detections.classes[shown], minlength=len(names)).tolist()
        words = [f"{count} {name}" for name, count in zip(names, counts, strict=True) if count]
        rows.append(prediction_row(path, ", ".join(words) or "nothing"))
    return rows


def draw_segmentation(
    model: Model, split: Split, folder: Path, loader: LoaderOptions
) -> list[dict[str, str]]:
    """A PNG of class indices and an overlay of each image; its name and its largest classes."""
    names, rows = model.metadata.classes, list[dict[str, str]]()
    for batch, maps in segmentation.predict_class_maps(
        model.network, split, loader, bfloat16=model.bfloat16
    ):
        rows += [prediction_row(path, problem=why) for path, why in batch.unreadable]
        for index, predicted in zip(batch.indices.tolist(), maps, strict=True):
            classes = predicted.cpu()
            picture = draw_mask(read_picture(split, index), classes, len(names))
            path = save_picture(picture, split, index, folder)
            Image.fromarray(classes.byte().numpy()).save(folder / f"{index:05d}-{path.stem}.png")
            shares = torch.bincount(classes.flatten(), minlength=len(names)) / classes.numel()
            best = shares.argsort(descending=True, stable=True)[:5].tolist()
            words = [f"{names[k]} {100 * shares[k]:.0f} %" for k in best if shares[k] > 0.005]
            rows.append(prediction_row(path, ", ".join(words)))
    return rows


def save_picture(picture: Tensor, split: Split, index: int, folder: Path) -> Path:
    """Write the picture of an image of a split as JPEG; returns the image's file."""
    path = Path(str(split.images[index]))
    to_pil_image(picture).save(folder / f"{index:05d}-{path.stem}.jpg", quality=90)
    return path

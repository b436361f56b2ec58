"""The report of a segmenter: images with the true and the given classes of their pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from resnets.analysis import drawing
from resnets.data.splits import Split
from resnets.evaluation import segmentation
from resnets.evaluation.load import load
from resnets.evaluation.segmentation import SegmentationMetrics
from resnets.reporting.dense import (
    SHOWN,
    build_page,
    limit_size,
    spread,
    whole_uri,
)
from resnets.reporting.facts import percent
from resnets.reporting.page import Page, PageInputs, Picture, picture

RANKED = 12  # images that are segmented for the page


def page(inputs: PageInputs) -> Page:
    """The figures, and some images from the worst to the best."""
    facts, tested, name = inputs.facts, inputs.tested, inputs.name
    if not tested or not facts.ended["images"]:
        return build_page(inputs)
    model, chosen = load(facts.run.path), spread(torch.arange(len(tested)), RANKED)
    few, ranked = tested.take(chosen), list[tuple[float, Picture]]()
    for batch, maps in segmentation.predict_class_maps(model.network, few, model.loader_options(4)):
        for index, predicted in zip(batch.indices.tolist(), maps, strict=True):
            file = name(int(chosen[index]))
            ranked.append(compare_maps(few, index, predicted.cpu(), facts.classes, file))
    ranked.sort(key=lambda pair: pair[0])
    shown = [ranked[k][1] for k in spread(torch.arange(len(ranked)), SHOWN).tolist()]
    title = f"True and given classes, from the worst to the best of {len(ranked)} images"
    return build_page(inputs, pictures=[(title, "columns wide", limit_size(shown))])


def compare_maps(
    split: Split, index: int, predicted: Tensor, names: tuple[str, ...], file: str
) -> tuple[float, Picture]:
    """The mean IoU of an image, given the classes of its pixels (H, W), and both drawn."""
    true = segmentation.true_classes(split, index, predicted).long()
    counts = segmentation.confusion(true, predicted, len(names))
    mean_iou = SegmentationMetrics(1, counts.tolist(), names, (), "").mean_iou
    pixels = counts.sum(0) + counts.sum(1)
    frequent = pixels.argsort(descending=True, stable=True)[:6].tolist()
    image = drawing.read_picture(split, index)
    images = [
        (whole_uri(drawing.draw_mask(image, classes, len(names))), f"{source} classes")
        for source, classes in (("True", true), ("Given", predicted))
    ]
    legend = [(drawing.colour(k), names[k]) for k in frequent if pixels[k]]
    return mean_iou, picture(file, f"Mean IoU {percent(mean_iou)}", images, legend)

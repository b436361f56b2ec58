"""The report of a localiser: some images, and the most confident box of each."""

from __future__ import annotations

from typing import Any, cast

import torch

from resnets.evaluation import detection
from resnets.evaluation.load import load
from resnets.reporting.dense import SHOWN, build_page, spread
from resnets.reporting.detection import gallery
from resnets.reporting.page import Page, PageInputs


def page(inputs: PageInputs) -> Page:
    """The figures, and pictures with the true objects and the most confident box."""
    facts, tested, name = inputs.facts, inputs.tested, inputs.name
    if not tested or not facts.ended["images"]:
        return build_page(inputs)
    model, chosen = load(facts.run.path), spread(torch.arange(len(tested)), SHOWN)
    few = tested.take(chosen)
    predictions = detection.detect(cast(Any, model.network), few, model.loader_options(4))
    counts = torch.bincount(predictions.images)
    best = predictions.take((counts.cumsum(0) - counts)[counts > 0])  # they come first
    pictures = gallery(best, few, facts.classes, lambda index: name(int(chosen[index])))
    title = "True objects and the most confident box"
    return build_page(inputs, pictures=[(title, "columns wide", pictures)])

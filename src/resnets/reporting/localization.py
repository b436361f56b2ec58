"""The report of a localiser: some images, and the surest box of each."""

from __future__ import annotations

from typing import Any, cast

import torch

from resnets.evaluation import detection
from resnets.evaluation.load import load
from resnets.reporting.dense import SHOWN, build_page, loader_options, spread
from resnets.reporting.detection import gallery, select
from resnets.reporting.page import Page, PageInputs


def page(given: PageInputs) -> Page:
    """The figures, and pictures with the true objects and the surest box."""
    facts, tested, name = given.facts, given.tested, given.name
    if not tested or not facts.ended["images"]:
        return build_page(facts, given.splits)
    model, chosen = load(facts.run.path), spread(torch.arange(len(tested)), SHOWN)
    few = tested.take(chosen)
    predictions = detection.detect(cast(Any, model.network), few, loader_options(model))
    counts = torch.bincount(predictions.images)
    surest = select(predictions, (counts.cumsum(0) - counts)[counts > 0])  # they come first
    pictures = gallery(surest, few, facts.classes, lambda index: name(int(chosen[index])))
    title = "True objects and the surest box"
    return build_page(facts, given.splits, pictures=[(title, "columns wide", pictures)])

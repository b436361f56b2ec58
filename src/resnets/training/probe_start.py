"""Where fine-tuning starts: a linear probe as the classifier (Kumar et al. 2022, 2202.10054)."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from resnets.data.splits import Split
from resnets.evaluation.features import Features, feature_function, feature_rows
from resnets.evaluation.predictor import Model
from resnets.evaluation.probe import LinearProbe, concat, fit_probe, regularisation_path
from resnets.models import Classifier
from resnets.models.heads import classifier_layer
from resnets.training.plan import Plan
from resnets.training.state import State


def start_from_probe(plan: Plan, state: State) -> str:
    """Give a new state a linear probe as its classifier; what was chosen, in words.

    The probe is fitted to the features of the training images and, where training mirrors them, of
    their mirror images. How strongly it is regularised is chosen on the validation images, without
    them by cross-validation. Rank 0 fits it for all. The first row of the log is of this state,
    with the probe's loss and error on what it was fitted to.
    """
    fitted = plan.world.broadcast(fit(plan, state) if plan.world.is_main else None)
    assert fitted is not None
    probe, totals = fitted
    for network in (state.network, state.average):
        layer = classifier_layer(cast("Classifier", network))
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(probe.weight))
            layer.bias.copy_(torch.from_numpy(probe.bias))
    state.totals.copy_(totals)
    state.progress.last_logged_step = -1
    return (
        f"the classifier starts as a linear probe, C = {probe.strength:.2g}, chosen by "
        f"{probe.chosen_by}"
    )


def fit(plan: Plan, state: State) -> tuple[LinearProbe, Tensor]:
    """The probe, and float64 (3,): the sum of its losses, its errors, and rows in its fit."""
    model = Model(state.average.eval(), plan.metadata, plan.device, plan.bfloat16)
    plain, *mirrored = view_features(plan, model, plan.train, mirrored=plan.recipe.augment.flip)
    both = concat(plain, mirrored[0]) if mirrored else plain
    if plan.source.val is not None and plan.recipe.monitor == "val":
        (held_out,) = view_features(plan, model, plan.source.val)
        probe = fit_probe(both, held_out, refit=False)
    else:  # in another fold a mirror image would be no held-out image: folds are of plain ones
        chosen = fit_probe(plain)
        ((_, probe),) = regularisation_path(both, [chosen.strength], standardize=True)
        probe = replace(probe, strength=chosen.strength, chosen_by=chosen.chosen_by)
    logits = probe.logits(both.vectors)
    loss = F.cross_entropy(logits, both.labels, reduction="sum")
    wrong = (logits.argmax(1) != both.labels).sum()
    totals = torch.stack([loss, wrong, torch.tensor(len(both))]).double()
    return probe, totals


def view_features(
    plan: Plan, model: Model, split: Split, *, mirrored: bool = False
) -> list[Features]:
    """Features of the test-time view of each readable image, and of its mirror image if asked."""
    forward = feature_function(model)
    views: list[list[Tensor]] = [[], []] if mirrored else [[]]
    indices = list[Tensor]()
    for batch in plan.loader_options().batches(split):
        if not len(batch.images):
            continue
        indices.append(batch.indices)
        for rows, images in zip(views, (batch.images, batch.images.flip(-1)), strict=False):
            rows.append(feature_rows(model, forward, images))
    kept, classes = torch.cat(indices), plan.source.classes
    labels = split.labels.cpu()[kept]
    return [Features(torch.cat(x).numpy(), labels, kept, "", classes=classes) for x in views]

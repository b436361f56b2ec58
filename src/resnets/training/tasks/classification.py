"""Classification: one class for an image, or several where its labels are (N, K)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from resnets.config.arch import ClassifierArch, VitArch
from resnets.config.recipe import Augment, Recipe
from resnets.config.recipes import RECIPES, fine_tune
from resnets.config.tasks import CLASSIFY
from resnets.data.dataset import Source, Split
from resnets.data.mixup import mix_batch
from resnets.evaluation import calibration, classification, scores
from resnets.evaluation.classification import ClassificationMetrics, classification_metrics
from resnets.evaluation.evaluate import evaluate
from resnets.evaluation.predictor import Model
from resnets.models import Network
from resnets.training.losses import (
    class_weights,
    classification_loss,
    count_errors,
    distillation_loss,
    to_one_hot,
)
from resnets.training.plan import LossFunction, Plan, Stopped, Task

SCORES = "scores.safetensors"


def default_recipe(source: Source, train: Split, device: torch.device) -> Recipe:
    """The recipe that suits the number and size of the images, and the device."""
    gpu = device.type == "cuda"
    if source.name == "digits" and source.root is None:
        return RECIPES["digits"]()
    images = len(train)
    loss: Literal["bce", "cross-entropy"] = "bce" if train.labels.ndim == 2 else "cross-entropy"
    batch = 2 ** max(3, (images // 8).bit_length() - 1)  # at least eight steps an epoch
    if source.size < 64:  # the CIFAR networks are for small images
        in_memory = isinstance(train.images, torch.Tensor)
        return replace(
            RECIPES["quick-cifar10"](),
            data=source.name,
            model="resnet56" if gpu else "resnet20",
            size=0 if in_memory else 32,
            val_fraction=0.0 if source.val is not None else 0.1,
            monitor="val",
            batch=min(batch, 128),
            lr=0.2 * min(batch, 128) / 128,
            loss=loss,
            epochs=min(300.0, max(30.0, 100_000 / images)),
        )
    batch = min(batch, 64)
    return Recipe(
        model="resnet50" if gpu and images > 20_000 else "resnet18",
        data=source.name,
        size=224 if gpu else 128,
        augment=Augment(crop="area", area=(0.35, 1.0), flip=True),
        epochs=min(90.0, max(20.0, 200_000 / images)),
        batch=batch,
        lr=0.05 * batch / 64,
        loss=loss,
        warmup=0.1,
        nesterov=True,
        weight_decay=5e-4,
        decay_all=False,
        label_smoothing=0.1,
    )


def pretrained_recipe(
    source: Source, train: Split, pretrained: Model, device: torch.device
) -> Recipe | None:
    """The recipe that suits the number of images, for weights that others trained.

    A probe first, then fine-tuning; the state of the lowest validation loss is the result, the
    probe itself included. The fewer images, the more often each is shown. None for the weights of a
    detector or another such network.

    Trained on crops of the side that the weights were tested with, at the most 224 pixels on a
    processor, and tested on the whole central square at the same scale (1906.06423).
    """
    arch, preprocess, images = pretrained.metadata.arch, pretrained.metadata.preprocess, len(train)
    if not isinstance(arch, ClassifierArch):
        return None
    side = preprocess.size if device.type == "cuda" else min(preprocess.size, 224)
    square = round(side * (preprocess.resize or preprocess.size) / preprocess.size)
    if isinstance(arch, VitArch):  # of one size alone
        side = square = preprocess.size
    recipe = fine_tune()
    recipe = replace(
        recipe,
        data=source.name,
        size=square,
        train_size=side,
        crop_pct=1.0,
        epochs=min(20.0, max(3.0, 8_000 / images)),
        batch=min(recipe.batch, 2 ** max(1, (images // 8).bit_length() - 1)),
        val_fraction=0.0 if source.val is not None else 0.2,
        select="lowest-loss",
    )
    if train.labels.ndim == 2:  # several labels an image have no softmax, and no probe
        return replace(recipe, loss="bce", head="random", freeze_backbone_epochs=1.0, lr=0.01)
    return recipe


def contradictions(plan: Plan) -> Iterator[str]:
    """Losses and teachers that images with several labels cannot have."""
    if plan.multi_label and plan.recipe.loss != "bce":
        yield f"images of {plan.source.name} have several labels each: --set loss=bce"
    if plan.multi_label and plan.recipe.head == "probe":
        yield "a probe is for images with one label each: --set head=random"
    if plan.multi_label and plan.teacher:
        yield "a teacher is for images with one label each: leave teacher out"


def make_loss(plan: Plan) -> LossFunction:
    """The recipe's loss of mixed images, with the teacher's share if there is one."""
    recipe, arch, bfloat16 = plan.recipe, plan.arch, plan.bfloat16
    teacher = plan.teacher.network.to(plan.device).eval() if plan.teacher else None
    weights: Tensor | None = None
    if recipe.class_weights == "balanced":
        weights = class_weights(plan.train.labels, arch.classes).to(plan.device)

    def loss(network: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        images, targets = mix_batch(images, to_one_hot(labels, arch.classes), recipe.augment)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bfloat16):
            logits = network(images).float()
        mean = classification_loss(
            logits, targets, kind=recipe.loss, smoothing=recipe.label_smoothing, weights=weights
        )
        if teacher is not None:
            teacher_logits = scores.predict_batch(teacher, images, bfloat16=bfloat16)
            distilled = distillation_loss(logits, teacher_logits, recipe.distill_temperature)
            mean = (1 - recipe.distill_weight) * mean + recipe.distill_weight * distilled
        return mean, count_errors(logits, targets, multi_label=labels.ndim == 2)

    return loss


def validate(plan: Plan, network: Network, split: Split, stopped: Stopped) -> dict[str, float]:
    """The top-1 error and the loss."""
    batches = plan.loader_options(plan.world, stopped).batches(split)
    classes, total = plan.source.classes, plan.world.all_reduce_sum
    means = classification.evaluate(network, batches, classes, bfloat16=plan.bfloat16, total=total)
    return {"error": means.error, "loss": means.loss}


def fit_temperature(plan: Plan, model: Model) -> float | None:
    """The temperature that calibrates the probabilities on the validation images."""
    if plan.source.val is None:
        return None
    return calibration.fit_temperature(
        model.scores(plan.source.val, batch=plan.micro_batch, workers=plan.workers)
    )


def test(folder: Path, plan: Plan, model: Model, split: Split, name: str) -> ClassificationMetrics:
    """Every figure of the scores, which are kept in the folder."""
    logits = model.scores(split, batch=plan.micro_batch, workers=plan.workers)
    scores.save(folder / SCORES, logits)
    return classification_metrics(logits, name)


CLASSIFICATION = Task(
    text=CLASSIFY,
    default_recipe=default_recipe,
    pretrained_recipe=pretrained_recipe,
    is_multi_label=lambda labels: labels.ndim == 2,  # float (N, K), and not int64 (N,)
    contradictions=contradictions,
    make_loss=make_loss,
    validate=validate,
    fit_temperature=fit_temperature,
    test=test,
    details=SCORES,
    evaluate=partial(evaluate, "classify"),
)

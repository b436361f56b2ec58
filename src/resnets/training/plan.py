"""What a run will do, decided before it starts."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any, Literal

import torch

from resnets.config import arch as archs
from resnets.config import families
from resnets.config.arch import Arch
from resnets.config.recipe import Augment, Preprocess, Recipe, to_dict
from resnets.config.recipes import RECIPES
from resnets.data.dataset import Source, Split, normalization
from resnets.data.rng import draw_for_step
from resnets.device import use_bfloat16
from resnets.errors import DataError, UsageError
from resnets.evaluation.predictor import Model, is_2d, load
from resnets.models.cost import cost
from resnets.models.io.model_file import ModelMetadata
from resnets.options import Task
from resnets.training.distributed import SINGLE_PROCESS, World
from resnets.training.state import State, TrainProgress, load_pretrained

WRITING = 3.5  # seconds for the files of a result, its pictures and its report, on two cores


@dataclass(frozen=True)
class Plan:
    """A resolved run: nothing in it is left to be chosen."""

    recipe: Recipe
    arch: Arch
    source: Source
    train: Split
    preprocess: Preprocess
    device: torch.device
    bfloat16: bool
    workers: int
    world: World = SINGLE_PROCESS
    base: Model | None = None  # what training starts from
    teacher: Model | None = None
    memory_note: str = ""  # why forward passes are smaller than asked
    began: float = field(default_factory=time.monotonic)

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run; a budget replaces them once a step is measured."""
        return self.recipe.total_steps(len(self.train))

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several classes, or none."""
        return self.source.task == "classify" and self.train.labels.ndim == 2

    @property
    def local_batch(self) -> int:
        """Images of a step on this rank."""
        return self.recipe.batch // self.world.size

    @property
    def micro(self) -> int:
        """Images of one forward pass."""
        return min(self.recipe.micro_batch or self.local_batch, self.local_batch)

    @property
    def frozen_steps(self) -> int:
        """Steps at the start in which the classifier alone learns."""
        return round(self.recipe.freeze_backbone_epochs * len(self.train) / self.recipe.batch)

    @property
    def monitor_split(self) -> Split | None:
        """The images of the error curve."""
        return self.source.test if self.recipe.monitor == "test" else self.source.val

    @property
    def result_split(self) -> Split | None:
        """The images of the result: the test split where there is one."""
        return self.source.test or self.source.val

    @property
    def card(self) -> ModelMetadata:
        """What the model file will say of itself."""
        return ModelMetadata(
            arch=self.arch,
            classes=self.source.classes,
            preprocess=self.preprocess,
            provenance={
                "data": self.source.name,
                "digest": self.source.digest,
                "recipe": json.dumps(to_dict(self.recipe)),
                "resnets": version("resnets"),
                "torch": torch.__version__,
                "labels": "several" if self.multi_label else "one",
            },
        )

    def side(self, step: int, steps: int) -> int:
        """Side of the input in a training step: it grows over the first 3/4, in whole strides.

        With crop "resize" it is drawn anew at each step.
        """
        size, augment = self.recipe.train_size or self.preprocess.size, self.recipe.augment
        if augment.crop == "resize":
            low, high = augment.scale
            return low + int(draw_for_step(self.recipe.seed, step) * (high - low + 1))
        start, stride = self.recipe.progressive_from or size, 32 if size >= 128 else 4
        grown = start + (size - start) * min(1.0, step / (0.75 * steps))
        return min(size, max(start, round(grown / stride) * stride))

    def tail_seconds(self, each: float, exact: float) -> float:
        """Seconds that a run needs after its last step.

        Testing takes `each` for an image on all ranks, and `exact` on one in float32.
        """
        monitored = len(self.monitor_split or ())
        result = len(self.source.val or ()) + len(self.source.test or ())
        # All ranks end the training with an evaluation; the first tests the result, in float32.
        return WRITING + each * monitored + max(each * self.world.size, exact) * result

    def start(self) -> State:
        """The state before the first step; a classifier that `weights` do not fit stays new."""
        state = State.start(self.recipe, self.arch, self.device, self.world)
        if self.base is not None:
            for network in (state.network, state.average):
                load_pretrained(network, self.base.network.state_dict())
        state.course = TrainProgress(steps=self.steps, micro=self.micro)
        return state

    def summary(self) -> dict[str, str]:
        """The plan for a person, a line each; the measured time comes last."""
        source, recipe, size = self.source, self.recipe, self.preprocess.size
        parts = {"train": self.train, "validation": source.val, "test": source.test}
        counts = ", ".join(f"{len(s):,} {name}" for name, s in parts.items() if s is not None)
        price = cost(self.arch)
        names = ", ".join(source.classes[:6]) + (", ..." if len(source.classes) > 6 else "")
        epochs = self.steps * recipe.batch / len(self.train)
        length = f"{self.steps:,} steps of {recipe.batch}, {epochs:.1f} epochs"
        if recipe.budget:
            length = f"as many steps of {recipe.batch} as fit into {recipe.budget / 60:.3g} minutes"
        if (passes := math.ceil(self.local_batch / self.micro)) > 1:
            length += f"; {passes} forward passes of {self.micro} images make one step"
            length += self.memory_note
        return {
            "data": f"{source.name}, digest {source.digest[:12]}",
            "classes": f"{len(source.classes)}: {names}",
            "images": f"{counts}; {len(source.unreadable)} unreadable",
            "input": f"{self.preprocess.channels} x {size} x {size}, {describe(recipe.augment)}, "
            f"less the mean of each {'pixel' if recipe.normalize == 'pixel' else 'channel'}",
            "network": f"{families.label(self.arch)}, {self.arch.depth} layers"
            + (f", from {recipe.weights}" if recipe.weights else ""),
            "size": f"{price.parameters:,} parameters, {price.macs / 1e6:,.1f} M multiply-adds",
            "length": length,
            "optimiser": f"{recipe.optimizer}, rate {recipe.peak:g} {recipe.schedule}, "
            f"weight decay {recipe.weight_decay:g}",
            "machine": f"{self.device}, {recipe.precision}, {self.world.size} processes, "
            f"{torch.get_num_threads()} threads, {self.workers} workers",
        }


def describe(augment: Augment) -> str:
    """An augmentation in a few words."""
    words = [] if augment.crop == "none" else [f"{augment.crop} crop"]
    words += ["flip"] * augment.flip + ([] if augment.colour == "none" else [augment.colour])
    words += [f"cutout {augment.cutout}"] * bool(augment.cutout)
    return " + ".join(words) or "no augmentation"


def default_recipe(source: Source, train: Split, device: torch.device) -> Recipe:
    """A recipe for data that nobody named one for, by number and size of the images and device."""
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


def default_dense_recipe(source: Source, train: Split, device: torch.device, task: Task) -> Recipe:
    """A recipe for scenes that nobody named one for, by their number and the device."""
    recipe = replace(RECIPES[task](), data=source.name)
    if device.type == "cuda":
        models = {"detect": "fasterrcnn_resnet50_fpn", "segment": "deeplabv3_resnet50"}
        recipe = replace(recipe, model=models.get(task, "localizer_resnet50"), size=0)
    epochs = min(100.0, max(12.0, 30_000 / len(train)))
    # Two for segmentation, whose networks may normalise an image that is pooled to one value.
    least = 2 if task == "segment" else 1
    batch = min(recipe.batch, max(least, 2 ** max(0, (len(train) // 4).bit_length() - 1)))
    return replace(recipe, epochs=epochs, batch=batch)


def training_images(source: Source) -> Split:
    """The training split. Raises DataError when there is none."""
    if source.train is None:
        raise DataError(f"{source.name} has no training images; it needs a train/ folder or split")
    return source.train


def resolve(
    recipe: Recipe,
    source: Source,
    device: torch.device,
    workers: int,
    world: World = SINGLE_PROCESS,
) -> Plan:
    """All that follows from recipe, data and machine. Raises UsageError of all contradictions."""
    base = load(recipe.weights) if recipe.weights else None
    asked = families.arch(recipe.model)
    same = base is not None and archs.task(base.card.arch) == archs.task(asked)
    network = archs.with_fields(base.card.arch if base and same else asked, recipe.arch)
    if not is_2d(network):
        raise UsageError(f"{recipe.model} takes no 2-D images; `resnets models` lists others")
    if source.task != "classify":
        recipe = replace(recipe, size=recipe.size or network.size)
    preprocess = preprocessing(recipe, source)
    card = base.card.preprocess if base else preprocess
    if len(card.mean) == card.channels == preprocess.channels:
        # The weights know the moments that they were trained with.
        preprocess = replace(preprocess, mean=card.mean, std=card.std)
    network = replace(
        network, channels=preprocess.channels, classes=len(source.classes), size=preprocess.size
    )
    train = training_images(source)
    if isinstance(train.images, torch.Tensor):
        workers = 0
    bfloat16 = use_bfloat16(recipe.precision, device)
    # With the precision said, the recipe repeats the run on another machine too.
    recipe = replace(recipe, precision="bfloat16" if bfloat16 else "float32")
    if base and same and (model := model_name(base.card.arch)):
        recipe = replace(recipe, model=model)
    teacher = load(recipe.teacher, classes=source.classes) if recipe.teacher else None
    machine = (device, bfloat16, workers, world)
    plan = Plan(recipe, network, source, train, preprocess, *machine, base, teacher)
    if told := list(contradictions(plan)):
        raise UsageError("\n".join(told))
    return plan


def contradictions(plan: Plan) -> Iterator[str]:
    """What cannot be meant, each with its remedy."""
    recipe, source, base, teacher = plan.recipe, plan.source, plan.base, plan.teacher
    side = recipe.train_size or plan.preprocess.size
    if source.task != "classify":
        usual = Recipe(model=recipe.model)
        for name in ("loss", "class_weights", "label_smoothing", "teacher", "precise_bn"):
            if getattr(recipe, name) != getattr(usual, name):
                yield f"{name} is for classification: --set {name}={getattr(usual, name)}"
    chooses = recipe.select == "best" or recipe.early_stop_patience or recipe.schedule == "plateau"
    if chooses and (recipe.monitor == "test" or source.val is None):
        yield (
            "select=best, early_stop_patience and schedule=plateau go by validation images, never "
            "by the test: --set monitor=val, and --set val_fraction=0.1 where there are none"
        )
    if recipe.fsdp and (recipe.freeze_backbone_epochs or recipe.optimizer not in ("sgd", "adamw")):
        yield "fsdp=true is for optimizer sgd or adamw, and not with freeze_backbone_epochs"
    if recipe.batch % plan.world.size:
        yield f"batch={recipe.batch} cannot be shared by {plan.world.size} processes evenly"
    if base and (takes := base.card.arch.channels) != source.channels:
        has = f"{source.name} has {source.channels}"
        yield f"{recipe.weights} takes images of {takes} channels, {has}"
    if teacher and teacher.card.classes != source.classes:
        yield f"the teacher {recipe.teacher} knows other classes than {source.name}"
    if teacher and not same_normalization(teacher.card.preprocess, plan.preprocess):
        yield f"the teacher {recipe.teacher} normalises otherwise: --set normalize=..."
    if plan.multi_label and recipe.loss != "bce":
        yield f"images of {source.name} have several labels each: --set loss=bce"
    if plan.multi_label and teacher:
        yield "a teacher is for images with one label each: leave teacher out"
    if recipe.warmup > plan.steps and not recipe.budget:
        steps = f"{plan.steps} steps of the run"
        yield f"warmup={recipe.warmup:g} is longer than the {steps}; 0.1 is a tenth of them"
    if recipe.milestones and recipe.schedule != "step":
        yield f"milestones are for --set schedule=step, not for {recipe.schedule}"
    if recipe.progressive_from > side:
        start = f"progressive_from={recipe.progressive_from}"
        yield f"{start} is larger than the input, which grows to {side}"


def same_normalization(one: Preprocess, other: Preprocess) -> bool:
    """Whether what one network sees suits another: the same moments but for another sample."""
    pairs = zip((*one.mean, *one.std), (*other.mean, *other.std), strict=False)
    return len(one.mean) == len(other.mean) and all(abs(a - b) < 0.05 for a, b in pairs)


def model_name(arch: Arch) -> str | None:
    """The model of that architecture, whatever its input and classes."""
    own: dict[str, Any] = {k: getattr(arch, k) for k in ("channels", "classes", "size")}
    return next((name for name, k in families.FAMILY.items() if replace(k, **own) == arch), None)


def preprocessing(recipe: Recipe, source: Source) -> Preprocess:
    """How this run turns an image into the network's input, at test time."""
    images = training_images(source).images
    files = not isinstance(images, torch.Tensor)
    size = recipe.size or (224 if files else source.size)
    # ImageNet's protocol: centre 224 of the shorter side 256 (fb.resnet.torch; 224 / 256 = 0.875).
    resize = round(size / recipe.crop_pct) if files and size >= 64 else size
    if source.task != "classify":
        resize = 0  # a scene is seen whole
    if resize > 2**13:
        raise UsageError(f"size={size} of a crop_pct={recipe.crop_pct} is over 8,192 pixels")
    see = Preprocess(size=size, resize=resize, channels=source.channels, white=source.white)
    if recipe.normalize != "pixel":
        mean, std = normalization(recipe.normalize, source, source.channels)
        return replace(see, mean=mean, std=std)
    if not isinstance(images, torch.Tensor) or images.shape[-1] != size:
        raise UsageError(
            "normalize=pixel needs a data set in memory (digits, cifar10, cifar100) at its own "
            "size; use --set normalize=data"
        )
    mean_image = images.double().mean(0) / 255  # (C, H, W): 1512.03385, section 4.2
    mean = tuple(round(value, 7) for value in mean_image.flatten().tolist())
    return replace(see, mean=mean, std=(1.0,) * source.channels)

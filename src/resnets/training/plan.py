"""What a run will do, decided before it starts."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch

from resnets import arch as archs
from resnets.arch import Arch, MlpArch
from resnets.data.sources import Source, Split
from resnets.errors import DataError, UsageError
from resnets.evaluation.model import Model, load
from resnets.nets import Network
from resnets.nets.cost import cost
from resnets.nets.modelfile import Card
from resnets.recipe import Augment, Preprocess, Recipe, to_dict
from resnets.recipes import RECIPES
from resnets.training.state import adopt
from resnets.training.world import ALONE, World


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
    world: World = ALONE
    base: Model | None = None  # what training starts from
    teacher: Model | None = None
    crowded: str = ""  # why forward passes are smaller than asked
    began: float = field(default_factory=time.monotonic)

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run; a budget replaces them once a step is measured."""
        return self.recipe.total_steps(len(self.train))

    @property
    def share(self) -> int:
        """Images of a step on this rank."""
        return self.recipe.batch // self.world.size

    @property
    def micro(self) -> int:
        """Images of one forward pass."""
        return min(self.recipe.micro or self.share, self.share)

    @property
    def frozen_steps(self) -> int:
        """Steps at the start in which the classifier alone learns."""
        return round(self.recipe.frozen * len(self.train) / self.recipe.batch)

    @property
    def watched(self) -> Split | None:
        """The images of the error curve."""
        return self.source.test if self.recipe.watch == "test" else self.source.val

    @property
    def final(self) -> Split | None:
        """The images of the result: the test split where there is one."""
        return self.source.test or self.source.val

    @property
    def card(self) -> Card:
        """What the model file will say of itself."""
        return Card(
            arch=self.arch,
            classes=self.source.classes,
            preprocess=self.preprocess,
            provenance={
                "data": self.source.name,
                "digest": self.source.digest,
                "recipe": json.dumps(to_dict(self.recipe)),
                "resnets": version("resnets"),
                "torch": torch.__version__,
            },
        )

    def side(self, step: int, steps: int) -> int:
        """Side of the input in a training step: it grows over the first 3/4, in whole strides."""
        size = self.recipe.train_size or self.preprocess.size
        start, stride = self.recipe.grow_from or size, 32 if size >= 128 else 4
        grown = start + (size - start) * min(1.0, step / (0.75 * steps))
        return min(size, max(start, round(grown / stride) * stride))

    def finishing(self, testing: float) -> float:
        """Seconds that a run needs after its last step, if one evaluation takes `testing`."""
        if self.final is None or self.watched is None:
            return 2.0
        # One evaluation ends the training; the result's is in float32.
        return 2.0 + testing + 2 * testing * len(self.final) / len(self.watched)

    def initialise(self, *networks: Network) -> None:
        """Give each network the weights that the recipe starts from; a new classifier stays."""
        if self.base is not None:
            for network in networks:
                adopt(network, self.base.network.state_dict())

    def lines(self) -> dict[str, str]:
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
        passes = math.ceil(self.share / self.micro)
        if passes > 1:
            length += f"; {passes} forward passes of {self.micro} images make one step"
            length += self.crowded
        return {
            "data": f"{source.name}, digest {source.digest[:12]}",
            "classes": f"{len(source.classes)}: {names}",
            "images": f"{counts}; {len(source.unreadable)} unreadable",
            "input": f"{self.preprocess.channels} x {size} x {size}, {describe(recipe.augment)}",
            "network": f"{recipe.model}, {self.arch.depth} layers"
            + (f", from {recipe.weights}" if recipe.weights else ""),
            "size": f"{price.parameters:,} parameters, {price.macs / 1e6:,.1f} M multiply-adds",
            "length": length,
            "optimiser": (
                f"{recipe.optimizer}, rate {recipe.peak:g} {recipe.schedule}, "
                f"weight decay {recipe.weight_decay:g}"
            ),
            "machine": (
                f"{self.device}, {recipe.precision}, {self.world.size} processes, "
                f"{torch.get_num_threads()} threads, {self.workers} workers"
            ),
        }


def describe(augment: Augment) -> str:
    """An augmentation in a few words."""
    words = [] if augment.crop == "none" else [f"{augment.crop} crop"]
    words += ["flip"] * augment.flip + ([] if augment.colour == "none" else [augment.colour])
    words += [f"cutout {augment.cutout}"] * bool(augment.cutout)
    return " + ".join(words) or "no augmentation"


def choose(source: Source, train: Split, device: torch.device) -> Recipe:
    """A recipe for data that nobody named one for, by number and size of the images and device."""
    gpu = device.type == "cuda"
    if source.name == "digits":
        return RECIPES["digits"]()
    images = len(train)
    batch = 2 ** max(3, (images // 8).bit_length() - 1)  # at least eight steps an epoch
    if source.size < 64:  # the CIFAR networks are for small images
        in_memory = isinstance(train.images, torch.Tensor)
        return replace(
            RECIPES["quick-cifar10"](),
            data=source.name,
            model="resnet56" if gpu else "resnet20",
            size=0 if in_memory else 32,
            holdout=0.0 if source.val is not None else 0.1,
            watch="val",
            batch=min(batch, 128),
            lr=0.2 * min(batch, 128) / 128,
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
        warmup=0.1,
        nesterov=True,
        weight_decay=5e-4,
        decay_all=False,
        label_smoothing=0.1,
    )


def processor_flags() -> set[str]:
    """Instruction sets of this processor as Linux lists them; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return set(line.partition(":")[2].split())


def use_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether to compute in bfloat16: asked for, or `auto` where the hardware has it."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(processor_flags() & {"avx512_bf16", "amx_bf16"})


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name; `auto` is the GPU if there is one. Raises UsageError."""
    if name != "auto":
        try:
            return torch.empty(0, device=name).device
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"--device {name} cannot be used: {reason}") from None
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def training_images(source: Source) -> Split:
    """The training split. Raises DataError when there is none."""
    if source.train is None:
        raise DataError(f"{source.name} has no training images; it needs a train/ folder or split")
    return source.train


def resolve(
    recipe: Recipe, source: Source, device: torch.device, workers: int, world: World = ALONE
) -> Plan:
    """Everything that follows from a recipe, the data and the machine. Raises UsageError."""
    chooses = recipe.keep == "best" or recipe.stop_after or recipe.schedule == "plateau"
    if chooses and (recipe.watch == "test" or source.val is None):
        raise UsageError(
            "keep=best, stop_after and schedule=plateau choose by validation images, never by the "
            "test: --set watch=val, with --set holdout=0.1 where there are none"
        )
    if recipe.shard and (recipe.frozen or recipe.optimizer not in ("sgd", "adamw")):
        raise UsageError("shard=true is for optimizer sgd or adamw, and not with frozen epochs")
    base = load(recipe.weights) if recipe.weights else None
    if base and base.card.arch.channels != source.channels:
        raise UsageError(
            f"{recipe.weights} takes {base.card.arch.channels} channels, "
            f"the images of {source.name} have {source.channels}"
        )
    network = archs.changed(base.card.arch if base else archs.arch(recipe.model), recipe.arch)
    if isinstance(network, MlpArch) or getattr(network, "dims", 2) != 2:
        raise UsageError(f"{recipe.model} takes no 2-D images; `resnets models` lists others")
    if recipe.batch % world.size:
        raise UsageError(f"batch={recipe.batch} cannot be shared by {world.size} processes evenly")
    preprocess = preprocessing(recipe, source)
    if base:  # the weights know the moments that they were trained with
        card = base.card.preprocess
        if card.channels == preprocess.channels and len(card.mean) == card.channels:
            preprocess = replace(preprocess, mean=card.mean, std=card.std)
    network = replace(
        network, channels=preprocess.channels, classes=len(source.classes), size=preprocess.size
    )
    train = training_images(source)
    if isinstance(train.images, torch.Tensor):
        workers = 0
    teacher = load(recipe.teacher, classes=source.classes) if recipe.teacher else None
    if teacher and teacher.card.classes != source.classes:
        raise UsageError(f"the teacher {recipe.teacher} knows other classes than {source.name}")
    if teacher and not near(teacher.card.preprocess, preprocess):
        raise UsageError(f"the teacher {recipe.teacher} normalises otherwise: --set normalize=...")
    bfloat16 = use_bfloat16(recipe.precision, device)
    return Plan(
        # With the precision said, the recipe repeats the run on another machine too.
        recipe=replace(
            recipe,
            precision="bfloat16" if bfloat16 else "float32",
            model=named(base.card.arch) or recipe.model if base else recipe.model,
        ),
        arch=network,
        source=source,
        train=train,
        preprocess=preprocess,
        device=device,
        bfloat16=bfloat16,
        workers=workers,
        world=world,
        base=base,
        teacher=teacher,
    )


def near(one: Preprocess, other: Preprocess) -> bool:
    """Whether what one network sees suits another: the same moments but for another sample."""
    pairs = zip((*one.mean, *one.std), (*other.mean, *other.std), strict=False)
    return len(one.mean) == len(other.mean) and all(abs(a - b) < 0.05 for a, b in pairs)


def named(arch: Arch) -> str | None:
    """The model of that architecture, whatever its input and classes."""
    for name, known in archs.FAMILY.items():
        alike = replace(known, channels=arch.channels, classes=arch.classes, size=arch.size)
        if alike == arch:
            return name
    return None


def preprocessing(recipe: Recipe, source: Source) -> Preprocess:
    """How this run turns an image into the network's input, at test time."""
    files = not isinstance(training_images(source).images, torch.Tensor)
    size = recipe.size or (224 if files else source.size)
    # ImageNet's protocol: centre 224 of the shorter side 256 (fb.resnet.torch; 224 / 256 = 0.875).
    resize = round(size / recipe.crop_ratio) if files and size >= 64 else size
    if recipe.normalize == "pixel":
        mean, std = pixel_mean(training_images(source), size), (1.0,) * source.channels
    else:
        mean, std = moments(recipe.normalize, source, source.channels)
    return Preprocess(size=size, resize=resize, channels=source.channels, mean=mean, std=std)


def moments(
    normalize: Literal["data", "imagenet", "none"], source: Source, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation for a network of `channels` input channels. Raises UsageError."""
    if normalize == "none":
        return (0.0,) * channels, (1.0,) * channels
    known = source if normalize == "data" else Preprocess(size=1)
    mean, std = known.mean, known.std
    if len(mean) == channels:
        return mean, std
    if channels == 1:
        return (sum(mean) / len(mean),), (sum(std) / len(std),)
    if len(mean) == 1:
        return mean * channels, std * channels
    raise UsageError(f"no mean of {len(mean)} channels for a network of {channels}")


def pixel_mean(split: Split, size: int) -> tuple[float, ...]:
    """The mean training image, (C, H, W) flattened, in 0..1 (1512.03385, section 4.2)."""
    if not isinstance(split.images, torch.Tensor) or split.images.shape[-1] != size:
        raise UsageError(
            "normalize=pixel needs a data set in memory (digits, cifar10, cifar100) at its own "
            "size; use --set normalize=data"
        )
    mean = split.images.double().mean(0) / 255
    return tuple(round(value, 7) for value in mean.flatten().tolist())

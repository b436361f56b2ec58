"""What a run will do, decided before it starts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from resnets import arch as archs
from resnets.arch import Arch
from resnets.data.sources import Source, Split
from resnets.errors import DataError
from resnets.nets.cost import cost
from resnets.recipe import Augment, Preprocess, Recipe
from resnets.recipes import RECIPES


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

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.recipe.total_steps(len(self.train))

    def lines(self, seconds: float) -> list[tuple[str, str]]:
        """The plan for a person: (what, value), ten lines."""
        source, recipe, size = self.source, self.recipe, self.preprocess.size
        parts = {"train": self.train, "validation": source.val, "test": source.test}
        counts = ", ".join(f"{len(s):,} {name}" for name, s in parts.items() if s is not None)
        price = cost(self.arch)
        names = ", ".join(source.classes[:6]) + (", ..." if len(source.classes) > 6 else "")
        return [
            ("data", f"{source.name}, digest {source.digest[:12]}"),
            ("classes", f"{len(source.classes)}: {names}"),
            ("images", f"{counts}; {len(source.unreadable)} unreadable"),
            ("input", f"{self.preprocess.channels} x {size} x {size}, {describe(recipe.augment)}"),
            ("network", f"{recipe.model}, {self.arch.depth} layers"),
            ("size", f"{price.parameters:,} parameters, {price.macs / 1e6:,.1f} M multiply-adds"),
            (
                "length",
                f"{self.steps:,} steps of {recipe.batch}, "
                f"{self.steps * recipe.batch / len(self.train):.1f} epochs",
            ),
            (
                "optimiser",
                f"SGD, rate {recipe.lr:g} {recipe.schedule}, weight decay {recipe.weight_decay:g}",
            ),
            (
                "machine",
                f"{self.device}, {'bfloat16' if self.bfloat16 else 'float32'}, "
                f"{torch.get_num_threads()} threads, {self.workers} workers",
            ),
            ("time", f"about {duration(seconds)}, measured on this machine"),
        ]


def describe(augment: Augment) -> str:
    """An augmentation in a few words."""
    words = [] if augment.crop == "none" else [f"{augment.crop} crop"]
    words += ["flip"] * augment.flip + ([] if augment.colour == "none" else [augment.colour])
    words += [f"cutout {augment.cutout}"] * bool(augment.cutout)
    return " + ".join(words) or "no augmentation"


def duration(seconds: float) -> str:
    """Seconds for a person: 42 s, 3 min 20 s, 5 h 12 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def choose(source: Source, train: Split, device: torch.device) -> Recipe:
    """A recipe for data that nobody named one for, by number and size of the images and device."""
    gpu = device.type == "cuda"
    if source.name == "digits":
        return RECIPES["digits"]()
    images = len(train)
    batch = max(8, min(128, 2 ** ((images // 8).bit_length() - 1 if images >= 8 else 3)))
    if isinstance(train.images, torch.Tensor):
        return replace(
            RECIPES["quick-cifar10"](),
            data=source.name,
            model="resnet56" if gpu else "resnet20",
            holdout=0.0 if source.val is not None else 0.1,
            watch="val",
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
        schedule="cosine",
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
        return bool(torch.cuda.is_bf16_supported())
    return device.type == "cpu" and bool(processor_flags() & {"avx512_bf16", "amx_bf16"})


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name; `auto` is the GPU if there is one."""
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def training_images(source: Source) -> Split:
    """The training split. Raises DataError when there is none."""
    if source.train is None:
        raise DataError(f"{source.name} has no training images; it needs a train/ folder or split")
    return source.train


def resolve(recipe: Recipe, source: Source, device: torch.device, workers: int) -> Plan:
    """Everything that follows from a recipe, the data and the machine."""
    network = archs.arch(recipe.model)
    preprocess = preprocessing(recipe, source)
    network = replace(
        network, channels=preprocess.channels, classes=len(source.classes), size=preprocess.size
    )
    train = training_images(source)
    if isinstance(train.images, torch.Tensor):
        workers = 0
    return Plan(
        recipe=recipe,
        arch=network,
        source=source,
        train=train,
        preprocess=preprocess,
        device=device,
        bfloat16=use_bfloat16(recipe.precision, device),
        workers=workers,
    )


def preprocessing(recipe: Recipe, source: Source) -> Preprocess:
    """How this run turns an image into the network's input, at test time."""
    some = source.train or source.test or source.val
    files = some is None or not isinstance(some.images, torch.Tensor)
    size = recipe.size or (224 if files else source.size)
    # ImageNet's protocol: centre 224 of the shorter side 256 (fb.resnet.torch; 224 / 256 = 0.875).
    resize = round(size / 0.875) if files else (0 if size == source.size else size)
    channels = source.channels
    mean, std = source.mean, source.std
    if recipe.normalize == "imagenet":
        blank = Preprocess(size=size)
        mean, std = blank.mean, blank.std
        if channels == 1:
            mean, std = (sum(mean) / 3,), (sum(std) / 3,)
    elif recipe.normalize == "none":
        mean, std = (0.0,) * channels, (1.0,) * channels
    elif recipe.normalize == "pixel":
        mean, std = pixel_mean(training_images(source), size), (1.0,) * channels
    return Preprocess(size=size, resize=resize, channels=channels, mean=mean, std=std)


def pixel_mean(split: Split, size: int) -> tuple[float, ...]:
    """The mean training image, (C, H, W) flattened, in 0..1 (1512.03385, section 4.2)."""
    if not isinstance(split.images, torch.Tensor) or split.images.shape[-1] != size:
        raise ValueError("the per-pixel mean is of a set in memory at its own size")
    mean = split.images.double().mean(0) / 255
    return tuple(round(value, 7) for value in mean.flatten().tolist())

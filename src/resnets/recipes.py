"""Published runs, one function each: the docstring cites the source and the expected number.

At the end, how a person's own recipe is read: a file, and single fields on top of it.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from resnets import recipe as room
from resnets.errors import UsageError, nearest
from resnets.recipe import Augment, Recipe


def paper_cifar10() -> Recipe:
    """Deep Residual Learning, section 4.2: 64,000 iterations of 128 images, rate / 10 at 32k, 48k.

    Test error in % over depth 20, 32, 44, 56, 110: 8.75, 7.51, 7.17, 6.97, 6.43 (Table 6). Weight
    decay on convolutions and the classifier only, as in the authors' code. ResNet-110 needs
    `--set warmup=400` (its footnote: rate 0.01 until the training error is below 80 %).
    """
    return Recipe(
        model="resnet20",
        data="cifar10",
        normalize="pixel",
        augment=Augment(crop="pad", pad=4, flip=True),
        steps=64_000,
        batch=128,
        lr=0.1,
        schedule="step",
        drops=(0.5, 0.75),
        warmup_lr=0.01,
        warmup_shape="constant",
        weight_decay=1e-4,
        decay_all=False,
        watch="test",
    )


def quick_cifar10() -> Recipe:
    """A short schedule for CIFAR-10 on two CPU cores, ours; its measured error is in the README."""
    return Recipe(
        model="resnet20",
        data="cifar10",
        augment=Augment(crop="pad", pad=4, flip=True),
        epochs=30,
        batch=128,
        lr=0.2,
        schedule="linear",
        warmup=0.15,
        nesterov=True,
        weight_decay=5e-4,
        decay_all=False,
        ema=0.998,
        watch="test",
        eval_every=2,
    )


def paper_imagenet() -> Recipe:
    """Deep Residual Learning, section 3.4: 600,000 iterations of 256 images.

    10-crop top-1 error in % over depth 18, 34, 50, 101, 152: 27.88, 24.52, 22.85, 21.75, 21.43
    (Tables 2 and 3). The plateau steps of the paper are written as the 30th and 60th of 90 epochs
    of 1603.05027, scaled to the paper's length of 119.9 epochs.
    """
    return Recipe(
        model="resnet50_v1",
        data="imagenet",
        size=224,
        augment=Augment(crop="scale", scale=(256, 480), flip=True, colour="pca"),
        steps=600_000,
        batch=256,
        lr=0.1,
        schedule="step",
        drops=(1 / 3, 2 / 3),
        weight_decay=1e-4,
        decay_all=False,
    )


def digits() -> Recipe:
    """The embedded digits at 16 px, in seconds on two cores; ours."""
    return Recipe(
        model="resnet20",
        data="digits",
        size=16,
        augment=Augment(crop="pad", pad=2),
        epochs=60,
        batch=64,
        lr=0.1,
        schedule="linear",
        warmup=0.15,
        nesterov=True,
        weight_decay=5e-4,
        decay_all=False,
        ema=0.99,
        eval_every=5,
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    "paper-cifar10": paper_cifar10,
    "quick-cifar10": quick_cifar10,
    "paper-imagenet": paper_imagenet,
    "digits": digits,
}


def recipe(name: str) -> Recipe:
    """The recipe of that name. Raises UsageError with the nearest known names."""
    if name not in RECIPES:
        raise UsageError(f"unknown recipe {name!r}: {nearest(name, RECIPES)}")
    return RECIPES[name]()


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`augment.flip` style keys as nested dictionaries."""
    out: dict[str, Any] = {}
    for key, value in flat.items():
        head, _, tail = key.partition(".")
        if tail:
            out.setdefault(head, {})[tail] = value
        else:
            out[head] = value
    return out


def merged(base: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with some fields replaced, everything validated at once."""
    values = room.to_dict(base)
    if "epochs" in changes:
        values["steps"] = 0  # a length in epochs replaces one in steps
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            values[key] |= value
        else:
            values[key] = value
    return room.parse(values)


def read(name: str | Recipe) -> Recipe:
    """A recipe by name, or from a TOML or JSON file (a run's recipe.json runs again)."""
    if isinstance(name, Recipe):
        return name
    path = Path(name)
    if path.suffix not in {".toml", ".json"}:
        return recipe(name)
    try:
        text = path.read_text()
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        if not isinstance(values, dict):
            raise ValueError("it is not a table of fields")
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the recipe {path}: {error}") from None
    base = recipe(values.pop("recipe")) if "recipe" in values else None
    try:
        return merged(base, values) if base is not None else room.parse(values)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None

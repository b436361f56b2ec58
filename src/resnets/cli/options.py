"""Options that several verbs share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter, Token, validators

from resnets.errors import UsageError

if TYPE_CHECKING:
    from resnets.training.plan import Plan


def duration(_: object, tokens: Sequence[Token]) -> float:
    """Seconds of 90, 90s, 30m or 1.5h."""
    text = tokens[0].value
    said = re.fullmatch(r"(\d+\.?\d*|\.\d+)([smh]?)", text)
    seconds = float(said[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[said[2]] if said else 0.0
    if not seconds:
        raise UsageError(f"{text!r} is no time to train in: write 90s, 30m or 1.5h")
    return seconds


def assignments(items: Sequence[str]) -> dict[str, Any]:
    """FIELD=VALUE texts as a dictionary; a comma makes a list."""
    values: dict[str, Any] = {}
    for item in items:
        key, sign, text = item.partition("=")
        if not sign:
            raise UsageError(f"--set {item}: write FIELD=VALUE, for instance --set lr=0.1")
        values[key.strip()] = text.split(",") if "," in text else text
    return values


Json = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON.")]
Sets = Annotated[
    list[str] | None,
    Parameter(name="--set", negative="", help="FIELD=VALUE of the recipe; may be repeated."),
]
Device = Annotated[str, Parameter(help="auto, cpu, cuda or cuda:N.")]
Seconds = Annotated[float | None, Parameter(converter=duration)]
Workers = Annotated[
    int,
    Parameter(help="Processes that decode image files.", validator=validators.Number(gte=0)),
]
Count = Annotated[int, Parameter(validator=validators.Number(gte=1))]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is trained: the options that `train` and `tune` share.

    Args:
        model: A name from `resnets models`; chosen from the data when left out.
        recipe: A published recipe (paper-cifar10, quick-cifar10, ...), a TOML file, or a run's
            recipe.json.
        epochs: Passes over the training images.
        seed: Of the initial weights, the order of the images and their augmentation.
    """

    model: str | None = None
    recipe: str | None = None
    epochs: float | None = None
    seed: int | None = None
    set_: Sets = None
    device: Device = "auto"
    workers: Workers = 2

    def plan(self, data: str, budget: float | None = None, devices: int = 1) -> Plan:
        """The plan on DATA."""
        from resnets import verbs

        return verbs.plan(
            data,
            model=self.model,
            recipe=self.recipe,
            epochs=self.epochs,
            budget=budget,
            seed=self.seed,
            devices=devices,
            device=self.device,
            workers=self.workers,
            overrides=assignments(self.set_ or []),
        )


PLAIN = Asked()

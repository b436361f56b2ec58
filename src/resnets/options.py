"""How the options that several verbs share are written, and what they become."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from cyclopts import Parameter, Token, validators

from resnets.errors import UsageError

Count = Annotated[int, Parameter(validator=validators.Number(gte=1))]
Part = Annotated[float, Parameter(validator=validators.Number(gte=0, lte=1))]
Device = Annotated[str, Parameter(help="auto, cpu, cuda or cuda:N.")]
Workers = Annotated[
    int, Parameter(help="Processes that decode image files.", validator=validators.Number(gte=0))
]


def duration(_: object, tokens: Sequence[Token]) -> float:
    """Seconds of 90, 90s, 30m or 1.5h."""
    text = tokens[0].value
    said = re.fullmatch(r"(\d+\.?\d*|\.\d+)([smh]?)", text)
    seconds = float(said[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[said[2]] if said else 0.0
    if not seconds:
        raise UsageError(f"{text!r} is no time to train in: write 90s, 30m or 1.5h")
    return seconds


def assignments(fields: Mapping[str, Any] | Sequence[str]) -> dict[str, Any]:
    """Fields by name, or FIELD=VALUE texts, as a dictionary; a comma makes a list."""
    if isinstance(fields, Mapping):
        return dict(fields)
    values: dict[str, Any] = {}
    for item in fields:
        key, sign, text = item.partition("=")
        if not sign:
            raise UsageError(f"--set {item}: write FIELD=VALUE, for instance --set lr=0.1")
        values[key.strip()] = text.split(",") if "," in text else text
    return values


Seconds = Annotated[float | None, Parameter(converter=duration)]

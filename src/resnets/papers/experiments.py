"""All experiments by their ids: both papers' and those of later families. No torch here."""

from __future__ import annotations

from resnets.errors import UsageError, nearest
from resnets.papers.descendants import LATER
from resnets.papers.experiment import Experiment
from resnets.papers.preact_2016 import R2
from resnets.papers.resnet_2015 import R1

EXPERIMENTS = {e.id: e for e in R1 + R2 + LATER}


def experiment(name: str) -> Experiment:
    """The experiment of that id. Raises UsageError with the nearest known ones."""
    if name not in EXPERIMENTS:
        raise UsageError(f"no experiment {name!r}: {nearest(name, EXPERIMENTS)}")
    return EXPERIMENTS[name]

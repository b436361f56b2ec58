"""All experiments by their ids: both papers' and those of later families. No torch here."""

from __future__ import annotations

from resnets.errors import UsageError, nearest
from resnets.papers.descendants import DESCENDANTS
from resnets.papers.experiment import Experiment
from resnets.papers.preact_2016 import EXPERIMENTS_2016
from resnets.papers.resnet_2015 import EXPERIMENTS_2015

EXPERIMENTS = {e.id: e for e in EXPERIMENTS_2015 + EXPERIMENTS_2016 + DESCENDANTS}


def get_experiment(name: str) -> Experiment:
    """The experiment of that id. Raises UsageError with the nearest known ones."""
    if name not in EXPERIMENTS:
        raise UsageError(f"no experiment {name!r}: {nearest(name, EXPERIMENTS)}")
    return EXPERIMENTS[name]

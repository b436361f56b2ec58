"""Deep residual learning, complete: `resnets.train`, `resnets.load`, `resnets.create` and the rest.

The verbs of the command line are functions here, with the same names. They are imported when first
used, so that `import resnets` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from resnets.classifiers import calibrate, evaluate, explain, predict
    from resnets.data.get import get
    from resnets.evaluation.model import load
    from resnets.instruments import analyze
    from resnets.listing import data_info, models, runs
    from resnets.nets import create
    from resnets.training.rates import find_rate
    from resnets.verbs import plan, report, resume, train, tune

__all__ = [
    "analyze", "calibrate", "create", "data_info", "evaluate", "explain", "find_rate", "get",
    "load", "models", "plan", "predict", "report", "resume", "runs", "train", "tune",
]  # fmt: skip

_HOMES = {
    "analyze": "instruments", "calibrate": "classifiers", "evaluate": "classifiers",
    "explain": "classifiers", "predict": "classifiers", "create": "nets", "data_info": "listing",
    "find_rate": "training.rates", "get": "data.get",
    "load": "evaluation.model", "models": "listing", "runs": "listing",
}  # fmt: skip


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(importlib.import_module(f"resnets.{_HOMES.get(name, 'verbs')}"), name)
    raise AttributeError(f"module 'resnets' has no attribute {name!r}")

"""What the package does, as plain functions: the commands have the same names and options.

They are there as `resnets.train`, `resnets.evaluate` and so on. An argument that a function does
not have is refused with the nearest name. A wrong name or path is answered before torch is imported
and before data is read; therefore the imports inside the functions.
"""

from resnets.api.evaluation import analyze, calibrate, evaluate
from resnets.api.inference import create, explain, load, predict
from resnets.api.info import (
    data_check,
    data_get,
    data_info,
    doctor,
    list_models,
    report,
    runs,
    runs_compare,
)
from resnets.api.plans import plan
from resnets.api.training import find_rate, fit, resume, train, tune

__all__ = [
    "analyze", "calibrate", "create", "data_check", "data_get", "data_info", "doctor", "evaluate",
    "explain", "find_rate", "fit", "list_models", "load", "plan", "predict", "report", "resume",
    "runs", "runs_compare", "train", "tune",
]  # fmt: skip

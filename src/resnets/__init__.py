"""Deep residual learning, complete: `resnets.train`, `resnets.load`, `resnets.create` and the rest.

The commands are functions here, with the same names and options: see `resnets.api`. None needs
torch before it is called, so that `import resnets` costs little.
"""

from resnets.api.evaluation import analyze, calibrate, evaluate
from resnets.api.features import features, probe, search
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
from resnets.api.training import find_rate as find_rate
from resnets.api.training import fit, lr_range_test, resume, train, tune
from resnets.api.weights import (
    list_weights,
    weights_get,
    weights_import,
    weights_inspect,
    weights_where,
)

__version__ = "0.2.0.dev0"
__all__ = [
    "analyze", "calibrate", "create", "data_check", "data_get", "data_info", "doctor", "evaluate",
    "explain", "features", "fit", "list_models", "list_weights", "load", "lr_range_test", "plan",
    "predict", "probe", "report", "resume", "runs", "runs_compare", "search", "train", "tune",
    "weights_get", "weights_import", "weights_inspect", "weights_where",
]  # fmt: skip

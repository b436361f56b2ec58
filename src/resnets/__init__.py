"""Deep residual learning, complete: `resnets.train`, `resnets.load`, `resnets.create` and the rest.

The commands are functions here, with the same names: see `resnets.api`. They are imported when
first used, so that `import resnets` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.2.0.dev0"

if TYPE_CHECKING:
    from resnets.api import (
        analyze,
        calibrate,
        create,
        data_check,
        data_get,
        data_info,
        doctor,
        evaluate,
        explain,
        find_rate,
        fit,
        list_models,
        load,
        plan,
        predict,
        report,
        resume,
        runs,
        runs_compare,
        train,
        tune,
    )

__all__ = [
    "analyze", "calibrate", "create", "data_check", "data_get", "data_info", "doctor", "evaluate",
    "explain", "find_rate", "fit", "list_models", "load", "plan", "predict", "report", "resume",
    "runs", "runs_compare", "train", "tune",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name in __all__:
        from resnets import api

        return getattr(api, name)
    raise AttributeError(f"module 'resnets' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__", "__doc__", "__name__", "__file__", "__path__", "__all__"]

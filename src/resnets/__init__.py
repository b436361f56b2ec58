"""Deep residual learning, complete: `resnets.train`, `resnets.load`, `resnets.create` and the rest.

The verbs of the command line are functions here, with the same names. They are imported when first
used, so that `import resnets` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from resnets.verbs import (
        create,
        data_info,
        evaluate,
        find_rate,
        get,
        load,
        models,
        plan,
        predict,
        resume,
        runs,
        train,
        tune,
    )

__all__ = [
    "create", "data_info", "evaluate", "find_rate", "get", "load", "models", "plan", "predict",
    "resume", "runs", "train", "tune",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name in __all__:
        from resnets import verbs

        return getattr(verbs, name)
    raise AttributeError(f"module 'resnets' has no attribute {name!r}")

"""The metrics as TensorBoard events, where the package is installed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

Write = Callable[[Mapping[str, float]], None]


def open_events(folder: Path, step: int) -> Write:
    """A function that writes a row of metrics.jsonl; it does nothing without tensorboard.

    A disk that fails costs events only: it does not end the run while metrics.jsonl can be written.
    Events after `step`, which a resumed run will write again, are hidden.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(folder), purge_step=step + 1)
    except (ImportError, OSError):
        return lambda row: None

    def write(row: Mapping[str, float]) -> None:
        with contextlib.suppress(OSError):
            for name, value in row.items():
                if name != "step":
                    writer.add_scalar(name, value, row["step"])
            writer.flush()

    return write

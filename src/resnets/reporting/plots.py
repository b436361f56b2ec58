"""Pictures of a run."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from resnets.files import write_whole

BLUE, ORANGE = "#1f6feb", "#d9730d"


def curves(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Error in % (left axis) and learning rate by epoch, from the rows of metrics.jsonl."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    epochs = [row["epoch"] for row in rows]
    axes.plot(epochs, [100 * row["train_error"] for row in rows], "--", color=BLUE, label="train")
    for split in ("val", "test"):
        key = f"{split}_error"
        if rows and key in rows[-1]:
            axes.plot(epochs, [100 * row[key] for row in rows], color=ORANGE, label=split)
    axes.set(xlabel="epoch", ylabel="error (%)", ylim=(0, None))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    write(path, figure, 120)


def confusion(path: Path, matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
    """The confusion matrix, each row as a part of its true class; counts where there is room."""
    share = [[n / max(1, sum(row)) for n in row] for row in matrix]
    side = min(14.0, 2.5 + 0.45 * len(classes))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true")
    if len(classes) <= 40:
        axes.set_xticks(range(len(classes)), classes, rotation=60, ha="right", parse_math=False)
        axes.set_yticks(range(len(classes)), classes, parse_math=False)
    if len(classes) <= 20:
        for i, row in enumerate(matrix):
            for j, count in enumerate(row):
                colour = "white" if share[i][j] > 0.5 else "black"
                axes.text(j, i, str(count), ha="center", va="center", color=colour, fontsize=8)
    write(path, figure, 100)


def write(path: Path, figure: Figure, dpi: int) -> None:
    """Write the picture as a whole or not at all. Raises DiskError."""
    file = io.BytesIO()
    figure.savefig(file, dpi=dpi, format="png")
    write_whole(path, file.getvalue())

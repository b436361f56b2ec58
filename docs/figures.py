"""The figures of docs/how-it-works.md: `python docs/figures.py [NAME]...`.

Written to docs/pictures as SVG. `degradation` is drawn from results/ledger.jsonl, `gradient` is
measured here in some seconds, `paths` is counted.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from math import comb
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
PLAIN, RESIDUAL, PRE = "#c0392b", "#1f6fb5", "#2e8b57"
POST_LAYERS = ("3x3 conv", "BN", "ReLU", "3x3 conv", "BN")
PRE_LAYERS = ("BN", "ReLU", "3x3 conv", "BN", "ReLU", "3x3 conv")


def unit() -> Figure:
    """The two residual units."""
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_unit(left, "2015: y = relu(F(x) + x)", POST_LAYERS, after=("ReLU",))
    draw_unit(right, "2016: y = x + F(relu(bn(x)))", PRE_LAYERS, after=())
    return figure


def draw_unit(axes: Axes, title: str, layers: tuple[str, ...], after: tuple[str, ...]) -> None:
    """A unit from top to bottom: the shortcut on the left, the branch on the right."""
    axes.set(xlim=(-0.7, 1.9), ylim=(9.4, -0.9), title=title)
    axes.set_axis_off()
    box = {"boxstyle": "round,pad=0.35", "fc": "#eaf1f8", "ec": RESIDUAL}
    arrow = {"arrowstyle": "-|>", "lw": 1, "color": "black"}
    thick = {"arrowstyle": "-|>", "lw": 3, "color": RESIDUAL}
    axes.text(0, -0.5, "x", ha="center", va="center", style="italic", size=12)
    rows = [1 + 6 * k / (len(layers) - 1) for k in range(len(layers))]
    for y, name in zip(rows, layers, strict=True):
        axes.text(1.1, y, name, ha="center", va="center", bbox=box)
    for above, below in pairwise(rows):
        axes.annotate("", (1.1, below - 0.3), (1.1, above + 0.3), arrowprops=arrow)
    axes.annotate("", (1.1, rows[0] - 0.35), (0.05, -0.2), arrowprops=arrow)
    axes.annotate("", (0, 7.7), (0, -0.2), arrowprops=thick)
    axes.annotate("", (0.12, 7.95), (1.1, rows[-1] + 0.35), arrowprops=arrow)
    axes.text(0, 7.95, "+", ha="center", va="center", size=13, bbox={**box, "boxstyle": "circle"})
    axes.text(1.75, 4, "F", ha="center", va="center", style="italic", size=12)
    axes.text(-0.15, 4, "shortcut", ha="right", va="center", rotation=90, color=RESIDUAL)
    label = f"y = {after[0]} of the sum" if after else "y = the sum"
    axes.annotate("", (0, 9.0), (0, 8.25), arrowprops=arrow if after else thick)
    axes.text(0.15, 8.9, label, ha="left", va="center")


def degradation() -> Figure:
    """Training error over depth, from the ledger's runs at the budget cpu."""
    from resnets.papers import ledger

    figure, axes = new_axes("layers", "training error (%)")
    rows = ledger.read(ROOT)
    for experiment, name, color in (
        ("r1.fig6a", "plain", PLAIN),
        ("r1.tab6", "resnet", RESIDUAL),
    ):
        points = {
            row["layers"]: row["train_error"]
            for row in ledger.select(rows, experiment=experiment, budget="cpu", seed=0)
            if not ledger.protocol(row) and row["train_error"] is not None
        }
        depths = sorted(points)
        label = "plain" if name == "plain" else "residual"
        axes.plot(depths, [points[k] for k in depths], "o-", color=color, label=label)
    axes.set(ylim=(40, 95), xticks=(20, 32, 44, 56, 110))
    axes.legend(frameon=False)
    return figure


def gradient() -> Figure:
    """The norm of each convolution's weight gradient in fresh networks, relative to the last one's.

    The experiment r1.grads divides by the classifier's, which is left out here.
    """
    import resnets

    figure, axes = new_axes("depth of the layer (fraction of all)", "gradient norm / last layer's")
    networks = {"plain20": 0.35, "plain56": 0.65, "plain110": 1.0}
    with tempfile.TemporaryDirectory() as folder:
        for name in (*networks, "resnet56", "preresnet56"):
            rows = resnets.analyze("gradients", name, batch=128, out=Path(folder) / name).rows
            norms = [row["weight"] for row in rows[:-1]]  # the last is the classifier
            depth = [k / (len(norms) - 1) for k in range(len(norms))]
            color = PLAIN if name in networks else RESIDUAL if name == "resnet56" else PRE
            ratios = [value / norms[-1] for value in norms]
            axes.plot(depth, ratios, color=color, alpha=networks.get(name, 1.0), label=name)
            print(f"{name}: first over last {norms[0] / norms[-1]:.3g}")
    axes.set_yscale("log")
    axes.legend(frameon=False)
    return figure


def paths() -> Figure:
    """How many paths through 27 units go through k branches."""
    figure, axes = new_axes("branches on the path", "paths (millions)")
    axes.bar(range(28), [comb(27, k) / 1e6 for k in range(28)], color=RESIDUAL)
    return figure


def new_axes(x: str, y: str) -> tuple[Figure, Axes]:
    """A figure as wide as the text."""
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.2)
    axes.set(xlabel=x, ylabel=y)
    return figure, axes


FIGURES: dict[str, Callable[[], Figure]] = {
    "unit": unit, "degradation": degradation, "gradient": gradient, "paths": paths,
}  # fmt: skip

if __name__ == "__main__":
    matplotlib.rcParams["svg.hashsalt"] = "resnets"  # the same file each time
    for name in sys.argv[1:] or FIGURES:
        path = ROOT / "docs" / "pictures" / f"{name}.svg"
        FIGURES[name]().savefig(path, metadata={"Date": None})
        print(path.relative_to(ROOT))

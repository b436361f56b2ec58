"""Charts of the report: SVG in the page's own colours."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, BLUE, ORANGE = "#1b1f24", "#1f6feb", "#d9730d"
PAGE = {INK: "currentColor", BLUE: "var(--blue)", ORANGE: "var(--orange)"}
STYLE: dict[Any, Any] = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.spines.right", "axes.spines.top"), False),
    "svg.fonttype": "none",
}


def blank() -> tuple[Figure, Axes]:
    """A figure of a column's width, and its axes."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5, 3.2), layout="constrained")
        axes = figure.subplots()
        axes.grid(color=INK, alpha=0.15)
    return figure, axes


def history(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Error in % by epoch on training and watched images, from the rows of metrics.jsonl."""
    figure, axes = blank()
    mark = "o" if len(rows) < 25 else ""
    for split, line, colour in (("train", "--", BLUE), ("val", "-", ORANGE), ("test", "-", ORANGE)):
        key = f"{split}_error"
        points = [(row["epoch"], 100 * row[key]) for row in rows if key in row]
        if points:
            axes.plot(*zip(*points, strict=True), line + mark, color=colour, label=split, ms=4)
    axes.set(xlabel="epoch", ylabel="error (%)", xlim=(0, None), ylim=(0, None))
    if rows:
        axes.legend(frameon=False, labelcolor=INK)
    return figure


def reliability(bins: Sequence[tuple[int, float, float]]) -> Figure:
    """Accuracy by confidence in %, a dot for each (count, confidence, accuracy).

    On the diagonal a network is right as often as it says (1706.04599, figure 1).
    """
    figure, axes = blank()
    filled = [(100 * sure, 100 * right, count) for count, sure, right in bins if count]
    sure, right, counts = zip(*filled, strict=True)
    axes.plot([0, 100], [0, 100], "--", color=INK, alpha=0.5)
    axes.vlines(sure, sure, right, color=ORANGE)
    axes.scatter(sure, right, [20 + 180 * n / max(counts) for n in counts], color=BLUE, zorder=3)
    axes.set(xlabel="confidence (%)", ylabel="right (%)", xlim=(0, 103), ylim=(0, 103))
    return figure


def svg(figure: Figure, caption: str) -> Markup:
    """The figure as an element of a page, named by the caption of that id."""
    file = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": caption}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    # What would meet the page's own: ids of groups, a style sheet, a font; and links.
    own = r'(?<=<g) id="[^"]*"|<style.*?</style>|<metadata>.*?</metadata>|font-family:[^;]*;'
    text = re.sub(own, "", file.getvalue(), flags=re.DOTALL)
    for colour, name in PAGE.items():
        text = text.replace(colour, name)
    start = f'<svg role="img" aria-labelledby="{caption}" '
    return Markup(start + text[text.index("viewBox") :])

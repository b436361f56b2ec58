"""Charts of the report, SVG in the page's own colours, and pictures."""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from resnets.analysis.instruments import Plot
from resnets.escape import visible

INK, BLUE, ORANGE = "#1b1f24", "#1f6feb", "#d9730d"
PAGE = {INK: "currentColor", BLUE: "var(--blue)", ORANGE: "var(--orange)"}
STYLE: dict[Any, Any] = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.spines.right", "axes.spines.top"), False),
    "svg.fonttype": "none",
}


def new_figure() -> tuple[Figure, Axes]:
    """A figure of a column's width, and its axes."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5, 3.2), layout="constrained")
        axes = figure.subplots()
        axes.grid(color=INK, alpha=0.15)
    return figure, axes


STYLES = (("--", BLUE), ("-", ORANGE), (":", ORANGE), ("-", BLUE))


def history(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    labels: Mapping[str, str],
    axis: str,
    scale: float = 100,
) -> Markup:
    """Columns of metrics.jsonl by epoch, with their labels; `axis` names the unit."""
    figure, axes = new_figure()
    mark = "o" if len(rows) < 25 else ""
    present = [key for key in labels if any(key in row for row in rows)]
    for key, (line, colour) in zip(present, STYLES, strict=False):
        points = [(row["epoch"], scale * row[key]) for row in rows if key in row]
        axes.plot(*zip(*points, strict=True), line + mark, color=colour, label=labels[key], ms=4)
    axes.set(xlabel="epoch", ylabel=axis, xlim=(0, None), ylim=(0, None))
    if rows:
        axes.legend(frameon=False, labelcolor=INK)
    return svg(figure, name)


def columns(rows: Sequence[Mapping[str, Any]], plot: Plot) -> bytes:
    """Columns of an instrument's rows over one of them, as SVG."""
    file, (figure, axes) = io.BytesIO(), new_figure()
    xs = [row[plot.x] for row in rows]
    percent = plot.ylabel.endswith("(%)")
    for column, style in zip(plot.ys, (plot.style, "--"), strict=False):
        ys = [row[column] * (100 if percent else 1) for row in rows]
        if not style:
            axes.bar(xs, ys, 0.4, color="white", edgecolor=INK, hatch="//")
        else:
            axes.plot(xs, ys, style, color=INK, ms=3, label=column.replace("_", " "))
            axes.locator_params("x", integer=isinstance(xs[0], int))
    scale = plot.scale if any(row[plot.ys[0]] for row in rows) else "linear"
    axes.set(xlabel=plot.xlabel or plot.x, ylabel=plot.ylabel, yscale=scale)
    if percent:
        axes.set_ylim(0, None)
    if len(plot.ys) > 1:
        axes.legend(frameon=False)
    figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def precision(curves: Mapping[str, Sequence[float]]) -> Figure:
    """Precision over recall in %, 101 points for each class; of many classes the mean is named."""
    figure, axes = new_figure()
    percents = 100 * np.array([*curves.values()]).reshape(-1, 101)
    if len(curves) > len(STYLES):
        axes.plot(percents[:100].T, color=INK, alpha=0.2, lw=1)
        axes.plot(percents.mean(0), color=BLUE, lw=3, label="mean")
    else:
        for points, name, (line, colour) in zip(percents, curves, STYLES, strict=False):
            axes.plot(points, line, color=colour, label=f"{points.mean():.0f} % {visible(name)}")
    axes.set(xlabel="recall (%)", ylabel="precision (%)", xlim=(0, 103), ylim=(0, 103))
    for text in axes.legend(frameon=False, labelcolor=INK).get_texts():
        text.set_parse_math(False)
    return figure


def reliability(bins: Sequence[tuple[int, float, float]]) -> Figure:
    """Accuracy by confidence in %, a dot for each (count, confidence, accuracy).

    On the diagonal a network is right as often as it says (1706.04599, figure 1).
    """
    figure, axes = new_figure()
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
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": caption}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the page has fonts for any class's name
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    # What would meet the page's own: ids of groups, a style sheet, a font; and links.
    clashing = r'(?<=<g) id="[^"]*"|<style.*?</style>|<metadata>.*?</metadata>|font-family:[^;]*;'
    text = re.sub(clashing, "", file.getvalue(), flags=re.DOTALL)
    for colour, name in PAGE.items():
        text = text.replace(colour, name)
    start = f'<svg role="img" aria-labelledby="{caption}" '
    return Markup(start + text[text.index("viewBox") :])


def image_uri(image: Image.Image) -> str:
    """The picture as an address that holds it."""
    file = io.BytesIO()
    image.save(file, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"

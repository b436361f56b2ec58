"""The site: `make docs` writes it to build/site, without network; every warning is an error."""

import re
import sys
from pathlib import Path

from docutils.nodes import SkipNode
from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx

import resnets

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(Path(__file__).parent / "_ext"))
import ledger_tables  # noqa: E402
import reference  # noqa: E402

project, author, release = "resnets", "the resnets developers", resnets.__version__
copyright = "the resnets developers, Apache-2.0"
extensions = ["myst_nb"]
exclude_patterns = ["notebooks/*.py"]
nitpicky = True
html_theme = "furo"
html_title = f"resnets {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = html_show_sphinx = False
html_math_renderer = "mathml"
highlight_language = "text"
smartquotes = False  # two hyphens of an option stay two
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b5cad", "color-brand-content": "#0b5cad"},
    "dark_css_variables": {"color-brand-primary": "#7cb8f2", "color-brand-content": "#7cb8f2"},
}
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the notebooks are stored with their outputs; a test runs them


def draw(app: Sphinx, name: str, source: list[str]) -> None:
    """Fill in what a page draws from the code, from the ledger, or from a file of the root."""
    drawings = {
        "drawn": lambda what: reference.DRAWN[what](),
        "results": lambda what: ledger_tables.results(ROOT, what, depth=name.count("/")),
        "copied": copied,
    }
    for kind, drawing in drawings.items():
        line = re.compile(rf"^<!-- {kind}: (\S+) -->$", re.MULTILINE)
        source[0] = line.sub(lambda match, drawing=drawing: drawing(match[1]), source[0])


def copied(file: str) -> str:
    """A file of the root as a page of docs/project."""
    text = (ROOT / file).read_text("utf-8").replace("](docs/", "](../")
    return re.sub(r"\]\(([A-Z]+)\.md", lambda match: f"]({match[1].lower()}.md", text)


def mathml(self, node, block: bool) -> None:
    """A formula as MathML, which browsers draw without a script."""
    formula = latex2mathml.tex2mathml(node.astext(), as_block=block)
    tag = "div" if block else "span"
    self.body.append(f'<{tag} class="math">{formula}</{tag}>')
    raise SkipNode


def setup(app: Sphinx) -> None:
    """Fill in drawn parts before parsing, and write formulas as MathML."""
    app.connect("source-read", draw)
    app.add_html_math_renderer(
        "mathml",
        (lambda self, node: mathml(self, node, block=False), None),
        (lambda self, node: mathml(self, node, block=True), None),
    )

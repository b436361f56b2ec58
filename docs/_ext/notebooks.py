"""Run the notebooks of docs/notebooks and store their outputs: `python docs/_ext/notebooks.py`.

A notebook is a pair: NAME.py is what a person edits, NAME.ipynb has the same cells with outputs.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import jupytext
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parents[1] / "notebooks"


def execute(path: Path, folder: Path) -> NotebookNode:
    """Run the cells of a .py in a folder. Raises CellExecutionError."""
    notebook = jupytext.read(path)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # the same file each time
        cell.metadata.pop("execution", None)
    notebook.metadata.pop("language_info", None)
    return notebook


if __name__ == "__main__":
    for path in sorted(FOLDER.glob("*.py")):
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(path, Path(folder))
        jupytext.write(notebook, path.with_suffix(".ipynb"))
        print(path.with_suffix(".ipynb").name)

"""Tables of the papers beside what was reached here, from results/ledger.jsonl."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from resnets.papers import ledger
from resnets.papers.experiments import EXPERIMENTS


@cache
def sections(root: Path) -> dict[str, str]:
    """The part of each experiment of docs/results.md, which `resnets reproduce` writes."""
    text = (root / "docs" / "results.md").read_text("utf-8")
    parts = text.split("\n## ")[1:]
    headings = [part.partition("\n") for part in parts]
    return {head.rpartition("(")[2].rstrip(")"): body.strip() for head, _, body in headings}


def results(root: Path, experiment: str, depth: int = 0) -> str:
    """An experiment: the command that reruns it, the paper's figures, and ours."""
    one = EXPERIMENTS[experiment]
    rows = ledger.select(ledger.read(root), experiment=experiment)
    text = sections(root)[experiment].replace("(pictures/", f"({'../' * depth}pictures/")
    command = f"Experiment `{experiment}`: `resnets reproduce {experiment} --budget full`"
    if one.external_data:
        command += " with `--data FOLDER`"
    if one.not_runnable:
        command = f"Experiment `{experiment}`, which no single command reruns"
    return f"{command}; {len(rows)} rows in the ledger.\n\n{text}"

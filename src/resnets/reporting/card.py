"""The model card of a run: README.md for people, with a header that a model hub reads."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

from resnets.analysis.findings import image_name
from resnets.escape import escape_markdown
from resnets.files import write_whole
from resnets.reporting.facts import RunFacts, figures
from resnets.reporting.report import PAGES, sentences


def write(facts: RunFacts) -> Path:
    """Write README.md into the folder of a run. Raises CheckpointError, DiskError."""
    page = PAGES.get_template("card.md").render(
        facts=facts,
        text=facts.text,
        figures=figures(facts),
        sentences=sentences(facts, partial(image_name, None)),
    )
    path = facts.run.path / "README.md"
    write_whole(path, page.encode("utf-8", "backslashreplace"))
    return path


def yaml(value: object) -> str:
    """A value as JSON, which YAML contains but for bare control characters and surrogates."""
    text = json.dumps(value, ensure_ascii=False)
    bare = r"[\x7f-\x9f\ud800-\udfff\ufeff\ufffe\uffff]"
    return re.sub(bare, lambda sign: f"\\u{ord(sign[0]):04x}", text)


PAGES.filters |= {"yaml": yaml, "plain": escape_markdown}
